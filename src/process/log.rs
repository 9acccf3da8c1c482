//! The log: events are written to standard error as text or JSON. Single requests are never logged.

use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::process::recent_events::RecentEvents;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

/// Function that changes the level of the log.
type SetLevel = Box<dyn Fn(LevelFilter) + Send + Sync>;

static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();

/// Starts the log. It must be called once, before the first event.
pub fn start(log: &LogConfig) {
    let (level, handle) = reload::Layer::new(filter(log.level));
    let events = fmt::layer().with_target(false).with_writer(std::io::stderr);
    // What the client of NATS finds out is reported by the cluster, in the words of the config.
    let own = FilterFn::new(|event| !event.target().starts_with("async_nats"));
    let subscriber = tracing_subscriber::registry().with(level).with(own).with(RecentEvents);
    // A second start in one process, as in tests, has no effect.
    let _ = match log.format {
        LogFormat::Json => subscriber.with(events.json().flatten_event(true)).try_init(),
        LogFormat::Text => subscriber.with(events.with_ansi(false)).try_init(),
        LogFormat::Auto if is_journal() => subscriber
            .with(fmt::layer().event_format(JournalFormat).with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Auto => {
            subscriber.with(events.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
    };
    let _ = SET_LEVEL.set(Box::new(move |level| _ = handle.reload(level)));
    set_level(log.level);
}

/// Returns whether standard error is connected to the journal of systemd (sd-journal, `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| stream.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino)))
}

/// Writes events for the journal: a priority of syslog(3) as sd-daemon(3) defines it, and no time, which the journal
/// adds.
struct JournalFormat;

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        // Each line is an entry of the journal.
        text.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// The level from which events are logged, as its position in [`LogLevel::ALL`].
static LEVEL: AtomicUsize = AtomicUsize::new(0);

/// Returns the level from which events are logged.
pub fn level() -> LogLevel {
    LogLevel::ALL.get(LEVEL.load(Ordering::Relaxed)).copied().unwrap_or(LogLevel::Info)
}

/// Changes the level from which events are logged.
pub fn set_level(level: LogLevel) {
    let position = LogLevel::ALL.iter().position(|it| *it == level).unwrap_or(0);
    LEVEL.store(position, Ordering::Relaxed);
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
