//! Attaches the program to the interfaces, keeps its settings and addresses current, and reads its counters.

use super::command::{XdpCommand, XdpSettings};
use super::privileged::{Capabilities, attach};
use crate::clock::Clock;
use crate::config::XdpConfig;
use crate::policy::NetworkRules;
use crate::process::interfaces::{HostInterface, host_addresses, host_interfaces, receive_queues};
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use crate::stats::xdp_status::{XdpInterfaceStatus, XdpStatus};
use crate::text::plural;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tsubame_storage::Family;
use tsubame_udp::connection_id::ConnectionIds;
use tsubame_udp::xdp::{
    AttachedInterface, Filter, FilterOutcome, FilterSettings, NetworkRule, XdpError, XdpMode,
};

/// How often interfaces, addresses and counters are read.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time after which an interface to which the program could not be attached is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A configured interface.
#[derive(Debug)]
struct XdpInterface {
    name: String,
    attached: Option<AttachedInterface>,
    /// The hardware address that the program checks.
    mac: Option<[u8; 6]>,
    /// The last problem, and when attaching is tried again.
    problem: Option<(String, Duration)>,
}

/// The state of the thread.
pub(super) struct XdpControl {
    filter: Filter,
    mode: Option<XdpMode>,
    listen: Vec<SocketAddr>,
    interfaces: Vec<XdpInterface>,
    settings: Option<FilterSettings>,
    /// Networks that have not been written yet.
    new_networks: Option<NetworkRules>,
    /// Whether there are settings that are not in force yet.
    is_changed: bool,
    /// Time since 1970 of the settings in force, in seconds.
    applied_unix_secs: u64,
    clock: Clock,
    status: Arc<XdpStatus>,
}

impl XdpControl {
    pub(super) fn new(
        filter: Filter,
        config: &XdpConfig,
        listen: Vec<SocketAddr>,
        (clock, status): (Clock, Arc<XdpStatus>),
    ) -> Self {
        let interface = |name: &String| XdpInterface {
            name: name.clone(),
            attached: None,
            mac: None,
            problem: None,
        };
        Self {
            filter,
            mode: config.mode,
            listen,
            interfaces: config.interfaces.iter().map(interface).collect(),
            settings: None,
            new_networks: None,
            is_changed: false,
            applied_unix_secs: 0,
            clock,
            status,
        }
    }

