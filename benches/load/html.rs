//! The HTML report: one page with tables and plots that loads nothing from elsewhere.

use crate::plot::{Axis, PlotLine, colour, draw, escape};
use crate::summary::{of_run, rows};
use std::fmt::Write;
use tsubame_bench::record::{Record, StepRecord};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;\
    color:#222;background:#fff}h1,h2{font-weight:600}table{border-collapse:collapse;margin:1em 0}\
    td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{\
    text-align:left}svg{width:100%;height:auto;font:12px system-ui,sans-serif}.grid{stroke:#ddd}\
    .key{display:inline-block;width:1.4em;height:.25em;vertical-align:middle;margin-right:.4em}\
    pre{background:#f6f6f6;padding:.8em;overflow-x:auto}@media(prefers-color-scheme:dark){body{\
    color:#ddd;background:#181818}svg text{fill:#ddd}.grid{stroke:#444}td,th{border-color:#444}\
    pre{background:#222}}";

/// Returns the report of one or several runs; ratios are relative to the first.
pub(crate) fn report(records: &[Record]) -> String {
    let names: Vec<_> = records.iter().map(|record| escape(&record.name)).collect();
    let title = names.join(" / ");
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>Load: {title}</h1>\n"
    );
    for (number, name) in names.iter().enumerate() {
        let colour = colour(number);
        _ = writeln!(
            html,
            "<p><span class=\"key\" style=\"background:{colour}\"></span>{name}</p>"
        );
    }
    let steps = records.iter().map(|record| record.steps.len()).max().unwrap_or(0);
    for at in 0..steps {
        let of_step = records.iter().map(|record| record.steps.get(at)).collect::<Vec<_>>();
        html.push_str(&section(&names, &of_step));
    }
    for record in records {
        _ = writeln!(html, "<h2>{}</h2>", escape(&record.name));
        let (summary, command) = (escape(&of_run(record)), escape(&record.command));
        _ = writeln!(html, "<pre>{summary}\n{command}</pre>");
    }
    html.push_str("</body></html>\n");
    html
}

/// Returns the table and the plots of a step.
fn section(names: &[String], steps: &[Option<&StepRecord>]) -> String {
    let title = steps.iter().flatten().next().map_or("", |step| step.name.as_str());
    let mut html = format!("<h2>{}</h2>\n<table><tr><th></th>", escape(title));
    names.iter().for_each(|name| _ = write!(html, "<th>{name}</th>"));
    html.push_str("</tr>\n");
    for (row_name, cells) in rows(steps) {
        _ = write!(html, "<tr><td>{row_name}</td>");
        for (value, ratio) in cells {
            _ = write!(html, "<td>{value} {ratio}</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
    let of_each = |points: &dyn Fn(&StepRecord) -> Vec<(f64, f64)>| -> Vec<PlotLine> {
        let named = names.iter().zip(steps).filter_map(|(name, step)| Some((name, (*step)?)));
        named.map(|(name, step)| PlotLine { name: name.clone(), points: points(step) }).collect()
    };
    let plain = |name| Axis { name, marks: Vec::new(), logarithmic: false };
    html.push_str(&draw(&plain("seconds"), &plain("answers per second"), &of_each(&throughput)));
    let microseconds = Axis { name: "latency, us", marks: Vec::new(), logarithmic: true };
    html.push_str(&draw(&percentile_axis(), &microseconds, &of_each(&percentiles)));
    html
}

/// Returns the replies per second over time, without the last tenth of a second, which is rarely complete.
fn throughput(step: &StepRecord) -> Vec<(f64, f64)> {
    let whole = (step.seconds * 10.0) as usize;
    let tenths = step.series.iter().take(whole).enumerate();
    tenths.map(|(at, tenth)| (at as f64 / 10.0, f64::from(tenth.answered) * 10.0)).collect()
}

/// Returns the points of the latency plot: one request in x has a latency above y.
fn percentiles(step: &StepRecord) -> Vec<(f64, f64)> {
    let below = step.latency.percentiles.iter().filter(|(at, _)| *at < 100.0);
    below.map(|(at, us)| (100.0 / (100.0 - at), *us)).collect()
}

/// Returns the axis of percentiles, on which each further nine has the same width.
fn percentile_axis() -> Axis {
    let marks = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999];
    let mark = |at: f64| (100.0 / (100.0 - at), format!("{at} %"));
    let marks = marks.into_iter().map(mark).collect();
    Axis { name: "percentile", marks, logarithmic: true }
}
