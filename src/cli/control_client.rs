//! Requests to the control plane of a running tracker.

use serde::Deserialize;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Time for a request that only reads.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a command: an upgrade sends all swarms to another process.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(200);

/// Maximum bytes of a reply: a shard takes some 300.
const REPLY_LEN_MAX: u64 = 4 << 20;

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// A URL such as `http://127.0.0.1:6880`.
    Url(String),
    /// The path of a unix socket.
    Socket(PathBuf),
}

impl ControlAddress {
    /// Parses `http://HOST:PORT`, or `unix:PATH` or a path with a slash.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('/');
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Socket(path.into()));
        }
        match text {
            _ if text.starts_with("http://") => Ok(Self::Url(text.to_owned())),
            _ if text.starts_with('/') => Ok(Self::Socket(text.into())),
            _ => Err("give http://HOST:PORT, or the path of the unix socket".to_owned()),
        }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Reason why a request has failed.
#[derive(Debug, Error)]
pub enum ControlClientError {
    /// There is no connection to the control plane.
    #[error(
        "cannot reach the control plane at {0}: {1}; is the tracker running? --control names another address"
    )]
    Unreachable(ControlAddress, String),
    /// The control plane refused the request.
    #[error("the control plane at {0} refused the request: {1}")]
    Refused(ControlAddress, String),
    /// The reply cannot be parsed.
    #[error(
        "the reply of {0} is not that of this version: {1}; use the program of the same version"
    )]
    Malformed(ControlAddress, String),
}

/// Requests `GET /v1/status`; returns the body of the reply. `token` is sent if there is one.
pub fn fetch_status(
    address: &ControlAddress,
    token: Option<&str>,
) -> Result<String, ControlClientError> {
    exchange(address, ("GET", "/v1/status"), token, READ_TIMEOUT)
}

/// Sends a command, such as `reload`; returns the message of the reply. `token` is sent if there is one.
pub fn command(
    address: &ControlAddress,
    name: &str,
    token: Option<&str>,
) -> Result<String, ControlClientError> {
    #[derive(Deserialize)]
    struct Reply {
        message: String,
    }
    let body = exchange(address, ("POST", &format!("/v1/{name}")), token, COMMAND_TIMEOUT)?;
    let reply: Reply = serde_json::from_str(&body)
        .map_err(|error| ControlClientError::Malformed(address.clone(), error.to_string()))?;
    Ok(reply.message)
}

fn exchange(
    address: &ControlAddress,
    request: (&str, &str),
    token: Option<&str>,
    timeout: Duration,
) -> Result<String, ControlClientError> {
    let (code, body) = match address {
        ControlAddress::Url(url) => exchange_over_tcp(url, request, token, timeout),
        ControlAddress::Socket(path) => exchange_over_unix(path, request, timeout),
    }
    .map_err(|error| ControlClientError::Unreachable(address.clone(), error))?;
    match code {
        200 => Ok(body),
        code => {
            #[derive(Deserialize)]
            struct Refusal {
                error: String,
            }
            let refusal = serde_json::from_str(&body).map(|Refusal { error }| error);
            let text = refusal.unwrap_or_else(|_| format!("{code} {}", body.trim_end()));
            Err(ControlClientError::Refused(address.clone(), text))
        }
    }
}

fn exchange_over_tcp(
    url: &str,
    (method, path): (&str, &str),
    token: Option<&str>,
    timeout: Duration,
) -> Result<(u16, String), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        // The control plane is near, and a proxy must not get the token.
        .proxy(None)
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("{url}{path}"));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let request = request.body(()).map_err(|error| error.to_string())?;
    let mut response = agent.run(request).map_err(|error| error.to_string())?;
    let body = response.body_mut().with_config().limit(REPLY_LEN_MAX).read_to_string();
    Ok((response.status().as_u16(), body.map_err(|error| error.to_string())?))
}

/// Sends a request over a unix socket, which the HTTP library does not support.
fn exchange_over_unix(
    path: &Path,
    (method, target): (&str, &str),
    timeout: Duration,
) -> Result<(u16, String), String> {
    let exchange = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(timeout))?;
        write!(
            stream,
            "{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.take(REPLY_LEN_MAX).read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = exchange().map_err(|error| error.to_string())?;
    let malformed = || "the reply is not HTTP".to_owned();
    let (head, body) = reply.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_or_paths() {
        let url = ControlAddress::parse("http://[::1]:6880/");
        assert_eq!(url, Ok(ControlAddress::Url("http://[::1]:6880".to_owned())));
        for text in ["/run/tsubame/control", "unix:/run/tsubame/control"] {
            let socket = ControlAddress::parse(text);
            assert_eq!(socket, Ok(ControlAddress::Socket("/run/tsubame/control".into())));
        }
        assert!(ControlAddress::parse("127.0.0.1:6880").is_err());
    }
}
