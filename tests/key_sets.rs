//! Key sets of tokens over HTTPS: redirects, sizes, times and certificates.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::{PATIENCE, Tracker, cpus};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A key of RFC 8037, appendix A.2, in a set
const PAGE: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// What is longer than any key set
const TOO_LONG: usize = 3 << 20;

/// A server of some pages over HTTPS and over HTTP, and the certificate of the former
struct Server {
    https: SocketAddr,
    http: SocketAddr,
    certificate: PathBuf,
    _directory: tempfile::TempDir,
}

fn answer(stream: &mut (impl Read + Write), http: SocketAddr) -> std::io::Result<()> {
    let mut request = [0; 4_096];
    let len = stream.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..len]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let redirect = |to: &str| {
        format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    };
    let ok = |len: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes();
    match path {
        "/moved" => stream.write_all(&redirect("/keys"))?,
        "/unencrypted" => stream.write_all(&redirect(&format!("http://{http}/keys")))?,
        "/round" => stream.write_all(&redirect("/round"))?,
        "/long" => {
            stream.write_all(&ok(TOO_LONG))?;
            stream.write_all(&vec![b' '; TOO_LONG])?;
        }
        "/slow" => {
            stream.write_all(&ok(PAGE.len()))?;
            stream.flush()?;
            // The client ends it: this waits for its end.
            stream.read(&mut [0]).map(|_| ())?;
        }
        _ => {
            stream.write_all(&ok(PAGE.len()))?;
            stream.write_all(PAGE.as_bytes())?;
        }
    }
    stream.flush()
}

/// Serves connections until the process ends, one at a time
fn serve(listener: TcpListener, mut each: impl FnMut(TcpStream) + Send + 'static) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(&mut each));
    address
}

impl Server {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = directory.path().join("certificate.pem");
        std::fs::write(&certificate, key.cert.pem()).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private.unwrap())
            .unwrap();
        let config = Arc::new(config);
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let plain = listen();
        let http = plain.local_addr().unwrap();
        serve(plain, move |mut stream| drop(answer(&mut stream, http)));
        let https = serve(listen(), move |stream| {
            let session = ServerConnection::new(config.clone()).unwrap();
            // Whoever does not trust the certificate ends it.
            let _ = answer(&mut StreamOwned::new(session, stream), http);
        });
        Self { https, http, certificate, _directory: directory }
    }

    /// A tracker that has its keys from a page here
    fn tracker(&self, page: &str, trusts: bool) -> Tracker {
        let url = format!("https://localhost:{}{page}", self.https.port());
        let config = format!(
            "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"\"}}\nhooks:\n  \
             - {{name: jwt, options: {{jwk_set_url: '{url}'}}}}\n",
            cpus(1)
        );
        Tracker::start_under(&config, |mut command| {
            if trusts {
                command.env("SSL_CERT_FILE", &self.certificate);
            }
            command
        })
    }
}

#[test]
fn key_sets_come_over_https_from_servers_that_are_trusted() {
    let server = Server::new();
    for page in ["/keys", "/moved"] {
        server.tracker(page, true).wait_for("a new key set of 1 keys");
    }
    let line = server.tracker("/keys", false).wait_for("cannot fetch");
    assert!(line.contains("https://localhost"), "{line}");
}

#[test]
fn key_sets_are_not_fetched_without_encryption_or_without_end() {
    let server = Server::new();
    // The page it leads to is there.
    let mut stream = TcpStream::connect(server.http).unwrap();
    stream.write_all(b"GET /keys HTTP/1.1\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.ends_with(PAGE));
    for page in ["/unencrypted", "/round", "/long"] {
        let mut tracker = server.tracker(page, true);
        let line = tracker.wait_for("cannot fetch");
        assert!(line.contains(page), "{line}");
        assert!(!tracker.log.iter().any(|line| line.contains("a new key set")));
    }
}

#[test]
fn a_key_set_that_does_not_arrive_is_given_up() {
    let server = Server::new();
    let mut tracker = server.tracker("/slow", true);
    tracker.wait_within(2 * PATIENCE + Duration::from_secs(5), "cannot fetch");
}
