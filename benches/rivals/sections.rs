//! The sections of the comparison; each prints a table.

use crate::RivalsOptions;
use crate::cluster;
use crate::ratios::{median, ratio_quartiles};
use crate::restart;
use crate::tracker::{TrackerKind, TrackerProcess, TrackerSetup, beside, pinned, receive_buffer};
use crate::veth::{self, Veth};
use crate::xdp;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use tsubame_bench::record::{Record, ServerUsage, StepRecord};

/// Mixes of requests: the mix of a public tracker, and announces only.
const MIXES: [(&str, &str); 2] =
    [("half connects", "connect=50,announce=50,scrape=1"), ("announces only", "announce=1")];

/// Number of requests per segmented datagram at saturation: the generator must be faster than the trackers.
const SEGMENTS: u16 = 16;

/// Number of requests in flight in the closed loop: so few that a tracker often has answered all of them.
const IN_FLIGHT: u16 = 192;

/// Number of torrents of the population, except where memory is measured.
const TORRENTS: u32 = 100_000;

/// Maximum share of replies that are errors.
const ERRORS_MAX: f64 = 0.01;

/// Runs the selected sections.
pub(crate) fn all(options: &RivalsOptions) -> Result<(), String> {
    let wanted = Speeds {
        rate: options.wants("rate"),
        closed: options.wants("closed"),
        saturated: options.wants("saturated"),
    };
    if wanted.rate || wanted.closed || wanted.saturated {
        let setup = loopback(options, TORRENTS);
        speed(options, &setup, &Load::new(options), "loopback", wanted)?;
    }
    if options.wants("veth") {
        match Veth::new() {
            Ok(veth) => over_veth(options, &veth)?,
            Err(error) => println!("## veth\n\nSkipped: {error}\n"),
        }
    }
    if options.wants("xdp")
        && let Err(error) = xdp::run(options)
    {
        println!("## XDP\n\nSkipped: {error}\n");
    }
    if options.wants("tester") {
        tester(options)?;
    }
    if options.wants("memory") {
        memory(options)?;
    }
    if options.wants("pauses") {
        pauses(options)?;
    }
    if options.wants("restart") {
        restart::run(options)?;
    }
    if options.wants("shards") {
        shards(options)?;
    }
    if options.wants("cluster") {
        cluster::run(options)?;
    }
    Ok(())
}

/// Returns the setup of trackers on loopback.
pub(crate) fn loopback(options: &RivalsOptions, torrents: u32) -> TrackerSetup {
    TrackerSetup {
        rivals: options.rivals.clone(),
        ip: Ipv4Addr::LOCALHOST.into(),
        cpu: options.server_cpu,
        namespace: None,
        torrents,
        lifetime_secs: None,
        xdp: None,
        receive_buffer: receive_buffer(),
        directory: None,
        control: None,
        cluster: None,
    }
}

/// The load generator, and where it runs.
pub(crate) struct Load {
    cpu: usize,
    server_cpu: usize,
    pub(crate) seconds: u64,
    pub(crate) namespace: Option<String>,
    pub(crate) sources: Option<&'static str>,
}

impl Load {
    pub(crate) fn new(options: &RivalsOptions) -> Self {
        Self {
            cpu: options.load_cpu,
            server_cpu: options.server_cpu,
            seconds: options.seconds,
            namespace: None,
            sources: None,
        }
    }

    /// Loads a tracker; returns the record of the last step.
    pub(crate) fn run(
        &self,
        tracker: &TrackerProcess,
        ip: IpAddr,
        arguments: &[&str],
    ) -> Result<StepRecord, String> {
        let (address, id) = (SocketAddr::new(ip, tracker.port), tracker.id().to_string());
        let server = format!("--server-cpu={}", self.server_cpu);
        let server = ["--server-pid", &id, &server];
        self.run_at((tracker.kind, address), &[&server[..], arguments].concat())
    }

