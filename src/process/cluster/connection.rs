//! The connection to the NATS servers.

use crate::config::{ClusterConfig, ClusterTlsConfig};
use crate::text::without_secrets;
use async_nats::connection::State;
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, Message, ServerAddr,
    ServerError, Subscriber,
};
use futures_util::stream::{SelectAll, StreamExt, select_all};
use percent_encoding::percent_decode_str;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, Sender, channel};
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

/// Maximum length, in characters, of a text of NATS that is logged.
const TEXT_CHARS_MAX: usize = 200;

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
        "{0} permits no subscription: {1}; permit this user to subscribe to {subject:?}", subject = .2
    )]
    Subscribe(String, String, String),
}

impl ConnectionError {
    /// Returns the reason why none of the servers `names` could be connected.
    fn of(names: String, error: ConnectError) -> Self {
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                Self::Refused(names, error)
            }
            ConnectErrorKind::Tls => Self::Tls(names, error),
            // The library reports errors of certificates as I/O errors, too.
            ConnectErrorKind::Io if error.to_string().contains("certificate") => {
                Self::Tls(names, error)
            }
            _ => Self::Unreachable(names, error),
        }
    }
}

/// Returns the options of a connection without those of the user and of TLS files.
fn options(config: &ClusterConfig, node: &str, events: Sender<Event>) -> ConnectOptions {
    let has_tls = config.servers.iter().any(|server| server.starts_with("tls://"));
    ConnectOptions::new()
        .name(format!("tsubame {node}"))
        .no_echo()
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .require_tls(has_tls || config.tls != ClusterTlsConfig::default())
        .subscription_capacity(MESSAGES_WAITING)
        .client_capacity(MESSAGES_UNSENT)
        .event_callback(move |event| {
            let events = events.clone();
            async move {
                // If the queue is full the event is dropped: some of them are enough for the log, and the state of the
                // connection is read from time to time.
                let _ = events.try_send(event);
            }
        })
}

/// Adds the user and password, or the token, of the URL of a server, where the library does not look for them.
fn with_user(options: ConnectOptions, server: Option<&ServerAddr>) -> ConnectOptions {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    match (server.and_then(ServerAddr::username), server.and_then(ServerAddr::password)) {
        (Some(user), Some(password)) => options.user_and_password(decoded(user), decoded(password)),
        (Some(token), None) => options.token(decoded(token)),
        (None, _) => options,
    }
}

/// Adds the credentials file and the files of TLS.
async fn with_files(
    mut options: ConnectOptions,
    config: ClusterConfig,
) -> Result<ConnectOptions, ConnectionError> {
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(|error| ConnectionError::Credentials(path.display().to_string(), error))?;
    }
    if let Some(ca) = config.tls.ca {
        options = options.add_root_certificates(ca);
    }
    if let (Some(certificate), Some(key)) = (config.tls.certificate, config.tls.key) {
        options = options.add_client_certificate(certificate, key);
    }
    Ok(options)
}

/// A connection to a NATS server. The client library connects again when it is lost.
pub(super) struct NatsConnection {
    client: Client,
    /// Hellos and batches of all nodes, and messages to this one.
    messages: SelectAll<Subscriber>,
    events: Receiver<Event>,
    /// The subjects below which this node publishes and subscribes.
    all_subjects: String,
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
    /// An error of the server or of the client library.
    Problem(NatsProblem),
    /// The server permits no subscription: the connection is of no use.
    Denied(NatsProblem),
}

/// Returns the beginning of a text of a server, which may send any.
fn bounded(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// An error of the server or of the client library.
#[derive(Debug)]
pub(super) struct NatsProblem {
    error: String,
    cure: String,
}

impl NatsProblem {
    fn new(error: &impl fmt::Display, cure: impl Into<String>) -> Self {
        Self { error: bounded(&error.to_string()), cure: cure.into() }
    }
}

impl ConnectionEvent {
    /// Returns the event for an error that the server reports. The user needs permissions for `all_subjects`.
    fn of_server_error(error: &ServerError, all_subjects: &str) -> Self {
        let text = error.to_string().to_ascii_lowercase();
        let cure = if text.contains("permissions violation") {
            format!("permit this user to publish and subscribe to {all_subjects:?}")
        } else if text.contains("maximum") {
            "raise this limit in the config of the NATS server".to_owned()
        } else {
            "see the log of the NATS server".to_owned()
        };
        let problem = NatsProblem::new(error, cure);
        let denials = ["violation for subscription", "maximum subscriptions"];
        match denials.iter().any(|denial| text.contains(denial)) {
            true => Self::Denied(problem),
            false => Self::Problem(problem),
        }
    }
}

impl fmt::Display for NatsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NATS: {}; {}", self.error, self.cure)
    }
}

impl NatsConnection {
    /// Connects to any of the servers, and subscribes to subjects.
    pub(super) async fn open(
        config: ClusterConfig,
        node: String,
        subjects: Vec<String>,
    ) -> Result<Self, ConnectionError> {
        let names: Vec<_> = config.servers.iter().map(|server| without_secrets(server)).collect();
        let names = names.join(", ");
        // The config has checked the URLs, and that all have the same user.
        let servers: Vec<ServerAddr> =
            config.servers.iter().filter_map(|server| server.parse().ok()).collect();
        let all_subjects = format!("{}.>", config.subject);
        let (sender, events) = channel(EVENTS_WAITING);
        let options = with_user(options(&config, &node, sender), servers.first());
        let options = with_files(options, config).await?;
        let connected = options.connect(servers).await;
        let client = connected.map_err(|error| ConnectionError::of(names.clone(), error))?;
        let mut subscribers = Vec::new();
        for subject in subjects {
            let subscribed = client.subscribe(subject).await;
            let failed = |error: async_nats::SubscribeError| {
                ConnectionError::Subscribe(names.clone(), error.to_string(), all_subjects.clone())
            };
            subscribers.push(subscribed.map_err(failed)?);
        }
        let messages = select_all(subscribers);
        Ok(Self { client, messages, events, all_subjects, is_lost: false })
    }

    /// Returns the name of the server.
    pub(super) fn server(&self) -> String {
        bounded(&self.client.server_info().server_name)
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
                    return ConnectionEvent::Problem(NatsProblem::new(
                        &"messages arrive faster than they are handled",
                        "some were dropped and will be requested again",
                    ));
                }
                Event::ServerError(error) => {
                    return ConnectionEvent::of_server_error(&error, &self.all_subjects);
                }
                Event::ClientError(error) if was_lost => {
                    return ConnectionEvent::Problem(NatsProblem::new(
                        &format_args!("cannot reconnect: {error}"),
                        "check cluster.servers and cluster.credentials",
                    ));
                }
                event => {
                    return ConnectionEvent::Problem(NatsProblem::new(
                        &event,
                        "see the log of the NATS server",
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
