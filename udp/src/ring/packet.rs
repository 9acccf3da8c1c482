//! Structures that the kernel writes before a datagram or reads with a reply, as plain bytes: the header of a multishot
//! receive, socket addresses, and control messages with the local address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Bytes of `struct io_uring_recvmsg_out`.
pub(super) const HEADER_LEN: usize = 16;
/// Bytes reserved for a socket address: those of the longer family.
pub(super) const NAME_LEN_MAX: usize = size_of::<libc::sockaddr_in6>();
/// Bytes of one control message with `struct in6_pktinfo`, the longer of the two types.
pub(super) const CONTROL_LEN: usize = (CMSG_HEADER_LEN + PKTINFO_V6_LEN).next_multiple_of(8);

const NAME_LEN_V4: usize = size_of::<libc::sockaddr_in>();
const CMSG_HEADER_LEN: usize = size_of::<libc::cmsghdr>();
const PKTINFO_V4_LEN: usize = size_of::<libc::in_pktinfo>();
const PKTINFO_V6_LEN: usize = size_of::<libc::in6_pktinfo>();

const _: () = assert!(NAME_LEN_MAX == 28 && NAME_LEN_V4 == 16 && CMSG_HEADER_LEN == 16);
const _: () = assert!(PKTINFO_V4_LEN == 12 && PKTINFO_V6_LEN == 20 && CONTROL_LEN == 40);

/// The parsed bytes before the payload in a receive buffer, and the place of the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct PacketHeader {
    pub(super) source: SocketAddr,
    /// Local address from which to reply, and interface, if the socket reports them.
    pub(super) local: Option<(IpAddr, u32)>,
    /// Position of the payload in the buffer.
    payload_start: u32,
    payload_len: u32,
    pub(super) truncated: bool,
}

impl PacketHeader {
    /// Returns the payload, given the buffer that the header was parsed from.
    pub(super) fn payload<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        let (_, rest) = buffer.split_at_checked(self.payload_start as usize).unwrap_or_default();
        rest.get(..self.payload_len as usize).unwrap_or_default()
    }
}

/// Parses the bytes that a multishot receive wrote; returns `None` if they are too short, or the source is
/// neither IPv4 nor IPv6.
pub(super) fn parse(buffer: &[u8], control_len: usize) -> Option<PacketHeader> {
    let (header, rest) = buffer.split_first_chunk::<HEADER_LEN>()?;
    let word = |index: usize| {
        let bytes = header.as_chunks::<4>().0.get(index).copied();
        bytes.map_or(0, u32::from_ne_bytes)
    };
    let (name, rest) = rest.split_at_checked(NAME_LEN_MAX)?;
    let (control, payload) = rest.split_at_checked(control_len)?;
    // The length in the header is that of the datagram, even if it was truncated.
    let payload_len = (payload.len() as u32).min(word(2));
    Some(PacketHeader {
        source: read_name(name)?,
        local: control.get(..word(1) as usize).and_then(read_control),
        payload_start: (HEADER_LEN + NAME_LEN_MAX + control_len) as u32,
        payload_len,
        truncated: word(3) & libc::MSG_TRUNC as u32 != 0,
    })
}

