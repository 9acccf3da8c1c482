//! Text reports of runs.

use std::fmt::Write;
use tsubame::text::grouped;
use tsubame_bench::record::{Record, StepRecord};

/// Returns the summary of a run.
pub(crate) fn of_run(record: &Record) -> String {
    let mut text = format!(
        "{}: {} torrents, {} peers, seed {}\n{}\n{}\n{}\n",
        record.name,
        grouped(record.torrents.into()),
        grouped(record.peers.into()),
        record.seed,
        record.machine,
        record.settings,
        record.placement
    );
    for step in &record.steps {
        text.push_str(&of_step(step));
    }
    text
}

/// Returns the summary of a step.
fn of_step(step: &StepRecord) -> String {
    let loop_kind = match step.rate {
        Some(rate) => format!("open loop, {}/s offered", grouped(rate as u64)),
        None => "closed loop".to_owned(),
    };
    let mut text = format!("\n{} ({:.1} s, {loop_kind})\n", step.name, step.seconds);
    let mut line = |name: &str, value: String| _ = writeln!(text, "  {name:<12} {value}");
    line(
        "answers",
        format!("{}/s ({} in all)", grouped(step.answers_per_s() as u64), grouped(step.answers())),
    );
    let kinds = step.answered.iter().map(|(kind, count)| format!("{} {kind}", grouped(*count)));
    line("", kinds.collect::<Vec<_>>().join(", "));
    if let Some(announces) = step.answered.get("announce").filter(|announces| **announces > 0) {
        line(
            "peers",
            format!("{:.1} per reply to an announce", step.peers as f64 / *announces as f64),
        );
    }
    of_losses(step, &mut line);
    line("wrong", of_wrong(step));
    let [p50, p90, p99, p999, p9999] =
        [50.0, 90.0, 99.0, 99.9, 99.99].map(|at| step.latency.value_at(at));
    let note = if step.latency.corrected {
        "from the scheduled time"
    } else {
        "from the sending of a request: mostly the wait behind the other --in-flight requests"
    };
    line(
        "latency",
        format!(
            "p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}, max {} ({note})",
            time(p50),
            time(p90),
            time(p99),
            time(p999),
            time(p9999),
            time(step.latency.max_us)
        ),
    );
    line("longest gap", format!("{} without an answer", time(step.gap_ms_max * 1_000.0)));
    if let Some(server) = step.server {
        let us = |us: Option<f64>| us.map_or("?".to_owned(), |us| format!("{us:.2} us"));
        let resident = server.resident_bytes.map_or("?".to_owned(), mebibytes);
        line(
            "server",
            format!(
                "{} of its core and {} of its process per answer, {resident} resident",
                us(step.core_us_per_answer()),
                us(step.process_us_per_answer()),
            ),
        );
    }
    if let Some(stolen) = step.server.and_then(|server| server.stolen_s).filter(|s| *s > 0.0) {
        line("", format!("the host gave its core to other machines for {stolen:.2} s"));
    }
    line("generator", of_generator(step));
    text
}

/// Adds the lines about requests that were lost, delayed or not to be answered.
fn of_losses(step: &StepRecord, mut line: impl FnMut(&str, String)) {
    line(
        "lost",
        format!(
            "{} of {} sent, {} late",
            grouped(step.lost),
            grouped(step.sent),
            grouped(step.late)
        ),
    );
    if step.connections > 0 {
        let (opened, broken) = (grouped(step.connections), grouped(step.broken));
        line("connections", format!("{opened} opened, {broken} refused or ended before the reply"));
    }
    if step.waited + step.held_back > 0 {
        let (waited, held_back) = (grouped(step.waited), grouped(step.held_back));
        let option = if step.connections > 0 { "higher --in-flight" } else { "lower --rate" };
        line(
            "held up",
            format!("{waited} waited for a connection, {held_back} not sent; try a {option}"),
        );
    }
    if step.sent_unproven > 0 {
        let (answered, sent) = (grouped(step.answered_unproven), grouped(step.sent_unproven));
        line(
            "unproven",
            format!("{answered} of {sent} forged, forged or garbage requests answered"),
        );
    }
    if step.flood_connects > 0 {
        let (answered, sent) = (step.flood_connects_answered, step.flood_connects);
        line("flood", format!("{} of {} connects answered", grouped(answered), grouped(sent)));
    }
}

/// Returns the summary of the wrong replies.
fn of_wrong(step: &StepRecord) -> String {
    let checked = grouped(step.checked);
    if step.wrong.is_empty() {
        return format!("none of {checked} checked");
    }
    let kinds: Vec<_> =
        step.wrong.iter().map(|(what, n)| format!("{} {what}", grouped(*n))).collect();
    format!("{} of {checked} checked: {}", grouped(step.wrong_sum()), kinds.join(", "))
}

