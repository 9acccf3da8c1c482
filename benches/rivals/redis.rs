//! What an announce costs in a tracker that shares its swarms by Redis, as Chihaya does: each announce writes the peer
//! in a transaction and reads the swarm, in round trips to the server.
//!
//! It is not Chihaya: only the commands to Redis are sent, by one connection, so that the cost of a tracker comes in
//! addition.

use crate::RivalsOptions;
use crate::cluster::free_tcp_port;
use crate::ratios::quantile;
use crate::tracker::{pinned, wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tsubame::clock::Clock;
use tsubame_bench::observe;

/// Number of torrents, and of announces before the measurement.
const TORRENTS: u64 = 50_000;
const FILL: u64 = 120_000;

/// A Redis server, which is killed when dropped.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures announces for some seconds.
pub(crate) fn run(options: &RivalsOptions) -> Result<(), String> {
    if Command::new("redis-server").arg("--version").output().is_err() {
        println!("## cluster: Redis\n\nSkipped: redis-server is not installed\n");
        return Ok(());
    }
    let port = free_tcp_port()?;
    let mut command = pinned(None, options.server_cpu, options.server_cpu);
    command.args(["redis-server", "--port", &port.to_string(), "--save", ""]);
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let server = Redis(started.map_err(|error| format!("redis-server: {error}"))?);
    wait(Duration::from_secs(1));
    let failed = |error: std::io::Error| format!("redis: {error}");
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let mut connection = BufReader::new(stream);
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..FILL {
        announce(&mut connection, &mut rng).map_err(failed)?;
    }
    let clock = Clock::new();
    let busy = |process| observe::processor_time_s(process).unwrap_or(0.0);
    let (own, redis) = (std::process::id(), server.0.id());
    let before = (busy(own), busy(redis));
    let mut times = Vec::new();
    while clock.elapsed() < Duration::from_secs(options.seconds) {
        let started = clock.elapsed();
        announce(&mut connection, &mut rng).map_err(failed)?;
        times.push((clock.elapsed() - started).as_secs_f64() * 1e6);
    }
    let count = times.len() as f64;
    println!(
        "## cluster: an announce with Redis (a transaction and two reads of the swarm, one connection)\n\n\
         | us of Redis | us of the client | us of round trips, p50 | p99 | announces a second |\n\
         |---|---|---|---|---|\n\
         | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} |\n",
        (busy(redis) - before.1) / count * 1e6,
        (busy(own) - before.0) / count * 1e6,
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        count / clock.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Stores a peer of a random torrent, and reads the seeders and leechers of that.
fn announce(connection: &mut BufReader<TcpStream>, rng: &mut fastrand::Rng) -> std::io::Result<()> {
    // Some torrents have far more peers than others.
    let torrent = (rng.f64().powi(3) * TORRENTS as f64) as u64;
    let role = if rng.bool() { "S" } else { "L" };
    let swarm = format!("IPv4_{role}_{torrent:040x}");
    let peer = format!("-TT0001-{:012x}{:012x}", rng.u64(..100_000), 0);
    let transaction: [&[&str]; 4] = [
        &["MULTI"],
        &["HSET", &swarm, &peer, "1700000000000000000"],
        &["HSET", "IPv4", &swarm, "1700000000000000000"],
        &["EXEC"],
    ];
    round_trip(connection, &transaction)?;
    for role in ["L", "S"] {
        round_trip(connection, &[&["HKEYS", &format!("IPv4_{role}_{torrent:040x}")]])?;
    }
    Ok(())
}

/// Sends commands and reads their replies.
fn round_trip(connection: &mut BufReader<TcpStream>, commands: &[&[&str]]) -> std::io::Result<()> {
    let mut request = String::new();
    for command in commands {
        request += &format!("*{}\r\n", command.len());
        command.iter().for_each(|word| request += &format!("${}\r\n{word}\r\n", word.len()));
    }
    connection.get_mut().write_all(request.as_bytes())?;
    commands.iter().try_for_each(|_| read_reply(connection))
}

/// Reads a reply of the protocol RESP.
fn read_reply(connection: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    let (kind, rest) = line.split_at_checked(1).unwrap_or(("", ""));
    let number: i64 = rest.trim().parse().unwrap_or(0);
    match kind {
        "*" => (0..number).try_for_each(|_| read_reply(connection)),
        "$" if number >= 0 => {
            let mut text = vec![0; number as usize + 2];
            connection.read_exact(&mut text)
        }
        "-" => Err(std::io::Error::other(line)),
        "" => Err(std::io::Error::other("the connection was closed")),
        _ => Ok(()),
    }
}
