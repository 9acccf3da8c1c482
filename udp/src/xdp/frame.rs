//! Ethernet frames with UDP datagrams: reads their headers, and turns a request into a reply in place.
//!
//! The functions are defined for any bytes and never panic. They accept the same headers as the XDP program
//! (`udp/bpf/filter.c`): it leaves a frame for which [`FrameHeaders::parse`] returns `None` to the network stack.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of an Ethernet header without a VLAN tag.
pub const ETHERNET_LEN: usize = 14;
/// Length of a VLAN tag.
pub const VLAN_LEN: usize = 4;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;

/// Minimum length of an Ethernet frame without its checksum; shorter ones are padded.
pub const FRAME_LEN_MIN: usize = 60;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const PROTOCOL_UDP: u8 = 17;

/// Time to live, or hop limit, of a reply.
const TIME_TO_LIVE: u8 = 64;

/// Headers of a frame with a UDP datagram, and where its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeaders {
    /// Address and port of the sender.
    pub source: SocketAddr,
    /// Address and port of the receiver.
    pub destination: SocketAddr,
    /// Offset of the IP header: the length of the Ethernet header with its VLAN tag.
    ip_offset: u8,
    /// Number of bytes of the payload.
    payload_len: u16,
}

impl FrameHeaders {
    /// Reads the headers of a frame.
    ///
    /// Returns `None` unless it is an Ethernet frame with at most one VLAN tag, an IPv4 packet without options whose
    /// header has the right checksum, or an IPv6 packet without extension headers, and a whole UDP datagram whose
    /// source could be that of a client. The checksum of UDP is not verified: see [`Self::has_valid_checksum`].
    pub fn parse(frame: &[u8]) -> Option<Self> {
        // A frame without a VLAN tag has these 18 bytes, too: Ethernet frames have at least 60.
        let (start, _) = frame.split_first_chunk::<{ ETHERNET_LEN + VLAN_LEN }>()?;
        let [.., type_high, type_low, _, _, inner_high, inner_low] = *start;
        let (ip_offset, kind) = match u16::from_be_bytes([type_high, type_low]) {
            ETHERTYPE_VLAN => {
                (ETHERNET_LEN + VLAN_LEN, u16::from_be_bytes([inner_high, inner_low]))
            }
            kind => (ETHERNET_LEN, kind),
        };
        let packet = frame.get(ip_offset..)?;
        let (source, destination, datagram) = match kind {
            ETHERTYPE_IPV4 => parse_v4(packet)?,
            ETHERTYPE_IPV6 => parse_v6(packet)?,
            _ => return None,
        };
        let (udp, payload) = datagram.split_first_chunk::<UDP_LEN>()?;
        let [source_high, source_low, port_high, port_low, len_high, len_low, _, _] = *udp;
        let source_port = u16::from_be_bytes([source_high, source_low]);
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        (source_port != 0 && len == datagram.len()).then(|| Self {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, u16::from_be_bytes([port_high, port_low])),
            ip_offset: ip_offset as u8,
            // Less than the length of the IP packet, which has 16 bits.
            payload_len: payload.len() as u16,
        })
    }

    /// Returns the headers of a frame whose reply goes from `from` to `to`. `ip_offset` is the length of the Ethernet
    /// header with its VLAN tag.
    #[cfg(test)]
    pub(super) fn of_reply(from: SocketAddr, to: SocketAddr, ip_offset: usize) -> Self {
        Self { source: to, destination: from, ip_offset: ip_offset as u8, payload_len: 0 }
    }

    /// Returns whether the UDP checksum of the frame with these headers is right.
    ///
    /// Over IPv4 it may be missing. The sum of the addresses, protocol and length alone is also right: the kernel
    /// leaves it to the network card to add the rest, and virtual interfaces do not.
    pub fn has_valid_checksum(&self, frame: &[u8]) -> bool {
        let (start, len) = (self.payload_offset(), self.payload_len());
        let datagram = frame.get(start - UDP_LEN..).and_then(|rest| rest.get(..UDP_LEN + len));
        let Some(datagram) = datagram else { return false };
        let [_, _, _, _, _, _, high, low, ..] = *datagram else { return false };
        let checksum = u16::from_be_bytes([high, low]);
        if checksum == 0 {
            return self.source.is_ipv4();
        }
        let pseudo_header = self.pseudo_header_sum(datagram.len());
        checksum == fold(pseudo_header) || fold(pseudo_header + sum(datagram)) == u16::MAX
    }

    /// Returns the sum of the addresses, the protocol and the length of a datagram of `udp_len` bytes.
    fn pseudo_header_sum(&self, udp_len: usize) -> u64 {
        let of = |address: SocketAddr| match address.ip() {
            IpAddr::V4(address) => sum(&address.octets()),
            IpAddr::V6(address) => sum(&address.octets()),
        };
        of(self.source) + of(self.destination) + u64::from(PROTOCOL_UDP) + udp_len as u64
    }

    /// Returns the offset of the payload in the frame.
    pub fn payload_offset(&self) -> usize {
        let ip_len = if self.source.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        usize::from(self.ip_offset) + ip_len + UDP_LEN
    }

    /// Returns the number of bytes of an IP packet of the same family with a payload of `payload_len` bytes.
    pub fn packet_len(&self, payload_len: usize) -> usize {
        self.payload_offset() - usize::from(self.ip_offset) + payload_len
    }

    /// Returns the number of bytes of the payload.
    pub fn payload_len(&self) -> usize {
        usize::from(self.payload_len)
    }

    /// Turns the frame with these headers into a reply with a payload; returns the length of the frame, or `None` if
    /// `frame` is too short for that.
    pub fn write_payload(&self, frame: &mut [u8], payload: &[u8]) -> Option<usize> {
        frame.get_mut(self.payload_offset()..)?.get_mut(..payload.len())?.copy_from_slice(payload);
        self.write_reply(frame, payload.len())
    }

    /// Turns the frame with these headers into one that goes back to its sender with `payload_len` bytes of payload,
    /// which have been written at [`Self::payload_offset`]; returns the length of the frame, or `None` if it is too
    /// short for that.
    ///
    /// Addresses and ports are exchanged. The reply has a time to live of 64, no traffic class and no flag that forbids
    /// fragments.
    pub fn write_reply(&self, frame: &mut [u8], payload_len: usize) -> Option<usize> {
        let len = self.payload_offset() + payload_len;
        let (macs, _) = frame.get_mut(..len)?.split_first_chunk_mut::<12>()?;
        let (destination, source) = macs.split_at_mut(6);
        destination.swap_with_slice(source);
        let packet = frame.get_mut(usize::from(self.ip_offset)..len)?;
        let udp_len = u16::try_from(UDP_LEN + payload_len).ok()?;
        let datagram = match (self.destination.ip(), self.source.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (ip, datagram) = packet.split_first_chunk_mut::<IPV4_LEN>()?;
                *ip = ipv4_header(from, to, udp_len);
                datagram
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (ip, datagram) = packet.split_first_chunk_mut::<IPV6_LEN>()?;
                *ip = ipv6_header(from, to, udp_len);
                datagram
            }
            _ => return None,
        };
        let (udp, payload) = datagram.split_first_chunk_mut::<UDP_LEN>()?;
        *udp = udp_header(self.destination.port(), self.source.port(), udp_len);
        let pseudo_header = self.pseudo_header_sum(udp_len.into());
        let checksum = !fold(pseudo_header + sum(udp) + sum(payload));
        // 0 would mean that there is no checksum.
        let checksum = if checksum == 0 { u16::MAX } else { checksum };
        let [.., high, low] = udp;
        [*high, *low] = checksum.to_be_bytes();
        Some(len)
    }
}

