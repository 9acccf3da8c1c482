//! Loads, attaches and configures the XDP program.

use super::layout::{
    FilterOutcome, FilterScope, FilterSettings, FrameVerdict, KEYS_MAX, LISTENER_LEN,
    NetworksInForce, QUEUES, SETTINGS_LEN, interface_entry, listener_key, settings_entry,
};
use super::{XdpError, XdpMode, link};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::{ProgramError, xdp::Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The compiled program: `udp/bpf/compile` makes it from `udp/bpf/filter.c`.
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/filter.o");

/// Name of the map with AF_XDP sockets.
const SOCKETS_MAP: &str = "sockets";

/// Maximum number of networks of each address family.
pub const NETWORKS_MAX: usize = 1 << 20;

/// Minimum time between two switches of settings: until then a processor may still read the previous ones, which the
/// next switch overwrites.
const SWITCH_INTERVAL: Duration = Duration::from_secs(1);

/// A network, and whether its sources are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkRule {
    /// The first address of the network.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Whether requests from it are dropped.
    pub is_refused: bool,
}

/// Counts since the program was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterCounts {
    /// Requests by outcome, in the order of [`FilterOutcome::ALL`], and by family: IPv4, IPv6.
    pub requests: [[u64; 2]; FilterOutcome::ALL.len()],
    /// Bytes of the payloads that were answered or dropped.
    pub received_bytes: u64,
    /// Bytes of the payloads that were sent.
    pub sent_bytes: u64,
}

/// The program on an interface. It is detached once this is dropped, or the process has ended, unless another process
/// has a duplicate of the link.
#[derive(Debug)]
pub struct AttachedInterface {
    index: u32,
    mode: XdpMode,
    link: OwnedFd,
}

impl AttachedInterface {
    /// Returns the interface with this index, to which another process has attached its program in a mode. `link` is a
    /// duplicate of its link.
    pub fn inherited(index: u32, mode: XdpMode, link: OwnedFd) -> Self {
        Self { index, mode, link }
    }

    /// Duplicates the link: the program stays attached until both are dropped.
    ///
    /// # Errors
    ///
    /// Returns an error if the limit on open files is reached.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { index: self.index, mode: self.mode, link: self.link.try_clone()? })
    }

    /// Returns the index of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns where the program runs.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }
}

/// The descriptor is that of the link.
impl AsFd for AttachedInterface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// Networks of one of the two pairs of maps.
struct NetworkMaps {
    v4: LpmTrie<MapData, [u8; 4], u32>,
    v6: LpmTrie<MapData, [u8; 16], u32>,
}

/// The XDP program with its maps.
pub struct Filter {
    /// Holds the program.
    pub(super) ebpf: Ebpf,
    current: Array<MapData, u32>,
    settings: Array<MapData, [u8; SETTINGS_LEN]>,
    interfaces: HashMap<MapData, u32, [u8; 8]>,
    listeners: HashMap<MapData, [u8; LISTENER_LEN], u32>,
    networks: [NetworkMaps; 2],
    requests: PerCpuArray<MapData, u64>,
    bytes: PerCpuArray<MapData, [u64; 2]>,
    frames: PerCpuArray<MapData, u64>,
    sockets: XskMap<MapData>,
    /// Keys of the map `listeners`.
    listener_keys: BTreeSet<[u8; LISTENER_LEN]>,
    /// Addresses and interfaces.
    scope: FilterScope,
    /// Addresses and interfaces of the settings in force.
    scope_in_force: FilterScope,
    /// Index of the settings in force in the map `settings`: 0 or 1.
    in_force: u32,
    /// Time at which they were put in force; `None` before the first.
    switched_at: Option<Duration>,
    /// Networks that the next settings put in force.
    next_networks: NetworksInForce,
    /// Networks in force.
    networks_in_force: NetworksInForce,
}

