//! Binds the listening sockets of all shards and of the control plane, or takes those that a service manager passes.

pub mod http;
pub mod inherited;
mod key;
pub mod udp;

use crate::clock::Clock;
use crate::config::Config;
use crate::control::listeners::ControlListeners;
use crate::process::error::RunError;
use http::HttpListeners;
use inherited::InheritedSockets;
pub use key::ListenKey;
use std::net::SocketAddr;
use tsubame_udp::steering::SteeringKeys;
use udp::UdpListeners;

/// All bound sockets.
#[derive(Debug)]
pub struct Listeners {
    /// UDP sockets of all shards.
    pub udp: UdpListeners,
    /// TCP sockets of all shards for HTTP.
    pub http: HttpListeners,
    /// TCP sockets of all shards for HTTPS.
    pub https: HttpListeners,
    /// Sockets of the control plane.
    pub control: ControlListeners,
}

impl Listeners {
    /// Binds all configured addresses, except those whose sockets were passed by the service manager.
    ///
    /// # Errors
    ///
    /// Returns an error if an address cannot be bound, if the steering program is required and refused, or if a passed
    /// socket cannot be used.
    pub fn bind(
        config: &Config,
        keys: &SteeringKeys,
        shards: u16,
        clock: &Clock,
    ) -> Result<Self, RunError> {
        let mut inherited = InheritedSockets::from_environment()?;
        let udp = UdpListeners::bind(&config.udp, keys, shards, (clock, &mut inherited))?;
        let mut bind_http =
            |key, addresses| http::bind(key, addresses, shards, (clock, &mut inherited));
        let http = bind_http(ListenKey::Http, &config.http.listen)?;
        let https = bind_http(ListenKey::Https, &config.http.tls.listen)?;
        let tcp = config.control.listen.and_then(|address| inherited.take_control(address));
        let unix = config.control.socket.as_deref().and_then(|path| inherited.take_unix(path));
        let control = ControlListeners::bind(&config.control, (tcp, unix))?;
        inherited.end()?;
        Ok(Self { udp, http, https, control })
    }
    /// Returns the addresses that are served over UDP, HTTP and HTTPS, with the ports that were assigned.
    pub fn addresses(&self) -> [Vec<SocketAddr>; 3] {
        [&self.udp.addresses, &self.http.addresses, &self.https.addresses].map(Vec::clone)
    }
}