/// The headers of a request in a frame, small enough to be sent to another thread, which sends the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameReplyPath {
    /// The Ethernet header of the request; its length is `ip_offset`.
    link: [u8; ETHERNET_LEN + VLAN_LEN],
    ip_offset: u8,
    is_v4: bool,
    /// Address of the client, and the address that the request was sent to.
    addresses: [[u8; 16]; 2],
    ports: [u16; 2],
    /// Number of the interface that received the request.
    interface: u16,
}

const _: () = assert!(size_of::<FrameReplyPath>() == 58);

impl FrameReplyPath {
    /// Returns the path of the reply to the request in a frame with these headers. `interface` is any number.
    pub fn new(frame: &[u8], headers: &FrameHeaders, interface: u16) -> Self {
        let mut link = [0; ETHERNET_LEN + VLAN_LEN];
        link.iter_mut().zip(frame).for_each(|(to, from)| *to = *from);
        let wide = |address: SocketAddr| match address.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        Self {
            link,
            ip_offset: headers.ip_offset,
            is_v4: headers.source.is_ipv4(),
            addresses: [wide(headers.source), wide(headers.destination)],
            ports: [headers.source.port(), headers.destination.port()],
            interface,
        }
    }

    /// Returns the number of the interface.
    pub fn interface(&self) -> u16 {
        self.interface
    }

