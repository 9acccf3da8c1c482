//! Which requests the control plane accepts: protection against web pages, other hosts and floods.

use super::monitored::Monitored;
use crate::clock::Clock;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Maximum number of requests to `/v1` in a second, from all clients together.
const REQUESTS_PER_SECOND: u32 = 100;

/// Headers that proxies add. A request with one of them comes from another host, although the proxy runs on this one.
const PROXY_HEADERS: [&str; 9] = [
    "cf-connecting-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClientAddress {
    Ip(IpAddr),
    UnixSocket,
}

/// Status and error text of a request that is refused.
pub(super) type AccessError = (StatusCode, String);

/// Refuses requests of web pages in a browser on this machine: their `Origin` is not this host, or their
/// `Host` is a foreign name that resolves to this machine (DNS rebinding). `names` are the configured names of this
/// host.
pub(super) fn refuse_requests_from_web_pages(
    uri: &Uri,
    headers: &HeaderMap,
    names: &[String],
) -> Result<(), AccessError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).or(uri.host());
    if let Some(host) = host.filter(|host| !is_this_host(host, names)) {
        let text = format!(
            "{host:?} is not a name of this host; use its address, or add the name to control.hosts"
        );
        return Err((StatusCode::FORBIDDEN, text));
    }
    // A page of the control plane itself has the host of the request as its origin.
    let is_own = |origin: &str| origin.strip_prefix("http://").is_some_and(|it| Some(it) == host);
    match text(header::ORIGIN) {
        Some(origin) if !is_own(origin) => {
            Err((StatusCode::FORBIDDEN, "requests of web pages are refused".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Returns whether a `Host` header names this host: by any address, as `localhost`, or by a configured name.
fn is_this_host(host: &str, names: &[String]) -> bool {
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = without_port.trim_start_matches('[').trim_end_matches(']');
    let is_name = |name: &str| without_port.eq_ignore_ascii_case(name);
    bare.parse::<IpAddr>().is_ok() || is_name("localhost") || names.iter().any(|it| is_name(it))
}

/// Permits requests over the unix socket and from this machine; requests from other hosts must have the token.
pub(super) fn authorize(
    client: ClientAddress,
    headers: &HeaderMap,
    monitored: &Monitored,
) -> Result<(), AccessError> {
    let is_proxied = PROXY_HEADERS.iter().any(|name| headers.contains_key(*name));
    match client {
        ClientAddress::UnixSocket => return Ok(()),
        ClientAddress::Ip(address) if address.is_loopback() && !is_proxied => return Ok(()),
        ClientAddress::Ip(_) => {}
    }
    let Some(token) = monitored.served_config().control_token else {
        let text = "this request is permitted from this machine only; for other hosts set control.token_file";
        return Err((StatusCode::FORBIDDEN, text.to_owned()));
    };
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match authorization.is_some_and(|authorization| token.permits(authorization)) {
        true => Ok(()),
        false => {
            let text = "the token is missing or wrong; send it as: Authorization: Bearer TOKEN";
            Err((StatusCode::UNAUTHORIZED, text.to_owned()))
        }
    }
}

/// Limits the rate of requests.
#[derive(Debug)]
pub(super) struct RateLimit {
    clock: Clock,
    /// A second of the clock, and the number of requests in it.
    second: Mutex<(u64, u32)>,
}

impl RateLimit {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, second: Mutex::default() }
    }

    /// Counts a request, or refuses it if there were too many in this second.
    pub(super) fn admit(&self) -> Result<(), AccessError> {
        let now = self.clock.now().monotonic.0;
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0 != now {
            *second = (now, 0);
        }
        second.1 = second.1.saturating_add(1);
        if second.1 <= REQUESTS_PER_SECOND {
            return Ok(());
        }
        let text =
            format!("more than {REQUESTS_PER_SECOND} requests in a second; send them slower");
        Err((StatusCode::TOO_MANY_REQUESTS, text))
    }
}

/// Writes the client as it appears in the log.
impl std::fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::UnixSocket => f.write_str("the unix socket"),
        }
    }
}

/// Seconds between two lines about refused requests.
const REFUSALS_INTERVAL_SECS: u64 = 10;

/// Logs requests without a valid token, at most one line in ten seconds.
#[derive(Debug)]
pub(super) struct RefusalLog {
    clock: Clock,
    /// Second from which the next line may be logged, and the number of requests since the last one.
    state: Mutex<(u64, u64)>,
}

impl RefusalLog {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// Counts a refused request; returns the number of them if a line is due.
    fn count(&self) -> Option<u64> {
        let now = self.clock.now().monotonic.0;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 += 1;
        if now < state.0 {
            return None;
        }
        state.0 = now + REFUSALS_INTERVAL_SECS;
        Some(std::mem::take(&mut state.1))
    }

    /// Counts a refused request, and logs a line if one is due.
    pub(super) fn refused(&self, client: ClientAddress) {
        if let Some(count) = self.count() {
            let noun = if count == 1 { "request" } else { "requests" };
            tracing::warn!(
                "control: refused {count} {noun} without a valid token, the last from {client}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_localhost_and_configured_names() {
        let names = ["tracker.example".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:6880",
            "[::1]:6880",
            "::1",
            "localhost:6880",
            "LOCALHOST",
            "192.0.2.1:1",
            "Tracker.Example:80",
        ] {
            assert!(is_this_host(host, &names), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:6880", "", "x:y"]
        {
            assert!(!is_this_host(host, &names), "{host}");
        }
    }

    #[test]
    fn refusals_are_logged_at_intervals() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static SECONDS: AtomicU64 = AtomicU64::new(5);
        let log = RefusalLog::new(Clock::simulated(&SECONDS));
        assert_eq!([log.count(), log.count(), log.count()], [Some(1), None, None]);
        SECONDS.store(5 + REFUSALS_INTERVAL_SECS, Ordering::Relaxed);
        assert_eq!([log.count(), log.count()], [Some(3), None]);
    }

    #[test]
    fn the_rate_is_limited_for_a_second() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static SECONDS: AtomicU64 = AtomicU64::new(5);
        let limit = RateLimit::new(Clock::simulated(&SECONDS));
        let admitted = || (0..1_000).filter(|_| limit.admit().is_ok()).count();
        assert_eq!([admitted(), admitted()], [REQUESTS_PER_SECOND as usize, 0]);
        SECONDS.store(6, Ordering::Relaxed);
        assert_eq!(admitted(), REQUESTS_PER_SECOND as usize);
    }
}