    /// Handles commands and keeps everything current until it is told to stop.
    pub(super) fn run(mut self, commands: &Receiver<XdpCommand>) {
        loop {
            match commands.recv_timeout(INTERVAL) {
                Ok(XdpCommand::Apply(settings, reply)) => {
                    let XdpSettings { ids, explain_wrong_connection_id, networks } = *settings;
                    let passes_wrong_ids = explain_wrong_connection_id;
                    self.settings = Some(FilterSettings { ids, passes_wrong_ids });
                    (self.new_networks, self.is_changed) = (Some(networks), true);
                    self.update();
                    if let Some(reply) = reply {
                        let problems = self.interfaces.iter().filter_map(|it| it.problem.clone());
                        let _ = reply.send(problems.map(|(problem, _)| problem).collect());
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.update(),
                Ok(XdpCommand::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.interfaces.iter_mut().for_each(|interface| interface.attached = None);
        self.publish();
        let stats = self.status.stats.read();
        tracing::info!(
            "udp.xdp: detached; {} connects were answered by XDP, and {} requests dropped",
            stats.requests(Outcome::Connected),
            stats.rejected() + stats.refused_by_policy()
        );
    }

    fn update(&mut self) {
        let found = host_interfaces();
        self.set_addresses(&found);
        self.apply_settings();
        if self.settings.is_some() {
            for number in 0..self.interfaces.len() {
                let name = &self.interfaces[number].name;
                self.update_interface(number as u16, found.get(name));
            }
        }
        self.publish();
    }

    /// Sets the addresses on which the tracker listens: those of wildcard sockets are all addresses of this host.
    fn set_addresses(&mut self, found: &BTreeMap<String, HostInterface>) {
        let local: BTreeSet<IpAddr> = host_addresses(found).into_iter().collect();
        let mut listeners = BTreeSet::new();
        for listen in &self.listen {
            let is_covered = |ip: &&IpAddr| {
                **ip == listen.ip()
                    || listen.ip().is_unspecified() && ip.is_ipv4() == listen.is_ipv4()
            };
            let covered = local.iter().filter(is_covered);
            listeners.extend(covered.map(|ip| SocketAddr::new(*ip, listen.port())));
        }
        if let Err(error) = self.filter.set_addresses(&listeners, &local) {
            tracing::error!("udp.xdp: {error}; new addresses are served over sockets only");
        }
    }

    /// Puts changed settings and new epochs of connection ids in force.
    fn apply_settings(&mut self) {
        let Some(settings) = &self.settings else { return };
        let (now, unix_secs) = (self.clock.elapsed(), self.clock.now().unix_secs);
        if let Some(NetworkRules { networks, refuses_others }) = &self.new_networks {
            let rule = |(network, is_refused): (&IpNet, &bool)| NetworkRule {
                address: network.network(),
                prefix_len: network.prefix_len(),
                is_refused: *is_refused,
            };
            match self.filter.set_networks(networks.iter().map(rule), *refuses_others, now) {
                Ok(false) => return,
                Ok(true) => self.new_networks = None,
                Err(error) => {
                    tracing::error!(
                        "udp.xdp: {error}; requests from refused networks are dropped behind the network stack"
                    );
                    self.new_networks = None;
                }
            }
        }
        if !self.is_changed && ConnectionIds::is_same_epoch(unix_secs, self.applied_unix_secs) {
            return;
        }
        match self.filter.apply(settings, unix_secs, now) {
            Ok(true) => (self.is_changed, self.applied_unix_secs) = (false, unix_secs),
            Ok(false) => {}
            Err(error) => {
                tracing::error!("udp.xdp: {error}; XDP is switched off");
                (self.is_changed, self.applied_unix_secs) = (false, unix_secs);
                self.interfaces.iter_mut().for_each(|interface| interface.attached = None);
                self.settings = None;
            }
        }
    }

    /// Attaches the program to an interface that has appeared, and follows changes of its hardware address.
    fn update_interface(&mut self, number: u16, found: Option<&HostInterface>) {
        let interface = &mut self.interfaces[usize::from(number)];
        let now = self.clock.elapsed();
        let attached_to = interface.attached.as_ref().map(AttachedInterface::index);
        if let Some(index) = attached_to
            && found.is_none_or(|found| found.index != index)
        {
            tracing::warn!(
                "udp.xdp.interfaces: {} has gone; its requests are answered by XDP again once it returns",
                interface.name
            );
            self.filter.remove_interface(index);
            (interface.attached, interface.problem) = (None, None);
        }
        if interface.problem.as_ref().is_some_and(|(_, retry_at)| now < *retry_at) {
            return;
        }
        let problem = match found.map(|found| (found.index, found.mac)) {
            None => Some(format!(
                "{} is not a network interface of this host; write one that `ip link` lists",
                interface.name
            )),
            Some((_, None)) => {
                Some(format!("{} is not an Ethernet interface; remove it", interface.name))
            }
            Some((index, Some(mac))) if interface.attached.is_some() => {
                if interface.mac != Some(mac) && self.filter.set_mac(index, number, mac).is_ok() {
                    interface.mac = Some(mac);
                }
                None
            }
            Some((index, Some(mac))) => {
                let name = interface.name.clone();
                let counters_and_mac = (number, mac);
                match self.attach((&name, index), counters_and_mac) {
                    Ok(attached) => {
                        let interface = &mut self.interfaces[usize::from(number)];
                        (interface.attached, interface.mac) = (Some(attached), Some(mac));
                        None
                    }
                    Err(error) => {
                        self.filter.remove_interface(index);
                        Some(error.to_string())
                    }
                }
            }
        };
        let interface = &mut self.interfaces[usize::from(number)];
        if let Some(problem) = &problem
            && interface.problem.as_ref().is_none_or(|(before, _)| before != problem)
        {
            tracing::warn!("udp.xdp.interfaces: {problem}; its requests are answered over sockets");
        }
        interface.problem = problem.map(|problem| (problem, now + RETRY_INTERVAL));
    }

    /// Attaches the program to an interface; without a configured mode, in the driver if that is possible.
    fn attach(
        &mut self,
        interface: (&str, u32),
        counters_and_mac: (u16, [u8; 6]),
    ) -> Result<AttachedInterface, XdpError> {
        let (filter, clock) = (&mut self.filter, self.clock);
        let mut try_mode = |mode| attach(filter, interface, counters_and_mac, mode, clock);
        let mut capabilities = Capabilities::raise();
        let attached = match try_mode(self.mode.unwrap_or(XdpMode::Native)) {
            Err(error @ XdpError::Unsupported { .. }) if self.mode.is_none() => {
                tracing::warn!("udp.xdp: {error}; generic mode is used meanwhile, which is slower");
                try_mode(XdpMode::Generic)
            }
            result => result,
        };
        capabilities.lower();
        let attached = attached?;
        tracing::info!(
            "udp.xdp: {} answers connects in {} mode, {}; firewall rules, connection tracking and tcpdump do not see \
             what it answers or drops (docs/xdp.md)",
            interface.0,
            attached.mode(),
            plural(receive_queues(interface.0) as u64, "receive queue")
        );
        Ok(attached)
    }

    /// Publishes the counters of the program.
    fn publish(&self) {
        let counts = self.filter.counts();
        let mut stats = ShardStats::default();
        for (outcome, by_family) in FilterOutcome::ALL.into_iter().zip(counts.requests) {
            for (family, count) in Family::ALL.into_iter().zip(by_family) {
                stats.set_requests(Protocol::Udp, family, Outcome::from(outcome), count);
            }
        }
        (stats.received_bytes, stats.sent_bytes) = (counts.received_bytes, counts.sent_bytes);
        self.status.stats.publish(&stats, self.clock.now().monotonic);
        let status = |(number, interface): (usize, &XdpInterface)| XdpInterfaceStatus {
            name: interface.name.clone(),
            mode: interface.attached.as_ref().map(AttachedInterface::mode),
            frames: self.filter.frames(number as u16, receive_queues(&interface.name)),
        };
        self.status.set_interfaces(self.interfaces.iter().enumerate().map(status).collect());
    }
}