/// Returns the summary of the load of the generator itself.
fn of_generator(step: &StepRecord) -> String {
    let generator = &step.generator;
    let mut text = format!(
        "busy {:.0} %, {:.0} % of answers received in full batches",
        generator.busy * 100.0,
        generator.backlog * 100.0
    );
    if step.rate.is_some() {
        _ = write!(text, ", {:.2} % sent late", generator.late * 100.0);
    }
    if generator.unsent > 0 {
        _ = write!(text, ", {} requests refused by the kernel", grouped(generator.unsent));
    }
    if generator.drops > 0 {
        _ = write!(text, ", {} answers dropped by the kernel", grouped(generator.drops));
    }
    if generator.bottleneck {
        text.push_str("; IT WAS THE BOTTLENECK: the tracker may be faster than these numbers");
    }
    text
}

/// Returns the comparison of runs, step by step; ratios are relative to the first.
pub(crate) fn of_comparison(records: &[Record]) -> String {
    let mut text = String::new();
    let Some(first) = records.first() else { return text };
    for (letter, record) in ('A'..).zip(records) {
        _ = writeln!(text, "{letter}  {} ({})", record.name, record.machine);
    }
    for (at, step) in first.steps.iter().enumerate() {
        _ = writeln!(text, "\n{}", step.name);
        _ = write!(text, "  {:<24}", "");
        for (letter, _) in ('A'..).zip(records) {
            _ = write!(text, "{letter:>14}{:>8}", "");
        }
        text.push('\n');
        let steps: Vec<Option<&StepRecord>> =
            records.iter().map(|record| record.steps.get(at)).collect();
        for (name, cells) in rows(&steps) {
            _ = write!(text, "  {name:<24}");
            for (value, ratio) in cells {
                _ = write!(text, "{value:>14} {ratio:<7}");
            }
            text.push('\n');
        }
    }
    text
}

/// Name of a row, and the function that returns its value.
type ReportRow = (&'static str, fn(&StepRecord) -> Option<f64>);

/// Rows of a comparison.
const COMPARISON_ROWS: [ReportRow; 10] = [
    ("answers/s", |step| Some(step.answers_per_s())),
    ("lost", |step| Some(step.lost as f64)),
    ("wrong", |step| Some(step.wrong_sum() as f64)),
    ("latency p50, us", |step| Some(step.latency.value_at(50.0))),
    ("latency p99, us", |step| Some(step.latency.value_at(99.0))),
    ("latency p99.99, us", |step| Some(step.latency.value_at(99.99))),
    ("longest gap, ms", |step| Some(step.gap_ms_max)),
    ("core us/answer", StepRecord::core_us_per_answer),
    ("process us/answer", StepRecord::process_us_per_answer),
    ("resident MiB", |step| Some(step.server?.resident_bytes? as f64 / 1_048_576.0)),
];

/// Returns the rows of a step of several runs: the value of each run, and its ratio to the first.
pub(crate) fn rows(steps: &[Option<&StepRecord>]) -> Vec<(&'static str, Vec<(String, String)>)> {
    let mut rows = Vec::new();
    for (name, figure) in COMPARISON_ROWS {
        let values: Vec<Option<f64>> = steps.iter().map(|step| figure((*step)?)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let base = values[0].filter(|base| *base > 0.0 && values.len() > 1);
        let cell = |value: &Option<f64>| {
            let ratio = base.zip(*value).map(|(base, value)| format!("({:.2})", value / base));
            let value = value.map_or("-".to_owned(), |value| match value {
                10_000.0.. => grouped(value.round() as u64),
                _ => format!("{value:.1}"),
            });
            (value, ratio.unwrap_or_default())
        };
        rows.push((name, values.iter().map(cell).collect()));
    }
    rows
}

/// Returns a time in microseconds as text, with a fitting unit: whole microseconds, or three significant digits.
pub(crate) fn time(us: f64) -> String {
    let (value, unit) = match us {
        ..1_000.0 => (us, "us"),
        1_000.0..1_000_000.0 => (us / 1_000.0, "ms"),
        _ => (us / 1_000_000.0, "s"),
    };
    match value {
        ..10.0 if unit != "us" => format!("{value:.2} {unit}"),
        10.0..100.0 if unit != "us" => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fitting_units() {
        for (us, text) in [
            (0.4, "0 us"),
            (35.0, "35 us"),
            (999.0, "999 us"),
            (3_359.0, "3.36 ms"),
            (72_100.0, "72.1 ms"),
            (721_400.0, "721 ms"),
            (2_500_000.0, "2.50 s"),
            (99_000_000.0, "99.0 s"),
        ] {
            assert_eq!(time(us), text);
        }
    }
}
