//! The last events of the log, for the status page.

use crate::clock::Clock;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Number of events that are kept.
const EVENTS_MAX: usize = 50;

/// Maximum bytes of the text of an event that are kept.
const TEXT_LEN_MAX: usize = 500;

static EVENTS: Mutex<VecDeque<LogEvent>> = Mutex::new(VecDeque::new());

/// An event of the log.
#[derive(Clone, Debug)]
pub struct LogEvent {
    /// Seconds since 1970.
    pub unix_secs: u64,
    /// Name of the level.
    pub level: &'static str,
    /// Text.
    pub text: String,
}

/// Returns the last events, newest first.
pub fn recent() -> Vec<LogEvent> {
    let events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    events.iter().rev().cloned().collect()
}

/// Keeps the last events that are logged.
pub(super) struct RecentEvents;

impl<S: Subscriber> Layer<S> for RecentEvents {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            // These are for developers.
            Level::DEBUG | Level::TRACE => return,
        };
        let mut text = MessageText(String::new());
        event.record(&mut text);
        let unix_secs = Clock::new().now().unix_secs;
        let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(LogEvent { unix_secs, level, text: text.0 });
    }
}

/// Text of an event.
struct MessageText(String);

impl Visit for MessageText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            _ = write!(self.0, "{value:?}");
            let end = self.0.floor_char_boundary(TEXT_LEN_MAX);
            self.0.truncate(end);
        }
    }
}
