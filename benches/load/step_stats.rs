//! Statistics of a step.

use crate::in_flight::SentRequest;
use hdrhistogram::Histogram;
use tsubame_bench::batch::BATCH;
use tsubame_bench::record::{Latency, StepRecord, TenthStats};

/// Length of an entry of the time series.
const TENTH_NS: u64 = 100_000_000;

/// Maximum latency of the histogram, which records longer ones as this one; also the maximum of `--timeout`.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Delay from which a request counts as sent late.
const SENT_LATE_NS: u64 = 1_000_000;

/// Share of replies received in full batches above which the generator is the bottleneck (closed loop).
const BACKLOG_MAX: f64 = 0.5;
/// Share of requests sent late above which the generator is the bottleneck (open loop).
const SENT_LATE_SHARE_MAX: f64 = 0.01;

/// Percentiles of a record.
const PERCENTILES: [f64; 14] =
    [1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999, 99.9999, 100.0];

/// Statistics of a step.
pub(crate) struct StepStats {
    pub(crate) record: StepRecord,
    histogram: Histogram<u64>,
    start_ns: u64,
    /// Start of the current gap: the time of the last reply, or of the first request after it that was unanswered;
    /// `None` if the last reply left nothing unanswered. Requests that were lost since do not end the gap.
    waiting_since_ns: Option<u64>,
    busy_ns: u64,
    sent_late: u64,
    /// Number of replies received.
    received: u64,
    received_in_full_batches: u64,
    /// Number of arrivals from which a batch counts as full.
    full_batch_len: usize,
}

impl StepStats {
    /// Begins a step: in open loop at `rate`, or in closed loop with `in_flight` requests.
    pub(crate) fn begin(name: &str, rate: Option<f64>, in_flight: usize, start_ns: u64) -> Self {
        let histogram = Histogram::new_with_max(LATENCY_NS_MAX, 3);
        let mut record = StepRecord { name: name.to_owned(), rate, ..StepRecord::default() };
        record.latency.corrected = rate.is_some();
        Self {
            record,
            histogram: histogram.expect("a maximum above 2 and three digits are valid"),
            start_ns,
            waiting_since_ns: None,
            busy_ns: 0,
            sent_late: 0,
            received: 0,
            received_in_full_batches: 0,
            full_batch_len: in_flight.min(BATCH),
        }
    }

    fn tenth(&mut self, now_ns: u64) -> &mut TenthStats {
        let at = (now_ns.saturating_sub(self.start_ns) / TENTH_NS) as usize;
        if self.record.series.len() <= at {
            self.record.series.resize(at + 1, TenthStats::default());
        }
        &mut self.record.series[at]
    }

    /// Counts a sent request. `ready_ns` is the time at which it would have been sent had a connection been free (over
    /// UDP the time of sending).
    pub(crate) fn count_sent(&mut self, request: &SentRequest, ready_ns: u64) {
        self.record.sent += 1;
        self.tenth(request.sent_ns).sent += 1;
        self.sent_late += u64::from(ready_ns.saturating_sub(request.due_ns) > SENT_LATE_NS);
        self.record.waited += u64::from(request.sent_ns.saturating_sub(ready_ns) > SENT_LATE_NS);
        self.waiting_since_ns.get_or_insert(request.sent_ns);
    }

    /// Counts a reply. `has_unanswered` tells whether other requests are unanswered: only then a gap begins.
    pub(crate) fn count_answered(
        &mut self,
        name: &str,
        request: &SentRequest,
        now_ns: u64,
        has_unanswered: bool,
    ) {
        match self.record.answered.get_mut(name) {
            Some(count) => *count += 1,
            None => _ = self.record.answered.insert(name.to_owned(), 1),
        }
        let latency_ns = now_ns.saturating_sub(request.due_ns);
        self.histogram.saturating_record(latency_ns);
        let tenth = self.tenth(now_ns);
        tenth.answered += 1;
        tenth.max_us = tenth.max_us.max((latency_ns / 1000) as u32);
        self.record_gap(now_ns);
        self.waiting_since_ns = has_unanswered.then_some(now_ns);
    }

