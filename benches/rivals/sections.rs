//! What is measured, section by section; each prints a table.

use crate::Options;
use crate::contender::{Contender, Kind, Place, beside, pinned};
use crate::ratios::{median, paired};
use crate::veth::{self, Veth};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use tsubame_bench::record::{Record, Server, Step};

/// Mixes: what public trackers see, and what a tracker does for its living
const MIXES: [(&str, &str); 2] =
    [("half connects", "connect=50,announce=50,scrape=1"), ("announces only", "announce=1")];

/// Requests the kernel takes as one at saturation: the generator must be faster than the trackers
const SEGMENTS: u16 = 16;

/// Torrents of the population wherever memory is not what is measured
const TORRENTS: u32 = 100_000;

/// Share of replies that may be errors
const ERRORS_MAX: f64 = 0.01;

/// All sections that are wanted
pub(crate) fn all(options: &Options) -> Result<(), String> {
    let wanted = Speeds { rate: options.wants("rate"), saturated: options.wants("saturated") };
    if wanted.rate || wanted.saturated {
        let place = loopback(options, TORRENTS);
        speed(options, &place, &Load::new(options), "loopback", wanted)?;
    }
    if options.wants("veth") {
        match Veth::new() {
            Ok(veth) => over_veth(options, &veth)?,
            Err(error) => println!("## veth\n\nLeft out: {error}\n"),
        }
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
    if options.wants("shards") {
        shards(options)?;
    }
    Ok(())
}

fn loopback(options: &Options, torrents: u32) -> Place {
    Place {
        rivals: options.rivals.clone(),
        ip: Ipv4Addr::LOCALHOST.into(),
        cpu: options.server_cpu,
        namespace: None,
        torrents,
        lifetime_secs: None,
    }
}

/// The generator and where it runs
struct Load {
    cpu: usize,
    server_cpu: usize,
    seconds: u64,
    namespace: Option<String>,
    sources: Option<&'static str>,
}

impl Load {
    fn new(options: &Options) -> Self {
        Self {
            cpu: options.load_cpu,
            server_cpu: options.server_cpu,
            seconds: options.seconds,
            namespace: None,
            sources: None,
        }
    }

    /// Loads a tracker; the record of the last step
    fn run(&self, contender: &Contender, ip: IpAddr, arguments: &[&str]) -> Result<Step, String> {
        let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        let mut command = pinned(self.namespace.as_deref(), self.cpu, self.cpu);
        command.arg(beside("tsubame-load")?);
        command.arg(format!("udp://{}", std::net::SocketAddr::new(ip, contender.port)));
        command.args(["--quiet", "--warmup=500ms", "--timeout=3s"]);
        command.arg(format!("--duration={}s", self.seconds));
        command.arg(format!("--server-cpu={}", self.server_cpu));
        command.arg(format!("--server-pid={}", contender.id()));
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
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: {}", contender.kind.name(), said.trim()));
        }
        let record = Record::read(file.path()).map_err(|error| error.to_string())?;
        let step = record.steps.into_iter().last().ok_or("the run has no steps")?;
        // Refusals are fast; nobody is to shine by them.
        if step.errors() > ERRORS_MAX {
            return Err(format!(
                "{} answers with errors: {:?}",
                contender.kind.name(),
                step.answered
            ));
        }
        Ok(step)
    }

    /// Has a population announce itself, each peer once
    fn fill(&self, contender: &Contender, ip: IpAddr, population: &[&str]) -> Result<Step, String> {
        let once = ["--fill", "--duration=0s", "--warmup=0s", "--check=0"];
        self.run(contender, ip, &[&once[..], population].concat())
    }
}

/// Has each contender measured in turn, so many rounds; what came out, by contender
fn rounds<T: Clone>(
    rounds: usize,
    contenders: &[Contender],
    mut measure: impl FnMut(&Contender) -> Result<T, String>,
) -> Result<Vec<Vec<T>>, String> {
    let mut results = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            // Nobody is always first.
            let at = (round + turn) % contenders.len();
            results[at].push(measure(&contenders[at])?);
        }
    }
    Ok(results)
}

