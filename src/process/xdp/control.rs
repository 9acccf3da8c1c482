//! Attaches the program to the interfaces, keeps its settings and addresses current, and reads its counters.

use super::command::{XdpCommand, XdpSettings};
use super::privileged::{Capabilities, attach};
use super::sockets::{QueueSettings, QueueSockets};
use crate::clock::Clock;
use crate::config::XdpConfig;
use crate::policy::NetworkRules;
use crate::policy::networks::NetworkFilter;
use crate::process::deadline::Deadline;
use crate::process::interfaces::{
    HostInterface, driver, ethernet, has_vlans, host_addresses, host_interfaces, mtu,
    receive_queues,
};
use crate::shard::xdp_datapath::QueueChange;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use crate::stats::xdp_status::{XdpInterfaceStatus, XdpStatus};
use crate::text::plural;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;
use tsubame_storage::Family;
use tsubame_udp::connection_id::ConnectionIds;
use tsubame_udp::xdp::{
    AttachedInterface, Filter, FilterOutcome, FilterSettings, FrameSocket, FrameVerdict,
    NetworkRule, QueueProblem, XdpError, XdpMode,
};

/// How often interfaces, addresses and counters are read.
const INTERVAL: Duration = Duration::from_secs(1);

/// Pause before another attempt to attach the program to an interface, or to open sockets for queues that another
/// program used.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A configured interface.
#[derive(Debug)]
struct XdpInterface {
    name: String,
    attached: Option<AttachedInterface>,
    /// The largest number of receive queues that it had.
    queues: usize,
    /// The hardware address that the program checks.
    mac: Option<[u8; 6]>,
    /// The last problem, and when attaching is tried again.
    problem: Option<(String, Duration)>,
    sockets: QueueSockets,
    /// The last problem of sockets, and when they are tried again.
    socket_problem: Option<(String, Duration)>,
}

/// The state of the thread.
pub(super) struct XdpControl {
    filter: Filter,
    config: XdpConfig,
    listen: Vec<SocketAddr>,
    interfaces: Vec<XdpInterface>,
    settings: Option<FilterSettings>,
    /// The filters whose networks are in force or in `new_networks`.
    networks: Vec<Arc<NetworkFilter>>,
    /// Networks that have not been written yet.
    new_networks: Option<NetworkRules>,
    /// Interfaces to which the predecessor has attached its program, until the first settings are applied.
    inherited: Vec<AttachedInterface>,
    /// Whether another process takes over from this one.
    is_replaced: bool,
    /// Whether another process has been sent duplicates of links.
    has_duplicates: bool,
    /// Time until which the program and the sockets of a previous process may remain.
    deadline: Deadline,
    /// Sends each shard the receive queues that it is to serve; empty if AF_XDP sockets are not to be used.
    shards: Vec<Sender<QueueChange>>,
    /// The last problem of addresses, which is logged once.
    address_problem: Option<String>,
    /// Whether there are settings that are not in force yet.
    is_changed: bool,
    /// Time since 1970 of the settings in force, in seconds.
    applied_unix_secs: u64,
    clock: Clock,
    status: Arc<XdpStatus>,
}

impl XdpControl {
    pub(super) fn new(
        (filter, inherited): (Filter, Vec<AttachedInterface>),
        config: XdpConfig,
        (listen, shards): (Vec<SocketAddr>, Vec<Sender<QueueChange>>),
        (clock, status): (Clock, Arc<XdpStatus>),
    ) -> Self {
        let interface = |(name, number): (&String, u16)| XdpInterface {
            name: name.clone(),
            attached: None,
            queues: 1,
            mac: None,
            problem: None,
            sockets: QueueSockets::new(number),
            socket_problem: None,
        };
        Self {
            filter,
            interfaces: config.interfaces.iter().zip(0..).map(interface).collect(),
            config,
            listen,
            settings: None,
            networks: Vec::new(),
            new_networks: None,
            inherited,
            is_replaced: false,
            has_duplicates: false,
            deadline: Deadline::of_predecessor(clock),
            shards,
            address_problem: None,
            is_changed: false,
            applied_unix_secs: 0,
            clock,
            status,
        }
    }

