//! Compares XDP with sockets, over a veth pair on which each end's receive work is done by the core of its process.

use crate::RivalsOptions;
use crate::ratios::{median, ratio_quartiles};
use crate::sections::{Load, loopback};
use crate::tracker::{TrackerKind, TrackerProcess, TrackerSetup, wait};
use crate::veth::{self, LOAD_INTERFACE, SERVER_INTERFACE, Veth};
use std::fs;
use std::process::Command;
use std::time::Duration;
use tsubame_bench::record::StepRecord;

/// Maximum number of unanswered requests in closed loop: fewer than the queues of veth hold.
const IN_FLIGHT: &str = "--in-flight=192";

/// Frames per second of the flood. Two in a hundred are of honest clients.
const FLOOD_RATE: &str = "--rate=1000000";

/// A tracker, with or without XDP.
#[derive(Clone, Copy)]
struct Contender {
    name: &'static str,
    kind: TrackerKind,
    /// The key `udp.xdp.announces`; `None` without XDP.
    xdp: Option<&'static str>,
}

/// Runs the section.
pub(crate) fn run(options: &RivalsOptions) -> Result<(), String> {
    let veth = Veth::new()?;
    // With it, veth has a queue and a thread for received frames, also without an XDP program.
    let ends = [(&veth.server, SERVER_INTERFACE), (&veth.load, LOAD_INTERFACE)];
    for (namespace, interface) in ends {
        veth::run_in(namespace, "ethtool", &["-K", interface, "gro", "on"])?;
    }
    let mut setup = loopback(options, 1);
    (setup.ip, setup.namespace) = (veth::SERVER, Some(veth.server.clone()));
    // The default of this tracker. aquatic_udp cannot exceed the limit of the kernel.
    setup.receive_buffer = 8 << 20;
    let mut load = Load::new(options);
    (load.namespace, load.sources) = (Some(veth.load.clone()), Some(veth::CLIENTS));
    let kind = TrackerKind::OURS;
    let mut contenders = vec![
        Contender { name: "tsubame, XDP and AF_XDP", kind, xdp: Some("af_xdp") },
        Contender { name: "tsubame, XDP without AF_XDP", kind, xdp: Some("socket") },
        Contender { name: "tsubame, sockets", kind, xdp: None },
    ];
    let aquatic = TrackerKind::AquaticUring;
    if TrackerKind::all(&options.rivals).contains(&aquatic) {
        contenders.push(Contender { name: aquatic.name(), kind: aquatic, xdp: None });
    }
    for (title, mix, pace) in [
        ("connects", "--mix=connect=1", IN_FLIGHT),
        ("announces", "--mix=announce=1", IN_FLIGHT),
        ("half connects", "--mix=connect=1,announce=1", IN_FLIGHT),
        (
            "1,000,000 frames/s, of which 98 % are forged announces",
            "--mix=forged=98,connect=1,announce=1",
            FLOOD_RATE,
        ),
    ] {
        let mut results = vec![Vec::new(); contenders.len()];
        for round in 0..options.rounds {
            for turn in 0..contenders.len() {
                let at = (round + turn) % contenders.len();
                let step = measure(
                    &contenders[at],
                    &setup,
                    (&load, options.load_cpu),
                    &veth,
                    &[mix, pace],
                )?;
                results[at].push(step);
            }
        }
        print_table(title, &contenders, &results);
    }
    Ok(())
}

