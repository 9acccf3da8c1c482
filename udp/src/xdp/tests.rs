//! Compares the XDP program with a model in Rust over random frames, which the kernel runs without an interface
//! (BPF_PROG_TEST_RUN). Needs root: `tests/run` runs the ignored tests.

use super::FrameSocket;
use super::filter::{Filter, NetworkRule, program};
use super::frame::{
    ETHERNET_LEN, FRAME_LEN_MIN, FrameHeaders, FrameReplyPath, IPV4_LEN, IPV6_LEN, UDP_LEN,
    VLAN_LEN,
};
use super::layout::{FilterOutcome, FilterSettings, FrameVerdict};
use crate::connection_id::{ConnectionIdKey, ConnectionIds};
use crate::wire::{
    ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ACTION_CONNECT, ACTION_SCRAPE, PROTOCOL_MAGIC,
    RequestError, UdpRequest, write_connect,
};
use aya::programs::{TestRun as _, TestRunOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

/// Index of the loopback interface, which the kernel uses for frames without an interface.
const LOOPBACK: u32 = 1;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const UNIX_SECS: u64 = 1_800_000_000;

/// Actions of XDP programs.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Longest frame that is redirected.
const SOCKET_FRAME_LEN_MAX: usize = 1792;

/// What happens to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Pass,
    /// To user space: by an AF_XDP socket or, if there is none, a UDP socket.
    Deliver,
    Drop(FilterOutcome),
    Answer(Vec<u8>),
}

/// The state that decisions depend on.
struct Model {
    listeners: BTreeSet<SocketAddr>,
    local: BTreeSet<IpAddr>,
    settings: FilterSettings,
    networks: Vec<NetworkRule>,
    refuses_others: bool,
    other_interfaces: std::ops::Range<u32>,
    /// Whether the interface of the frames is in the settings, and not only in the map.
    is_interface_in_settings: bool,
}

impl Model {
    fn decide(&self, frame: &[u8]) -> Decision {
        // A multicast address is not that of a sender.
        if frame[..6] != MAC || frame[6] & 1 == 1 {
            return Decision::Pass;
        }
        let Some(headers) = FrameHeaders::parse(frame) else { return Decision::Pass };
        let source = headers.source.ip();
        if !self.listeners.contains(&headers.destination) || self.local.contains(&source) {
            return Decision::Pass;
        }
        let payload = &frame[headers.payload_offset()..][..headers.payload_len()];
        let id = match UdpRequest::parse(payload) {
            Err(RequestError::TooShort) => return Decision::Drop(FilterOutcome::TooShort),
            Err(RequestError::UnknownAction) => {
                return Decision::Drop(FilterOutcome::UnknownAction);
            }
            Err(RequestError::BadMagic) => return Decision::Drop(FilterOutcome::BadMagic),
            Ok(_) if self.refuses(source) => {
                return Decision::Drop(FilterOutcome::ForbiddenNetwork);
            }
            Ok(UdpRequest::Connect(connect)) => {
                let mut reply = frame.to_vec();
                let id = self.settings.ids.issue(UNIX_SECS, source);
                let payload = &mut reply[headers.payload_offset()..];
                let len = write_connect(payload, connect.transaction_id(), id);
                let len = headers.write_reply(&mut reply, len).unwrap();
                reply.truncate(len.max(FRAME_LEN_MIN));
                return Decision::Answer(reply);
            }
            Ok(UdpRequest::Announce(announce)) => announce.connection_id(),
            Ok(UdpRequest::Scrape(scrape)) => scrape.connection_id(),
        };
        let accepts = self.settings.ids.accepts(UNIX_SECS, source, id);
        match accepts || self.settings.passes_wrong_ids {
            true => Decision::Deliver,
            false => Decision::Drop(FilterOutcome::WrongConnectionId),
        }
    }

