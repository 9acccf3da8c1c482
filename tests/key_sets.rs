//! Fetching key sets over HTTPS: redirects, size limits, timeouts and certificates.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::{Tracker, WAIT_TIMEOUT, cpus};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Key set with the key of RFC 8037, appendix A.2.
const PAGE: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// Number of bytes of a page that exceeds the size limit of key sets.
const TOO_LONG_BYTES: usize = 3 << 20;

/// A server of several pages over HTTPS and over HTTP, with the certificate of the HTTPS listener.
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
            stream.write_all(&ok(TOO_LONG_BYTES))?;
            stream.write_all(&vec![b' '; TOO_LONG_BYTES])?;
        }
        "/slow" => {
            stream.write_all(&ok(PAGE.len()))?;
            stream.flush()?;
            // Waits until the client closes the connection.
            stream.read(&mut [0]).map(|_| ())?;
        }
        _ => {
            stream.write_all(&ok(PAGE.len()))?;
            stream.write_all(PAGE.as_bytes())?;
        }
    }
    stream.flush()
}

/// Serves connections one at a time until the process ends. Returns the address of the listener.
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
            // A client that does not trust the certificate closes the connection.
            let _ = answer(&mut StreamOwned::new(session, stream), http);
        });
        Self { https, http, certificate, _directory: directory }
    }

    /// Starts a tracker that fetches its key set from a page of this server.
    fn tracker(&self, page: &str, trusts: bool) -> Tracker {
        let url = format!("https://localhost:{}{page}", self.https.port());
        let config = format!(
            "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"\"}}\nhooks:\n  \
             - {{name: jwt, options: {{jwk_set_url: '{url}'}}}}\n",
            cpus(1)
        );
        Tracker::start_with_command(&config, |mut command| {
            if trusts {
                command.env("SSL_CERT_FILE", &self.certificate);
            }
            command
        })
    }
}

#[test]
fn key_sets_are_fetched_over_https_from_trusted_servers() {
    let server = Server::new();
    for page in ["/keys", "/moved"] {
        server.tracker(page, true).wait_for("a new key set of 1 keys");
    }
    let line = server.tracker("/keys", false).wait_for("cannot fetch");
    assert!(line.contains("https://localhost"), "{line}");
}

#[test]
fn redirects_to_http_endless_redirects_and_long_key_sets_are_refused() {
    let server = Server::new();
    // The target of the redirect exists, so the redirect itself is what is refused.
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
fn fetching_a_key_set_times_out() {
    let server = Server::new();
    let mut tracker = server.tracker("/slow", true);
    tracker.wait_within(2 * WAIT_TIMEOUT + Duration::from_secs(5), "cannot fetch");
}
