//! Where log events go: standard error, as text or JSON. Packets never get here.

use crate::config::{Log, LogFormat, LogLevel};
use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;

/// Starts logging; called once, before anything is logged
pub fn start(log: &Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let events = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(std::io::stderr);
    // A second start in one process, as in tests, keeps the first.
    let _ = match log.format {
        LogFormat::Json => events.json().flatten_event(true).try_init(),
        LogFormat::Text => events.with_ansi(false).try_init(),
        LogFormat::Auto => events.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}
