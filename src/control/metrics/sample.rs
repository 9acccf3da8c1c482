//! Values of metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sample {
    Integer(u64),
    Float(f64),
    /// Number of observations by the upper bounds of their classes, not cumulated.
    Histogram {
        sum: f64,
        count: u64,
        buckets: Vec<(f64, u64)>,
    },
}

/// Values of labels, and a value.
pub(super) type LabelledSample = (Vec<String>, Sample);

/// Returns a number that other threads write.
pub(super) fn load(value: &AtomicU64) -> Sample {
    Sample::Integer(value.load(Ordering::Relaxed))
}

/// Returns a number with the values of its labels.
pub(super) fn labelled(labels: &[&str], value: u64) -> LabelledSample {
    (labels.iter().map(|label| (*label).to_owned()).collect(), Sample::Integer(value))
}