    fn refuses(&self, source: IpAddr) -> bool {
        let contains = |rule: &&NetworkRule| match (rule.address, source) {
            (IpAddr::V4(network), IpAddr::V4(source)) => {
                let differs = network.to_bits() ^ source.to_bits();
                differs.leading_zeros() >= rule.prefix_len.into()
            }
            (IpAddr::V6(network), IpAddr::V6(source)) => {
                let differs = network.to_bits() ^ source.to_bits();
                differs.leading_zeros() >= rule.prefix_len.into()
            }
            _ => false,
        };
        let longest = self.networks.iter().filter(contains).max_by_key(|rule| rule.prefix_len);
        longest.map_or(self.refuses_others, |rule| rule.is_refused)
    }

    fn load(&self, filter: &mut Filter, now: Duration) {
        if !self.is_interface_in_settings {
            filter.remove_interface(LOOPBACK);
        }
        for index in self.other_interfaces.clone() {
            filter.set_interface(index, 0, CLIENT_MAC).unwrap();
        }
        filter.set_addresses(&self.listeners, &self.local).unwrap();
        assert!(
            filter.set_networks(self.networks.iter().copied(), self.refuses_others, now).unwrap()
        );
        assert!(filter.apply(&self.settings, UNIX_SECS, now).unwrap());
        assert!(!filter.has_changed());
        self.other_interfaces.clone().for_each(|index| filter.remove_interface(index));
        filter.set_interface(LOOPBACK, 0, MAC).unwrap();
    }
}

/// Returns a model with random settings.
fn model(rng: &mut fastrand::Rng) -> Model {
    let mut key = || ConnectionIdKey(std::array::from_fn(|_| rng.u8(..)));
    let keys: Vec<_> = (0..8).map(|_| key()).collect();
    let keys = &keys[..rng.usize(1..=8)];
    let ids = ConnectionIds::new(keys[0], &keys[1..], rng.u64(60..20_000));
    let mut local: BTreeSet<IpAddr> =
        ["81.2.3.4", "10.0.0.1", "2a00::1", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
    // More than fit into the settings, or fewer.
    local.extend((0..rng.u8(..12)).map(|number| IpAddr::from([9, number, rng.u8(..), 1])));
    let listeners = local.iter().map(|ip| SocketAddr::new(*ip, 6969)).collect();
    let network = |rng: &mut fastrand::Rng| {
        let (address, prefix_len) = match rng.bool() {
            true => (IpAddr::from([rng.u8(1..4), rng.u8(..4), 0, 0]), rng.u8(7..=16)),
            false => (IpAddr::from([0x2a00, rng.u16(..4), 0, 0, 0, 0, 0, 0]), rng.u8(16..=32)),
        };
        NetworkRule { address: truncated(address, prefix_len), prefix_len, is_refused: rng.bool() }
    };
    let mut networks: Vec<NetworkRule> = (0..rng.usize(..12)).map(|_| network(rng)).collect();
    networks.sort_by_key(|rule| (rule.address, rule.prefix_len));
    networks.dedup_by_key(|rule| (rule.address, rule.prefix_len));
    let settings = FilterSettings { ids, passes_wrong_ids: rng.u8(..4) == 0 };
    Model {
        listeners,
        local,
        settings,
        networks,
        refuses_others: rng.u8(..4) == 0,
        other_interfaces: 2..2 + rng.u32(..6),
        is_interface_in_settings: rng.bool(),
    }
}

fn truncated(address: IpAddr, prefix_len: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            Ipv4Addr::from_bits(address.to_bits() & u32::MAX << (32 - prefix_len)).into()
        }
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & u128::MAX << (128 - prefix_len)).into()
        }
    }
}

