//! A NATS server for tests.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use crate::common::{WAIT_TIMEOUT, now};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// A running server, which is killed when dropped.
pub(crate) struct Nats {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Nats {
    /// Starts a server with lines of its config.
    pub(crate) fn start(config: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start_at(config, address)
    }

    /// Starts a server with lines of its config at an address.
    pub(crate) fn start_at(config: &str, address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("nats.conf"), config).unwrap();
        let child = Self::spawn(&directory, address);
        let nats = Self { child, address, directory };
        nats.wait();
        nats
    }

    fn spawn(directory: &tempfile::TempDir, address: SocketAddr) -> Child {
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(directory.path().join("nats.conf"));
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        command.args(["-a", &ip, "-p", &port]);
        command.stderr(Stdio::null()).spawn().expect("nats-server is installed by tests/run")
    }

    fn wait(&self) {
        let deadline = now() + WAIT_TIMEOUT;
        while TcpStream::connect(self.address).is_err() {
            assert!(now() < deadline, "nats-server does not listen");
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the server again at the same address.
    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(&self.directory, self.address);
        self.wait();
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Publishes messages with a client that knows nothing of the tracker.
    pub(crate) fn publish(&self, messages: &[(&str, &[u8])]) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"CONNECT {\"verbose\":false}\r\n").unwrap();
        for (subject, payload) in messages {
            write!(stream, "PUB {subject} {}\r\n", payload.len()).unwrap();
            stream.write_all(payload).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"PING\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines();
        assert!(lines.any(|line| line.unwrap() == "PONG"));
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