impl Filter {
    /// Loads the program for a number of interfaces. It is attached to none.
    ///
    /// # Errors
    ///
    /// Returns an error if the process may not use BPF, or the kernel refuses the program.
    pub fn load(interfaces: u16) -> Result<Self, XdpError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("frames", u32::from(interfaces.max(1)) * FRAME_COUNTERS)
            .map_max_entries(SOCKETS_MAP, u32::from(interfaces.max(1)) * QUEUES as u32)
            .load(OBJECT)
            .map_err(load_error)?;
        program(&mut ebpf)?.load().map_err(|error| load_error(error.into()))?;
        Self::from_loaded(ebpf).map_err(|error| load_error(error.into()))
    }

    /// Takes the maps of the program.
    fn from_loaded(mut ebpf: Ebpf) -> Result<Self, MapError> {
        let maps = &mut ebpf;
        Ok(Self {
            current: take(maps, "current")?.try_into()?,
            settings: take(maps, "settings")?.try_into()?,
            interfaces: take(maps, "interfaces")?.try_into()?,
            listeners: take(maps, "listeners")?.try_into()?,
            networks: [
                NetworkMaps {
                    v4: take(maps, "networks_v4_0")?.try_into()?,
                    v6: take(maps, "networks_v6_0")?.try_into()?,
                },
                NetworkMaps {
                    v4: take(maps, "networks_v4_1")?.try_into()?,
                    v6: take(maps, "networks_v6_1")?.try_into()?,
                },
            ],
            requests: take(maps, "requests")?.try_into()?,
            bytes: take(maps, "bytes")?.try_into()?,
            frames: take(maps, "frames")?.try_into()?,
            sockets: take(maps, SOCKETS_MAP)?.try_into()?,
            ebpf,
            listener_keys: BTreeSet::new(),
            scope: FilterScope::default(),
            scope_in_force: FilterScope::default(),
            in_force: 0,
            switched_at: None,
            next_networks: NetworksInForce::default(),
            networks_in_force: NetworksInForce::default(),
        })
    }

    /// Attaches the program to an interface. `number` selects its counters and sockets, and is less than the
    /// number of interfaces that [`Self::load`] was given.
    ///
    /// # Errors
    ///
    /// Returns an error if the interface has another XDP program, or does not support the mode.
    pub fn attach(
        &mut self,
        (name, index): (&str, u32),
        (number, mac): (u16, [u8; 6]),
        mode: XdpMode,
    ) -> Result<AttachedInterface, XdpError> {
        self.set_interface(index, number, mac)?;
        let link = link::create(self.program()?, index, mode);
        let link = link.map_err(|error| attach_error(name, mode, error))?;
        Ok(AttachedInterface { index, mode, link })
    }

    /// Replaces the program of another process on an interface by this one: each frame is handled by one of both.
    /// `number` and `mac` are those of [`Self::attach`].
    ///
    /// # Errors
    ///
    /// Returns an error if the interface has gone, or does not accept the program.
    pub fn take_over(
        &mut self,
        interface: AttachedInterface,
        name: &str,
        (number, mac): (u16, [u8; 6]),
    ) -> Result<AttachedInterface, XdpError> {
        self.set_interface(interface.index, number, mac)?;
        link::replace_program(interface.link.as_fd(), self.program()?)
            .map_err(|error| attach_error(name, interface.mode, error))?;
        Ok(interface)
    }

    fn program(&mut self) -> Result<BorrowedFd<'_>, XdpError> {
        let program = program(&mut self.ebpf)?;
        Ok(program.fd().map_err(|error| load_error(error.into()))?.as_fd())
    }

    /// Sets the position of the counters and the hardware address of an interface. Frames for other hardware addresses
    /// are passed.
    pub fn set_interface(&mut self, index: u32, number: u16, mac: [u8; 6]) -> Result<(), XdpError> {
        self.scope.interfaces.insert(index, (mac, number));
        self.interfaces
            .insert(index, interface_entry(mac, number), 0)
            .map_err(|error| map_error("interfaces", &error))
    }

    /// Forgets an interface from which the program was detached.
    pub fn remove_interface(&mut self, index: u32) {
        self.scope.interfaces.remove(&index);
        // It may have been removed already.
        let _ = self.interfaces.remove(&index);
    }

    /// Has the program redirect requests of a receive queue to an AF_XDP socket, until [`Self::remove_sockets`] or
    /// until the socket is closed. `number` is that of the interface in [`Self::attach`].
    ///
    /// # Errors
    ///
    /// Returns an error if the program has no place for the queue: its number must be below [`QUEUES`].
    pub fn set_socket(
        &mut self,
        number: u16,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), XdpError> {
        // A higher number would be a place of the next interface; the kernel refuses this one.
        let place = (queue < QUEUES as u32).then(|| u32::from(number) * QUEUES as u32 + queue);
        let set = self.sockets.set(place.unwrap_or(u32::MAX), socket.as_raw_fd(), 0);
        set.map_err(|error| map_error("sockets", &error))
    }

    /// Has the program pass the requests of an interface to the network stack instead of redirecting them.
    pub fn remove_sockets(&mut self, number: u16) {
        for queue in 0..QUEUES as u32 {
            // Most places are empty.
            let _ = self.sockets.unset(u32::from(number) * QUEUES as u32 + queue);
        }
    }

    /// Sets the addresses on which the tracker listens, and all addresses of this host: packets that claim to come from
    /// one of the latter are passed.
    ///
    /// # Errors
    ///
    /// Returns an error if there are more than 4,096 of both together.
    pub fn set_addresses(
        &mut self,
        listeners: &BTreeSet<SocketAddr>,
        local: &BTreeSet<IpAddr>,
    ) -> Result<(), XdpError> {
        let keys = listeners.iter().map(|it| listener_key(it.ip(), it.port()));
        let wanted: BTreeSet<_> =
            keys.chain(local.iter().map(|address| listener_key(*address, 0))).collect();
        (self.scope.listeners, self.scope.local) = (listeners.clone(), local.clone());
        for key in self.listener_keys.difference(&wanted).copied().collect::<Vec<_>>() {
            let _ = self.listeners.remove(&key);
            self.listener_keys.remove(&key);
        }
        for key in wanted {
            if !self.listener_keys.contains(&key) {
                let inserted = self.listeners.insert(key, 1, 0);
                inserted.map_err(|error| map_error("addresses", &error))?;
                self.listener_keys.insert(key);
            }
        }
        Ok(())
    }

    /// Writes networks to the pair of maps that is not in force; [`Self::apply`] puts them in force. `refuses_others`
    /// says whether sources in none of them are refused.
    ///
    /// Takes about a second for 300,000 networks. Returns false, and changes nothing, within a second after the last
    /// [`Self::apply`], even of the same networks. `now` is a monotonic time.
    ///
    /// # Errors
    ///
    /// Returns an error if there are more than [`NETWORKS_MAX`] of a family. From the next settings on, no networks are
    /// looked up and connects are passed: user space refuses the sources.
    pub fn set_networks(
        &mut self,
        networks: impl IntoIterator<Item = NetworkRule>,
        refuses_others: bool,
        now: Duration,
    ) -> Result<bool, XdpError> {
        if self.has_just_switched(now) {
            return Ok(false);
        }
        let pair = 1 - self.networks_in_force.pair;
        let maps = &mut self.networks[pair as usize];
        let incomplete =
            NetworksInForce { pair, are_incomplete: true, ..NetworksInForce::default() };
        self.next_networks = incomplete;
        clear(&mut maps.v4)
            .and_then(|()| clear(&mut maps.v6))
            .map_err(|it| map_error("networks", &it))?;
        let mut is_used = refuses_others;
        for NetworkRule { address, prefix_len, is_refused } in networks {
            is_used = true;
            let (len, refused) = (u32::from(prefix_len), u32::from(is_refused));
            let inserted = match address {
                IpAddr::V4(address) => maps.v4.insert(&Key::new(len, address.octets()), refused, 0),
                IpAddr::V6(address) => maps.v6.insert(&Key::new(len, address.octets()), refused, 0),
            };
            inserted.map_err(|error| map_error("networks", &error))?;
        }
        self.next_networks =
            NetworksInForce { pair, is_used, refuses_others, are_incomplete: false };
        Ok(true)
    }

    /// Returns whether addresses or interfaces have changed since the last [`Self::apply`], which must then be called.
    pub fn has_changed(&self) -> bool {
        self.scope != self.scope_in_force
    }

    /// Puts settings and the networks of [`Self::set_networks`] in force at once: the program uses either all of the
    /// previous ones or all of these for a frame. To be called after a change, also one of addresses and interfaces,
    /// and at least once an epoch of connection ids. `now` is a monotonic time.
    ///
    /// Returns false, and changes nothing, within a second after the previous change.
    ///
    /// # Errors
    ///
    /// Returns an error if there are more than [`KEYS_MAX`] connection id keys.
    pub fn apply(
        &mut self,
        settings: &FilterSettings,
        unix_secs: u64,
        now: Duration,
    ) -> Result<bool, XdpError> {
        let keys = settings.ids.keys().count();
        if keys > KEYS_MAX {
            return Err(XdpError::TooManyKeys(keys));
        }
        if self.has_just_switched(now) {
            return Ok(false);
        }
        let entry = settings_entry(settings, unix_secs, self.next_networks, &self.scope);
        let other = 1 - self.in_force;
        let changed =
            self.settings.set(other, entry, 0).and_then(|()| self.current.set(0, other, 0));
        changed.map_err(|error| map_error("settings", &error))?;
        (self.in_force, self.switched_at) = (other, Some(now));
        self.networks_in_force = self.next_networks;
        self.scope_in_force = self.scope.clone();
        Ok(true)
    }

    fn has_just_switched(&self, now: Duration) -> bool {
        self.switched_at.is_some_and(|at| now.saturating_sub(at) < SWITCH_INTERVAL)
    }

    /// Returns the counts of requests.
    pub fn counts(&self) -> FilterCounts {
        let requests =
            |outcome: usize, family: usize| total(&self.requests, (outcome * 2 + family) as u32);
        let bytes = self.bytes.get(&0, 0).ok();
        let sum = |at: usize| {
            bytes.iter().flat_map(|values| values.iter()).map(|value: &[u64; 2]| value[at]).sum()
        };
        FilterCounts {
            requests: std::array::from_fn(|outcome| {
                std::array::from_fn(|family| requests(outcome, family))
            }),
            received_bytes: sum(0),
            sent_bytes: sum(1),
        }
    }

    /// Returns the number of frames of an interface by receive queue and verdict, in the order of
    /// [`FrameVerdict::ALL`], for the queues below `queues`.
    pub fn frames(&self, number: u16, queues: usize) -> Vec<[u64; FrameVerdict::ALL.len()]> {
        let first = u32::from(number) * FRAME_COUNTERS;
        let queue = |queue: usize| {
            let position = first + (queue * FrameVerdict::ALL.len()) as u32;
            std::array::from_fn(|verdict| total(&self.frames, position + verdict as u32))
        };
        (0..queues.min(QUEUES)).map(queue).collect()
    }
}

