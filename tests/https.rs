//! The tracker over TLS: certificates that are renewed while it runs, and clients that violate the protocol.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{Connection, HttpAnnounce, rows_of};
use common::{Tracker, cpus, tsubame};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// Writes a self-signed certificate for localhost, and its key.
fn write_certificate(directory: &Path) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
}

fn config(directory: &Path, shards: usize) -> String {
    let file = |name| directory.join(name).display().to_string();
    format!(
        "cpus: {}\nudp: {{listen: []}}\ncontrol: {{listen: \"\"}}\nhttp:\n  listen: []\n  tls:\n    \
         listen: \"127.0.0.1:0\"\n    certificate: {}\n    key: {}\n  trusted_proxies: [127.0.0.1]\n  \
         limits: {{request_timeout: 2s}}\n",
        cpus(shards),
        file("cert.pem"),
        file("key.pem")
    )
}

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Connects as a client that trusts the certificate that is in the file now. Sends `before` ahead of the handshake.
fn connect(tracker: SocketAddr, directory: &Path, before: &[u8]) -> std::io::Result<TlsStream> {
    let mut roots = RootCertStore::empty();
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(directory.join("cert.pem"));
    roots.add(certificate.unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(tracker).unwrap();
    stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
    stream.write_all(before).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    stream.conn.complete_io(&mut stream.sock)?;
    assert_eq!(stream.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
    Ok(stream)
}

#[test]
fn a_certificate_is_renewed_while_connections_stay_open() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let mut tracker = Tracker::start(&config(directory.path(), 2));
    let address = tracker.addresses_of("https")[0];
    let connect = |before: &[u8]| connect(address, directory.path(), before);
    let mut old = Connection::over(connect(b"").unwrap());
    assert_eq!(old.announce(&HttpAnnounce::of(1, 7_001, 0)).seeders, 1);
    // The header of the PROXY protocol comes before the handshake.
    let mut proxied = Connection::over(connect(b"PROXY TCP4 81.2.3.4 127.0.0.1 1 2\r\n").unwrap());
    assert_eq!(proxied.announce(&HttpAnnounce::of(2, 7_001, 0)).external_ip, [81, 2, 3, 4]);
    // Many requests in many TLS records, for torrents of each shard.
    let targets = (0..60).map(|torrent| HttpAnnounce::of(torrent, 7_002, 1).target());
    let requests: String =
        targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
    old.send(requests.as_bytes());
    for _ in 0..60 {
        assert_eq!(old.reply().unwrap().status, 200);
    }
    write_certificate(directory.path());
    tracker.signal("HUP");
    tracker.wait_for("info hashes listed, the certificate");
    let mut new = Connection::over(connect(b"").unwrap());
    assert_eq!(new.announce(&HttpAnnounce::of(1, 7_003, 0)).seeders, 2);
    assert_eq!(old.announce(&HttpAnnounce::of(1, 7_001, 0)).seeders, 2);
    // An invalid key file leaves the current certificate in use.
    let good = std::fs::read(directory.path().join("key.pem")).unwrap();
    std::fs::write(directory.path().join("key.pem"), "not a key").unwrap();
    tracker.signal("HUP");
    tracker.wait_for("nothing was changed");
    std::fs::write(directory.path().join("key.pem"), good).unwrap();
    let mut again = Connection::over(connect(b"").unwrap());
    again.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(again.reply().unwrap().status, 200);
    // The connection ends with close_notify, not with a truncation.
    assert_eq!(common::uninterrupted(|| again.stream.read(&mut [0; 10])).unwrap(), 0);
    assert_eq!(common::count_in(&tracker.stop(), "over HTTP"), 65);
}

#[test]
fn invalid_clients_are_disconnected_and_e2e_verifies_the_certificate() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let tracker = Tracker::start(&config(directory.path(), 1));
    let address = tracker.addresses_of("https")[0];
    // Data after close_notify is not read, and the connection is closed.
    let mut closed = connect(address, directory.path(), b"").unwrap();
    closed.conn.send_close_notify();
    while closed.conn.wants_write() {
        closed.conn.write_tls(&mut closed.sock).unwrap();
    }
    closed.sock.set_write_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
    let error = loop {
        if let Err(error) = closed.sock.write_all(&[0x17]) {
            break error;
        }
    };
    assert_ne!(
        error.kind(),
        std::io::ErrorKind::WouldBlock,
        "the tracker neither reads nor closes the connection"
    );
    // Requests without TLS, garbage and incomplete handshakes close the connection.
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut seen = Vec::new();
        if let Err(error) = stream.read_to_end(&mut seen) {
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "the connection was not closed"
            );
        }
        assert!(!seen.starts_with(b"HTTP"), "{}", seen.escape_ascii());
    }
    // `tsubame e2e` trusts the system's certificates.
    let check = |trusted: Option<&Path>| {
        let mut command = tsubame();
        let url = format!("https://{address}/announce");
        command.args(["e2e", &url]).env_remove("SSL_CERT_DIR");
        if let Some(trusted) = trusted {
            command.env("SSL_CERT_FILE", trusted);
        }
        command.output().unwrap()
    };
    let certificate = directory.path().join("cert.pem");
    let known = check(Some(&certificate));
    let text = String::from_utf8_lossy(&known.stdout).into_owned();
    assert!(text.contains("the tracker works"), "{text}{}", String::from_utf8_lossy(&known.stderr));
    let unknown = check(None);
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(text.contains("cannot be reached over TLS"), "{text}");
    tracker.stop();
}

