//! Membership: hellos, and nodes with the same name.

use super::event::ClusterEvent;
use super::message::{Body, Hello, HelloState, NODES_MAX, Sender};
use super::node::{ClusterNode, Membership};
use super::remote_node::{NODE_TIMEOUT, RemoteNode};
use super::types::MessageSubject;
use std::time::Duration;

/// Time between two hellos.
const HELLO_INTERVAL: Duration = Duration::from_secs(1);

/// Time for which a node that starts waits for hellos, to find the other nodes and another one of its name.
const CHECK_TIME: Duration = Duration::from_secs(2);

/// Time after which a silent node is forgotten, in lifetimes of peers.
const FORGET_LIFETIMES: u32 = 2;

impl ClusterNode {
    /// Publishes that the node ends.
    pub fn leave(&mut self, now: Duration) {
        if self.membership == Membership::Active {
            self.send_hello(now, HelloState::Leaving);
        }
    }

    /// Lets the node take part when it has waited long enough for another one of its name; publishes a hello each
    /// second.
    pub(super) fn tick_membership(&mut self, now: Duration) {
        match self.membership {
            Membership::Checking(since) if now.saturating_sub(since) >= CHECK_TIME => {
                self.membership = Membership::Active;
                self.publish_hello(now);
            }
            Membership::Refused(heard_at) if now.saturating_sub(heard_at) >= NODE_TIMEOUT => {
                self.report(now, ClusterEvent::NameFree(self.settings.node.clone()));
                self.membership = Membership::Checking(now);
            }
            _ => {}
        }
        if now.saturating_sub(self.hello_at) >= HELLO_INTERVAL {
            self.sent_batches.expire(now);
            self.publish_hello(now);
            self.forget_silent_nodes(now);
        }
    }

    pub(super) fn publish_hello(&mut self, now: Duration) {
        let state = match self.membership {
            Membership::Unconnected => return,
            Membership::Checking(_) => HelloState::Checking,
            Membership::Active => HelloState::Active,
            Membership::Refused(_) => HelloState::Refused,
        };
        self.send_hello(now, state);
    }

    /// Publishes a hello at once for a node that starts, but not more often than ten times a second.
    fn publish_hello_early(&mut self, now: Duration) {
        if now.saturating_sub(self.hello_at) >= HELLO_INTERVAL / 10 {
            self.publish_hello(now);
        }
    }

    fn send_hello(&mut self, now: Duration, state: HelloState) {
        self.hello_at = now;
        let hello = Hello {
            state,
            next: self.sent_batches.next(),
            oldest: self.sent_batches.oldest(),
            sent_at: now.as_secs() as i64,
            peer_lifetime_secs: self.settings.peer_lifetime_secs,
            key_digest: self.settings.key_digest,
            torrents: self.swarms.torrents,
            is_complete: self.is_complete(),
            has_older_state: self.settings.has_older_state,
        };
        let message = self.encode(&Body::Hello(hello), &[]);
        self.send(MessageSubject::Hello, message.into());
    }

    fn forget_silent_nodes(&mut self, now: Duration) {
        let mut lost = Vec::new();
        for (name, node) in &mut self.nodes {
            let silence = now.saturating_sub(node.last_hello_at);
            if node.is_present && silence >= NODE_TIMEOUT {
                node.is_present = false;
                lost.push(ClusterEvent::NodeLost(name.clone(), silence));
            }
        }
        lost.into_iter().for_each(|event| self.report(now, event));
        let lifetime = Duration::from_secs(self.settings.peer_lifetime_secs.into());
        let forget_after = (lifetime * FORGET_LIFETIMES).max(NODE_TIMEOUT * 2);
        self.nodes.retain(|_, node| now.saturating_sub(node.last_hello_at) < forget_after);
        self.failed_sources.retain(|name, _| self.nodes.contains_key(name));
    }

