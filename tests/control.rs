//! The control plane against untrusted clients: idle connections, web pages, other hosts.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::Connection;
use common::{Client, Tracker, control_of, cpus, http_get, now};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Number of idle connections: more than are served at once, and few enough for the backlog of the kernel.
const IDLE_CONNECTIONS: usize = 180;

fn config(control: &str) -> String {
    format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\nhttp: {{listen: \"127.0.0.1:0\"}}\n\
         control: {{{control}}}\n",
        cpus(1)
    )
}

/// Returns the status and the body of the reply to a request with these headers.
fn request(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &str,
) -> (u16, String) {
    write!(stream, "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, reply.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn request_over_tcp(address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
    request(stream, method, path, headers)
}

fn with_low_file_limit(command: Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 300; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

/// Connections without a request neither exhaust the file descriptors of the tracker nor block its reloads.
#[test]
fn idle_connections_do_not_block_other_clients() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let control = format!("listen: \"127.0.0.1:0\", socket: {}", socket.display());
    let mut tracker = Tracker::start_with_command(&config(&control), with_low_file_limit);
    let address = control_of(&mut tracker);
    let idle: Vec<_> =
        (0..IDLE_CONNECTIONS).map_while(|_| TcpStream::connect(address).ok()).collect();
    assert_eq!(idle.len(), IDLE_CONNECTIONS, "the kernel must complete all connections");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", tracker.id())).unwrap().count();
    // Both protocols and a reload work without delay.
    let begun = now();
    let torrent = common::Announce::of(1, 7_001);
    let mut udp = Client::connected("127.0.0.1", tracker.addresses()[0]);
    assert_eq!(udp.announce(&torrent).leechers, 1);
    let mut http = Connection::to(tracker.addresses_of("http")[0]);
    assert_eq!(http.announce(&common::http::HttpAnnounce::of(1, 7_002, 1)).leechers, 2);
    let local = |method: &str, path: &str| {
        request(UnixStream::connect(&socket).unwrap(), method, path, "Host: localhost\r\n")
    };
    assert_eq!(local("GET", "/healthz").0, 200);
    assert_eq!(local("POST", "/v1/reload").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(descriptors() < 150, "{} descriptors", descriptors());
    // The tracker closes idle connections, so that new ones are served.
    common::policy::wait_until(|| {
        let mut ended = idle.iter().filter(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut stream = *stream;
            stream.read(&mut [0; 512]).is_ok()
        });
        ended.next().is_some()
    });
    drop(idle);
    assert!(http_get(address, "/healthz").contains("200 OK"));
    assert!(socket_mode(&socket) & 0o077 == 0, "the socket must not be accessible to other users");
}

/// Clients that request pages and do not read them are disconnected, and delay no announce.
#[test]
fn slow_readers_do_not_block_other_clients() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n",
        cpus(8)
    ));
    let address = control_of(&mut tracker);
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            // The page must not fit into the buffers of both ends.
            socket.set_recv_buffer_size(2_048).unwrap();
            socket.connect(&address.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let mut udp = Client::connected("127.0.0.1", tracker.addresses()[0]);
    let begun = now();
    for port in 7_001..7_101 {
        udp.announce(&common::Announce::of(1, port));
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // Two groups of them are served and disconnected after five seconds each.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.contains("200 OK"), "{reply}");
    drop(slow);
}

fn socket_mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode()
}

/// Requests from web pages are refused, by their Origin header or by a Host header that is not this host (DNS
/// rebinding).
#[test]
fn requests_from_web_pages_are_refused() {
    let mut tracker = Tracker::start(&config("listen: \"127.0.0.1:0\", hosts: [tracker.example]"));
    let address = control_of(&mut tracker);
    for (headers, expected) in [
        (format!("Host: {address}\r\n"), 200),
        ("Host: localhost:6970\r\n".to_owned(), 200),
        ("Host: tracker.example\r\n".to_owned(), 200),
        ("Host: evil.example\r\n".to_owned(), 403),
        (format!("Host: {address}\r\nOrigin: http://evil.example\r\n"), 403),
        (format!("Host: {address}\r\nOrigin: null\r\n"), 403),
    ] {
        for (method, path) in [("GET", "/metrics"), ("GET", "/healthz"), ("POST", "/v1/reload")] {
            let (status, body) = request_over_tcp(address, method, path, &headers);
            assert_eq!(status, expected, "{method} {path} with {headers}: {body}");
        }
    }
    let too_long = format!("Host: localhost\r\nX: {}\r\n", "x".repeat(40_000));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
    // The connection may be reset before the whole request was written.
    let _ = write!(stream, "GET /healthz HTTP/1.1\r\n{too_long}\r\n");
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP/1.1 200"), "{}", reply.escape_ascii());
}

/// Without the token, other hosts may read the metrics and the health, but not use the API. At start, a warning says
/// that they can connect.
#[test]
fn other_hosts_cannot_make_changes() {
    let Some(foreign) = non_loopback_address() else {
        eprintln!("skipped: this machine has only loopback addresses");
        return;
    };
    let mut tracker = Tracker::start(&config("listen: \"0.0.0.0:0\""));
    let port = control_of(&mut tracker).port();
    tracker.wait_for("can be reached from other hosts");
    let from_elsewhere = |method: &str, path: &str| {
        let host = format!("Host: {foreign}\r\n");
        request_over_tcp(SocketAddr::new(foreign, port), method, path, &host)
    };
    assert_eq!(from_elsewhere("GET", "/metrics").0, 200);
    for (method, path) in [
        ("POST", "/v1/reload"),
        ("POST", "/v1/evict"),
        ("PUT", "/v1/access_list/0123456789abcdef0123456789abcdef01234567"),
        ("DELETE", "/v1/access_list/0123456789abcdef0123456789abcdef01234567"),
    ] {
        let (status, body) = from_elsewhere(method, path);
        assert!(status == 403 && body.contains("control.token_file"), "{status} {body}");
    }
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(request_over_tcp(here, "POST", "/v1/reload", "Host: localhost\r\n").0, 200);
}

/// Returns an IPv4 address of this machine that is not loopback. Connections from this machine to it have it as their
/// source.
fn non_loopback_address() -> Option<std::net::IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let mut addresses = interfaces.filter_map(|it| Some(it.address?.as_sockaddr_in()?.ip()));
    addresses.find(|ip| !ip.is_loopback()).map(Into::into)
}