    /// Handles commands, and each second follows changes of interfaces and addresses, until [`XdpCommand::Stop`].
    pub(super) fn run(mut self, commands: &Receiver<XdpCommand>) {
        loop {
            let mut command = commands.recv_timeout(INTERVAL);
            let mut replies = Vec::new();
            // Of several settings that wait, only the last ones are applied.
            while let Ok(XdpCommand::Apply(settings, reply)) = command {
                self.set(*settings);
                replies.extend(reply);
                command = commands.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                });
            }
            match command {
                Ok(XdpCommand::Duplicate(reply)) => _ = reply.send(self.duplicate()),
                Ok(XdpCommand::StopRedirecting(reply)) => {
                    self.stop_redirecting();
                    let _ = reply.send(());
                }
                Ok(XdpCommand::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(XdpCommand::Apply(..)) | Err(RecvTimeoutError::Timeout) => {}
            }
            let problem = self.update();
            for reply in replies {
                let _ = reply.send(self.fatal_problem(problem.clone()));
            }
        }
        self.interfaces.iter_mut().for_each(|interface| interface.attached = None);
        self.publish();
        let stats = self.status.stats.read();
        let frames = self.status.interfaces().into_iter().flat_map(|interface| interface.frames);
        let redirected: u64 =
            frames.map(|by_verdict| by_verdict[FrameVerdict::Redirected as usize]).sum();
        tracing::info!(
            "udp.xdp: {}; {} connects were answered by XDP, {} requests dropped, and {redirected} redirected to AF_XDP \
             sockets",
            match self.is_replaced && self.has_duplicates {
                true => "left to the new process",
                false => "detached",
            },
            stats.requests(Outcome::Connected),
            stats.rejected() + stats.refused_by_policy()
        );
    }

    /// Returns duplicates of the links, for another process.
    fn duplicate(&mut self) -> Vec<AttachedInterface> {
        // A link that cannot be duplicated is detached: the other process attaches its program anew.
        let attached = self.interfaces.iter().filter_map(|interface| interface.attached.as_ref());
        let attached = attached.chain(&self.inherited);
        let links: Vec<_> = attached.filter_map(|attached| attached.try_clone().ok()).collect();
        self.has_duplicates = !links.is_empty();
        links
    }

    /// Has the program pass requests to the UDP sockets instead of redirecting them, and waits until no more frames
    /// arrive at the AF_XDP sockets.
    fn stop_redirecting(&mut self) {
        self.is_replaced = true;
        for number in 0..self.interfaces.len() {
            self.filter.remove_sockets(number as u16);
        }
        // A processor may still handle frames for which the program has found a socket.
        self.clock.pause_before_retry();
    }

    /// Returns the first problem that must end the start. `of_settings` is the problem of the settings.
    fn fatal_problem(&self, of_settings: Option<String>) -> Option<String> {
        let needs_program = self.config.mode.is_some() || self.config.requires_sockets();
        let of_program = of_settings
            .into_iter()
            .chain(self.interfaces.iter().filter_map(|it| Some(it.problem.clone()?.0)));
        let of_sockets = self.interfaces.iter().filter_map(|it| Some(it.socket_problem.clone()?.0));
        let of_program = of_program.filter(|_| needs_program);
        of_program.chain(of_sockets.filter(|_| self.config.requires_sockets())).next()
    }

    /// Stores settings, which [`Self::update`] applies.
    fn set(&mut self, settings: XdpSettings) {
        if self.settings.is_none() {
            // The first settings arrive after the process has changed its user: no other capabilities are needed now.
            Capabilities::raise().lower();
            self.deadline = Deadline::of_predecessor(self.clock);
        }
        let XdpSettings { ids, explain_wrong_connection_id, networks } = settings;
        let is_same = self.settings.is_some()
            && self.networks.len() == networks.len()
            && self.networks.iter().zip(&networks).all(|(old, new)| Arc::ptr_eq(old, new));
        if !is_same {
            (self.new_networks, self.networks) = (Some(NetworkRules::of(&networks)), networks);
        }
        let passes_wrong_ids = explain_wrong_connection_id;
        self.settings = Some(FilterSettings { ids, passes_wrong_ids });
        self.is_changed = true;
    }

    /// Applies what has changed; returns the problem if XDP cannot work with the settings.
    fn update(&mut self) -> Option<String> {
        let found = host_interfaces();
        if let Ok(found) = &found {
            self.set_addresses(found);
        }
        let problem = self.apply_settings();
        if self.settings.is_some()
            && !self.is_replaced
            && let Ok(found) = &found
        {
            for number in 0..self.interfaces.len() {
                let name = &self.interfaces[number].name;
                self.update_interface(number as u16, found.get(name));
                self.update_sockets(number);
            }
            // Those that were not taken over are detached.
            self.inherited.clear();
        }
        self.publish();
        problem
    }

    /// Sets the addresses on which the tracker listens: those of wildcard sockets are all addresses of this host.
    fn set_addresses(&mut self, found: &BTreeMap<String, HostInterface>) {
        let mut local: BTreeSet<IpAddr> = host_addresses(found).into_iter().collect();
        let mut listeners = BTreeSet::new();
        for listen in &self.listen {
            let is_covered = |ip: &&IpAddr| {
                **ip == listen.ip()
                    || listen.ip().is_unspecified() && ip.is_ipv4() == listen.is_ipv4()
            };
            let covered = local.iter().filter(is_covered);
            listeners.extend(covered.map(|ip| SocketAddr::new(*ip, listen.port())));
        }
        let broadcast = found.values().flat_map(|interface| interface.broadcast.clone());
        local.extend(broadcast.map(IpAddr::from));
        let problem = self.filter.set_addresses(&listeners, &local).err().map(|it| it.to_string());
        if let Some(problem) = &problem
            && self.address_problem.as_ref() != Some(problem)
        {
            tracing::error!("udp.xdp: {problem}; new addresses are served over sockets only");
        }
        self.address_problem = problem;
    }

    /// Puts changed settings and new epochs of connection ids in force; returns the problem if that fails.
    fn apply_settings(&mut self) -> Option<String> {
        let settings = self.settings.as_ref()?;
        let (now, unix_secs) = (self.clock.elapsed(), self.clock.now().unix_secs);
        if let Some(NetworkRules { networks, refuses_others }) = &self.new_networks {
            let rule = |(network, is_refused): (&IpNet, &bool)| NetworkRule {
                address: network.network(),
                prefix_len: network.prefix_len(),
                is_refused: *is_refused,
            };
            match self.filter.set_networks(networks.iter().map(rule), *refuses_others, now) {
                Ok(false) => return None,
                Ok(true) => self.new_networks = None,
                Err(error) => {
                    tracing::error!(
                        "udp.xdp: {error}; until the next reload, connects are answered over sockets, which refuse the \
                         networks"
                    );
                    (self.new_networks, self.is_changed) = (None, true);
                }
            }
        }
        let is_same_epoch = ConnectionIds::is_same_epoch(unix_secs, self.applied_unix_secs);
        if !self.is_changed && !self.filter.has_changed() && is_same_epoch {
            return None;
        }
        match self.filter.apply(settings, unix_secs, now) {
            Ok(true) => {
                (self.is_changed, self.applied_unix_secs) = (false, unix_secs);
                None
            }
            Ok(false) => None,
            Err(error) => {
                tracing::error!("udp.xdp: {error}; XDP is off until the next reload");
                for interface in &mut self.interfaces {
                    interface.attached = None;
                    interface.sockets.close(&mut self.filter, &self.shards);
                }
                self.inherited.clear();
                self.settings = None;
                Some(error.to_string())
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
            // The warning above suffices: that the interface is missing is not logged, too.
            let problem = ethernet(&interface.name, found).err().map(|problem| (problem, now));
            (interface.attached, interface.problem) = (None, problem);
            interface.sockets.close(&mut self.filter, &self.shards);
            interface.socket_problem = None;
        }
        if interface.problem.as_ref().is_some_and(|(_, retry_at)| now < *retry_at) {
            return;
        }
        let problem = match ethernet(&interface.name, found) {
            Err(problem) => Some(problem),
            Ok((index, mac)) if interface.attached.is_some() => {
                if interface.mac != Some(mac)
                    && self.filter.set_interface(index, number, mac).is_ok()
                {
                    interface.mac = Some(mac);
                }
                None
            }
            Ok((index, mac)) => {
                let name = interface.name.clone();
                match self.attach((&name, index), (number, mac)) {
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
        // An interface that is missing costs nothing to look for.
        let retry_at = if found.is_some() { now + RETRY_INTERVAL } else { now };
        interface.problem = problem.map(|problem| (problem, retry_at));
    }

    /// Attaches the program to an interface, or replaces that of the previous process.
    fn attach(
        &mut self,
        interface: (&str, u32),
        counters_and_mac: (u16, [u8; 6]),
    ) -> Result<AttachedInterface, XdpError> {
        let mut capabilities = Capabilities::raise();
        let attached = match self.take_over(interface, counters_and_mac) {
            Some(attached) => Ok(attached),
            None => self.attach_anew(interface, counters_and_mac),
        };
        capabilities.lower();
        let attached = attached?;
        if has_vlans(interface.0) {
            tracing::warn!(
                "udp.xdp: {0} has VLANs: if the card removes VLAN tags, replies to their clients are lost; run: \
                 ethtool -K {0} rxvlan off",
                interface.0
            );
        }
        tracing::info!(
            "udp.xdp: {} (driver {}) answers connects in {} mode, {}; firewall rules, connection tracking and \
             tcpdump do not see what it answers, drops or redirects (docs/xdp.md)",
            interface.0,
            driver(interface.0).unwrap_or_else(|| "unknown".to_owned()),
            attached.mode(),
            plural(receive_queues(interface.0) as u64, "receive queue")
        );
        Ok(attached)
    }

    /// Replaces the program of the previous process on an interface. Returns `None` if it was not attached there in the
    /// configured mode, or cannot be replaced.
    fn take_over(
        &mut self,
        (name, index): (&str, u32),
        counters_and_mac: (u16, [u8; 6]),
    ) -> Option<AttachedInterface> {
        let inherited = self.inherited.iter().position(|inherited| inherited.index() == index)?;
        let inherited = self.inherited.swap_remove(inherited);
        if self.config.mode.is_some_and(|mode| mode != inherited.mode()) {
            return None;
        }
        let taken = self.filter.take_over(inherited, name, counters_and_mac);
        if let Err(error) = &taken {
            tracing::warn!(
                "udp.xdp: the program cannot be replaced, and is attached anew: {error}"
            );
        }
        taken.ok()
    }

    /// Attaches the program to an interface; without a configured mode, in the driver if that is possible.
    fn attach_anew(
        &mut self,
        interface: (&str, u32),
        counters_and_mac: (u16, [u8; 6]),
    ) -> Result<AttachedInterface, XdpError> {
        let (filter, deadline, mode) = (&mut self.filter, self.deadline, self.config.mode);
        let mut try_mode = |mode| attach(filter, interface, counters_and_mac, mode, deadline);
        match try_mode(mode.unwrap_or(XdpMode::Native)) {
            Err(error @ XdpError::Unsupported { .. }) if mode.is_none() => {
                tracing::warn!("udp.xdp: {error}; generic mode is used meanwhile, which is slower");
                try_mode(XdpMode::Generic)
            }
            result => result,
        }
    }

    /// Creates AF_XDP sockets for the receive queues of an interface that have none, if the program is attached, and
    /// has the program redirect to those that shards serve.
    fn update_sockets(&mut self, number: usize) {
        let (now, shards) = (self.clock.elapsed(), self.shards.len());
        let interface = &mut self.interfaces[number];
        let Some(attached) = interface.attached.as_ref().filter(|_| shards > 0) else { return };
        let (name, zero_copy) = (interface.name.clone(), self.config.zero_copy);
        let settings = QueueSettings::read(&name, attached.mode(), zero_copy);
        interface.sockets.set_mtu(mtu(&name));
        let is_due = interface.socket_problem.as_ref().is_none_or(|(_, retry_at)| now >= *retry_at);
        if interface.sockets.len() < settings.receive && is_due {
            let mut capabilities = Capabilities::raise();
            let target = (&self.shards[..], self.deadline);
            let opened = interface.sockets.open((&name, attached.index()), settings, target);
            capabilities.lower();
            let before = interface.socket_problem.take();
            match opened {
                Ok(()) => log_sockets(&name, &interface.sockets, shards),
                Err(error) => {
                    let problem = error.to_string();
                    if before.is_none_or(|(before, _)| before != problem) {
                        tracing::warn!("udp.xdp: {problem}; its announces come over UDP sockets");
                    }
                    // Other problems persist until the interface changes, and with zero copy each attempt would
                    // interrupt the traffic of its queues.
                    let can_end =
                        matches!(error, XdpError::Queue { problem: QueueProblem::Busy, .. });
                    let retry_at = if can_end { now + RETRY_INTERVAL } else { Duration::MAX };
                    interface.socket_problem = Some((problem, retry_at));
                }
            }
        }
        if let Err(error) = interface.sockets.redirect(&mut self.filter) {
            tracing::error!("udp.xdp: {name}: {error}; its announces come over UDP sockets");
        }
    }

    /// Publishes the counters of the program.
    fn publish(&mut self) {
        let counts = self.filter.counts();
        let mut stats = ShardStats::default();
        for (outcome, by_family) in FilterOutcome::ALL.into_iter().zip(counts.requests) {
            for (family, count) in Family::ALL.into_iter().zip(by_family) {
                stats.set_requests(Protocol::Udp, family, Outcome::from(outcome), count);
            }
        }
        (stats.received_bytes, stats.sent_bytes) = (counts.received_bytes, counts.sent_bytes);
        self.status.stats.publish(&stats, self.clock.now().monotonic);
        for interface in &mut self.interfaces {
            interface.queues = interface.queues.max(receive_queues(&interface.name));
        }
        let status = |(number, interface): (usize, &XdpInterface)| XdpInterfaceStatus {
            name: interface.name.clone(),
            mode: interface.attached.as_ref().map(AttachedInterface::mode),
            sockets: interface.sockets.len(),
            is_zero_copy: interface.sockets.is_zero_copy(),
            frames: self.filter.frames(number as u16, interface.queues),
        };
        self.status.set_interfaces(self.interfaces.iter().enumerate().map(status).collect());
    }
}

/// Logs that the receive queues of an interface have AF_XDP sockets.
fn log_sockets(name: &str, sockets: &QueueSockets, shards: usize) {
    tracing::info!(
        "udp.xdp: AF_XDP sockets in {} mode for {} of {name}, with {} MiB of memory",
        if sockets.is_zero_copy() { "zero-copy" } else { "copy" },
        plural(sockets.len() as u64, "receive queue"),
        (sockets.len() * FrameSocket::memory_bytes()) >> 20
    );
    if sockets.len() < shards {
        tracing::warn!(
            "udp.xdp: {name} has fewer receive queues than there are shards: the other shards send replies over UDP \
             sockets, which is slower; run: ethtool -L {name} combined {shards}"
        );
    }
}