/// Ours and those of the others that are wanted
fn kinds(options: &Options, wanted: impl Fn(Kind) -> bool) -> Vec<Kind> {
    let all = Kind::all(&options.rivals).into_iter();
    all.filter(|kind| *kind == Kind::OURS || wanted(*kind)).collect()
}

fn started(kinds: &[Kind], place: &Place) -> Result<Vec<Contender>, String> {
    kinds.iter().map(|kind| Contender::start(*kind, place)).collect()
}

/// Processor time at a rate that all can serve, and the rate when saturated
#[derive(Clone, Copy)]
struct Speeds {
    rate: bool,
    saturated: bool,
}

/// Speed on one core
fn speed(
    options: &Options,
    place: &Place,
    load: &Load,
    over: &str,
    wanted: Speeds,
) -> Result<(), String> {
    let mut contenders = started(&kinds(options, |_| true), place)?;
    for contender in &contenders {
        load.fill(contender, place.ip, &[])?;
    }
    for (name, mix) in MIXES {
        // What replies are like decides what the reflector answers.
        let look = load.run(&contenders[0], place.ip, &[&format!("--mix={mix}")])?;
        let announces = look.answered.get("announce").copied().unwrap_or(0).max(1);
        let peers = (look.peers as f64 / announces as f64).round() as u32;
        let reflector = Kind::Reflector { peers };
        contenders.push(Contender::start(reflector, place)?);
        let mix = format!("--mix={mix}");
        // Replies of the reflector are not worth checking; at saturation it would slow the generator.
        let common = [mix.as_str(), "--check=0"];
        if wanted.rate {
            let rate = format!("--rate={}", options.rate);
            let arguments = [&common[..], &[&rate]].concat();
            let steps =
                rounds(options.pairs, &contenders, |it| load.run(it, place.ip, &arguments))?;
            let title = format!("{} requests a second over {over}, {name}", options.rate);
            table(&title, &contenders, &steps, "core us/answer, ours / it", |step| {
                step.core_us_per_answer().unwrap_or(f64::NAN)
            });
        }
        if wanted.saturated {
            let segments = format!("--segments={SEGMENTS}");
            let arguments = [&common[..], &[&segments]].concat();
            let steps =
                rounds(options.pairs, &contenders, |it| load.run(it, place.ip, &arguments))?;
            let title = format!("saturated over {over}, {name}");
            table(&title, &contenders, &steps, "answers/s, ours / it", Step::answers_per_s);
        }
        contenders.pop();
    }
    println!(
        "How fair this is: opentracker is Debian's build, which permits listed torrents only and has all of \
         these listed, logs, and keeps the kernel's default receive buffer. At saturation the generator \
         hands over {SEGMENTS} requests as one, which spares all receivers work on loopback and veth. \
         Requests over loopback are taken in by the generator's core, replies by the tracker's.\n"
    );
    Ok(())
}

fn over_veth(options: &Options, veth: &Veth) -> Result<(), String> {
    let mut place = loopback(options, TORRENTS);
    (place.ip, place.namespace) = (veth::SERVER, Some(veth.server.clone()));
    let mut load = Load::new(options);
    (load.namespace, load.sources) = (Some(veth.load.clone()), Some(veth::CLIENTS));
    speed(options, &place, &load, "veth", Speeds { rate: true, saturated: true })
}