/// Returns a frame that is a request, or nearly one.
fn frame(rng: &mut fastrand::Rng, model: &Model) -> Vec<u8> {
    let source: IpAddr = match rng.u8(..8) {
        0..4 => [rng.u8(1..5), rng.u8(..6), 7, rng.u8(..)].into(),
        4..7 => [0x2a00, rng.u16(..6), 0, 0, 0, 0, 0, rng.u16(..)].into(),
        _ => *rng
            .choice(&["81.2.3.4", "2a00::1", "127.0.0.1", "224.0.0.1", "fe80::1", "::1"])
            .map(|ip| ip.parse().unwrap())
            .as_ref()
            .unwrap(),
    };
    let destinations: Vec<_> =
        model.listeners.iter().filter(|it| it.is_ipv4() == source.is_ipv4()).collect();
    let mut destination = **rng.choice(&destinations).unwrap();
    if rng.u8(..20) == 0 {
        destination.set_port(rng.u16(..));
    }
    let payload = payload(rng, model, source);
    let mut frame =
        datagram(SocketAddr::new(source, rng.u16(..)), destination, &payload, rng.u8(..4) == 0);
    if rng.bool() {
        frame.resize(frame.len().max(FRAME_LEN_MIN) + rng.usize(..3), 0);
    }
    match rng.u8(..9) {
        0 => {
            let at = rng.usize(..frame.len().min(64));
            frame[at] ^= 1 << rng.u8(..8);
        }
        1 => frame.truncate(rng.usize(ETHERNET_LEN..=frame.len())),
        // Options, fragments, another protocol or length in an IPv4 header with the right checksum.
        2 if frame[12..14] == [8, 0] => {
            let at = *rng.choice(&[0, 2, 3, 6, 7, 9]).unwrap();
            frame[ETHERNET_LEN + at] ^= 1 << rng.u8(..8);
            correct_checksum(&mut frame[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN]);
        }
        // A second VLAN tag.
        3 => frame = [&frame[..12], &[0x81, 0, 0, 9], &frame[12..]].concat(),
        _ => {}
    }
    frame
}

/// Writes the checksum of an IPv4 header.
fn correct_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16 + (sum >> 16) as u16)).to_be_bytes());
}

/// Returns a request of any action, with a connection id that may be valid, and of a length that may be too short.
fn payload(rng: &mut fastrand::Rng, model: &Model, source: IpAddr) -> Vec<u8> {
    let action = *rng
        .choice(&[
            ACTION_CONNECT,
            ACTION_ANNOUNCE,
            ACTION_SCRAPE,
            3,
            ACTION_ANNOUNCE_V6,
            5,
            1 << 24,
        ])
        .unwrap();
    let issued_at = UNIX_SECS + 128 - rng.u64(..20_000);
    let id = match rng.u8(..8) {
        0 => rng.u64(..),
        1..5 if action == ACTION_CONNECT => PROTOCOL_MAGIC,
        1 => PROTOCOL_MAGIC,
        _ => model.settings.ids.issue(issued_at, source),
    };
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(action.to_be_bytes());
    payload.extend(rng.u32(..).to_be_bytes());
    // The last ones do not fit into the linear part of a frame.
    let lens = [0, 8, 15, 16, 17, 35, 36, 97, 98, 109, 110, 120, 600, 1_400, 4_000, 8_000];
    payload.resize(*rng.choice(&lens).unwrap(), 7);
    payload
}

/// Returns a frame with a UDP datagram.
fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8], has_vlan: bool) -> Vec<u8> {
    let ip_offset = ETHERNET_LEN + if has_vlan { VLAN_LEN } else { 0 };
    let ip_len = if from.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
    let mut frame = vec![0; ip_offset + ip_len + UDP_LEN];
    frame.extend(payload);
    frame[..12].copy_from_slice([CLIENT_MAC, MAC].as_flattened());
    let kind: [u8; 2] = if from.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    frame[ip_offset - 2..ip_offset].copy_from_slice(&kind);
    if has_vlan {
        frame[12..16].copy_from_slice(&[0x81, 0, 0, 7]);
    }
    // The reply to a frame in the other direction is this frame.
    let headers = FrameHeaders::of_reply(from, to, ip_offset);
    headers.write_reply(&mut frame, payload.len()).unwrap();
    frame
}

