//! What is known about snapshots, written by their thread and read by the control plane.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// State of the snapshots of the process.
#[derive(Debug, Default)]
pub struct SnapshotStatus {
    /// Whether snapshots are configured.
    pub is_enabled: AtomicBool,
    /// Time of the last complete snapshot in seconds since 1970; 0 if there is none.
    pub written_unix_secs: AtomicU64,
    /// Time that it took, in milliseconds.
    pub written_ms: AtomicU64,
    /// Its length in bytes.
    pub written_bytes: AtomicU64,
    /// Number of snapshots that were written.
    pub written: AtomicU64,
    /// Number of snapshots that failed.
    pub failed: AtomicU64,
    /// Whether a snapshot is being read.
    pub is_restoring: AtomicBool,
    /// Torrents that were restored at start.
    pub restored_torrents: AtomicU64,
    /// Peers that were restored at start.
    pub restored_peers: AtomicU64,
}

impl SnapshotStatus {
    /// Returns a value, if snapshots are configured.
    pub fn get(&self, value: &AtomicU64) -> Option<u64> {
        self.is_enabled.load(Ordering::Relaxed).then(|| value.load(Ordering::Relaxed))
    }
}