    /// Loads a tracker whose process may be replaced meanwhile.
    pub(crate) fn run_at(
        &self,
        (kind, address): (TrackerKind, SocketAddr),
        arguments: &[&str],
    ) -> Result<StepRecord, String> {
        let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        let mut command = pinned(self.namespace.as_deref(), self.cpu, self.cpu);
        command.arg(beside("tsubame-load")?);
        command.arg(format!("udp://{address}"));
        command.args(["--quiet", "--warmup=500ms", "--timeout=3s"]);
        command.arg(format!("--duration={}s", self.seconds));
        command.arg(format!("--torrents={TORRENTS}"));
        if let Some(sources) = self.sources {
            command.arg(format!("--source-networks={sources}"));
        }
        let output = command
            .args(arguments)
            .arg("--json")
            .arg(file.path())
            .stderr(Stdio::piped())
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            let program_output = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: {}", kind.name(), program_output.trim()));
        }
        let record = Record::read(file.path()).map_err(|error| error.to_string())?;
        let step = record.steps.into_iter().last().ok_or("the run has no steps")?;
        // Errors are cheap: a tracker that refuses requests would look fast.
        if step.error_share() > ERRORS_MAX {
            return Err(format!("{} replies with errors: {:?}", kind.name(), step.answered));
        }
        Ok(step)
    }

    /// Announces every peer of a population once.
    fn fill(
        &self,
        tracker: &TrackerProcess,
        ip: IpAddr,
        population: &[&str],
    ) -> Result<StepRecord, String> {
        let once = ["--fill", "--duration=0s", "--warmup=0s", "--check=0"];
        self.run(tracker, ip, &[&once[..], population].concat())
    }
}

/// Measures each tracker in turn for a number of rounds; returns the results by tracker.
fn rounds<T: Clone>(
    rounds: usize,
    trackers: &[TrackerProcess],
    mut measure: impl FnMut(&TrackerProcess) -> Result<T, String>,
) -> Result<Vec<Vec<T>>, String> {
    let mut results = vec![Vec::new(); trackers.len()];
    for round in 0..rounds {
        for turn in 0..trackers.len() {
            // The order rotates, so that no tracker is always first.
            let at = (round + turn) % trackers.len();
            results[at].push(measure(&trackers[at])?);
        }
    }
    Ok(results)
}

/// Returns this tracker, and the selected ones of the others.
pub(crate) fn kinds(
    options: &RivalsOptions,
    wanted: impl Fn(TrackerKind) -> bool,
) -> Vec<TrackerKind> {
    let all = TrackerKind::all(&options.rivals).into_iter();
    all.filter(|kind| *kind == TrackerKind::OURS || wanted(*kind)).collect()
}

/// Starts trackers.
fn start_all(kinds: &[TrackerKind], setup: &TrackerSetup) -> Result<Vec<TrackerProcess>, String> {
    kinds.iter().map(|kind| TrackerProcess::start(*kind, setup)).collect()
}

/// Which comparisons of speed are run: processor time at rates that all trackers can serve, the rate with a fixed
/// number of requests in flight, and the rate at saturation.
#[derive(Clone, Copy)]
struct Speeds {
    rate: bool,
    closed: bool,
    saturated: bool,
}