/// Runs the program with a frame.
fn run(filter: &mut Filter, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; 16_384];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = program(&mut filter.ebpf).unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// Loads the program with the capabilities that it needs and no others. They are those of the thread of a test.
fn loaded() -> Filter {
    let effective = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    let now = rustix::thread::capabilities(None).unwrap();
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now }).unwrap();
    let mut filter = Filter::load(1).unwrap();
    filter.set_interface(LOOPBACK, 0, MAC).unwrap();
    filter
}

/// Checks that a frame with a right checksum is accepted, and the same one with another checksum or payload is not.
fn check_checksum(frame: &[u8], headers: &FrameHeaders, rng: &mut fastrand::Rng) {
    assert!(headers.has_valid_checksum(frame));
    let at = headers.payload_offset() - 2;
    let mut wrong = frame.to_vec();
    wrong[at + rng.usize(..2 + headers.payload_len())] ^= 1 << rng.u8(..8);
    let is_missing = wrong[at..at + 2] == [0, 0] && headers.source.is_ipv4();
    assert_eq!(headers.has_valid_checksum(&wrong), is_missing, "{wrong:02x?}");
    // What the kernel leaves to the card: the sum of addresses, protocol and length.
    let address = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut pseudo_header = [address(headers.source), address(headers.destination)].concat();
    pseudo_header.extend([0, 17]);
    pseudo_header.extend((UDP_LEN as u16 + headers.payload_len() as u16).to_be_bytes());
    let words =
        pseudo_header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let partial = (sum + (sum >> 16)) as u16;
    wrong.copy_from_slice(frame);
    wrong[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    assert!(headers.has_valid_checksum(&wrong));
}

/// A reply that another thread writes is the same as one that is written into the frame of its request.
#[test]
fn a_path_leads_to_the_same_reply() {
    let mut rng = fastrand::Rng::with_seed(3);
    for round in 0..1_000 {
        let (from, to) = match rng.bool() {
            true => (IpAddr::from([7, 7, rng.u8(..), 7]), IpAddr::from([81, 2, 3, 4])),
            // The last one looks like an IPv4 address.
            false => (
                IpAddr::from([0x2a00, 0, 0, 0, 0, 0xffff, rng.u16(..), 9]),
                IpAddr::from([0x2a00, 0, 0, 0, 0, 0, 0, 1]),
            ),
        };
        let request = vec![7; rng.usize(16..200)];
        let (from, to) = (SocketAddr::new(from, rng.u16(1..)), SocketAddr::new(to, 6969));
        let frame = datagram(from, to, &request, rng.bool());
        let headers = FrameHeaders::parse(&frame).unwrap();
        check_checksum(&frame, &headers, &mut rng);
        let mut reply = vec![0; rng.usize(..1_400)];
        rng.fill(&mut reply);
        let (mut direct, mut forwarded) = (frame.clone(), vec![0xff; 1_792]);
        direct.resize(1_792, 0);
        let len = headers.write_payload(&mut direct, &reply).unwrap();
        let path = FrameReplyPath::new(&frame, &headers, 5);
        assert_eq!(path.write_reply(&mut forwarded, &reply), Some(len), "round {round}");
        assert_eq!(forwarded[..len], direct[..len], "round {round}");
        assert_eq!(path.interface(), 5);
        assert_eq!(path.write_reply(&mut forwarded[..len - 1], &reply), None);
        assert_eq!(len - headers.payload_offset(), reply.len());
    }
}

/// If the networks cannot be written, user space decides about all connects; forged requests are still dropped.
#[test]
#[ignore = "needs root: tests/run"]
fn connects_are_passed_while_networks_are_missing() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut filter, mut model) = (loaded(), model(&mut rng));
    (model.settings.passes_wrong_ids, model.refuses_others) = (false, false);
    model.networks.clear();
    model.load(&mut filter, Duration::ZERO);
    let (from, to) = ("7.7.7.7:5000".parse().unwrap(), "81.2.3.4:6969".parse().unwrap());
    let request = |id: u64, action: u32, len: usize| {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend(action.to_be_bytes());
        payload.resize(len, 0);
        datagram(from, to, &payload, false)
    };
    let connect = request(PROTOCOL_MAGIC, ACTION_CONNECT, 16);
    let forged = request(1, ACTION_ANNOUNCE, 98);
    assert_eq!(run(&mut filter, &connect).0, XDP_TX);
    // No prefix of IPv4 is that long.
    let wrong = NetworkRule { address: [9, 0, 0, 0].into(), prefix_len: 33, is_refused: true };
    let now = Duration::from_secs(2);
    filter.set_networks([wrong], false, now).unwrap_err();
    assert!(filter.apply(&model.settings, UNIX_SECS, now).unwrap());
    assert_eq!(run(&mut filter, &connect).0, XDP_PASS);
    assert_eq!(run(&mut filter, &forged).0, XDP_DROP);
    model.load(&mut filter, Duration::from_secs(4));
    assert_eq!(run(&mut filter, &connect).0, XDP_TX);
}

