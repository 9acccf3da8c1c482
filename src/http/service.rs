//! What all HTTP connections of a shard share.

use super::cancel::cancel_accepts;
use super::connection_table::{ConnectionState, ConnectionTable};
use super::full_scrape_limit::FullScrapes;
use super::settings::HttpSettings;
use super::tls::Tls;
use crate::address::source_prefix;
use crate::shard::node::Node;
use crate::tracker::peer_list::PeerList;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_uring::net::TcpStream;
use tsubame_http::head::RequestHead;
use tsubame_storage::Seconds;

/// Time for which a stopping shard without connections still answers messages of other shards.
const MESH_TIME_AFTER_STOP: Duration = Duration::from_millis(50);

/// Time that open connections of a stopping shard have to end.
const STOP_TIMEOUT: Duration = Duration::from_millis(300);

/// Maximum number of TLS handshakes of a shard that wait for helper threads.
const HANDSHAKES_MAX: usize = 64;

/// Number of buffers and lists that are kept for later requests.
const SPARE_MAX: usize = 64;

/// Bytes of a buffer for replies; larger ones are not kept.
pub(super) const OUTPUT_LEN: usize = 16 << 10;

/// Returns the page of statistics for a query: whether it is XML, and its text; or an error text.
pub type StatsPageOf = dyn Fn(&str) -> Result<(bool, String), String> + Send + Sync;

/// Makes the pages of statistics.
///
/// The function is called on the threads of shards, so it must neither block nor take long.
#[derive(Clone)]
pub struct StatsPages(pub Arc<StatsPageOf>);

impl std::fmt::Debug for StatsPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatsPages(..)")
    }
}

/// What a shard serves HTTP with.
#[derive(Debug)]
pub struct HttpResources {
    /// Listening sockets of HTTP.
    pub plain: Vec<TcpListener>,
    /// Listening sockets of HTTPS.
    pub encrypted: Vec<TcpListener>,
    /// Addresses of sockets that the service manager passed to this process, and keeps open after its end.
    pub inherited: Vec<SocketAddr>,
    /// Whether the process takes over from another one, which may still accept connections for a moment.
    pub has_predecessor: bool,
    /// Settings.
    pub settings: Arc<HttpSettings>,
    /// TLS, if there are sockets of HTTPS.
    pub tls: Option<Tls>,
    /// Limits how often the list of all torrents is sent; one for the process.
    pub full_scrapes: Arc<FullScrapes>,
    /// Runtime whose helper threads do what would block a shard.
    pub helpers: Handle,
    /// The statistics at `/stats`.
    pub stats_pages: StatsPages,
}

/// What all HTTP connections of a shard share.
pub struct HttpService {
    node: Rc<RefCell<Node>>,
    settings: RefCell<Arc<HttpSettings>>,
    pub(super) tls: Option<Tls>,
    pub(super) full_scrapes: Arc<FullScrapes>,
    pub(super) helpers: Handle,
    pub(super) stats_pages: StatsPages,
    connections: RefCell<ConnectionTable<Rc<TcpStream>>>,
    /// Number of connections by source, without those of trusted proxies.
    sources: RefCell<HashMap<IpAddr, usize>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    #[expect(clippy::vec_box, reason = "they are sent to other shards and returned as they are")]
    peer_lists: RefCell<Vec<Box<PeerList>>>,
    handshakes: Cell<usize>,
    /// Time for timeouts, updated once per second because reading the clock at each change of state would cost more.
    second: Cell<Seconds>,
    /// Duplicates of the listening sockets that this process opened itself, to shut them down while accepts wait on
    /// them.
    listeners: Vec<TcpListener>,
    /// The listening sockets, and the number of accepts that wait on them.
    pub(super) accept_listeners: RefCell<Vec<Rc<tokio_uring::net::TcpListener>>>,
    pub(super) accepts: Cell<usize>,
    /// Whether HTTP is served. If so, other shards may need answers for their HTTP requests during a stop.
    has_listeners: bool,
    stopped_at: Cell<Option<Duration>>,
}