/// Compares the speed on one core.
fn speed(
    options: &RivalsOptions,
    setup: &TrackerSetup,
    load: &Load,
    over: &str,
    wanted: Speeds,
) -> Result<(), String> {
    let mut trackers = start_all(&kinds(options, |_| true), setup)?;
    for tracker in &trackers {
        load.fill(tracker, setup.ip, &[])?;
    }
    for (name, mix) in MIXES {
        // The reflector replies with the average number of peers of a reply.
        let probe = load.run(&trackers[0], setup.ip, &[&format!("--mix={mix}")])?;
        let announces = probe.answered.get("announce").copied().unwrap_or(0).max(1);
        let peers = (probe.peers as f64 / announces as f64).round() as u32;
        let reflector = TrackerKind::Reflector { peers };
        trackers.push(TrackerProcess::start(reflector, setup)?);
        let mix = format!("--mix={mix}");
        // Replies of the reflector are constant, and at saturation checks would slow the generator.
        let common = [mix.as_str(), "--check=0"];
        for requests_per_s in options.rates.iter().filter(|_| wanted.rate) {
            if name != MIXES[0].0 && *requests_per_s != options.highest_rate() {
                continue;
            }
            let rate = format!("--rate={requests_per_s}");
            let arguments = [&common[..], &[&rate]].concat();
            let steps = rounds(options.rounds, &trackers, |it| load.run(it, setup.ip, &arguments))?;
            let title = format!("{requests_per_s} requests per second over {over}, {name}");
            table(&title, &trackers, &steps, "process us/answer, tsubame / other", |step| {
                step.process_us_per_answer().unwrap_or(f64::NAN)
            });
        }
        if wanted.closed {
            let in_flight = format!("--in-flight={IN_FLIGHT}");
            let arguments = [&common[..], &[&in_flight]].concat();
            let steps = rounds(options.rounds, &trackers, |it| load.run(it, setup.ip, &arguments))?;
            let title = format!("closed loop over {over}, {IN_FLIGHT} requests in flight, {name}");
            let figure = StepRecord::answers_per_s;
            table(&title, &trackers, &steps, "answers/s, tsubame / other", figure);
        }
        if wanted.saturated {
            let segments = format!("--segments={SEGMENTS}");
            let arguments = [&common[..], &[&segments]].concat();
            let steps = rounds(options.rounds, &trackers, |it| load.run(it, setup.ip, &arguments))?;
            let title = format!("saturated over {over}, {name}");
            table(
                &title,
                &trackers,
                &steps,
                "answers/s, tsubame / other",
                StepRecord::answers_per_s,
            );
        }
        trackers.pop();
    }
    println!(
        "Fairness: all trackers, but not the reflector, have the receive buffer that the kernel gives by default. \
         opentracker is built from Debian's source as an open tracker with -O3, if benches/compare could do \
         that, otherwise it is Debian's program with a list of the torrents. At saturation the generator sends \
         {SEGMENTS} requests as one datagram, which saves all receivers work on loopback and veth. Over \
         loopback, the kernel does the receive work for requests on the generator's core, and for replies on the \
         tracker's.\n"
    );
    Ok(())
}

/// Compares the speed over a veth pair.
fn over_veth(options: &RivalsOptions, veth: &Veth) -> Result<(), String> {
    let mut setup = loopback(options, TORRENTS);
    (setup.ip, setup.namespace) = (veth::SERVER, Some(veth.server.clone()));
    let mut load = Load::new(options);
    (load.namespace, load.sources) = (Some(veth.load.clone()), Some(veth::CLIENTS));
    speed(options, &setup, &load, "veth", Speeds { rate: true, closed: false, saturated: true })
}

/// Prints a table with a row for each tracker.
fn table(
    title: &str,
    trackers: &[TrackerProcess],
    steps: &[Vec<StepRecord>],
    ratio: &str,
    figure: fn(&StepRecord) -> f64,
) {
    println!("## {title}\n");
    println!(
        "| | answers/s | core us/answer | process us/answer | p50 us | p99.99 us | peers/reply \
         | lost | generator behind | {ratio} |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let of = |at: usize, figure: &dyn Fn(&StepRecord) -> f64| {
        steps[at].iter().map(figure).collect::<Vec<f64>>()
    };
    let ours = of(0, &figure);
    for (at, tracker) in trackers.iter().enumerate() {
        let middle = |figure: &dyn Fn(&StepRecord) -> f64| median(&of(at, figure));
        let announces =
            |step: &StepRecord| step.answered.get("announce").copied().unwrap_or(0).max(1) as f64;
        println!(
            "| {} | {:.0} | {} | {} | {:.0} | {:.0} | {:.1} | {:.2} % | {} of {} | {} |",
            tracker.kind.name(),
            middle(&StepRecord::answers_per_s),
            format_value(middle(&|step| step.core_us_per_answer().unwrap_or(f64::NAN))),
            format_value(middle(&|step| step.process_us_per_answer().unwrap_or(f64::NAN))),
            middle(&|step| step.latency.value_at(50.0)),
            middle(&|step| step.latency.value_at(99.99)),
            middle(&|step| step.peers as f64 / announces(step)),
            middle(&|step| step.lost as f64 * 100.0 / step.sent.max(1) as f64),
            steps[at].iter().filter(|step| step.generator.bottleneck).count(),
            steps[at].len(),
            if at == 0 { "1".to_owned() } else { ratio_quartiles(&ours, &of(at, &figure)) },
        );
    }
    println!();
}

