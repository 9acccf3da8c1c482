//! HTTP: the same tracker for clients that cannot use UDP, on the same shards.
//!
//! ```text
//!  accept -> PROXY header, TLS -> head of a request -> who is it from -> announce, scrape, page
//!         -> the shard's tracker, or the owner's over the mesh -> bencode -> write
//! ```
//!
//! Each connection is a task of its shard's runtime. It borrows the shard for one call and never over an await, so
//! datagrams are served meanwhile. What a client can make a shard hold is bounded: connections in all, bytes of a
//! head, time without a request, time for a request and for taking the answer.

mod answer;
mod bind;
mod connection;
mod desk;
mod full_scrape;
mod paths;
mod roster;
mod tls;

pub use bind::{HttpListeners, bind};
pub use desk::Desk;
pub use full_scrape::FullScrapes;
pub use paths::{BadPattern, PathPattern, Paths};
pub use tls::{Certificate, Tls, TlsError};

use crate::peer_list::PeerList;
use crate::shard::Shard;
use ipnet::IpNet;
use roster::{Doing, Patience, Roster};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_uring::net::{TcpListener, TcpStream};
use tsubame_http::head::{Head, ProxyHeader};
use tsubame_storage::Seconds;

/// Accepts that wait on each listener: as many connections can come between two looks at the ring
const ACCEPTS: usize = 16;

/// How long a client may take to take its answer
const WRITING_SECS: u64 = 30;

/// How long a shard answers other shards when the tracker stops and nobody is connected to it
const MESH_LINGERS: Duration = Duration::from_millis(50);

/// Handshakes of a shard that may wait for helpers at once
const HANDSHAKES_MAX: usize = 64;

/// How long connections may take to end when the tracker stops
const STOP_PATIENCE: Duration = Duration::from_millis(300);

/// Buffers and lists that are kept for the next request
const SPARE_MAX: usize = 64;