    /// Returns the time without replies while requests are unanswered.
    pub(crate) fn silent_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.waiting_since_ns.unwrap_or(now_ns))
    }

    /// Records the length of the current gap if it is the longest.
    fn record_gap(&mut self, now_ns: u64) {
        let gap_ms = self.silent_ns(now_ns) as f64 / 1e6;
        self.record.gap_ms_max = self.record.gap_ms_max.max(gap_ms);
    }

    /// Counts a lost request.
    pub(crate) fn count_lost(&mut self, now_ns: u64) {
        self.record.lost += 1;
        self.tenth(now_ns).lost += 1;
        self.record_gap(now_ns);
    }

    /// Counts a wrong reply by its problem.
    pub(crate) fn count_wrong(&mut self, problem: &str) {
        *self.record.wrong.entry(problem.to_owned()).or_default() += 1;
    }

    /// Counts the replies of a batch of `arrivals` events. After a full batch, more replies may have waited.
    pub(crate) fn count_batch(&mut self, answers: usize, arrivals: usize) {
        self.received += answers as u64;
        if arrivals >= self.full_batch_len {
            self.received_in_full_batches += answers as u64;
        }
    }

    /// Adds time in which the generator was busy.
    pub(crate) fn add_busy(&mut self, ns: u64) {
        self.busy_ns += ns;
    }

    /// Returns the current number of replies per second, from the last complete tenth of a second.
    pub(crate) fn rate_now(&self) -> u64 {
        let last =
            self.record.series.len().checked_sub(2).and_then(|at| self.record.series.get(at));
        last.map_or(0, |tenth| u64::from(tenth.answered) * 10)
    }

    /// Returns a percentile of the latency so far, in microseconds.
    pub(crate) fn percentile_us(&self, percentile: f64) -> f64 {
        self.histogram.value_at_percentile(percentile) as f64 / 1e3
    }

    /// Ends the step and returns its record. Sending ended at `end_ns`; replies may have arrived later.
    pub(crate) fn end(mut self, end_ns: u64) -> StepRecord {
        let step = &mut self.record;
        let nanoseconds = end_ns.saturating_sub(self.start_ns).max(1) as f64;
        step.seconds = nanoseconds / 1e9;
        step.generator.busy = (self.busy_ns as f64 / nanoseconds).min(1.0);
        step.generator.late = self.sent_late as f64 / step.sent.max(1) as f64;
        step.generator.backlog = self.received_in_full_batches as f64 / self.received.max(1) as f64;
        step.generator.bottleneck = match step.rate {
            Some(_) => step.generator.late > SENT_LATE_SHARE_MAX,
            None => step.generator.backlog > BACKLOG_MAX,
        } || step.generator.drops > 0
            || step.generator.unsent > 0;
        let at =
            |percentile| (percentile, self.histogram.value_at_percentile(percentile) as f64 / 1e3);
        step.latency = Latency {
            corrected: step.rate.is_some(),
            mean_us: self.histogram.mean() / 1e3,
            max_us: self.histogram.max() as f64 / 1e3,
            percentiles: PERCENTILES.map(at).to_vec(),
        };
        self.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn latency_is_measured_from_the_scheduled_time() {
        let mut step_stats = StepStats::begin("step", Some(1000.0), 1, 0);
        for number in 0..1000 {
            // One request is due each millisecond; a pause of half a second delays many of them.
            let due_ns = number * MS;
            let answered_ns = if (100..600).contains(&number) { 600 * MS } else { due_ns + MS };
            let request = SentRequest { due_ns, sent_ns: due_ns, ..SentRequest::default() };
            step_stats.count_sent(&request, request.sent_ns);
            step_stats.count_answered("announce", &request, answered_ns, true);
        }
        let step = step_stats.end(1000 * MS);
        assert_eq!((step.answers(), step.series.len()), (1000, 11));
        let close = |at: f64, ms: f64| (step.latency.value_at(at) / 1e3 - ms).abs() < ms / 100.0;
        assert!(close(50.0, 1.0) && close(99.9, 499.0), "{:?}", step.latency.percentiles);
        assert!((500.0..502.0).contains(&step.gap_ms_max), "{}", step.gap_ms_max);
        assert!(!step.generator.bottleneck);
    }

    #[test]
    fn a_late_or_overloaded_generator_is_reported_as_the_bottleneck() {
        let mut step_stats = StepStats::begin("late", Some(1.0), 1, 0);
        step_stats.count_sent(
            &SentRequest { due_ns: 0, sent_ns: 2 * MS, ..SentRequest::default() },
            2 * MS,
        );
        assert!(step_stats.end(MS).generator.bottleneck);
        let mut step_stats = StepStats::begin("behind", None, 512, 0);
        step_stats.count_batch(BATCH, BATCH);
        step_stats.count_batch(BATCH - 1, BATCH - 1);
        assert!(step_stats.end(100 * MS).generator.bottleneck);
    }

    #[test]
    fn a_gap_counts_only_while_requests_are_unanswered() {
        let mut step_stats = StepStats::begin("gap", None, 512, 0);
        let request = |sent_ns| SentRequest { due_ns: sent_ns, sent_ns, ..SentRequest::default() };
        step_stats.count_sent(&request(0), 0);
        step_stats.count_answered("announce", &request(0), MS, false);
        step_stats.count_sent(&request(500 * MS), 500 * MS);
        step_stats.count_answered("announce", &request(500 * MS), 502 * MS, false);
        assert!(
            (step_stats.record.gap_ms_max - 2.0).abs() < 1e-9,
            "{}",
            step_stats.record.gap_ms_max
        );
        step_stats.count_sent(&request(600 * MS), 600 * MS);
        step_stats.count_lost(900 * MS);
        assert!(
            (step_stats.record.gap_ms_max - 300.0).abs() < 1e-9,
            "the gap lasts until the request is given up"
        );
    }
}
