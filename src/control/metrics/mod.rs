//! The page `/metrics`: the statistics of all shards and of the process, in the text format of Prometheus or of
//! OpenMetrics.
//!
//! `catalog.rs` has the table of metrics, from which the page and its documentation are made; `values.rs` reads those
//! with labels. Values are read when the page is requested; nothing is stored here.

mod catalog;
mod cluster;
mod sample;
mod snapshot;
mod values;

use crate::control::monitored::Monitored;
use catalog::{METRICS, Metric, MetricKind};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use sample::Sample;
use snapshot::MetricsSnapshot;
use std::fmt::{self, Write};

/// Formats of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// The text format of Prometheus, version 0.0.4.
    Text,
    /// The text format of OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl MetricsFormat {
    /// Returns the format for a client with these `Accept` headers: OpenMetrics if the client accepts it and does not
    /// prefer text (RFC 9110, section 12.5.1).
    pub fn accepted<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        let (mut open_metrics, mut text) = (0.0_f32, 0.0_f32);
        for entry in headers.flat_map(|header| header.split(',')) {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let quality: f32 = quality.unwrap_or(1.0);
            if media.eq_ignore_ascii_case("application/openmetrics-text") {
                open_metrics = open_metrics.max(quality);
            } else if media.eq_ignore_ascii_case("text/plain") {
                text = text.max(quality);
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the media type of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Returns the page with the current values of all metrics.
pub fn text(monitored: &Monitored, format: MetricsFormat) -> String {
    let mut registry = Registry::with_prefix("tsubame");
    registry.register_collector(Box::new(MetricsSnapshot::read(monitored)));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    if format == MetricsFormat::Text { to_text_format(&text) } else { text }
}

/// Converts OpenMetrics text to the text format of Prometheus: the suffix of a counter is a part of its name, and the
/// type `info` does not exist.
fn to_text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(name_and_help) = line.strip_prefix("# HELP ") {
            help = name_and_help.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            _ = writeln!(text, "{line}");
        }
    }
    text
}

impl Collector for MetricsSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        METRICS.iter().try_for_each(|metric| encode(metric, self, &mut encoder))
    }
}

/// Writes a metric with its samples. A metric without labels has a single sample; one without samples is left out.
fn encode(
    metric: &Metric,
    snapshot: &MetricsSnapshot,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let samples = metric.samples(snapshot);
    if samples.is_empty() {
        return Ok(());
    }
    let kind = match metric.kind {
        MetricKind::Counter => MetricType::Counter,
        MetricKind::Gauge => MetricType::Gauge,
        MetricKind::Histogram => MetricType::Histogram,
        MetricKind::Info => MetricType::Info,
    };
    let unit = metric.unit().map(|unit| Unit::Other(unit.to_owned()));
    let name = metric.name_without_unit();
    let mut encoder = encoder.encode_descriptor(name, metric.help, unit.as_ref(), kind)?;
    if metric.labels.is_empty() {
        return samples
            .first()
            .map_or(Ok(()), |(_, sample)| encode_sample(encoder, metric.kind, sample));
    }
    for (values, sample) in samples {
        let labels = metric.labels.iter().copied().zip(values.iter().map(String::as_str));
        let labels: Vec<(&str, &str)> = labels.collect();
        if metric.kind == MetricKind::Info {
            return encoder.encode_info(&labels.as_slice());
        }
        encode_sample(encoder.encode_family(&labels.as_slice())?, metric.kind, &sample)?;
    }
    Ok(())
}

fn encode_sample(mut encoder: MetricEncoder<'_>, kind: MetricKind, sample: &Sample) -> fmt::Result {
    match (kind, sample) {
        (MetricKind::Counter, Sample::Integer(value)) => {
            encoder.encode_counter::<NoLabelSet, u64, f64>(value, None)
        }
        (MetricKind::Counter, Sample::Float(value)) => {
            encoder.encode_counter::<NoLabelSet, f64, f64>(value, None)
        }
        (_, Sample::Integer(value)) => encoder.encode_gauge(value),
        (_, Sample::Float(value)) => encoder.encode_gauge(value),
        (_, Sample::Histogram { sum, count, buckets }) => {
            encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests;