fn table(
    title: &str,
    contenders: &[Contender],
    steps: &[Vec<Step>],
    ratio: &str,
    figure: fn(&Step) -> f64,
) {
    println!("## {title}\n");
    println!(
        "| | answers/s | core us/answer | process us/answer | p50 us | p99.99 us | peers/reply \
         | lost | generator behind | {ratio} |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let of = |at: usize, figure: &dyn Fn(&Step) -> f64| {
        steps[at].iter().map(figure).collect::<Vec<f64>>()
    };
    let ours = of(0, &figure);
    for (at, contender) in contenders.iter().enumerate() {
        let middle = |figure: &dyn Fn(&Step) -> f64| median(&of(at, figure));
        let announces =
            |step: &Step| step.answered.get("announce").copied().unwrap_or(0).max(1) as f64;
        println!(
            "| {} | {:.0} | {} | {} | {:.0} | {:.0} | {:.1} | {:.2} % | {} of {} | {} |",
            contender.kind.name(),
            middle(&Step::answers_per_s),
            shown(middle(&|step| step.core_us_per_answer().unwrap_or(f64::NAN))),
            shown(middle(&|step| step.process_us_per_answer().unwrap_or(f64::NAN))),
            middle(&|step| step.latency.at(50.0)),
            middle(&|step| step.latency.at(99.99)),
            middle(&|step| step.peers as f64 / announces(step)),
            middle(&|step| step.lost as f64 * 100.0 / step.sent.max(1) as f64),
            steps[at].iter().filter(|step| step.generator.bottleneck).count(),
            steps[at].len(),
            if at == 0 { "1".to_owned() } else { paired(&ours, &of(at, &figure)) },
        );
    }
    println!();
}

fn shown(figure: f64) -> String {
    if figure.is_nan() { "-".to_owned() } else { format!("{figure:.2}") }
}

/// The public load tester of aquatic against all that take any torrent
fn tester(options: &Options) -> Result<(), String> {
    let place = loopback(options, 1);
    let program = options.rivals.join("aquatic_udp_load_test");
    if !program.exists() {
        println!("## aquatic_udp_load_test\n\nLeft out: {} is not there\n", program.display());
        return Ok(());
    }
    let contenders = started(&kinds(options, |kind| kind != Kind::OpenTracker), &place)?;
    for (name, weights) in [("its default mix", (50, 1)), ("announces only", (0, 0))] {
        let rates = rounds(options.pairs, &contenders, |contender| {
            tested(options, &program, contender, weights).map_err(|error| error.to_string())
        })?;
        println!("## aquatic_udp_load_test, {name}\n\n| | answers/s | ours / it |\n|---|---|---|");
        for (contender, theirs) in contenders.iter().zip(&rates) {
            let ratio = match contender.kind {
                Kind::OURS => "1".to_owned(),
                _ => paired(&rates[0], theirs),
            };
            println!("| {} | {:.0} | {ratio} |", contender.kind.name(), median(theirs));
        }
        println!(
            "\nopentracker is left out: Debian's build permits listed torrents only, and the tester draws its \
             own.\n"
        );
    }
    Ok(())
}