#[test]
#[ignore = "needs root: tests/run"]
fn the_program_decides_like_the_model() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let socket = FrameSocket::open(LOOPBACK, 0, Some(false)).unwrap();
    let mut filter = loaded();
    let mut requests = [[0; 2]; FilterOutcome::ALL.len()];
    let (mut verdicts, mut bytes) = ([0; FrameVerdict::ALL.len()], [0; 2]);
    for round in 0..20 {
        let model = model(&mut rng);
        model.load(&mut filter, Duration::from_secs(2 * round));
        let has_socket = round % 2 == 1;
        match has_socket {
            true => filter.set_socket(0, 0, socket.as_fd()).unwrap(),
            false => filter.remove_sockets(0),
        }
        for _ in 0..50_000 {
            let frame = frame(&mut rng, &model);
            let (action, out) = run(&mut filter, &frame);
            let decision = model.decide(&frame);
            let found = match action {
                XDP_PASS if decision == Decision::Deliver && !has_socket => Decision::Deliver,
                XDP_PASS if frame.len() > SOCKET_FRAME_LEN_MAX => decision.clone(),
                XDP_PASS => Decision::Pass,
                XDP_REDIRECT => Decision::Deliver,
                XDP_TX => Decision::Answer(out.clone()),
                XDP_DROP => match &decision {
                    Decision::Drop(outcome) => Decision::Drop(*outcome),
                    _ => Decision::Drop(FilterOutcome::Connected),
                },
                action => panic!("seed {seed}: action {action} for {frame:02x?}"),
            };
            assert_eq!(found, decision, "seed {seed}, round {round}: {frame:02x?}");
            let is_changed = out != frame && matches!(action, XDP_PASS | XDP_REDIRECT);
            assert!(!is_changed, "seed {seed}: a frame for user space was changed");
            let outcome = match decision {
                Decision::Pass | Decision::Deliver => None,
                Decision::Drop(outcome) => Some((outcome, 0)),
                Decision::Answer(_) => Some((FilterOutcome::Connected, 16)),
            };
            verdicts[match action {
                XDP_PASS => FrameVerdict::Passed,
                XDP_TX => FrameVerdict::Answered,
                XDP_REDIRECT => FrameVerdict::Redirected,
                _ => FrameVerdict::Dropped,
            } as usize] += 1;
            if let Some((outcome, sent)) = outcome {
                let headers = FrameHeaders::parse(&frame).unwrap();
                requests[outcome as usize][usize::from(headers.source.is_ipv6())] += 1;
                bytes[0] += headers.payload_len() as u64;
                bytes[1] += sent;
            }
        }
    }
    let counts = filter.counts();
    assert_eq!(counts.requests, requests, "seed {seed}");
    assert_eq!([counts.received_bytes, counts.sent_bytes], bytes, "seed {seed}");
    assert_eq!(filter.frames(0, 1), [verdicts], "seed {seed}");
    assert!(verdicts.iter().all(|count| *count > 1_000), "{verdicts:?}");
    assert!(requests.as_flattened().iter().all(|count| *count > 1_000), "{requests:?}");
}
