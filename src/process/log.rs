//! The log: events are written to standard error as text or JSON. Single requests are never logged.

use crate::config::{LogConfig, LogFormat, LogLevel};
use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

/// Function that changes the level of the log.
type SetLevel = Box<dyn Fn(LevelFilter) + Send + Sync>;

static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();

/// Starts the log. It must be called once, before the first event.
pub fn start(log: &LogConfig) {
    let (level, handle) = reload::Layer::new(filter(log.level));
    let events = fmt::layer().with_target(false).with_writer(std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(level);
    // A second start in one process, as in tests, has no effect.
    let _ = match log.format {
        LogFormat::Json => subscriber.with(events.json().flatten_event(true)).try_init(),
        LogFormat::Text => subscriber.with(events.with_ansi(false)).try_init(),
        LogFormat::Auto => {
            subscriber.with(events.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
    };
    let _ = SET_LEVEL.set(Box::new(move |level| _ = handle.reload(level)));
}

/// Changes the level from which events are logged.
pub fn set_level(level: LogLevel) {
    if let Some(set_level) = SET_LEVEL.get() {
        set_level(filter(level));
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}
