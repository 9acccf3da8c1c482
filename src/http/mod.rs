//! HTTP and HTTPS, for clients that cannot use UDP.
//!
//! ```text
//!  accept -> PROXY header, TLS -> request head -> address of the client -> announce, scrape or page
//!         -> the tracker of this shard, or of the shard that owns the torrent -> bencode -> write
//! ```
//!
//! Each connection is a task on the runtime of its shard. It borrows the node of the shard for one call and never
//! across an await, so datagrams are answered in between. What clients can make a shard hold is bounded: the number of
//! connections, the bytes of a request, and the time of each state of a connection.

mod answer;
mod cancel;
mod connection;
mod connection_table;
mod full_scrape;
mod full_scrape_limit;
pub mod paths;
mod service;
pub mod settings;
mod tls;

pub use full_scrape_limit::FullScrapes;
pub use service::{HttpResources, HttpService, StatsPageOf, StatsPages};
pub use tls::{Certificate, Tls, TlsError};

use crate::shard::node::Node;
use service::ConnectionGuard;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio_uring::net::TcpListener;

/// Number of accepts that wait on each listening socket: as many connections can arrive between two submissions.
const ACCEPTS: usize = 16;

/// Pauses before accepts that look for missed connections. The process before this one ends within a second.
const MISSED_PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(1_000),
];

/// Delay before the next accept after a failure, such as too many open files, which an immediate retry would repeat.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Starts to accept connections.
pub fn serve(
    mut resources: HttpResources,
    node: &Rc<RefCell<Node>>,
) -> io::Result<Rc<HttpService>> {
    let plain = std::mem::take(&mut resources.plain);
    let encrypted = std::mem::take(&mut resources.encrypted);
    let inherited = std::mem::take(&mut resources.inherited);
    let has_predecessor = resources.has_predecessor;
    let is_own = |listener: &&std::net::TcpListener| {
        listener.local_addr().is_ok_and(|address| !inherited.contains(&address))
    };
    let own = plain.iter().chain(&encrypted).filter(is_own);
    let duplicates = own.map(std::net::TcpListener::try_clone);
    let duplicates = duplicates.collect::<io::Result<Vec<_>>>()?;
    let has_listeners = !plain.is_empty() || !encrypted.is_empty();
    let service = Rc::new(HttpService::new(node.clone(), resources, (duplicates, has_listeners)));
    let plain = plain.into_iter().map(|listener| (listener, false));
    for (listener, is_encrypted) in plain.chain(encrypted.into_iter().map(|it| (it, true))) {
        let listener = Rc::new(TcpListener::from_std(listener));
        service.accept_listeners.borrow_mut().push(listener.clone());
        for _ in 0..ACCEPTS {
            tokio_uring::spawn(accept(service.clone(), listener.clone(), is_encrypted));
        }
        if has_predecessor {
            tokio_uring::spawn(accept_missed(service.clone(), listener, is_encrypted));
        }
    }
    if has_listeners {
        tokio_uring::spawn(tick_each_second(service.clone()));
    }
    Ok(service)
}

/// Accepts connections that arrived while the previous process ended. Such a connection may have woken an accept of
/// that process, which did not complete, and therefore no accept of this one. A new accept takes it at once.
async fn accept_missed(service: Rc<HttpService>, listener: Rc<TcpListener>, is_encrypted: bool) {
    for pause in MISSED_PAUSES {
        tokio::time::sleep(pause).await;
        tokio_uring::spawn(accept(service.clone(), listener.clone(), is_encrypted));
    }
}

async fn accept(service: Rc<HttpService>, listener: Rc<TcpListener>, is_encrypted: bool) {
    service.accepts.set(service.accepts.get() + 1);
    accept_until_stop(&service, &listener, is_encrypted).await;
    service.accepts.set(service.accepts.get() - 1);
}

async fn accept_until_stop(service: &Rc<HttpService>, listener: &TcpListener, is_encrypted: bool) {
    while !service.ends_connections() {
        // Not given up while it waits: the kernel might accept a connection, which would be lost.
        match listener.accept().await {
            Ok((stream, peer)) => {
                let stream = Rc::new(stream);
                let guard: Option<ConnectionGuard> = service.add_connection(&stream, peer.ip());
                if let Some(guard) = guard {
                    tokio_uring::spawn(connection::serve(guard, stream, peer, is_encrypted));
                }
            }
            Err(error) => match error.raw_os_error() {
                // The socket was shut down, or the accept was canceled: the shard stops.
                Some(libc::EINVAL | libc::EBADF | libc::ECANCELED) => return,
                // The client closed the connection before it was accepted.
                Some(libc::ECONNABORTED) => {}
                code => {
                    if matches!(
                        code,
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                    ) {
                        service.node().http_stats().accept_failed += 1;
                        service.evict_one();
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

async fn tick_each_second(service: Rc<HttpService>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        service.tick();
        // Thousands of connections may be overdue at once: as many as arrived in one second.
        while service.end_overdue() {
            tokio::task::yield_now().await;
        }
    }
}