/// Returns a value as text.
fn format_value(figure: f64) -> String {
    if figure.is_nan() { "-".to_owned() } else { format!("{figure:.2}") }
}

/// Compares the trackers with the public load tester of aquatic, except those that need a list of torrents.
fn tester(options: &RivalsOptions) -> Result<(), String> {
    let setup = loopback(options, 1);
    let program = options.rivals.join("aquatic_udp_load_test");
    if !program.exists() {
        println!("## aquatic_udp_load_test\n\nSkipped: {} does not exist\n", program.display());
        return Ok(());
    }
    let trackers = start_all(
        &kinds(options, |kind| kind != TrackerKind::OpenTracker { is_open: false }),
        &setup,
    )?;
    for (name, weights) in [("its default mix", (50, 1)), ("announces only", (0, 0))] {
        let rates = rounds(options.rounds, &trackers, |tracker| {
            run_tester(options, &program, tracker, weights).map_err(|error| error.to_string())
        })?;
        println!(
            "## aquatic_udp_load_test, {name}\n\n| | answers/s | tsubame / other |\n|---|---|---|"
        );
        for (tracker, theirs) in trackers.iter().zip(&rates) {
            let ratio = match tracker.kind {
                TrackerKind::OURS => "1".to_owned(),
                _ => ratio_quartiles(&rates[0], theirs),
            };
            println!("| {} | {:.0} | {ratio} |", tracker.kind.name(), median(theirs));
        }
        println!(
            "\nDebian's program of opentracker is left out: it serves listed torrents only, and the tester generates \
             its own.\n"
        );
    }
    Ok(())
}

/// Runs the public load tester; returns the replies per second that it reports.
fn run_tester(
    options: &RivalsOptions,
    program: &Path,
    tracker: &TrackerProcess,
    (connect, scrape): (u32, u32),
) -> std::io::Result<f64> {
    let config = tempfile::NamedTempFile::new()?;
    let text = format!(
        "server_address = \"127.0.0.1:{}\"\nduration = {}\n[requests]\nweight_connect = {connect}\n\
         weight_scrape = {scrape}\n",
        tracker.port,
        options.seconds.max(2)
    );
    std::fs::write(config.path(), text)?;
    let mut command = pinned(None, options.load_cpu, options.load_cpu);
    let output = command.arg(program).arg("-c").arg(config.path()).output()?;
    let program_output = String::from_utf8_lossy(&output.stdout);
    // The last value is that of the summary.
    let lines = program_output.lines().filter_map(|line| line.split_once("Responses in:"));
    let mut rates = lines.filter_map(|(_, rest)| rest.trim().split('/').next()?.parse().ok());
    Ok(rates.next_back().unwrap_or(f64::NAN))
}

/// Compares resident memory with the population of a public tracker.
fn memory(options: &RivalsOptions) -> Result<(), String> {
    let populations: &[u32] = if options.quick { &[100_000] } else { &[1_000_000, 4_000_000] };
    println!(
        "## memory, every torrent announced\n\n| | torrents | peers | before | after | bytes/peer |\n\
         |---|---|---|---|---|---|"
    );
    for torrents in populations {
        // aquatic_udp has the same table with io_uring and with mio.
        for kind in kinds(options, |kind| kind != TrackerKind::AquaticMio) {
            let setup = loopback(options, *torrents);
            let tracker = TrackerProcess::start(kind, &setup)?;
            let before = tracker.resident_bytes();
            let step = fill_publicly(&Load::new(options), &tracker, &setup)?;
            let after = tracker.resident_bytes();
            let peers = step.answered.get("announce").copied().unwrap_or(0) as f64;
            let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
            println!(
                "| {} | {torrents} | {peers:.0} | {:.1} MiB | {:.1} MiB | {:.1} |",
                kind.name(),
                mib(before),
                mib(after),
                after as f64 / peers
            );
        }
    }
    println!(
        "\nDebian's program of opentracker also stores its list of permitted torrents, about 20 bytes each.\n"
    );
    Ok(())
}