/// Number of counters of frames of an interface.
const FRAME_COUNTERS: u32 = (QUEUES * FrameVerdict::ALL.len()) as u32;

/// Returns the sum of a counter over all processors.
fn total(counters: &PerCpuArray<MapData, u64>, position: u32) -> u64 {
    counters.get(&position, 0).map_or(0, |values| values.iter().sum())
}

/// Removes all networks.
fn clear<K: aya::Pod>(networks: &mut LpmTrie<MapData, K, u32>) -> Result<(), MapError> {
    // Each removal makes another network the first.
    while let Some(key) = networks.keys().next() {
        networks.remove(&key?)?;
    }
    Ok(())
}

pub(super) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, XdpError> {
    let program = ebpf.program_mut("filter").ok_or(ProgramError::UnexpectedProgramType);
    program.and_then(TryInto::try_into).map_err(|error| load_error(error.into()))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, MapError> {
    ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}

fn map_error(map: &'static str, error: &dyn std::error::Error) -> XdpError {
    XdpError::Map { map, error: with_sources(error) }
}

/// Returns the text of an error and of those that caused it.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Returns the error number of the system call that failed.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    while let Some(it) = error {
        if let Some(io) = it.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(io);
        }
        error = it.source();
    }
    None
}

fn load_error(error: EbpfError) -> XdpError {
    if let EbpfError::ProgramError(ProgramError::LoadError { io_error, verifier_log }) = &error {
        let log = verifier_log.to_string();
        // The reason is at the end of the log, which may have thousands of lines.
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        if !last.is_empty() {
            let last: Vec<&str> = last.into_iter().rev().map(str::trim).collect();
            return XdpError::Refused(format!("{io_error}: {}", last.join("; ")));
        }
    }
    match (errno(&error), &error) {
        (Some(libc::EPERM | libc::EACCES), _) => XdpError::Forbidden,
        (Some(libc::EINVAL), EbpfError::MapError(MapError::CreateError { name, .. }))
            if name == SOCKETS_MAP =>
        {
            XdpError::NoSockets
        }
        _ => XdpError::Refused(with_sources(&error)),
    }
}

fn attach_error(interface: &str, mode: XdpMode, error: io::Error) -> XdpError {
    let cure = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => return XdpError::Forbidden,
        Some(libc::EBUSY | libc::EEXIST) => return XdpError::Attached(interface.to_owned()),
        Some(libc::EOPNOTSUPP | libc::ENOTSUP) if mode == XdpMode::Native => {
            "; set udp.xdp.mode to generic, or use a card whose driver supports XDP"
        }
        Some(libc::EINVAL | libc::ERANGE) if mode == XdpMode::Native => {
            "; the driver may need a smaller MTU (3498 or less), fewer channels (ethtool -L), or LRO switched off \
             (ethtool -K)"
        }
        _ => "",
    };
    XdpError::Unsupported { interface: interface.to_owned(), mode, error, cure }
}
