//! The loop that sends requests, receives replies, and records both.
//!
//! It uses one thread, which never sleeps while it measures: the wake-up time would count as latency of the tracker.

use crate::in_flight::RequestKind;
use crate::options::{Flood, LoadAction, LoadOptions, LoadStep, RequestMix, RunOptions};
use crate::pace::{Pace, Poisson};
use crate::population::Population;
use crate::progress::Progress;
use crate::session::Session;
use crate::step_stats::StepStats;
use crate::usage::Usage;
use std::io;
use std::process::{Command, ExitStatus};
use std::time::Duration;
use tsubame_bench::batch::BATCH;
use tsubame_bench::record;

/// Time without any reply after which the tracker is considered down.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Turns of the loop between two searches for lost requests.
const TURNS_PER_EXPIRY: u32 = 16;

/// Protocol that carries requests to the tracker and replies back.
pub(crate) trait Transport {
    /// Checks that the tracker replies, and prepares the clients as far as possible before the first step.
    fn prepare(&mut self, session: &mut Session<'_>) -> io::Result<()>;

    /// Processes what has arrived; returns the number of arrivals.
    fn receive(&mut self, session: &mut Session<'_>) -> io::Result<usize>;

    /// Returns whether one more request can be sent now.
    fn can_send(&self) -> bool;

    /// Returns the number of requests that wait for a connection.
    fn waiting_for_connection(&self) -> usize;

    /// Drops the requests that wait for a connection.
    fn end_step(&mut self, session: &mut Session<'_>);

    /// Sends a request of one client, or over UDP up to `--segments` of them with one call.
    fn send_request(
        &mut self,
        session: &mut Session<'_>,
        mix: &RequestMix,
        due_ns: u64,
    ) -> io::Result<()>;

    /// Sends the first announce of a peer.
    fn send_first_announce(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        peer: u32,
    ) -> io::Result<()>;

    /// Sends a flood request.
    fn send_flood_request(
        &mut self,
        session: &mut Session<'_>,
        flood_kind: FloodKind,
    ) -> io::Result<()>;

    /// Passes the queued requests to the kernel.
    fn flush(&mut self, session: &mut Session<'_>) -> io::Result<()>;

    /// Notes that a request was lost.
    fn handle_lost(&mut self, session: &mut Session<'_>, request: &crate::in_flight::SentRequest);

    /// Returns the number of replies that the kernel has dropped so far.
    fn drops(&self) -> u64;

    /// Returns the URL of the target of a peer group.
    fn url(&self, group: usize) -> &str;
}

/// Kinds of flood requests: their senders do not use the replies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FloodKind {
    /// A connect, on loopback from an address that no client uses.
    Connect,
    /// An announce with a forged connection id, on loopback from an address that no client uses.
    Forged,
    /// Random bytes.
    Garbage,
}

/// The load generator.
pub(crate) struct Engine<'a, T> {
    session: Session<'a>,
    transport: T,
    /// Whether a fill is in progress: lost announces are repeated.
    filling: bool,
    /// Peer groups and peers whose announce was lost during a fill.
    to_repeat: Vec<(usize, u32)>,
}

impl<'a, T: Transport> Engine<'a, T> {
    /// Creates a generator for a population, and prepares all clients.
    pub(crate) fn new(
        run: &'a RunOptions,
        transport: T,
        population: Population,
    ) -> io::Result<Self> {
        let session = Session::new(run, population);
        let mut engine = Self { session, transport, filling: false, to_repeat: Vec::new() };
        engine.transport.prepare(&mut engine.session)?;
        engine.drain()?;
        Ok(engine)
    }

    /// Runs a step; returns its record, or `None` for pauses and commands.
    pub(crate) fn step(&mut self, step: &LoadStep) -> io::Result<Option<record::StepRecord>> {
        let LoadStep { name, action, alongside } = step;
        let (rate, in_flight) = match action {
            LoadAction::Load(load) => (load.rate, load.in_flight),
            _ => (None, self.session.run.in_flight),
        };
        let progress = Progress::begin(name, action, self.session.run.quiet);
        let (server, drops) = (Usage::of(self.session.run), self.transport.drops());
        let start_ns = self.session.now_ns();
        self.session.step_stats = StepStats::begin(name, rate, in_flight, start_ns);
        let command = alongside.as_deref().map(|command| shell(command).spawn()).transpose()?;
        match action {
            LoadAction::Fill => self.fill(&progress)?,
            LoadAction::Load(load) => self.load(load, &progress)?,
            LoadAction::Pause(duration) => {
                self.pause(*duration, &progress)?;
                return Ok(None);
            }
            LoadAction::Run(command) => {
                check_exit_status(command, shell(command).status()?)?;
                return Ok(None);
            }
        }
        self.transport.end_step(&mut self.session);
        let end_ns = self.session.now_ns();
        self.session.step_stats.record.server = server.until_now(self.session.run);
        self.drain()?;
        if let (Some(mut command), Some(line)) = (command, alongside) {
            check_exit_status(line, command.wait()?)?;
        }
        self.session.step_stats.record.generator.drops =
            self.transport.drops().saturating_sub(drops);
        let after = StepStats::begin("between steps", None, in_flight, end_ns);
        Ok(Some(std::mem::replace(&mut self.session.step_stats, after).end(end_ns)))
    }

    /// Sends and receives for the duration of a step.
    fn load(&mut self, load: &LoadOptions, progress: &Progress) -> io::Result<()> {
        let start_ns = self.session.now_ns();
        let end_ns = start_ns + load.duration.as_nanos() as u64;
        let mut pace = Pace::new(load, self.session.run.segments, start_ns);
        let mut floods = Floods::new(&load.flood, start_ns);
        let mut now_ns = start_ns;
        for turn in 0_u32.. {
            let received = self.receive()?;
            if turn.is_multiple_of(TURNS_PER_EXPIRY) {
                self.expire(now_ns);
                progress.show(now_ns - start_ns, &self.session.step_stats);
            }
            let mut sent = 0;
            while sent < BATCH
                && (load.rate.is_some() || self.transport.can_send())
                && let waiting = self.session.in_flight.unanswered()
                && let Some(due_ns) = pace.next(&mut self.session.rng, now_ns, waiting)
            {
                self.transport.send_request(&mut self.session, &load.mix, due_ns)?;
                sent += 1;
            }
            sent += self.send_floods(&mut floods, now_ns)?;
            self.transport.flush(&mut self.session)?;
            let before_ns = std::mem::replace(&mut now_ns, self.session.now_ns());
            if received + sent > 0 {
                self.session.step_stats.add_busy(now_ns - before_ns);
            }
            if now_ns >= end_ns {
                break;
            }
        }
        if load.rate.is_some() {
            let not_sent = || pace.next(&mut self.session.rng, end_ns, 0);
            self.session.step_stats.record.held_back += std::iter::from_fn(not_sent).count() as u64;
        }
        Ok(())
    }

    /// Receives without sending for the duration of a step.
    fn pause(&mut self, duration: Duration, progress: &Progress) -> io::Result<()> {
        let start_ns = self.session.now_ns();
        let end_ns = start_ns + duration.as_nanos() as u64;
        while self.session.now_ns() < end_ns {
            self.receive()?;
            self.expire(self.session.now_ns());
            progress.show(self.session.now_ns() - start_ns, &self.session.step_stats);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Announces every peer once, in an order that is independent of the torrents. Lost announces are repeated.
    fn fill(&mut self, progress: &Progress) -> io::Result<()> {
        let start_ns = self.session.now_ns();
        self.filling = true;
        for group in 0..self.session.population.groups.len() {
            let mut order = shuffled(self.session.population.groups[group].peers());
            loop {
                self.receive()?;
                let now_ns = self.session.now_ns();
                self.expire(now_ns);
                progress.show(now_ns - start_ns, &self.session.step_stats);
                for _ in 0..BATCH {
                    let unanswered = self.session.in_flight.unanswered()
                        + self.transport.waiting_for_connection();
                    if unanswered >= self.session.run.in_flight {
                        break;
                    }
                    let repeated = self.to_repeat.pop();
                    let Some((group, peer)) = repeated.or_else(|| Some((group, order.next()?)))
                    else {
                        break;
                    };
                    self.transport.send_first_announce(&mut self.session, group, peer)?;
                }
                self.transport.flush(&mut self.session)?;
                // Requests that failed immediately are repeated, too.
                self.expire(now_ns);
                let unanswered =
                    self.session.in_flight.unanswered() + self.transport.waiting_for_connection();
                if unanswered == 0 && self.to_repeat.is_empty() {
                    break;
                }
                if self.session.step_stats.silent_ns(now_ns) > SILENCE_TIMEOUT.as_nanos() as u64 {
                    let url = self.transport.url(group);
                    return Err(io::Error::other(format!(
                        "{url} has not replied for {SILENCE_TIMEOUT:?}; is it still up?"
                    )));
                }
            }
        }
        self.filling = false;
        Ok(())
    }

    /// Receives until no request is unanswered.
    fn drain(&mut self) -> io::Result<()> {
        while self.session.in_flight.unanswered() > 0 {
            self.receive()?;
            self.expire(self.session.now_ns());
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.transport.receive(&mut self.session)
    }

    /// Gives up requests that exceed the timeout, and processes all requests given up since the last call.
    fn expire(&mut self, now_ns: u64) {
        self.session.expire(now_ns);
        while let Some((request, notify_transport)) = self.session.next_lost() {
            if notify_transport {
                self.transport.handle_lost(&mut self.session, &request);
            }
            if self.filling && matches!(request.kind, RequestKind::Announce { .. }) {
                self.to_repeat.push((request.group.into(), request.subject));
            }
        }
    }

    /// Sends the flood requests that are due; returns their number.
    fn send_floods(&mut self, floods: &mut Floods, now_ns: u64) -> io::Result<usize> {
        let mut sent = 0;
        for (arrivals, flood_kind) in &mut floods.0 {
            while sent < BATCH && arrivals.next(&mut self.session.rng, now_ns).is_some() {
                self.transport.send_flood_request(&mut self.session, *flood_kind)?;
                sent += 1;
            }
        }
        Ok(sent)
    }
}

/// Returns each number below `count` once, with consecutive numbers far apart.
fn shuffled(count: u32) -> impl Iterator<Item = u32> {
    let count = u64::from(count);
    let have_common_divisor = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    // The golden ratio spreads best; a stride with a common divisor would repeat numbers.
    let mut stride = (count as f64 * 0.618) as u64 + 1;
    while have_common_divisor(stride, count) {
        stride += 1;
    }
    (0..count).map(move |at| (at * stride % count) as u32)
}

/// Flood requests, each kind at its own rate.
struct Floods([(Poisson, FloodKind); 3]);

impl Floods {
    fn new(flood: &Flood, start_ns: u64) -> Self {
        let at = |rate, flood_kind| (Poisson::new(rate, start_ns), flood_kind);
        Self([
            at(flood.connects, FloodKind::Connect),
            at(flood.forged, FloodKind::Forged),
            at(flood.garbage, FloodKind::Garbage),
        ])
    }
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell
}

fn check_exit_status(command: &str, status: ExitStatus) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?} ended with {status}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn shuffled_numbers_are_complete() {
        for count in [0, 1, 2, 3, 10, 97, 1_000, 65_536] {
            let mut numbers: Vec<u32> = super::shuffled(count).collect();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..count), "{count}");
        }
    }
}
