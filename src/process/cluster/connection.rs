//! The connection to the NATS servers.

use crate::config::{ClusterConfig, ClusterTlsConfig};
use crate::text::without_secrets;
use async_nats::connection::State;
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, Message, ServerAddr, Subscriber,
};
use futures_util::stream::{SelectAll, StreamExt, select_all};
use percent_encoding::percent_decode_str;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::coop::unconstrained;

/// Maximum time for connecting to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two pings. A connection is given up after two without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of messages of a subscription that wait: more than one reply to a request for batches has. The client
/// library drops further ones, and the node requests the missing batches again.
const MESSAGES_WAITING: usize = 320;

/// Maximum number of messages that wait to be sent.
const MESSAGES_UNSENT: usize = 512;

/// Maximum number of events that wait.
const EVENTS_WAITING: usize = 64;

/// Reason why there is no connection. It names what the operator can change.
#[derive(Debug, Error)]
pub(super) enum ConnectionError {
    #[error(
        "cluster.credentials: {0} cannot be used: {1}; give a NATS credentials file that this user can read"
    )]
    Credentials(String, #[source] std::io::Error),
    #[error(
        "{0} refuses the user: {1}; correct the user and password in cluster.servers, or cluster.credentials"
    )]
    Refused(String, #[source] ConnectError),
    #[error(
        "{0} cannot be reached with TLS: {1}; check that the files of cluster.tls are readable and match the \
         certificate of the server"
    )]
    Tls(String, #[source] ConnectError),
    #[error(
        "{0} cannot be reached: {1}; start the NATS server, permit TCP to its port, or correct cluster.servers"
    )]
    Unreachable(String, #[source] ConnectError),
    #[error(
        "{0} permits no subscription: {1}; permit this user to subscribe to all subjects below cluster.subject"
    )]
    Subscribe(String, String),
}

/// A connection to a NATS server. The client library connects again when it is lost.
pub(super) struct NatsConnection {
    client: Client,
    /// Hellos and batches of all nodes, and messages to this one.
    messages: SelectAll<Subscriber>,
    events: Receiver<Event>,
    /// Whether the connection was lost and has not been made again.
    is_lost: bool,
}

/// What has happened to a connection.
#[derive(Debug)]
pub(super) enum ConnectionEvent {
    Message(Message),
    /// The connection was made again.
    Reconnected,
    /// The connection was lost.
    Lost,
    /// An error of the server or of the client library, with its cure.
    Problem(String),
    /// The server permits no subscription: the connection is of no use. The text has the cure.
    Denied(String),
}

