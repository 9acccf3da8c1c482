//! TLS: bytes of a connection to requests and back, without sockets; and the certificate, which changes while it is
//! served.
//!
//! A handshake signs with the private key, which takes longer than a shard may be held up: it is done by helper
//! threads, and the session travels there and back.

use crate::lines;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use thiserror::Error;
use tokio::runtime::Handle;

/// Why there is no certificate to serve with
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read
    #[error(
        "http.tls.{0}: cannot read {1}: {2}; give a file in PEM format that this user may read"
    )]
    Unreadable(&'static str, PathBuf, #[source] pem::Error),
    /// The file has none
    #[error("http.tls.certificate: {0} has no certificate; give the whole chain in PEM format")]
    Empty(PathBuf),
    /// They are not of each other, or of a kind that is not served
    #[error("http.tls.key: {0} does not go with {1}: {2}; give the key of that certificate")]
    Unfit(PathBuf, PathBuf, #[source] rustls::Error),
    /// The library refuses
    #[error("http.tls: cannot be served: {0}; please report it")]
    Refused(#[from] rustls::Error),
}

/// Bytes of a PEM file that is read
const PEM_LEN_MAX: u64 = 1 << 20;

/// A certificate with its key, from files
#[derive(Debug)]
pub struct Certificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads both files
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(read(certificate, key)?));
        Ok(Self { current })
    }

    /// Reads both files again, for handshakes from now on; what cannot be read changes nothing
    pub fn reload(&self, certificate: &Path, key: &Path) -> Result<(), TlsError> {
        let fresh = Arc::new(read(certificate, key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

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
        .map_err(|error| TlsError::Unfit(key.to_owned(), certificate.to_owned(), error))
}

/// How TLS is served: the same for all shards
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    helpers: Handle,
}

impl Tls {
    /// Serves with a certificate; handshakes are done by helper threads of that runtime
    pub fn new(certificate: Arc<Certificate>, helpers: Handle) -> Result<Self, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        // Old clients that offer nothing newer are served, too.
        config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        // Resumption without memory here: what the client keeps is encrypted by a key that changes.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self { config: Arc::new(config), helpers })
    }

    /// A session for a connection that has just begun
    pub(super) fn session(&self) -> Option<Session> {
        let connection = ServerConnection::new(self.config.clone()).ok()?;
        let connection = Some(Box::new(connection));
        Some(Session { connection, helpers: self.helpers.clone(), has_ended: false })
    }
}

/// One connection's
pub(super) struct Session {
    /// Away while helpers have it
    connection: Option<Box<ServerConnection>>,
    helpers: Handle,
    /// Whether the client has said that no more follows
    pub(super) has_ended: bool,
}

/// The client does not speak TLS as it should
pub(super) struct BadTls;

impl Session {
    /// Takes bytes from the client; what they say goes to `input`, what must be answered to `output`
    pub(super) async fn take(
        &mut self,
        mut bytes: &[u8],
        input: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<(), BadTls> {
        while !bytes.is_empty() {
            let mut connection = self.connection.take().ok_or(BadTls)?;
            // After the client has said that no more follows, more is taken by nobody.
            if connection.read_tls(&mut bytes).map_err(|_| BadTls)? == 0 {
                return Err(BadTls);
            }
            let processed = if connection.is_handshaking() {
                let work = self.helpers.spawn_blocking(move || {
                    let processed = connection.process_new_packets();
                    (connection, processed)
                });
                let processed;
                // A runtime that is being shut down takes no more work.
                (connection, processed) = work.await.map_err(|_| BadTls)?;
                processed
            } else {
                connection.process_new_packets()
            };
            // Also on failure: what it was is said to the client.
            write_pending(&mut connection, output);
            let state = processed.map_err(|_| BadTls)?;
            let len = input.len();
            input.resize(len + state.plaintext_bytes_to_read(), 0);
            let plain = input.get_mut(len..).unwrap_or_default();
            connection.reader().read_exact(plain).map_err(|_| BadTls)?;
            self.has_ended |= state.peer_has_closed();
            self.connection = Some(connection);
        }
        Ok(())
    }

    /// Whether what comes next is work for the helpers
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.is_handshaking())
    }

    /// Encrypts a reply
    pub(super) fn seal(&mut self, reply: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        let connection = self.connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut rest = reply;
        while !rest.is_empty() {
            let taken = connection.writer().write(rest)?;
            rest = rest.get(taken..).unwrap_or_default();
            write_pending(connection, output);
        }
        Ok(())
    }

    /// Says that no more follows: else a client could not tell an end from an attack
    pub(super) fn close(&mut self, output: &mut Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.send_close_notify();
            write_pending(connection, output);
        }
    }
}

fn write_pending(connection: &mut ServerConnection, output: &mut Vec<u8>) {
    while connection.wants_write() {
        // A buffer takes everything.
        let _ = connection.write_tls(output);
    }
}