/// Starts a tracker, loads it, and ends it: only one XDP program can be attached at a time.
fn measure(
    contender: &Contender,
    setup: &TrackerSetup,
    (load, load_cpu): (&Load, usize),
    veth: &Veth,
    arguments: &[&str],
) -> Result<StepRecord, String> {
    let xdp = contender.xdp.map(|announces| {
        format!("{{interfaces: [{SERVER_INTERFACE}], mode: native, announces: {announces}}}")
    });
    let setup = TrackerSetup { xdp, ..setup.clone() };
    let tracker = TrackerProcess::start(contender.kind, &setup)?;
    if contender.xdp.is_some() {
        wait_for_program(veth)?;
    }
    if contender.xdp == Some("af_xdp") {
        // The shard serves the queue within a second, and the program redirects to it within another one.
        wait(Duration::from_millis(2_500));
    }
    run_receive_work_on(&veth.server, SERVER_INTERFACE, setup.cpu)?;
    run_receive_work_on(&veth.load, LOAD_INTERFACE, load_cpu)?;
    let fixed = ["--xdp", LOAD_INTERFACE, "--sources=4096"];
    load.run(&tracker, setup.ip, &[&fixed[..], arguments].concat())
}

/// Waits until the XDP program is attached, which happens after the tracker has bound its port.
fn wait_for_program(veth: &Veth) -> Result<(), String> {
    for _ in 0..100 {
        if veth::run_in(&veth.server, "ip", &["link", "show", "dev", SERVER_INTERFACE])?
            .contains("prog/xdp")
        {
            return Ok(());
        }
        wait(Duration::from_millis(50));
    }
    Err("the XDP program was not attached".to_owned())
}

/// Has a thread on a core receive the frames of an interface, before all other threads there. By default, the core of
/// the sender does it; a network card would interrupt the core of its queue.
fn run_receive_work_on(namespace: &str, interface: &str, cpu: usize) -> Result<(), String> {
    let switch = format!("echo 1 >/sys/class/net/{interface}/threaded");
    veth::run_in(namespace, "sh", &["-c", &switch])?;
    let threads = fs::read_dir("/proc").map_err(|error| error.to_string())?.flatten();
    for thread in threads {
        let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        if name.starts_with(&format!("napi/{interface}")) {
            let id = thread.file_name().to_string_lossy().into_owned();
            for (program, arguments) in [
                ("taskset", vec!["-pc".to_owned(), cpu.to_string(), id.clone()]),
                ("chrt", ["--fifo", "--pid", "50", &id].map(str::to_owned).to_vec()),
            ] {
                let output = Command::new(program).args(arguments).output();
                output.map_err(|error| format!("{program}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// Returns the number of requests that must be answered and fitted into the queue of veth, which has 256 places: those
/// that did not are spread over all kinds of requests.
fn arrived(step: &StepRecord) -> f64 {
    let all = (step.sent + step.sent_unproven).max(1) as f64;
    step.sent.max(1) as f64 * (1.0 - step.generator.unsent as f64 / all)
}

fn print_table(title: &str, contenders: &[Contender], results: &[Vec<StepRecord>]) {
    println!(
        "## XDP: {title}\n\n| | answers/s | answered of those that fit into the queue of veth | core us/answer | \
         core busy | p50 us | p99 us | first / other |\n|---|---|---|---|---|---|---|---|"
    );
    let figures = |at: usize, of: &dyn Fn(&StepRecord) -> f64| -> Vec<f64> {
        results[at].iter().map(of).collect()
    };
    let ours = figures(0, &StepRecord::answers_per_s);
    for (at, contender) in contenders.iter().enumerate() {
        let middle = |of: &dyn Fn(&StepRecord) -> f64| median(&figures(at, of));
        let busy = |step: &StepRecord| {
            step.server.and_then(|server| server.core_busy_s).unwrap_or(f64::NAN) / step.seconds
        };
        println!(
            "| {} | {:.0} | {:.2} % | {:.2} | {:.2} | {:.0} | {:.0} | {} |",
            contender.name,
            middle(&StepRecord::answers_per_s),
            middle(&|step| step.answers() as f64 * 100.0 / arrived(step)),
            middle(&|step| step.core_us_per_answer().unwrap_or(f64::NAN)),
            middle(&busy),
            middle(&|step| step.latency.value_at(50.0)),
            middle(&|step| step.latency.value_at(99.0)),
            if at == 0 {
                "1".to_owned()
            } else {
                ratio_quartiles(&ours, &figures(at, &StepRecord::answers_per_s))
            },
        );
    }
    println!();
}