/// How HTTP is served: the same for all shards
#[derive(Clone, Debug)]
pub struct Terms {
    /// What is served where
    pub paths: Paths,
    /// Who is believed about whom it speaks for
    pub trusted_proxies: Vec<IpNet>,
    /// Where it says that
    pub proxy_header: ProxyHeader,
    /// Connections of a shard
    pub connections: usize,
    /// Requests of a connection
    pub requests: u32,
    /// Seconds between a client's requests
    pub idle_secs: u64,
    /// Seconds for a request to arrive
    pub head_secs: u64,
    /// Connections that one source may hold once half of all are taken
    pub connections_per_source: usize,
    /// Who may have the list of all torrents
    pub full_scrape_networks: Vec<IpNet>,
    /// Seconds until an address may have it again
    pub full_scrape_interval_secs: u64,
    /// Announce URLs without their host, as `udp` and `:6969/announce`
    pub urls: Vec<(&'static str, String)>,
}

impl Terms {
    fn patience(&self) -> Patience {
        Patience { idling: self.idle_secs, reading: self.head_secs, writing: WRITING_SECS }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}

/// What a shard serves HTTP with
#[derive(Debug)]
pub struct Parts {
    /// Its listening sockets
    pub plain: Vec<std::net::TcpListener>,
    /// Those whose connections are encrypted
    pub encrypted: Vec<std::net::TcpListener>,
    /// How it is served
    pub terms: Arc<Terms>,
    /// How connections are encrypted
    pub tls: Option<Tls>,
    /// Who has had the list of all torrents
    pub full_scrapes: Arc<FullScrapes>,
    /// Does what would hold up a shard
    pub helpers: Handle,
}

/// What all connections of a shard share
pub struct Service {
    shard: Rc<RefCell<Shard>>,
    terms: RefCell<Arc<Terms>>,
    tls: Option<Tls>,
    full_scrapes: Arc<FullScrapes>,
    helpers: Handle,
    roster: RefCell<Roster<Rc<TcpStream>>>,
    /// Connections by source, those of trusted proxies left out
    sources: RefCell<HashMap<IpAddr, usize>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    #[expect(clippy::vec_box, reason = "they go to other shards and come back as they are")]
    lists: RefCell<Vec<Box<PeerList>>>,
    handshakes: Cell<usize>,
    /// The time that limits go by: seconds are exact enough, and several states a request would each read the clock
    second: Cell<Seconds>,
    /// The listening sockets once more: to be shut down while accepts wait on them
    listeners: Vec<std::net::TcpListener>,
}

/// Begins to accept connections
pub fn serve(parts: Parts, shard: &Rc<RefCell<Shard>>) -> io::Result<Rc<Service>> {
    let Parts { plain, encrypted, terms, tls, full_scrapes, helpers } = parts;
    let service = Rc::new(Service {
        shard: shard.clone(),
        roster: RefCell::new(Roster::new(terms.patience())),
        terms: RefCell::new(terms),
        tls,
        full_scrapes,
        helpers,
        sources: RefCell::default(),
        buffers: RefCell::default(),
        lists: RefCell::default(),
        handshakes: Cell::new(0),
        second: Cell::new(shard.borrow().now()),
        listeners: plain
            .iter()
            .chain(&encrypted)
            .map(std::net::TcpListener::try_clone)
            .collect::<Result<_, _>>()?,
    });
    let plain = plain.into_iter().map(|listener| (listener, false));
    for (listener, encrypted) in plain.chain(encrypted.into_iter().map(|it| (it, true))) {
        let listener = Rc::new(TcpListener::from_std(listener));
        for _ in 0..ACCEPTS {
            tokio_uring::spawn(accept(service.clone(), listener.clone(), encrypted));
        }
    }
    if !service.listeners.is_empty() {
        tokio_uring::spawn(look_each_second(service.clone()));
    }
    Ok(service)
}

async fn accept(service: Rc<Service>, listener: Rc<TcpListener>, encrypted: bool) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => service.clone().admit(stream, peer, encrypted),
            Err(error) => match error.raw_os_error() {
                // The socket was shut down: the tracker stops.
                Some(libc::EINVAL | libc::EBADF | libc::ECANCELED) => return,
                // A client that has gone before it was accepted.
                Some(libc::ECONNABORTED) => {}
                code => {
                    if matches!(
                        code,
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                    ) {
                        service.shard.borrow_mut().connections().accept_failed += 1;
                        service.spare_one();
                    }
                    // Whatever it is takes a moment to end; until then, accepting would fail again and again.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
}

async fn look_each_second(service: Rc<Service>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        service.second.set(service.shard.borrow().now());
        let changed = service.shard.borrow_mut().take_http_terms();
        if let Some(terms) = changed {
            service.roster.borrow_mut().set_patience(terms.patience());
            *service.terms.borrow_mut() = terms;
        }
        // Thousands may be due at once, as many as came in one second.
        while service.end_overdue() {
            tokio::task::yield_now().await;
        }
    }
}

impl Service {
    /// Serves a connection, if need be in place of another
    fn admit(self: Rc<Self>, stream: TcpStream, peer: SocketAddr, encrypted: bool) {
        // For a proxy it is decided by whom it speaks for.
        let (address, terms) = (peer.ip().to_canonical(), self.terms());
        let is_proxy = terms.trusts(address);
        if !is_proxy && !self.shard.borrow_mut().permits_source(address) {
            return;
        }
        let open = self.roster.borrow().len();
        let source = (!is_proxy).then(|| source_key(address));
        if open * 2 >= terms.connections
            && source.is_some_and(|it| self.connections_of(it) >= terms.connections_per_source)
        {
            self.shard.borrow_mut().connections().evicted += 1;
            return;
        }
        if open >= terms.connections && !self.spare_one() {
            // All are being answered: who comes now has to come again.
            self.shard.borrow_mut().connections().evicted += 1;
            return;
        }
        let stream = Rc::new(stream);
        let number = self.roster.borrow_mut().join(stream.clone(), self.second.get());
        self.shard.borrow_mut().connections().accepted += 1;
        self.publish_open();
        if let Some(source) = source {
            *self.sources.borrow_mut().entry(source).or_default() += 1;
        }
        let seat = Seat { service: self, number, source };
        tokio_uring::spawn(connection::serve(seat, stream, peer, encrypted));
    }

    fn connections_of(&self, source: IpAddr) -> usize {
        self.sources.borrow().get(&source).copied().unwrap_or(0)
    }

