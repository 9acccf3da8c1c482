//! The loop that sends, receives and compares.
//!
//! One thread that never sleeps while it measures: the time a wake-up takes would be taken for the tracker's.

use crate::books::Books;
use crate::flight::Kind;
use crate::options::{Action, Flood, Load, Mix, Run, Step};
use crate::pace::{Pace, Poisson};
use crate::population::Population;
use crate::progress::Progress;
use crate::tally::Tally;
use std::io;
use std::process::{Command, ExitStatus};
use std::time::Duration;
use tsubame_bench::batch::BATCH;
use tsubame_bench::{observe, record};

/// How long a tracker may take until it answers at all
pub(crate) const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// How often what is overdue is looked for, in turns of the loop
const TURNS_PER_EXPIRY: u32 = 16;

/// What carries requests to the tracker, and answers back
pub(crate) trait Transport {
    /// Makes sure that there is a tracker to ask, and gets the clients ready as far as they can be beforehand
    fn prepare(&mut self, books: &mut Books<'_>) -> io::Result<()>;

    /// Takes what has arrived; returns how much that was
    fn receive(&mut self, books: &mut Books<'_>) -> io::Result<usize>;

    /// Whether one more request could leave now
    fn has_room(&self) -> bool;

    /// Requests that departed and wait for a way
    fn pending(&self) -> usize;

    /// Drops those
    fn end_step(&mut self, books: &mut Books<'_>);

    /// Lets one client, or several of one address, ask something
    fn depart(&mut self, books: &mut Books<'_>, mix: &Mix, due_ns: u64) -> io::Result<()>;

    /// Lets a peer enter its swarm
    fn depart_entry(&mut self, books: &mut Books<'_>, group: usize, peer: u32) -> io::Result<()>;

    /// Sends what no client would
    fn depart_flood(&mut self, books: &mut Books<'_>, flooding: Flooding) -> io::Result<()>;

    /// Hands what has departed over to the kernel
    fn flush(&mut self, books: &mut Books<'_>) -> io::Result<()>;

    /// Learns that a request was given up
    fn given_up(&mut self, books: &mut Books<'_>, request: &crate::flight::Request);

    /// Answers that the kernel has dropped so far
    fn drops(&self) -> u64;

    /// Where a group asks
    fn url(&self, group: usize) -> &str;
}

/// Kinds of requests that no client would send
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flooding {
    /// A connect from an address that never comes back
    Connect,
    /// An announce from such an address, with a connection id that nobody gave out
    Forged,
    /// Bytes of any kind
    Garbage,
}

/// The generator
pub(crate) struct Engine<'a, T> {
    books: Books<'a>,
    transport: T,
    /// Whether every peer is being entered once: what is lost is repeated
    entering: bool,
    to_repeat: Vec<(usize, u32)>,
}

impl<'a, T: Transport> Engine<'a, T> {
    /// A generator for this population, all of whose clients are ready to ask
    pub(crate) fn new(run: &'a Run, transport: T, population: Population) -> io::Result<Self> {
        let books = Books::new(run, population);
        let mut engine = Self { books, transport, entering: false, to_repeat: Vec::new() };
        engine.transport.prepare(&mut engine.books)?;
        engine.drain()?;
        Ok(engine)
    }

    /// Runs a step; pauses and commands leave no record
    pub(crate) fn step(&mut self, step: &Step) -> io::Result<Option<record::Step>> {
        let Step { name, action, alongside } = step;
        let (rate, in_flight) = match action {
            Action::Load(load) => (load.rate, load.in_flight),
            _ => (None, self.books.run.in_flight),
        };
        let progress = Progress::begin(name, action, self.books.run.quiet);
        let (server, drops) = (Usage::of(self.books.run), self.transport.drops());
        let start_ns = self.books.now_ns();
        self.books.tally = Tally::begin(name, rate, in_flight, start_ns);
        let command = alongside.as_deref().map(|command| shell(command).spawn()).transpose()?;
        match action {
            Action::Fill => self.fill(&progress)?,
            Action::Load(load) => self.load(load, &progress)?,
            Action::Pause(duration) => {
                self.pause(*duration, &progress)?;
                return Ok(None);
            }
            Action::Run(command) => {
                judge_command(command, shell(command).status()?)?;
                return Ok(None);
            }
        }
        self.transport.end_step(&mut self.books);
        let end_ns = self.books.now_ns();
        self.books.tally.step.server = server.until_now(self.books.run);
        self.drain()?;
        if let (Some(mut command), Some(line)) = (command, alongside) {
            judge_command(line, command.wait()?)?;
        }
        self.books.tally.step.generator.drops = self.transport.drops().saturating_sub(drops);
        let after = Tally::begin("between steps", None, in_flight, end_ns);
        Ok(Some(std::mem::replace(&mut self.books.tally, after).end(end_ns)))
    }

    /// Sends and receives for as long as a step takes
    fn load(&mut self, load: &Load, progress: &Progress) -> io::Result<()> {
        let start_ns = self.books.now_ns();
        let end_ns = start_ns + load.duration.as_nanos() as u64;
        let mut pace = Pace::new(load, self.books.run.segments, start_ns);
        let mut floods = Floods::new(&load.flood, start_ns);
        let mut now_ns = start_ns;
        for turn in 0_u32.. {
            let received = self.receive()?;
            if turn.is_multiple_of(TURNS_PER_EXPIRY) {
                self.expire(now_ns);
                progress.show(now_ns - start_ns, &self.books.tally);
            }
            let mut departed = 0;
            while departed < BATCH
                && (load.rate.is_some() || self.transport.has_room())
                && let waiting = self.books.flight.waiting()
                && let Some(due_ns) = pace.next(&mut self.books.rng, now_ns, waiting)
            {
                self.transport.depart(&mut self.books, &load.mix, due_ns)?;
                departed += 1;
            }
            departed += self.depart_floods(&mut floods, now_ns)?;
            self.transport.flush(&mut self.books)?;
            let before_ns = std::mem::replace(&mut now_ns, self.books.now_ns());
            if received + departed > 0 {
                self.books.tally.busy(now_ns - before_ns);
            }
            if now_ns >= end_ns {
                break;
            }
        }
        if load.rate.is_some() {
            let left = || pace.next(&mut self.books.rng, end_ns, 0);
            self.books.tally.step.held_back += std::iter::from_fn(left).count() as u64;
        }
        Ok(())
    }

    /// Sends nothing for so long
    fn pause(&mut self, duration: Duration, progress: &Progress) -> io::Result<()> {
        let start_ns = self.books.now_ns();
        let end_ns = start_ns + duration.as_nanos() as u64;
        while self.books.now_ns() < end_ns {
            self.receive()?;
            self.expire(self.books.now_ns());
            progress.show(self.books.now_ns() - start_ns, &self.books.tally);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Has every peer announce once, in an order that has nothing to do with torrents; what is lost is sent
    /// again
    fn fill(&mut self, progress: &Progress) -> io::Result<()> {
        let start_ns = self.books.now_ns();
        self.entering = true;
        for group in 0..self.books.population.groups.len() {
            let mut order = shuffled(self.books.population.groups[group].peers());
            loop {
                self.receive()?;
                let now_ns = self.books.now_ns();
                self.expire(now_ns);
                progress.show(now_ns - start_ns, &self.books.tally);
                for _ in 0..BATCH {
                    let under_way = self.books.flight.waiting() + self.transport.pending();
                    if under_way >= self.books.run.in_flight {
                        break;
                    }
                    let again = self.to_repeat.pop();
                    let Some((group, peer)) = again.or_else(|| Some((group, order.next()?))) else {
                        break;
                    };
                    self.transport.depart_entry(&mut self.books, group, peer)?;
                }
                self.transport.flush(&mut self.books)?;
                // What was refused at once is to be repeated, too.
                self.expire(now_ns);
                let under_way = self.books.flight.waiting() + self.transport.pending();
                if under_way == 0 && self.to_repeat.is_empty() {
                    break;
                }
                if self.books.tally.silent_ns(now_ns) > FIRST_ANSWER.as_nanos() as u64 {
                    let url = self.transport.url(group);
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
    fn drain(&mut self) -> io::Result<()> {
        while self.books.flight.waiting() > 0 {
            self.receive()?;
            self.expire(self.books.now_ns());
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.transport.receive(&mut self.books)
    }

    /// Gives up what has waited too long, and looks after all that was given up since
    fn expire(&mut self, now_ns: u64) {
        self.books.expire(now_ns);
        while let Some((request, is_news)) = self.books.next_given_up() {
            if is_news {
                self.transport.given_up(&mut self.books, &request);
            }
            if self.entering && matches!(request.kind, Kind::Announce { .. }) {
                self.to_repeat.push((request.group.into(), request.subject));
            }
        }
    }

    /// Sends what is due of the floods; returns how much
    fn depart_floods(&mut self, floods: &mut Floods, now_ns: u64) -> io::Result<usize> {
        let mut departed = 0;
        for (arrivals, flooding) in &mut floods.0 {
            while departed < BATCH && arrivals.next(&mut self.books.rng, now_ns).is_some() {
                self.transport.depart_flood(&mut self.books, *flooding)?;
                departed += 1;
            }
        }
        Ok(departed)
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
struct Floods([(Poisson, Flooding); 3]);

impl Floods {
    fn new(flood: &Flood, start_ns: u64) -> Self {
        let at = |rate, flooding| (Poisson::new(rate, start_ns), flooding);
        Self([
            at(flood.connects, Flooding::Connect),
            at(flood.forged, Flooding::Forged),
            at(flood.garbage, Flooding::Garbage),
        ])
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