/// What the public tester says: answers a second
fn tested(
    options: &Options,
    program: &Path,
    contender: &Contender,
    (connect, scrape): (u32, u32),
) -> std::io::Result<f64> {
    let config = tempfile::NamedTempFile::new()?;
    let text = format!(
        "server_address = \"127.0.0.1:{}\"\nduration = {}\n[requests]\nweight_connect = {connect}\n\
         weight_scrape = {scrape}\n",
        contender.port,
        options.seconds.max(2)
    );
    std::fs::write(config.path(), text)?;
    let mut command = pinned(None, options.load_cpu, options.load_cpu);
    let output = command.arg(program).arg("-c").arg(config.path()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    // The last figure is the summary's.
    let lines = said.lines().filter_map(|line| line.split_once("Responses in:"));
    let mut rates = lines.filter_map(|(_, rest)| rest.trim().split('/').next()?.parse().ok());
    Ok(rates.next_back().unwrap_or(f64::NAN))
}

/// Resident memory with the population of a public tracker
fn memory(options: &Options) -> Result<(), String> {
    let populations: &[u32] = if options.quick { &[100_000] } else { &[1_000_000, 4_000_000] };
    println!(
        "## memory, every torrent touched\n\n| | torrents | peers | before | after | bytes/peer |\n\
         |---|---|---|---|---|---|"
    );
    for torrents in populations {
        // Both of aquatic_udp's ways with sockets keep the same table.
        for kind in kinds(options, |kind| kind != Kind::AquaticMio) {
            let place = loopback(options, *torrents);
            let contender = Contender::start(kind, &place)?;
            let before = contender.resident_bytes();
            let step = fill_publicly(&Load::new(options), &contender, &place)?;
            let after = contender.resident_bytes();
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
    println!("\nopentracker holds its list of permitted torrents besides, some 20 bytes each.\n");
    Ok(())
}

/// Has the population of a public tracker announce itself, so that every torrent is touched
fn fill_publicly(load: &Load, contender: &Contender, place: &Place) -> Result<Step, String> {
    let torrents = format!("--torrents={}", place.torrents);
    load.fill(contender, place.ip, &["--shape=public", &torrents])
}

/// The longest gaps while peers expire, at half load
fn pauses(options: &Options) -> Result<(), String> {
    let torrents = if options.quick { 200_000 } else { 4_000_000 };
    let (rounds, seconds) = if options.quick { (1, 20) } else { (3, 60) };
    // Of millions, the first are gone soon after the last have come; all are before this ends.
    let lifetime_secs = if options.quick { 10 } else { 60 };
    println!(
        "## gaps with {torrents} torrents while they expire, {} requests a second for {seconds} s\n\n\
         | | round | longest gap ms | p99.99 us | max us | lost | core stolen ms | resident MiB |\n\
         |---|---|---|---|---|---|---|---|",
        options.rate / 2
    );
    for round in 1..=rounds {
        for kind in kinds(options, |kind| kind == Kind::AquaticUring) {
            let mut place = loopback(options, torrents);
            place.lifetime_secs = Some(lifetime_secs);
            let contender = Contender::start(kind, &place)?;
            let mut load = Load::new(options);
            fill_publicly(&load, &contender, &place)?;
            load.seconds = seconds;
            // What was filled expires during this; those who announce are few.
            let rate = format!("--rate={}", options.rate / 2);
            let step = load.run(&contender, place.ip, &["--mix=announce=1", "--check=0", &rate])?;
            println!(
                "| {} | {round} | {:.1} | {:.0} | {:.0} | {} | {:.0} | {:.0} |",
                kind.name(),
                step.gap_ms_max,
                step.latency.at(99.99),
                step.latency.max_us,
                step.lost,
                step.server.and_then(|server| server.stolen_s).unwrap_or(0.0) * 1e3,
                contender.resident_bytes() as f64 / 1_048_576.0
            );
        }
    }
    println!(
        "\naquatic_udp looks for expired peers every 10 s here. opentracker is left out: how long its peers live is \
         compiled in.\n"
    );
    Ok(())
}

/// Processor time an answer with two shards on two cores, of which one is the generator's, too
fn shards(options: &Options) -> Result<(), String> {
    let mut place = loopback(options, TORRENTS);
    place.cpu = place.cpu.min(options.load_cpu);
    let kinds = [
        Kind::OURS,
        Kind::Tsubame { shards: 2, steering: true },
        Kind::Tsubame { shards: 2, steering: false },
    ];
    let contenders = started(&kinds, &place)?;
    let load = Load::new(options);
    for (name, mix) in MIXES {
        let steps = rounds(options.pairs, &contenders, |contender| {
            // As much for each shard: batches are as large then, which is what most of the time goes by.
            let one = contender.kind == Kind::OURS;
            let rate = if one { options.rate / 2 } else { options.rate };
            let (mix, rate) = (format!("--mix={mix}"), format!("--rate={rate}"));
            let step = load.run(contender, place.ip, &[&mix, &rate, "--check=0"])?;
            // One core's time says nothing where two serve.
            Ok(if one {
                step
            } else {
                Step { server: step.server.map(|it| Server { core_busy_s: None, ..it }), ..step }
            })
        })?;
        let title = format!("{} requests a second for each shard, {name}", options.rate / 2);
        table(&title, &contenders, &steps, "process us/answer, one shard / it", |step| {
            step.process_us_per_answer().unwrap_or(f64::NAN)
        });
    }
    Ok(())
}
