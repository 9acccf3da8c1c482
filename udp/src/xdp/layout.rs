//! Layout of the maps that the XDP program and this module share: `udp/bpf/filter.c` declares the same.

use crate::connection_id::ConnectionIds;
use std::net::IpAddr;

/// Maximum number of connection id keys.
pub const KEYS_MAX: usize = 8;

/// Number of receive queues of an interface that have counters of their own; the last one also counts for higher ones.
pub const QUEUES: usize = 128;

/// Bytes of an entry of the map `settings`.
pub(super) const SETTINGS_LEN: usize = 16 * KEYS_MAX + 8 + 6 * 4;

/// Outcomes of the requests that the program answers or drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOutcome {
    /// A connect was answered.
    Connected,
    /// The datagram is shorter than any request of its action.
    TooShort,
    /// The action is not that of a request.
    UnknownAction,
    /// A connect lacks the magic number.
    BadMagic,
    /// The connection id was not issued to the source, or has expired.
    WrongConnectionId,
    /// The network of the source is not permitted.
    ForbiddenNetwork,
}

impl FilterOutcome {
    /// All outcomes, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::Connected,
        Self::TooShort,
        Self::UnknownAction,
        Self::BadMagic,
        Self::WrongConnectionId,
        Self::ForbiddenNetwork,
    ];
}

/// What the program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameVerdict {
    /// Passed to the network stack.
    Passed,
    /// Turned into a reply and sent.
    Answered,
    /// Dropped.
    Dropped,
}

impl FrameVerdict {
    /// All verdicts, in the order of their counters.
    pub const ALL: [Self; 3] = [Self::Passed, Self::Answered, Self::Dropped];

    /// Returns the name of the verdict in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Answered => "answered",
            Self::Dropped => "dropped",
        }
    }
}

/// Number of counters of requests by outcome and family; the received and sent bytes follow.
pub(super) const REQUEST_COUNTERS: usize = FilterOutcome::ALL.len() * 2;

/// Settings of the program that do not refer to other maps.
#[derive(Clone, Debug)]
pub struct FilterSettings {
    /// Issues and checks connection ids.
    pub ids: ConnectionIds,
    /// Whether requests with a wrong connection id are passed to user space, which replies with an error.
    pub passes_wrong_ids: bool,
}

/// Which networks the program looks up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NetworksInForce {
    /// Which of the two pairs of maps.
    pub(super) pair: u32,
    /// Whether there are any networks.
    pub(super) is_used: bool,
    /// Whether sources that are in no network are refused.
    pub(super) refuses_others: bool,
}

/// Returns an entry of the map `settings`.
pub(super) fn settings_entry(
    settings: &FilterSettings,
    unix_secs: u64,
    networks: NetworksInForce,
) -> [u8; SETTINGS_LEN] {
    let mut entry = [0; SETTINGS_LEN];
    let (keys, rest) = entry.split_at_mut(16 * KEYS_MAX);
    let mut key_count: u32 = 0;
    for (to, (first, second)) in keys.as_chunks_mut::<16>().0.iter_mut().zip(settings.ids.keys()) {
        to[..8].copy_from_slice(&first.to_ne_bytes());
        to[8..].copy_from_slice(&second.to_ne_bytes());
        key_count += 1;
    }
    let (epoch, words) = rest.split_at_mut(8);
    epoch.copy_from_slice(&ConnectionIds::epoch(unix_secs).to_ne_bytes());
    let values = [
        key_count,
        settings.ids.lifetime_epochs().into(),
        settings.passes_wrong_ids.into(),
        networks.pair,
        networks.is_used.into(),
        networks.refuses_others.into(),
    ];
    for (to, value) in words.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *to = value.to_ne_bytes();
    }
    entry
}

/// Returns a value of the map `interfaces`.
pub(super) fn interface_entry(mac: [u8; 6], number: u16) -> [u8; 8] {
    let ([a, b, c, d, e, f], [g, h]) = (mac, number.to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Returns a key of the map `listeners`; port 0 marks a local address.
pub(super) fn listener_key(address: IpAddr, port: u16) -> [u8; 20] {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut key = [0; 20];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key
}