    /// Handles a hello of a node with the own name: this node itself, or another one. The one that was started earlier
    /// takes part.
    pub(super) fn receive_from_own_name(
        &mut self,
        now: Duration,
        sender: &Sender<'_>,
        hello: &Hello,
    ) {
        if sender.boot == self.settings.boot || hello.state == HelloState::Leaving {
            return;
        }
        let name = self.settings.node.clone();
        // A node that was upgraded in place was started later than this one, and keeps the name.
        let keeps_name = sender.boot < self.settings.boot
            || self.is_refused() && hello.state == HelloState::Active;
        if !keeps_name {
            self.publish_hello_early(now);
            self.report_once(now, ClusterEvent::NameUsed(name));
        } else if hello.state != HelloState::Refused && !self.is_within_grace(now) {
            if !self.is_refused() {
                self.report(now, ClusterEvent::NameTaken(name));
                self.nodes.clear();
                self.incoming = None;
                self.end_outgoing();
            }
            self.membership = Membership::Refused(now);
        }
    }

    /// Returns whether messages of the process that this one has replaced may still arrive.
    fn is_within_grace(&self, now: Duration) -> bool {
        let grace = |since| now.saturating_sub(since) < CHECK_TIME / 2;
        matches!(self.membership, Membership::Checking(since) if grace(since))
    }

    pub(super) fn receive_hello(&mut self, now: Duration, sender: &Sender<'_>, hello: &Hello) {
        let name = sender.node;
        let is_known = self.nodes.contains_key(name);
        if !is_known && !self.make_space_for_node() {
            self.counts.ignored_messages += 1;
            return self.report_once(now, ClusterEvent::TooManyNodes(name.to_owned()));
        }
        if matches!(hello.state, HelloState::Checking | HelloState::Refused) {
            // Its name may be that of another node. It waits for hellos of the other nodes.
            if !is_known && self.membership == Membership::Active {
                self.publish_hello_early(now);
            }
            return;
        }
        let is_same_boot = |node: &&mut RemoteNode| node.boot == sender.boot;
        let same = self.nodes.get_mut(name).filter(is_same_boot);
        let was_set_back = same.is_some_and(|node| node.was_set_back(hello));
        let node = match self.nodes.get_mut(name) {
            Some(node) if node.boot == sender.boot && !was_set_back => node,
            // Another node of this name: the one that was started later stays until it is silent.
            Some(node) if sender.boot < node.boot && node.is_present => return,
            _ if hello.state == HelloState::Leaving => return,
            _ => {
                let node = RemoteNode::new(now, sender.boot, hello, self.nodes.get(name));
                self.nodes.insert(name.to_owned(), node);
                let Some(node) = self.nodes.get_mut(name) else { return };
                node
            }
        };
        let previous = node.is_present.then_some(node.hello);
        let has_missed = node.record_hello(now, hello);
        node.is_present = hello.state == HelloState::Active;
        if previous.is_none() {
            node.batches.restart_requests();
        }
        if has_missed {
            self.report_missed(now, name);
        }
        match (previous.is_some(), hello.state == HelloState::Active) {
            (false, true) => self.report(now, ClusterEvent::NodeFound(name.to_owned())),
            (true, false) => self.report(now, ClusterEvent::NodeLeft(name.to_owned())),
            _ => {}
        }
        if hello.state == HelloState::Active {
            self.report_differences(now, name, previous, hello);
        }
    }

    /// Forgets an absent node if there are too many; returns whether there is space for another one.
    fn make_space_for_node(&mut self) -> bool {
        if self.nodes.len() < NODES_MAX {
            return true;
        }
        let absent = self.nodes.iter().filter(|(_, node)| !node.is_present);
        let oldest =
            absent.min_by_key(|(_, node)| node.last_hello_at).map(|(name, _)| name.clone());
        oldest.is_some_and(|name| self.nodes.remove(&name).is_some())
    }

    /// Reports settings of a node that differ from those of this one, unless its previous hello had the same.
    fn report_differences(
        &mut self,
        now: Duration,
        name: &str,
        previous: Option<Hello>,
        hello: &Hello,
    ) {
        let (other, own) = (hello.peer_lifetime_secs, self.settings.peer_lifetime_secs);
        if other != own && previous.is_none_or(|it| it.peer_lifetime_secs != other) {
            self.report(now, ClusterEvent::DifferentLifetime { node: name.to_owned(), other, own });
        }
        let digest = hello.key_digest;
        if digest != self.settings.key_digest && previous.is_none_or(|it| it.key_digest != digest) {
            self.report(now, ClusterEvent::DifferentKeys(name.to_owned()));
        }
    }
}
