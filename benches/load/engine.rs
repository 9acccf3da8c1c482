//! The loop that sends, receives and compares.
//!
//! One thread that never sleeps while it measures: the time a wake-up takes would be taken for the tracker's.

mod arrivals;
mod departures;

use crate::clients::Clients;
use crate::flight::Flight;
use crate::options::{Action, Flood, Load, Run, Step};
use crate::pace::{Pace, Poisson};
use crate::population::Population;
use crate::progress::Progress;
use crate::tally::Tally;
use fastrand::Rng;
use std::io;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use tsubame_bench::batch::{BATCH, BatchSocket, Name, ReceiveBatch, SendBatch};
use tsubame_bench::{observe, record};

/// How long a tracker may take until it answers at all
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// How often what is overdue is looked for, in turns of the loop
const TURNS_PER_EXPIRY: u32 = 16;

/// A socket of one family, and what goes over it
pub(crate) struct Wire {
    pub(crate) socket: BatchSocket,
    pub(crate) to: Name,
    pub(crate) url: String,
    pub(crate) out: SendBatch,
}

/// The generator
pub(crate) struct Engine<'a> {
    run: &'a Run,
    start: Instant,
    wires: Vec<Wire>,
    population: Population,
    clients: Clients,
    flight: Flight,
    rng: Rng,
    tally: Tally,
    /// Whether every peer is being entered once: what is lost is repeated
    entering: bool,
    to_repeat: Vec<(usize, u32)>,
    /// Where requests are written that leave as one
    scratch: Vec<u8>,
}