/// Parses a socket address. An IPv4-mapped address stays mapped, as the kernel requires it to reply.
pub(super) fn read_name(name: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = name.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let octets: [u8; 4] = *rest.first_chunk()?;
            Some(SocketAddr::new(octets.into(), port))
        }
        libc::AF_INET6 => {
            let (_flow, rest) = rest.split_first_chunk::<4>()?;
            let (octets, rest) = rest.split_first_chunk::<16>()?;
            let scope = u32::from_ne_bytes(*rest.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(*octets), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Writes a socket address; returns its length in bytes.
pub(super) fn write_name(name: &mut [u8; NAME_LEN_MAX], address: SocketAddr) -> u32 {
    *name = [0; NAME_LEN_MAX];
    let (family, len) = match address {
        SocketAddr::V4(address) => {
            name[4..8].copy_from_slice(&address.ip().octets());
            (libc::AF_INET, NAME_LEN_V4)
        }
        SocketAddr::V6(address) => {
            name[8..24].copy_from_slice(&address.ip().octets());
            name[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
            (libc::AF_INET6, NAME_LEN_MAX)
        }
    };
    name[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    name[2..4].copy_from_slice(&address.port().to_be_bytes());
    len as u32
}

/// Parses the local address and interface of the first control message.
fn read_control(control: &[u8]) -> Option<(IpAddr, u32)> {
    let (head, info) = control.split_at_checked(CMSG_HEADER_LEN)?;
    let (_len, kind) = head.split_first_chunk::<8>()?;
    let (level, kind) = kind.split_first_chunk::<4>()?;
    let kind = i32::from_ne_bytes(*kind.first_chunk()?);
    match (i32::from_ne_bytes(*level), kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            let (interface, info) = info.split_first_chunk::<4>()?;
            // The local address (ipi_spec_dst), not the destination: a reply cannot be sent from a broadcast address.
            let octets: [u8; 4] = *info.first_chunk()?;
            Some((octets.into(), u32::from_ne_bytes(*interface)))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let (octets, info) = info.split_first_chunk::<16>()?;
            let interface = u32::from_ne_bytes(*info.first_chunk()?);
            Some((IpAddr::from(*octets), interface))
        }
        _ => None,
    }
}

/// Writes the control message that sets the source address of a reply; returns its length in bytes.
///
/// The routing table selects the interface, except for link-local addresses, which are ambiguous without one.
pub(super) fn write_control(
    control: &mut [u8; CONTROL_LEN],
    local: IpAddr,
    interface: u32,
) -> usize {
    *control = [0; CONTROL_LEN];
    let (level, kind, len) = match local {
        IpAddr::V4(local) => {
            control[20..24].copy_from_slice(&local.octets());
            (libc::IPPROTO_IP, libc::IP_PKTINFO, CMSG_HEADER_LEN + PKTINFO_V4_LEN)
        }
        IpAddr::V6(local) => {
            control[16..32].copy_from_slice(&local.octets());
            let interface = if local.is_unicast_link_local() { interface } else { 0 };
            control[32..36].copy_from_slice(&interface.to_ne_bytes());
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, CMSG_HEADER_LEN + PKTINFO_V6_LEN)
        }
    };
    control[..8].copy_from_slice(&len.to_ne_bytes());
    control[8..12].copy_from_slice(&level.to_ne_bytes());
    control[12..16].copy_from_slice(&kind.to_ne_bytes());
    len.next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_socket_addresses_are_parsed() {
        for address in ["192.0.2.7:6969", "[2001:db8::7]:6969", "[fe80::1%3]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut name = [0xff; NAME_LEN_MAX];
            let len = write_name(&mut name, address) as usize;
            assert_eq!(len, if address.is_ipv4() { 16 } else { 28 });
            assert_eq!(read_name(&name), Some(address));
        }
        assert_eq!(read_name(&[0; NAME_LEN_MAX]), None);
    }

    #[test]
    fn written_control_messages_are_parsed() {
        let mut control = [0xff; CONTROL_LEN];
        let len = write_control(&mut control, "127.0.0.5".parse().unwrap(), 4);
        assert_eq!(read_control(&control[..len]), Some(("127.0.0.5".parse().unwrap(), 0)));
        let len = write_control(&mut control, "fe80::5".parse().unwrap(), 4);
        assert_eq!(read_control(&control[..len]), Some(("fe80::5".parse().unwrap(), 4)));
        let len = write_control(&mut control, "2001:db8::5".parse().unwrap(), 4);
        assert_eq!(read_control(&control[..len]), Some(("2001:db8::5".parse().unwrap(), 0)));
        assert_eq!(read_control(&[0; 20]), None);
    }

    #[test]
    fn any_bytes_are_parsed_without_panic() {
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..if cfg!(miri) { 200 } else { 20_000 } {
            let mut bytes = vec![0; rng.usize(..160)];
            rng.fill(&mut bytes);
            // Without a valid family and type the parser would not reach the fields after them.
            let plausible: [(usize, i32); 3] = [
                (HEADER_LEN, *rng.choice(&[libc::AF_INET, libc::AF_INET6]).unwrap()),
                (
                    HEADER_LEN + NAME_LEN_MAX + 8,
                    *rng.choice(&[libc::IPPROTO_IP, libc::IPPROTO_IPV6]).unwrap(),
                ),
                (
                    HEADER_LEN + NAME_LEN_MAX + 12,
                    *rng.choice(&[libc::IP_PKTINFO, libc::IPV6_PKTINFO]).unwrap(),
                ),
            ];
            for (at, value) in plausible {
                if let Some(bytes) = bytes.get_mut(at..at + 4) {
                    bytes.copy_from_slice(&value.to_ne_bytes());
                }
            }
            // Lengths of the control messages and of the payload.
            for at in [4, 8] {
                if let Some(length) = bytes.get_mut(at..at + 4) {
                    length.copy_from_slice(&rng.u32(..60).to_ne_bytes());
                }
            }
            for control_len in [0, CONTROL_LEN] {
                let parsed = parse(&bytes, control_len);
                let long_enough = bytes.len() >= HEADER_LEN + NAME_LEN_MAX + control_len;
                assert_eq!(parsed.is_some(), long_enough, "round {round}");
                if let Some(header) = parsed {
                    let after = &bytes[HEADER_LEN + NAME_LEN_MAX + control_len..];
                    let len = u32::from_ne_bytes(bytes[8..12].try_into().unwrap()) as usize;
                    let payload = &after[..len.min(after.len())];
                    assert_eq!(header.payload(&bytes), payload, "round {round}");
                }
            }
        }
    }
}
