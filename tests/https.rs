//! The tracker over TLS: certificates of its own, renewed while it runs, and clients that are none.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{Announce, Connection, rows_of};
use common::{Tracker, cpus, tsubame};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// Writes a certificate of this machine's names that signs itself
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
         limits: {{head: 2s}}\n",
        cpus(shards),
        file("cert.pem"),
        file("key.pem")
    )
}

type Encrypted = StreamOwned<ClientConnection, TcpStream>;

/// A client that trusts the certificate as it is in the file now
fn connect(tracker: SocketAddr, directory: &Path, before: &[u8]) -> std::io::Result<Encrypted> {
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
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream.write_all(before).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    stream.conn.complete_io(&mut stream.sock)?;
    assert_eq!(stream.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
    Ok(stream)
}

#[test]
fn a_certificate_is_renewed_while_connections_go_on() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let mut tracker = Tracker::start(&config(directory.path(), 2));
    let address = tracker.addresses_of("https")[0];
    let connect = |before: &[u8]| connect(address, directory.path(), before);
    let mut old = Connection::over(connect(b"").unwrap());
    assert_eq!(old.announce(&Announce::of(1, 7_001, 0)).seeders, 1);
    // What a proxy says comes before the handshake.
    let mut proxied = Connection::over(connect(b"PROXY TCP4 81.2.3.4 127.0.0.1 1 2\r\n").unwrap());
    assert_eq!(proxied.announce(&Announce::of(2, 7_001, 0)).external_ip, [81, 2, 3, 4]);
    // More than one record, more than one request, on each shard.
    let targets = (0..60).map(|torrent| Announce::of(torrent, 7_002, 1).target());
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
    assert_eq!(new.announce(&Announce::of(1, 7_003, 0)).seeders, 2);
    assert_eq!(old.announce(&Announce::of(1, 7_001, 0)).seeders, 2);
    // What cannot be read changes nothing.
    let good = std::fs::read(directory.path().join("key.pem")).unwrap();
    std::fs::write(directory.path().join("key.pem"), "not a key").unwrap();
    tracker.signal("HUP");
    tracker.wait_for("everything stays as it was");
    std::fs::write(directory.path().join("key.pem"), good).unwrap();
    let mut again = Connection::over(connect(b"").unwrap());
    again.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(again.reply().unwrap().status, 200);
    // The end is said, and not cut.
    assert_eq!(again.stream.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(common::figure(&tracker.stop(), "over HTTP"), 65);
}

#[test]
fn other_clients_see_what_they_should() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let tracker = Tracker::start(&config(directory.path(), 1));
    let address = tracker.addresses_of("https")[0];
    // Who says that no more follows and sends more is not listened to, and nobody suffers for it.
    let mut rude = connect(address, directory.path(), b"").unwrap();
    rude.conn.send_close_notify();
    while rude.conn.wants_write() {
        rude.conn.write_tls(&mut rude.sock).unwrap();
    }
    rude.sock.set_write_timeout(Some(common::PATIENCE)).unwrap();
    let error = loop {
        if let Err(error) = rude.sock.write_all(&[0x17]) {
            break error;
        }
    };
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "nobody reads, and nobody ends it");
    // Plain requests, garbage and half a handshake end there.
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut seen = Vec::new();
        if let Err(error) = stream.read_to_end(&mut seen) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it is not ended");
        }
        assert!(!seen.starts_with(b"HTTP"), "{}", seen.escape_ascii());
    }
    // The tracker's own check, which trusts whom the system trusts.
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
    let said = String::from_utf8_lossy(&known.stdout).into_owned();
    assert!(said.contains("all is well"), "{said}{}", String::from_utf8_lossy(&known.stderr));
    let unknown = check(None);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("cannot be reached over TLS"), "{said}");
    tracker.stop();
}

#[test]
fn a_long_list_is_encrypted_piece_by_piece_and_cut_at_the_end_of_the_tracker() {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path());
    let config =
        config(directory.path(), 2) + "  full_scrape: {networks: [127.0.0.0/8], interval: 1h}\n";
    let mut tracker = Tracker::start(&config);
    let address = tracker.addresses_of("https")[0];
    const TORRENTS: u32 = 8_000;
    for torrents in (0..TORRENTS).collect::<Vec<_>>().chunks(500) {
        let mut client = Connection::over(connect(address, directory.path(), b"").unwrap());
        let targets = torrents.iter().map(|torrent| Announce::of(*torrent, 7_001, 1).target());
        let requests: String = targets
            .map(|target| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .collect();
        client.send(requests.as_bytes());
        torrents.iter().for_each(|_| assert_eq!(client.reply().unwrap().status, 200));
    }
    let mut client = Connection::over(connect(address, directory.path(), b"").unwrap());
    assert_eq!(rows_of(&client.get("/scrape").body).len(), TORRENTS as usize);
    // One that nobody takes does not keep the tracker from ending.
    let mut stuck = connect(address, directory.path(), b"").unwrap();
    stuck.write_all(b"GET /scrape HTTP/1.1\r\nX-Forwarded-For: 127.0.0.9\r\n\r\n").unwrap();
    stuck.read_exact(&mut [0; 100]).unwrap();
    tracker.signal("TERM");
    assert_eq!(tracker.wait().code(), Some(0));
}

#[test]
fn a_certificate_that_cannot_be_served_is_explained() {
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
    assert!(log.contains("http.tls.key") && log.contains("does not go with"), "{log}");
    std::fs::write(directory.path().join("cert.pem"), "").unwrap();
    let log = start();
    assert!(log.contains("http.tls.certificate") && log.contains("has no certificate"), "{log}");
    std::fs::remove_file(directory.path().join("cert.pem")).unwrap();
    let log = start();
    assert!(log.contains("http.tls.certificate: cannot read"), "{log}");
}