    /// How HTTP is served at the moment
    fn terms(&self) -> Arc<Terms> {
        self.terms.borrow().clone()
    }

    /// Ends the connection that can best be spared; false if none can
    fn spare_one(&self) -> bool {
        let mut roster = self.roster.borrow_mut();
        let Some(stream) = roster.spare(self.second.get()) else { return false };
        end(stream);
        self.shard.borrow_mut().connections().evicted += 1;
        true
    }

    /// Ends some of the connections that are overdue; true if there may be more
    fn end_overdue(&self) -> bool {
        const AT_ONCE: usize = 32;
        let mut roster = self.roster.borrow_mut();
        for _ in 0..AT_ONCE {
            let Some(stream) = roster.next_due(self.second.get()) else { return false };
            end(stream);
            self.shard.borrow_mut().connections().timed_out += 1;
        }
        true
    }

    /// Whether somebody is connected, and has the ring carry something
    pub fn is_active(&self) -> bool {
        self.roster.borrow().len() > 0
    }

    fn publish_open(&self) {
        self.shard.borrow_mut().connections().open = self.roster.borrow().len() as u64;
    }

    /// Accepts nobody any more, and lets those finish who are being answered
    pub async fn stop(&self) {
        for listener in &self.listeners {
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for (doing, stream) in self.roster.borrow().all() {
            // Who is being answered gets its answer, and no further request is read.
            let answers = matches!(doing, Doing::Working | Doing::Writing);
            let _ = stream.shutdown(if answers { Shutdown::Read } else { Shutdown::Both });
        }
        let begun = self.shard.borrow().elapsed();
        loop {
            // Other shards may wait for answers from this one, and this one for theirs.
            let elapsed = self.shard.borrow().elapsed() - begun;
            let least = if self.listeners.is_empty() { Duration::ZERO } else { MESH_LINGERS };
            let done = self.roster.borrow().len() == 0 && elapsed >= least;
            if done || elapsed >= STOP_PATIENCE || self.shard.borrow_mut().serve_mesh().is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whom a request is from, if such are answered at all
    fn source(&self, peer: IpAddr, head: &Head<'_>) -> Option<IpAddr> {
        let terms = self.terms();
        let source = head.client(peer, terms.proxy_header, |it| terms.trusts(it));
        self.shard.borrow_mut().permits_source(source).then_some(source)
    }

    fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < SPARE_MAX && buffer.capacity() <= connection::OUTPUT_LEN {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    fn list(&self) -> Box<PeerList> {
        self.lists.borrow_mut().pop().unwrap_or_default()
    }

    fn give_list_back(&self, list: Box<PeerList>) {
        let mut lists = self.lists.borrow_mut();
        if lists.len() < SPARE_MAX {
            lists.push(list);
        }
    }
}

/// Returns what requests of an address are counted by: an IPv4 address, or the /64 of an IPv6 one.
pub(crate) fn source_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// Ends a connection from outside: its task sees the end of the stream
fn end(stream: &TcpStream) {
    // It may be gone already.
    let _ = stream.shutdown(Shutdown::Both);
}

/// A handshake that helpers work on
struct Handshake(Rc<Service>);

impl Handshake {
    /// Unless too many wait already
    fn begin(service: &Rc<Service>) -> Option<Self> {
        let waiting = service.handshakes.get();
        (waiting < HANDSHAKES_MAX).then(|| {
            service.handshakes.set(waiting + 1);
            Self(service.clone())
        })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

/// A connection's place among the others; left when it is dropped
struct Seat {
    service: Rc<Service>,
    number: usize,
    /// What its connections are counted by, unless it is a trusted proxy's
    source: Option<IpAddr>,
}

impl Seat {
    fn turn_to(&self, doing: Doing) {
        let now = self.service.second.get();
        self.service.roster.borrow_mut().turn_to(self.number, doing, now);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.service.roster.borrow_mut().leave(self.number);
        if let Some(source) = self.source {
            let mut sources = self.service.sources.borrow_mut();
            if let Some(open) = sources.get_mut(&source) {
                *open -= 1;
                if *open == 0 {
                    sources.remove(&source);
                }
            }
        }
        self.service.publish_open();
    }
}