#[test]
fn a_full_scrape_is_streamed_over_tls_and_aborted_at_shutdown() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let config =
        config(directory.path(), 2) + "  full_scrape: {networks: [127.0.0.0/8], interval: 1h}\n";
    let mut tracker = Tracker::start(&config);
    let address = tracker.addresses_of("https")[0];
    const TORRENTS: u32 = 8_000;
    for torrents in (0..TORRENTS).collect::<Vec<_>>().chunks(500) {
        let mut client = Connection::over(connect(address, directory.path(), b"").unwrap());
        let targets = torrents.iter().map(|torrent| HttpAnnounce::of(*torrent, 7_001, 1).target());
        let requests: String = targets
            .map(|target| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .collect();
        client.send(requests.as_bytes());
        torrents.iter().for_each(|_| assert_eq!(client.reply().unwrap().status, 200));
    }
    let mut client = Connection::over(connect(address, directory.path(), b"").unwrap());
    assert_eq!(rows_of(&client.get("/scrape").body).len(), TORRENTS as usize);
    // A full scrape that the client does not read does not delay the shutdown.
    let mut stalled = connect(address, directory.path(), b"").unwrap();
    stalled.write_all(b"GET /scrape HTTP/1.1\r\nX-Forwarded-For: 127.0.0.9\r\n\r\n").unwrap();
    stalled.read_exact(&mut [0; 100]).unwrap();
    tracker.signal("TERM");
    assert_eq!(tracker.wait().code(), Some(0));
}

#[test]
fn an_unusable_certificate_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let other = tempfile::tempdir().unwrap();
    write_certificate(other.path());
    let start = || {
        let mut tracker = Tracker::spawn(&config(directory.path(), 2), |run| run);
        assert_eq!(tracker.wait().code(), Some(2));
        tracker.log.join("\n")
    };
    std::fs::copy(other.path().join("key.pem"), directory.path().join("key.pem")).unwrap();
    let log = start();
    assert!(log.contains("http.tls.key") && log.contains("does not match"), "{log}");
    std::fs::write(directory.path().join("cert.pem"), "").unwrap();
    let log = start();
    assert!(log.contains("http.tls.certificate") && log.contains("has no certificate"), "{log}");
    std::fs::remove_file(directory.path().join("cert.pem")).unwrap();
    let log = start();
    assert!(log.contains("http.tls.certificate: cannot read"), "{log}");
}