    /// Returns the headers of the request, with a payload length of 0: the path does not keep it.
    pub fn headers(&self) -> FrameHeaders {
        let narrow = |bytes: [u8; 16], port| {
            let address = Ipv6Addr::from(bytes);
            let v4 = address.to_ipv4_mapped().filter(|_| self.is_v4);
            SocketAddr::new(v4.map_or(address.into(), IpAddr::from), port)
        };
        let ([source, destination], [source_port, port]) = (self.addresses, self.ports);
        FrameHeaders {
            source: narrow(source, source_port),
            destination: narrow(destination, port),
            ip_offset: self.ip_offset,
            payload_len: 0,
        }
    }

    /// Writes a reply into a frame; returns the length of the frame, or `None` if the frame is too short.
    pub fn write_reply(&self, frame: &mut [u8], payload: &[u8]) -> Option<usize> {
        let (headers, link) = (self.headers(), self.link.get(..usize::from(self.ip_offset))?);
        frame.get_mut(..link.len())?.copy_from_slice(link);
        headers.write_payload(frame, payload)
    }
}

/// Returns the addresses of an IPv4 packet, and its datagram.
fn parse_v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let (header, _) = packet.split_first_chunk::<IPV4_LEN>()?;
    let [
        version_and_len,
        _,
        len_high,
        len_low,
        _,
        _,
        flags,
        offset,
        _,
        protocol,
        _,
        _,
        addresses @ ..,
    ] = *header;
    let fragment = u16::from_be_bytes([flags, offset]) & 0x3fff;
    if version_and_len != 0x45 || protocol != PROTOCOL_UDP || fragment != 0 {
        return None;
    }
    if fold(sum(header)) != u16::MAX {
        return None;
    }
    let [source @ .., _, _, _, _] = addresses;
    let [_, _, _, _, destination @ ..] = addresses;
    let is_special = matches!(source, [0 | 127 | 224.., ..]);
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let datagram = packet.get(IPV4_LEN..len).filter(|_| !is_special)?;
    Some((Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into(), datagram))
}

/// Returns the addresses of an IPv6 packet, and its datagram.
fn parse_v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let (header, rest) = packet.split_first_chunk::<IPV6_LEN>()?;
    let [version, _, _, _, len_high, len_low, next_header, _, addresses @ ..] = *header;
    if version >> 4 != 6 || next_header != PROTOCOL_UDP {
        return None;
    }
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let source = Ipv6Addr::from(*source);
    let destination = Ipv6Addr::from(*destination.first_chunk::<16>()?);
    if is_special_v6(source) || is_special_v6(destination) {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    Some((source.into(), destination.into(), rest.get(..len)?))
}

/// Returns whether packets from or to an address are left to the network stack: multicast and link-local addresses, and
/// those that no packet on a network has.
fn is_special_v6(address: Ipv6Addr) -> bool {
    let [first, second, third, fourth, ..] = address.segments();
    address.is_multicast()
        || address.is_unicast_link_local()
        || [first, second, third, fourth] == [0; 4]
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, udp_len: u16) -> [u8; IPV4_LEN] {
    let [len_high, len_low] = (IPV4_LEN as u16).saturating_add(udp_len).to_be_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (from.octets(), to.octets());
    let mut header = [
        0x45,
        0,
        len_high,
        len_low,
        0,
        0,
        0,
        0,
        TIME_TO_LIVE,
        PROTOCOL_UDP,
        0,
        0,
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
    ];
    let checksum = !fold(sum(&header));
    let [_, _, _, _, _, _, _, _, _, _, high, low, ..] = &mut header;
    [*high, *low] = checksum.to_be_bytes();
    header
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, udp_len: u16) -> [u8; IPV6_LEN] {
    let [len_high, len_low] = udp_len.to_be_bytes();
    let start = [6 << 4, 0, 0, 0, len_high, len_low, PROTOCOL_UDP, TIME_TO_LIVE];
    let mut header = [0; IPV6_LEN];
    let parts = start.into_iter().chain(from.octets()).chain(to.octets());
    header.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
    header
}

/// Returns a UDP header without a checksum.
fn udp_header(from: u16, to: u16, len: u16) -> [u8; UDP_LEN] {
    let ([a, b], [c, d], [e, f]) = (from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes());
    [a, b, c, d, e, f, 0, 0]
}

/// Returns the sum of the 16-bit words of some bytes; an odd byte at the end counts as the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let words = words.iter().map(|word| u64::from(u16::from_be_bytes(*word)));
    words.sum::<u64>() + rest.first().map_or(0, |byte| u64::from(*byte) << 8)
}

/// Folds a sum to the 16 bits of the Internet checksum (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
