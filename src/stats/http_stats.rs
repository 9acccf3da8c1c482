//! Counters of HTTP connections.

/// Number of classes of the age of connections.
pub const AGE_CLASSES: usize = 6;

/// Upper bounds of the classes of ages, in seconds; the last class has none.
pub const AGE_BOUNDS_SECS: [u64; AGE_CLASSES - 1] = [1, 10, 60, 600, 3_600];

/// Counters of HTTP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpStats {
    /// Number of open connections.
    pub open: u64,
    /// Number of accepted connections.
    pub accepted: u64,
    /// Number of connections that were closed because they were idle or too slow.
    pub timed_out: u64,
    /// Number of connections that were closed or refused to limit the number of connections or of waiting TLS
    /// handshakes.
    pub evicted: u64,
    /// Number of connections with TLS errors, mostly in the handshake.
    pub tls_failed: u64,
    /// Number of accepts that failed because too many files were open or memory was short.
    pub accept_failed: u64,
    /// Bytes received, before decryption.
    pub received_bytes: u64,
    /// Bytes sent, after encryption.
    pub sent_bytes: u64,
    /// Number of completed handshakes of TLS 1.2.
    pub tls_1_2: u64,
    /// Number of completed handshakes of TLS 1.3.
    pub tls_1_3: u64,
    /// Number of closed connections by their age: see [`AGE_BOUNDS_SECS`].
    pub ages: [u64; AGE_CLASSES],
    /// Sum of the ages of closed connections, in seconds.
    pub ages_secs: u64,
}

impl HttpStats {
    /// Number of values, each of which is one atomic of the shared statistics.
    pub(super) const CELLS: usize = 11 + AGE_CLASSES;

    /// Counts a connection that was closed after `age_secs` seconds.
    pub fn count_closed(&mut self, age_secs: u64) {
        let class = AGE_BOUNDS_SECS.iter().position(|max| age_secs <= *max);
        self.ages[class.unwrap_or(AGE_CLASSES - 1)] += 1;
        self.ages_secs += age_secs;
    }

    /// Calls a function with every value, always in the same order.
    pub(super) fn visit(&mut self, visit: &mut impl FnMut(&mut u64)) {
        let Self {
            open,
            accepted,
            timed_out,
            evicted,
            tls_failed,
            accept_failed,
            received_bytes,
            sent_bytes,
            tls_1_2,
            tls_1_3,
            ages,
            ages_secs,
        } = self;
        ages.iter_mut().for_each(&mut *visit);
        let values = [
            open,
            accepted,
            timed_out,
            evicted,
            tls_failed,
            accept_failed,
            received_bytes,
            sent_bytes,
            tls_1_2,
            tls_1_3,
            ages_secs,
        ];
        values.into_iter().for_each(visit);
    }
}
