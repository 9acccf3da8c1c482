//! Limits to how often events are reported, because other nodes and their messages cause them.

use super::event::ClusterEvent;
use std::collections::BTreeMap;
use std::time::Duration;

/// Maximum number of events in [`PERIOD`].
const EVENTS_MAX: u32 = 100;
const PERIOD: Duration = Duration::from_secs(60);

/// Time after which an event that is reported once is reported again.
const ONCE_TIME: Duration = Duration::from_secs(3_600);

/// Maximum number of events that are remembered as reported.
const REMEMBERED_MAX: usize = 256;

/// Time between two reports of invalid messages.
const INVALID_PAUSE: Duration = Duration::from_secs(60);

/// How many events were reported in the last minute, and which ones in the last hour.
#[derive(Debug, Default)]
pub(super) struct EventLimits {
    /// Time since which events are counted, and their number.
    began: Duration,
    count: u32,
    /// The texts of the events that are reported once, and when they last were.
    reported: BTreeMap<String, Duration>,
    invalid_reported_at: Option<Duration>,
}

impl EventLimits {
    /// Returns the event if it is to be reported. Of too many, the last one is [`ClusterEvent::TooManyEvents`].
    pub(super) fn admit(&mut self, now: Duration, event: ClusterEvent) -> Option<ClusterEvent> {
        if now.saturating_sub(self.began) >= PERIOD {
            (self.began, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        match self.count {
            ..EVENTS_MAX => Some(event),
            EVENTS_MAX => Some(ClusterEvent::TooManyEvents),
            _ => None,
        }
    }

    /// Returns the event if the same one was not reported in the last hour, and if it is to be reported.
    pub(super) fn admit_once(
        &mut self,
        now: Duration,
        event: ClusterEvent,
    ) -> Option<ClusterEvent> {
        self.reported.retain(|_, at| now.saturating_sub(*at) < ONCE_TIME);
        let text = event.to_string();
        if self.reported.contains_key(&text) {
            return None;
        }
        if self.reported.len() >= REMEMBERED_MAX {
            self.reported.pop_first();
        }
        self.reported.insert(text, now);
        self.admit(now, event)
    }

    /// As [`Self::admit`], for an invalid message: one a minute is reported.
    pub(super) fn admit_invalid(&mut self, now: Duration, reason: String) -> Option<ClusterEvent> {
        let is_due = |at| now.saturating_sub(at) >= INVALID_PAUSE;
        if !self.invalid_reported_at.is_none_or(is_due) {
            return None;
        }
        self.invalid_reported_at = Some(now);
        self.admit(now, ClusterEvent::Invalid(reason))
    }
}
