//! Ethernet frames: whatever is taken for a UDP datagram is one for the crate etherparse, too, and a reply that is
//! written into its frame has the right addresses, lengths and checksums, also when another thread writes it.
//!
//! Input: a frame. The header of an IPv4 packet gets the right checksum if the last byte is odd.

#![no_main]

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, SocketAddr};
use tsubame_udp::xdp::frame::{FrameHeaders, FrameReplyPath};

fuzz_target!(|bytes: &[u8]| {
    let mut frame = bytes.to_vec();
    if frame.last().is_some_and(|byte| byte & 1 == 1) {
        correct_checksum(&mut frame);
    }
    let Some(headers) = FrameHeaders::parse(&frame) else { return };
    let payload = frame[headers.payload_offset()..][..headers.payload_len()].to_vec();
    let (source, destination, found) = endpoints(&frame);
    assert_eq!((source, destination), (headers.source, headers.destination));
    assert_eq!(found, payload);
    let reply_len = payload.len() / 2;
    let path = FrameReplyPath::new(&frame, &headers, 0);
    let mut forwarded = vec![0; frame.len()];
    let forwarded_len = path.write_reply(&mut forwarded, &payload[..reply_len]);
    let Some(len) = headers.write_reply(&mut frame, reply_len) else {
        panic!("a reply that is not longer than its request does not fit");
    };
    let reply = &frame[..len];
    assert_eq!(forwarded_len, Some(len));
    assert_eq!(&forwarded[..len], reply);
    if let Some(reply) = FrameHeaders::parse(reply) {
        assert!(reply.has_valid_checksum(&frame));
    }
    let (source, destination, found) = endpoints(reply);
    assert_eq!((source, destination), (headers.destination, headers.source));
    assert_eq!(found, payload[..reply_len]);
    assert_eq!((&reply[..6], &reply[6..12]), (&bytes[6..12], &bytes[..6]));
    check_sums(reply);
});

/// Returns the source, the destination and the payload of a UDP datagram.
fn endpoints(frame: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
    let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP datagram") };
    let (from, to) = ((from, udp.source_port()).into(), (to, udp.destination_port()).into());
    (from, to, udp.payload().to_vec())
}

/// Checks the checksums of a frame.
fn check_sums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP datagram") };
    let header = udp.to_header();
    let expected = match packet.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            header.calc_checksum_ipv4(&ip, udp.payload())
        }
        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    assert_eq!(header.checksum, expected.expect("a checksum"));
}

/// Writes the checksum of an IPv4 header behind an Ethernet header with or without a VLAN tag.
fn correct_checksum(frame: &mut [u8]) {
    let offset = if frame.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let Some(header) = frame.get_mut(offset..offset + 20) else { return };
    header[10..12].fill(0);
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
