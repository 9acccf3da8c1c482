//! Functions that return the values of the metrics of the cluster. Without one there are none.

use super::sample::{LabelledSample, Sample, labelled};
use super::snapshot::MetricsSnapshot;
use crate::stats::cluster_status::ClusterStatus;

/// Returns a value of the cluster.
pub(super) fn value(
    snapshot: &MetricsSnapshot,
    value: impl FnOnce(&ClusterStatus) -> u64,
) -> Option<Sample> {
    snapshot.cluster.as_ref().map(|status| Sample::Integer(value(status)))
}

/// Returns values of the cluster, each with a label.
fn by_label<const N: usize>(
    snapshot: &MetricsSnapshot,
    values: impl FnOnce(&ClusterStatus) -> [(&'static str, u64); N],
) -> Vec<LabelledSample> {
    let status = snapshot.cluster.as_ref();
    status.map_or(Vec::new(), |status| {
        values(status).map(|(label, value)| labelled(&[label], value)).into()
    })
}

pub(super) fn nodes_up(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let nodes = snapshot.cluster.iter().flat_map(|status| &status.nodes);
    nodes.map(|node| labelled(&[&node.name], node.is_present.into())).collect()
}

pub(super) fn node_lags(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let nodes = snapshot.cluster.iter().flat_map(|status| &status.nodes);
    nodes.map(|node| (vec![node.name.clone()], Sample::Float(node.lag.as_secs_f64()))).collect()
}

pub(super) fn batches(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    by_label(snapshot, |ClusterStatus { counts, .. }| {
        [
            ("sent", counts.sent_batches),
            ("received", counts.received_batches),
            ("resent", counts.resent_batches),
        ]
    })
}

pub(super) fn changes(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    by_label(snapshot, |ClusterStatus { counts, .. }| {
        [("sent", counts.sent_changes), ("received", counts.received_changes)]
    })
}

pub(super) fn bytes(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    by_label(snapshot, |ClusterStatus { counts, .. }| {
        [("sent", counts.sent_bytes), ("received", counts.received_bytes)]
    })
}

pub(super) fn snapshots(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    by_label(snapshot, |ClusterStatus { counts, .. }| {
        [("sent", counts.sent_snapshots), ("received", counts.received_snapshots)]
    })
}

pub(super) fn lost_records(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    by_label(snapshot, |status| {
        [("sent", status.lost_changes), ("received", status.dropped_records)]
    })
}