impl HttpService {
    pub(super) fn new(
        node: Rc<RefCell<Node>>,
        resources: HttpResources,
        (listeners, has_listeners): (Vec<TcpListener>, bool),
    ) -> Self {
        let HttpResources { settings, tls, full_scrapes, helpers, stats_pages, .. } = resources;
        let second = Cell::new(node.borrow().now());
        Self {
            node,
            connections: RefCell::new(ConnectionTable::new(settings.timeouts())),
            settings: RefCell::new(settings),
            tls,
            full_scrapes,
            helpers,
            stats_pages,
            sources: RefCell::default(),
            buffers: RefCell::default(),
            peer_lists: RefCell::default(),
            handshakes: Cell::new(0),
            second,
            listeners,
            accept_listeners: RefCell::default(),
            accepts: Cell::new(0),
            has_listeners,
            stopped_at: Cell::new(None),
        }
    }

    /// Borrows the node, for one call and never across an await.
    pub(super) fn node(&self) -> RefMut<'_, Node> {
        self.node.borrow_mut()
    }

    /// Returns the current settings.
    pub(super) fn settings(&self) -> Arc<HttpSettings> {
        self.settings.borrow().clone()
    }

    /// Updates the time of timeouts, and the settings if they have changed.
    pub(super) fn tick(&self) {
        self.second.set(self.node().now());
        let changed = self.node().take_http_settings();
        if let Some(settings) = changed {
            self.connections.borrow_mut().set_timeouts(settings.timeouts());
            *self.settings.borrow_mut() = settings;
        }
    }

    /// Adds a connection, if need be in place of another; returns `None` if it is refused.
    pub(super) fn add_connection(
        self: &Rc<Self>,
        stream: &Rc<TcpStream>,
        peer: IpAddr,
    ) -> Option<ConnectionGuard> {
        // Behind a proxy, the address of the client is checked for each request.
        let (address, settings) = (peer.to_canonical(), self.settings());
        let is_proxy = settings.trusts(address);
        if !is_proxy && !self.node().permits_source(address) {
            return None;
        }
        let open = self.connections.borrow().len();
        let source = (!is_proxy).then(|| source_prefix(address));
        if open * 2 >= settings.connections_max
            && source
                .is_some_and(|it| self.connections_of(it) >= settings.connections_per_source_max)
        {
            self.node().http_stats().evicted += 1;
            return None;
        }
        if open >= settings.connections_max && !self.evict_one() {
            // All connections are being answered or ended, so the new one is refused.
            self.node().http_stats().evicted += 1;
            return None;
        }
        let number = self.connections.borrow_mut().insert(stream.clone(), self.second.get());
        self.node().http_stats().accepted += 1;
        self.publish_open();
        if let Some(source) = source {
            *self.sources.borrow_mut().entry(source).or_default() += 1;
        }
        let (service, accepted_at) = (self.clone(), self.second.get());
        Some(ConnectionGuard { service, number, accepted_at, source })
    }

    fn connections_of(&self, source: IpAddr) -> usize {
        self.sources.borrow().get(&source).copied().unwrap_or(0)
    }

    /// Ends the connection that has been idle, or slow, for longest; returns false if there is none.
    pub(super) fn evict_one(&self) -> bool {
        let mut connections = self.connections.borrow_mut();
        let Some(stream) = connections.evict(self.second.get()) else { return false };
        end(stream);
        self.node().http_stats().evicted += 1;
        true
    }

    /// Ends some of the connections whose timeout has passed; returns whether there may be more.
    pub(super) fn end_overdue(&self) -> bool {
        const PER_CALL: usize = 32;
        let mut connections = self.connections.borrow_mut();
        for _ in 0..PER_CALL {
            let Some(stream) = connections.next_overdue(self.second.get()) else { return false };
            end(stream);
            self.node().http_stats().timed_out += 1;
        }
        true
    }

    /// Returns whether there are connections.
    pub fn has_connections(&self) -> bool {
        self.connections.borrow().len() > 0
    }

    fn publish_open(&self) {
        self.node().http_stats().open = self.connections.borrow().len() as u64;
    }

    /// Accepts no more connections, and closes all but those that are being answered. Shuts down the listening sockets
    /// that this process opened itself, unless another process serves them from now on: then connections that wait for
    /// their first request, or for the rest of one, stay open, too, because they may just have been accepted.
    pub fn stop(&self, keeps_listeners: bool) {
        self.stopped_at.set(Some(self.node().elapsed()));
        self.node().ends_connections = true;
        for listener in self.listeners.iter().filter(|_| !keeps_listeners) {
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for listener in self.accept_listeners.borrow().iter() {
            tokio_uring::spawn(cancel_accepts(listener.clone()));
        }
        for (state, stream) in self.connections.borrow().iter() {
            let _ = match state {
                // A request that is being answered gets its reply; no further request is read.
                ConnectionState::Answering | ConnectionState::Writing => {
                    stream.shutdown(Shutdown::Read)
                }
                ConnectionState::Reading if keeps_listeners => Ok(()),
                ConnectionState::Reading | ConnectionState::Idle => stream.shutdown(Shutdown::Both),
            };
        }
    }

    /// Returns whether no more accepts are to be started, and each connection is to be closed after its next reply.
    pub(super) fn ends_connections(&self) -> bool {
        self.node().ends_connections
    }

    /// Returns whether all accepts and connections have ended after [`Self::stop`], or have taken too long.
    pub fn has_stopped(&self) -> bool {
        let Some(stopped_at) = self.stopped_at.get() else { return false };
        let elapsed = self.node().elapsed().saturating_sub(stopped_at);
        let least = if self.has_listeners { MESH_TIME_AFTER_STOP } else { Duration::ZERO };
        let has_work = self.has_connections() || self.accepts.get() > 0;
        elapsed >= STOP_TIMEOUT || !has_work && elapsed >= least
    }

    /// Returns the address of the client that sent a request; `None` if policy permits no requests from this address.
    pub(super) fn source(&self, peer: IpAddr, head: &RequestHead<'_>) -> Option<IpAddr> {
        let settings = self.settings();
        let source = head.client(peer, settings.client_address_header, |it| settings.trusts(it));
        self.node().permits_source(source).then_some(source)
    }

    /// Returns an empty buffer.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a buffer for later requests.
    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < SPARE_MAX && buffer.capacity() <= OUTPUT_LEN {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// Returns a peer list to be filled.
    pub(super) fn peer_list(&self) -> Box<PeerList> {
        self.peer_lists.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a peer list for later requests.
    pub(super) fn recycle_peer_list(&self, list: Box<PeerList>) {
        let mut lists = self.peer_lists.borrow_mut();
        if lists.len() < SPARE_MAX {
            lists.push(list);
        }
    }
}

/// Ends a connection from another task: its own task sees the end of the stream.
fn end(stream: &TcpStream) {
    // It may have ended already.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Permit for one TLS handshake on helper threads; given back when it is dropped.
pub(super) struct HandshakePermit(Rc<HttpService>);

impl HandshakePermit {
    /// Returns a permit unless too many handshakes wait already.
    pub(super) fn acquire(service: &Rc<HttpService>) -> Option<Self> {
        let waiting = service.handshakes.get();
        (waiting < HANDSHAKES_MAX).then(|| {
            service.handshakes.set(waiting + 1);
            Self(service.clone())
        })
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

/// Entry of a connection in the connection table; removes it when dropped.
pub(super) struct ConnectionGuard {
    pub(super) service: Rc<HttpService>,
    number: usize,
    accepted_at: Seconds,
    /// Source that the connection is counted for, unless it is that of a trusted proxy.
    source: Option<IpAddr>,
}

impl ConnectionGuard {
    pub(super) fn set_state(&self, state: ConnectionState) {
        let now = self.service.second.get();
        self.service.connections.borrow_mut().set_state(self.number, state, now);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.service.connections.borrow_mut().remove(self.number);
        if let Some(source) = self.source {
            let mut sources = self.service.sources.borrow_mut();
            if let Some(open) = sources.get_mut(&source) {
                *open -= 1;
                if *open == 0 {
                    sources.remove(&source);
                }
            }
        }
        let age_secs = self.service.second.get().0.saturating_sub(self.accepted_at.0);
        self.service.node().http_stats().count_closed(age_secs);
        self.service.publish_open();
    }
}