impl<'a> Engine<'a> {
    /// A generator over these sockets, one for each group of the population
    #[expect(clippy::disallowed_methods, reason = "the generator's clock")]
    pub(crate) fn new(run: &'a Run, wires: Vec<Wire>, population: Population) -> Self {
        Self {
            run,
            start: Instant::now(),
            clients: Clients::new(&population),
            wires,
            population,
            flight: Flight::new(),
            rng: Rng::with_seed(run.seed),
            tally: Tally::begin("start", None, run.in_flight, 0),
            entering: false,
            to_repeat: Vec::new(),
            scratch: Vec::new(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the generator's clock")]
    fn now_ns(&self) -> u64 {
        Instant::now().duration_since(self.start).as_nanos() as u64
    }

    fn timeout_ns(&self) -> u64 {
        self.run.timeout.as_nanos() as u64
    }

    fn drops(&self) -> u64 {
        self.wires.iter().map(|wire| wire.socket.drops()).sum()
    }

    /// Runs a step; pauses and commands leave no record
    pub(crate) fn step(
        &mut self,
        step: &Step,
        incoming: &mut ReceiveBatch,
    ) -> io::Result<Option<record::Step>> {
        let Step { name, action, alongside } = step;
        let (rate, in_flight) = match action {
            Action::Load(load) => (load.rate, load.in_flight),
            _ => (None, self.run.in_flight),
        };
        let progress = Progress::begin(name, action, self.run.quiet);
        let (server, drops) = (Usage::of(self.run), self.drops());
        let start_ns = self.now_ns();
        self.tally = Tally::begin(name, rate, in_flight, start_ns);
        let command = alongside.as_deref().map(|command| shell(command).spawn()).transpose()?;
        match action {
            Action::Fill => self.fill(incoming, &progress)?,
            Action::Load(load) => self.load(load, incoming, &progress)?,
            Action::Pause(duration) => {
                self.pause(*duration, incoming, &progress)?;
                return Ok(None);
            }
            Action::Run(command) => {
                judge_command(command, shell(command).status()?)?;
                return Ok(None);
            }
        }
        let end_ns = self.now_ns();
        self.tally.step.server = server.until_now(self.run);
        self.drain(incoming)?;
        if let (Some(mut command), Some(line)) = (command, alongside) {
            judge_command(line, command.wait()?)?;
        }
        self.tally.step.generator.drops = self.drops().saturating_sub(drops);
        let after = Tally::begin("between steps", None, in_flight, end_ns);
        Ok(Some(std::mem::replace(&mut self.tally, after).end(end_ns)))
    }

    /// Has every client ask for a connection id
    pub(crate) fn connect_all(&mut self, incoming: &mut ReceiveBatch) -> io::Result<()> {
        let end_ns = self.now_ns() + FIRST_ANSWER.as_nanos() as u64;
        loop {
            let now_ns = self.now_ns();
            let without: Vec<_> = self.clients.without_id().collect();
            let Some((group, _)) = without.first() else { break };
            if now_ns > end_ns {
                return Err(io::Error::other(format!(
                    "{} has not answered every connect within {FIRST_ANSWER:?}; is the tracker up, and the \
                     way to it open?",
                    self.wires[*group].url
                )));
            }
            let again_ns = self.timeout_ns() / 5;
            let is_due = |(group, source): &(usize, u32)| {
                self.clients.should_connect(*group, *source, now_ns, again_ns)
            };
            let due: Vec<_> = without.into_iter().filter(is_due).take(BATCH).collect();
            for (group, source) in due {
                self.depart_connects(group, source, 1, now_ns)?;
            }
            self.flush()?;
            self.receive(incoming)?;
        }
        self.drain(incoming)
    }

    /// Sends and receives for as long as a step takes
    fn load(
        &mut self,
        load: &Load,
        incoming: &mut ReceiveBatch,
        progress: &Progress,
    ) -> io::Result<()> {
        let start_ns = self.now_ns();
        let end_ns = start_ns + load.duration.as_nanos() as u64;
        let mut pace = Pace::new(load, self.run.segments, start_ns);
        let mut floods = Floods::new(&load.flood, start_ns);
        let mut now_ns = start_ns;
        for turn in 0_u32.. {
            let received = self.receive(incoming)?;
            if turn.is_multiple_of(TURNS_PER_EXPIRY) {
                self.expire(now_ns);
                progress.show(now_ns - start_ns, &self.tally);
            }
            let mut departed = 0;
            while departed < BATCH
                && let Some(due_ns) = pace.next(&mut self.rng, now_ns, self.flight.waiting())
            {
                self.depart(&load.mix, due_ns)?;
                departed += 1;
            }
            departed += self.depart_floods(&mut floods, now_ns)?;
            self.flush()?;
            let before_ns = std::mem::replace(&mut now_ns, self.now_ns());
            if received + departed > 0 {
                self.tally.busy(now_ns - before_ns);
            }
            if now_ns >= end_ns {
                break;
            }
        }
        Ok(())
    }

    /// Sends nothing for so long
    fn pause(
        &mut self,
        duration: Duration,
        incoming: &mut ReceiveBatch,
        progress: &Progress,
    ) -> io::Result<()> {
        let start_ns = self.now_ns();
        let end_ns = start_ns + duration.as_nanos() as u64;
        while self.now_ns() < end_ns {
            self.receive(incoming)?;
            self.expire(self.now_ns());
            progress.show(self.now_ns() - start_ns, &self.tally);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Has every peer announce once, in an order that has nothing to do with torrents; what is lost is sent
    /// again
    fn fill(&mut self, incoming: &mut ReceiveBatch, progress: &Progress) -> io::Result<()> {
        let start_ns = self.now_ns();
        self.entering = true;
        for group in 0..self.population.groups.len() {
            let mut order = shuffled(self.population.groups[group].peers());
            loop {
                self.receive(incoming)?;
                let now_ns = self.now_ns();
                self.expire(now_ns);
                progress.show(now_ns - start_ns, &self.tally);
                while self.flight.waiting() < self.run.in_flight {
                    let again = self.to_repeat.pop();
                    let Some((group, peer)) = again.or_else(|| Some((group, order.next()?))) else {
                        break;
                    };
                    self.depart_entry(group, peer, now_ns)?;
                }
                self.flush()?;
                if self.flight.waiting() == 0 {
                    break;
                }
                if self.tally.silent_ns(now_ns) > FIRST_ANSWER.as_nanos() as u64 {
                    let url = &self.wires[group].url;
                    return Err(io::Error::other(format!(
                        "{url} has not answered for {FIRST_ANSWER:?}; is it still up?"
                    )));
                }
            }
        }
        self.entering = false;
        Ok(())
    }

    /// Takes the answers that are still on their way
    fn drain(&mut self, incoming: &mut ReceiveBatch) -> io::Result<()> {
        while self.flight.waiting() > 0 {
            self.receive(incoming)?;
            self.expire(self.now_ns());
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        for wire in &mut self.wires {
            if !wire.out.is_empty() {
                self.tally.step.generator.unsent += wire.out.send(&wire.socket)? as u64;
            }
        }
        Ok(())
    }
}

/// Each number below `count` once, neighbours far apart
fn shuffled(count: u32) -> impl Iterator<Item = u32> {
    let count = u64::from(count);
    let divides = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    // The golden section spreads best; a stride with a common divisor would come round too early.
    let mut stride = (count as f64 * 0.618) as u64 + 1;
    while divides(stride, count) {
        stride += 1;
    }
    (0..count).map(move |at| (at * stride % count) as u32)
}

/// Requests that no client would send, each kind at its own pace
struct Floods {
    connects: Poisson,
    forged: Poisson,
    garbage: Poisson,
}

impl Floods {
    fn new(flood: &Flood, start_ns: u64) -> Self {
        let at = |rate| Poisson::new(rate, start_ns);
        Self { connects: at(flood.connects), forged: at(flood.forged), garbage: at(flood.garbage) }
    }
}

/// What the server had used before a step
struct Usage {
    core: Option<observe::Core>,
    process_s: Option<f64>,
}

impl Usage {
    fn of(run: &Run) -> Self {
        Self {
            core: run.server_cpu.and_then(observe::core),
            process_s: run.server_pid.and_then(observe::process_s),
        }
    }

    fn until_now(&self, run: &Run) -> Option<record::Server> {
        let now = Self::of(run);
        let since = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        let of_core =
            |figure: fn(observe::Core) -> f64| since(now.core.map(figure), self.core.map(figure));
        let server = record::Server {
            core_busy_s: of_core(|core| core.busy_s),
            stolen_s: of_core(|core| core.stolen_s),
            process_s: since(now.process_s, self.process_s),
            resident_bytes: run.server_pid.and_then(observe::resident_bytes),
        };
        (run.server_cpu.is_some() || run.server_pid.is_some()).then_some(server)
    }
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell
}

fn judge_command(command: &str, status: ExitStatus) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?} ended with {status}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_order_has_each_number_once() {
        for count in [0, 1, 2, 3, 10, 97, 1_000, 65_536] {
            let mut seen: Vec<u32> = super::shuffled(count).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count), "{count}");
        }
    }
}