/// Announces the population of a public tracker, so that every torrent is used.
pub(crate) fn fill_publicly(
    load: &Load,
    tracker: &TrackerProcess,
    setup: &TrackerSetup,
) -> Result<StepRecord, String> {
    let torrents = format!("--torrents={}", setup.torrents);
    load.fill(tracker, setup.ip, &["--shape=public", &torrents])
}

/// Compares the longest gaps while peers expire, at half the rate.
fn pauses(options: &RivalsOptions) -> Result<(), String> {
    let torrents = if options.quick { 200_000 } else { 4_000_000 };
    let (rounds, seconds) = if options.quick { (1, 20) } else { (3, 60) };
    // With millions of peers, the first expire soon after the last are filled; all expire before the end.
    let lifetime_secs = if options.quick { 10 } else { 60 };
    println!(
        "## gaps while {torrents} torrents expire, {} requests per second for {seconds} s\n\n\
         | | round | longest gap ms | p99.99 us | max us | lost | core stolen ms | resident MiB |\n\
         |---|---|---|---|---|---|---|---|",
        options.highest_rate() / 2
    );
    for round in 1..=rounds {
        for kind in kinds(options, |kind| kind == TrackerKind::AquaticUring) {
            let mut setup = loopback(options, torrents);
            setup.lifetime_secs = Some(lifetime_secs);
            let tracker = TrackerProcess::start(kind, &setup)?;
            let mut load = Load::new(options);
            fill_publicly(&load, &tracker, &setup)?;
            load.seconds = seconds;
            // The peers of the fill expire during this step; few of them announce again.
            let rate = format!("--rate={}", options.highest_rate() / 2);
            let step = load.run(&tracker, setup.ip, &["--mix=announce=1", "--check=0", &rate])?;
            println!(
                "| {} | {round} | {:.1} | {:.0} | {:.0} | {} | {:.0} | {:.0} |",
                kind.name(),
                step.gap_ms_max,
                step.latency.value_at(99.99),
                step.latency.max_us,
                step.lost,
                step.server.and_then(|server| server.stolen_s).unwrap_or(0.0) * 1e3,
                tracker.resident_bytes() as f64 / 1_048_576.0
            );
        }
    }
    println!(
        "\naquatic_udp removes expired peers every 10 s here. opentracker is skipped: its peer lifetime is \
         compiled in.\n"
    );
    Ok(())
}

/// Compares processor time per reply with two shards on two cores, one of which the generator also uses.
fn shards(options: &RivalsOptions) -> Result<(), String> {
    let mut setup = loopback(options, TORRENTS);
    setup.cpu = setup.cpu.min(options.load_cpu);
    let kinds = [
        TrackerKind::OURS,
        TrackerKind::Tsubame { shards: 2, steering: true },
        TrackerKind::Tsubame { shards: 2, steering: false },
    ];
    let trackers = start_all(&kinds, &setup)?;
    let load = Load::new(options);
    for (name, mix) in MIXES {
        let steps = rounds(options.rounds, &trackers, |tracker| {
            // The same rate per shard gives batches of the same size, which determine most of the time.
            let one = tracker.kind == TrackerKind::OURS;
            let rate = if one { options.highest_rate() / 2 } else { options.highest_rate() };
            let (mix, rate) = (format!("--mix={mix}"), format!("--rate={rate}"));
            let step = load.run(tracker, setup.ip, &[&mix, &rate, "--check=0"])?;
            // The busy time of one core is meaningless with two shards.
            Ok(if one {
                step
            } else {
                StepRecord {
                    server: step.server.map(|it| ServerUsage { core_busy_s: None, ..it }),
                    ..step
                }
            })
        })?;
        let title = format!("{} requests per second per shard, {name}", options.highest_rate() / 2);
        table(&title, &trackers, &steps, "process us/answer, one shard / this", |step| {
            step.process_us_per_answer().unwrap_or(f64::NAN)
        });
    }
    Ok(())
}
