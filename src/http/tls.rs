//! TLS: decrypts and encrypts the bytes of a connection, without sockets, and loads the certificate, which can be
//! replaced while connections are open.
//!
//! A handshake signs with the private key, which takes longer than a shard may be blocked. Helper threads do it: the
//! session is moved to a helper thread and back.

use crate::lines;
use crate::stats::http_stats::HttpStats;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use thiserror::Error;
use tokio::runtime::Handle;
use x509_cert::der::Decode;

/// Reason for which TLS cannot be served.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(
        "http.tls.{0}: cannot read {1}: {2}; give a file in PEM format that this user may read"
    )]
    Unreadable(&'static str, PathBuf, #[source] pem::Error),
    /// The certificate file contains no certificate.
    #[error("http.tls.certificate: {0} has no certificate; give the whole chain in PEM format")]
    Empty(PathBuf),
    /// The key does not belong to the certificate, or its type is not supported.
    #[error("http.tls.key: {0} does not match {1}: {2}; give the key of that certificate")]
    KeyMismatch(PathBuf, PathBuf, #[source] rustls::Error),
    /// The TLS library refuses the configuration.
    #[error("http.tls: TLS setup failed: {0}; please report it")]
    Setup(#[from] rustls::Error),
}

/// Maximum bytes of a PEM file.
const PEM_LEN_MAX: u64 = 1 << 20;

/// A certificate chain with its private key, read from files.
#[derive(Debug)]
pub struct Certificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the certificate and the key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(read(certificate, key)?));
        Ok(Self { current })
    }

    /// Reads both files again; handshakes from now on use them.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is invalid, the current certificate stays in use.
    pub fn reload(&self, certificate: &Path, key: &Path) -> Result<(), TlsError> {
        let fresh = Arc::new(read(certificate, key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl Certificate {
    /// Returns the time at which the certificate expires, in seconds since 1970; `None` if it cannot be parsed.
    pub fn expiry_unix_secs(&self) -> Option<u64> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let certificate = x509_cert::Certificate::from_der(current.cert.first()?).ok()?;
        let not_after = certificate.tbs_certificate.validity.not_after;
        Some(not_after.to_unix_duration().as_secs())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Reads a certificate chain and its private key.
fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let unreadable = |name, path: &Path| {
        let path = path.to_owned();
        move |error| TlsError::Unreadable(name, path, error)
    };
    let read = |path| lines::read(path, PEM_LEN_MAX).map_err(pem::Error::Io);
    let chain = read(certificate)
        .and_then(|text| CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>())
        .map_err(unreadable("certificate", certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(certificate.to_owned()));
    }
    let private = read(key)
        .and_then(|text| PrivateKeyDer::from_pem_slice(&text))
        .map_err(unreadable("key", key))?;
    CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map_err(|error| TlsError::KeyMismatch(key.to_owned(), certificate.to_owned(), error))
}

/// Configuration of TLS; the same for all shards.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    helpers: Handle,
}

impl Tls {
    /// Creates the configuration. Handshakes run on the blocking threads of the runtime `helpers`.
    pub fn new(certificate: Arc<Certificate>, helpers: Handle) -> Result<Self, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        // Clients that offer only HTTP/1.0 are served, too.
        config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        // Sessions are resumed by tickets, which need no memory here: clients keep them, encrypted by a rotating key.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self { config: Arc::new(config), helpers })
    }

    /// Creates the session of a new connection; returns `None` if the TLS library fails.
    pub(super) fn session(&self) -> Option<TlsSession> {
        let connection = ServerConnection::new(self.config.clone()).ok()?;
        let connection = Some(Box::new(connection));
        Some(TlsSession { connection, helpers: self.helpers.clone(), has_ended: false })
    }
}

/// TLS session of one connection.
pub(super) struct TlsSession {
    /// State of the TLS library; `None` while a helper thread has it, and after an error.
    connection: Option<Box<ServerConnection>>,
    helpers: Handle,
    /// Whether the client has sent close_notify: no more data follows.
    pub(super) has_ended: bool,
}

/// The client violates the TLS protocol, or the helper threads have stopped.
pub(super) struct TlsStreamError;

impl TlsSession {
    /// Processes bytes from the client.
    ///
    /// Appends the decrypted data to `input`, and what must be sent to the client to `output`.
    pub(super) async fn process_input(
        &mut self,
        mut bytes: &[u8],
        input: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<(), TlsStreamError> {
        while !bytes.is_empty() {
            let mut connection = self.connection.take().ok_or(TlsStreamError)?;
            // The library reads nothing more after close_notify: further bytes violate the protocol.
            if connection.read_tls(&mut bytes).map_err(|_| TlsStreamError)? == 0 {
                return Err(TlsStreamError);
            }
            let processed = if connection.is_handshaking() {
                let work = self.helpers.spawn_blocking(move || {
                    let processed = connection.process_new_packets();
                    (connection, processed)
                });
                let processed;
                // Fails if the runtime is being shut down.
                (connection, processed) = work.await.map_err(|_| TlsStreamError)?;
                processed
            } else {
                connection.process_new_packets()
            };
            // Also on failure: the client gets an alert that names the error.
            write_pending(&mut connection, output);
            let state = processed.map_err(|_| TlsStreamError)?;
            let len = input.len();
            input.resize(len + state.plaintext_bytes_to_read(), 0);
            let plain = input.get_mut(len..).unwrap_or_default();
            connection.reader().read_exact(plain).map_err(|_| TlsStreamError)?;
            self.has_ended |= state.peer_has_closed();
            self.connection = Some(connection);
        }
        Ok(())
    }

    /// Returns whether the next bytes belong to the handshake, which helper threads process.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.is_handshaking())
    }

    /// Counts the protocol version of a completed handshake.
    pub(super) fn count_version(&self, http_stats: &mut HttpStats) {
        let version = self.connection.as_ref().and_then(|connection| connection.protocol_version());
        match version {
            Some(ProtocolVersion::TLSv1_2) => http_stats.tls_1_2 += 1,
            Some(_) => http_stats.tls_1_3 += 1,
            None => {}
        }
    }

    /// Encrypts a reply and appends it to `output`.
    pub(super) fn encrypt(&mut self, reply: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        let connection = self.connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut rest = reply;
        while !rest.is_empty() {
            let taken = connection.writer().write(rest)?;
            rest = rest.get(taken..).unwrap_or_default();
            write_pending(connection, output);
        }
        Ok(())
    }

    /// Appends a close_notify alert, by which a client distinguishes a regular end from a truncation attack.
    pub(super) fn close(&mut self, output: &mut Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.send_close_notify();
            write_pending(connection, output);
        }
    }
}

/// Appends all that the TLS library has to send.
fn write_pending(connection: &mut ServerConnection, output: &mut Vec<u8>) {
    while connection.wants_write() {
        // Writing to a buffer cannot fail.
        let _ = connection.write_tls(output);
    }
}