impl NatsConnection {
    /// Connects to any of the servers, and subscribes to subjects.
    pub(super) async fn open(
        config: ClusterConfig,
        node: String,
        subjects: Vec<String>,
    ) -> Result<Self, ConnectionError> {
        let server_names: Vec<_> =
            config.servers.iter().map(|server| without_secrets(server)).collect();
        let server_names = server_names.join(", ");
        let (sender, events) = channel(EVENTS_WAITING);
        let has_tls = config.servers.iter().any(|server| server.starts_with("tls://"));
        let requires_tls = has_tls || config.tls != ClusterTlsConfig::default();
        let mut options = ConnectOptions::new()
            .name(format!("tsubame {node}"))
            .no_echo()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .require_tls(requires_tls)
            .subscription_capacity(MESSAGES_WAITING)
            .client_capacity(MESSAGES_UNSENT)
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    // If the queue is full the event is dropped: some of them are enough for the log.
                    let _ = sender.try_send(event);
                }
            });
        // The config has checked the URLs, and that all have the same user. The library does not read users from URLs.
        let servers: Vec<ServerAddr> =
            config.servers.iter().filter_map(|server| server.parse().ok()).collect();
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = servers.first().and_then(ServerAddr::username);
        let password = servers.first().and_then(ServerAddr::password);
        options = match (user, password) {
            (Some(user), Some(password)) => {
                options.user_and_password(decoded(user), decoded(password))
            }
            (Some(token), None) => options.token(decoded(token)),
            (None, _) => options,
        };
        if let Some(path) = &config.credentials {
            let credentials = options.credentials_file(path).await;
            options = credentials
                .map_err(|error| ConnectionError::Credentials(path.display().to_string(), error))?;
        }
        if let Some(ca) = config.tls.ca {
            options = options.add_root_certificates(ca);
        }
        if let (Some(certificate), Some(key)) = (config.tls.certificate, config.tls.key) {
            options = options.add_client_certificate(certificate, key);
        }
        let connected = options.connect(servers).await;
        let client = connected.map_err(|error| match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                ConnectionError::Refused(server_names.clone(), error)
            }
            ConnectErrorKind::Tls => ConnectionError::Tls(server_names.clone(), error),
            // The library reports errors of certificates as I/O errors, too.
            ConnectErrorKind::Io if error.to_string().contains("certificate") => {
                ConnectionError::Tls(server_names.clone(), error)
            }
            _ => ConnectionError::Unreachable(server_names.clone(), error),
        })?;
        let mut subscribers = Vec::new();
        for subject in subjects {
            let subscribed = client.subscribe(subject).await;
            let failed = |error: async_nats::SubscribeError| {
                ConnectionError::Subscribe(server_names.clone(), error.to_string())
            };
            subscribers.push(subscribed.map_err(failed)?);
        }
        Ok(Self { client, messages: select_all(subscribers), events, is_lost: false })
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Returns the maximum length of a message in bytes.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    /// Publishes a message; returns false if there is no connection, or it is too slow.
    pub(super) fn publish(&self, subject: String, message: &[u8]) -> bool {
        if !self.is_connected() {
            return false;
        }
        // This waits only if the queue to the connection is full. With the cooperative budget of tokio it could also
        // wait while there is space.
        let published = unconstrained(self.client.publish(subject, message.to_vec().into()));
        let mut context = Context::from_waker(Waker::noop());
        matches!(pin!(published).poll(&mut context), Poll::Ready(Ok(())))
    }

    /// Sends what was published, and closes the connection.
    pub(super) async fn close(self) {
        // If the connection is lost, nothing can be sent.
        let _ = self.client.flush().await;
    }

    /// Waits for a message or an event.
    pub(super) async fn next(&mut self) -> ConnectionEvent {
        loop {
            let event = tokio::select! {
                Some(message) = self.messages.next() => return ConnectionEvent::Message(message),
                Some(event) = self.events.recv() => event,
                else => std::future::pending().await,
            };
            let was_lost = self.is_lost;
            match event {
                Event::Connected => self.is_lost = false,
                Event::Disconnected => self.is_lost = true,
                Event::SlowConsumer(_) => {
                    return ConnectionEvent::Problem(
                        "messages arrive faster than they are handled: some were dropped and will be requested again"
                            .to_owned(),
                    );
                }
                Event::ServerError(error) => {
                    let text = format!(
                        "{error}; permit this user to publish and subscribe on all subjects below cluster.subject"
                    );
                    return match error.to_string().to_ascii_lowercase().contains("subscription") {
                        true => ConnectionEvent::Denied(text),
                        false => ConnectionEvent::Problem(text),
                    };
                }
                Event::ClientError(error) if was_lost => {
                    return ConnectionEvent::Problem(format!(
                        "cannot reconnect: {error}; check cluster.servers and cluster.credentials"
                    ));
                }
                event => {
                    return ConnectionEvent::Problem(format!(
                        "{event}; check cluster.servers and the log of the NATS server"
                    ));
                }
            }
            match (was_lost, self.is_lost) {
                (true, false) => return ConnectionEvent::Reconnected,
                (false, true) => return ConnectionEvent::Lost,
                _ => {}
            }
        }
    }
}
