//! `tsubame top`: shows the state and the rates of a running tracker in a terminal, once a second.

use super::control_client::{ControlAddress, ControlClientError};
use super::status::{fetch, outcomes};
use crate::clock::Clock;
use crate::control::status::{ShardStatus, Status};
use crate::text::{grouped, iec};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use std::collections::VecDeque;
use std::time::Duration;

/// Time between two reads of the state.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Number of rates of the past that are shown.
const HISTORY_MAX: usize = 300;

/// What is shown.
#[derive(Debug, Default)]
struct TopView {
    address: String,
    before: Option<(Duration, Status)>,
    current: Option<(Duration, Status)>,
    error: Option<String>,
    /// Answered requests per second, oldest first.
    history: VecDeque<u64>,
}

impl TopView {
    /// Takes over a new state, or the reason why there is none.
    fn update(&mut self, now: Duration, result: Result<Status, ControlClientError>) {
        match result {
            Ok(status) => {
                self.error = None;
                // If the uptime fell, the tracker was restarted: there is nothing to compare with.
                let is_same_run =
                    |(_, old): &(Duration, Status)| old.uptime_secs <= status.uptime_secs;
                self.before = self.current.take().filter(is_same_run);
                self.current = Some((now, status));
                if self.before.is_some() {
                    self.history.push_back(self.rate(answered));
                }
            }
            Err(error) => self.error = Some(error.to_string()),
        }
        while self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    /// Returns the increase of a count per second.
    fn rate(&self, of: impl Fn(&Status) -> u64) -> u64 {
        let (Some((then, before)), Some((now, current))) = (&self.before, &self.current) else {
            return 0;
        };
        let seconds = now.saturating_sub(*then).as_secs_f64().max(0.001);
        (of(current).saturating_sub(of(before)) as f64 / seconds).round() as u64
    }

    /// Returns the share of the last interval in which the thread of a shard was busy.
    fn busy_percent(&self, shard: usize) -> f64 {
        let (Some((then, before)), Some((now, current))) = (&self.before, &self.current) else {
            return 0.0;
        };
        let busy = |status: &Status| status.shards.get(shard).map_or(0.0, |it| it.busy_secs);
        let seconds = now.saturating_sub(*then).as_secs_f64().max(0.001);
        ((busy(current) - busy(before)) / seconds * 100.0).clamp(0.0, 100.0)
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let Some((_, status)) = &self.current else {
            let text = self.error.as_deref().unwrap_or("reading the state");
            frame.render_widget(
                Paragraph::new(text).wrap(ratatui::widgets::Wrap::default()),
                frame.area(),
            );
            return;
        };
        let shards = status.shards.len() as u16;
        let areas = Layout::vertical([
            Constraint::Length(5 + u16::from(status.cluster.is_some())),
            Constraint::Length(8),
            Constraint::Length((shards + 3).min(frame.area().height / 3)),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .split(frame.area());
        self.draw_summary(frame, areas[0], status);
        let history: Vec<u64> = self.history.iter().copied().collect();
        let title = format!("answers per second: {}", grouped(self.rate(answered)));
        let first_shown =
            history.len().saturating_sub(usize::from(areas[1].width.saturating_sub(2)));
        let sparkline = Sparkline::default()
            .block(Block::bordered().title(title))
            .data(&history[first_shown..])
            .style(Style::new().fg(Color::Cyan));
        frame.render_widget(sparkline, areas[1]);
        self.draw_shards(frame, areas[2], status);
        let halves = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).split(areas[3]);
        self.draw_outcomes(frame, halves[0], status);
        draw_clients(frame, halves[1], status);
        let footer = match &self.error {
            Some(error) => Line::from(error.as_str()).fg(Color::Red),
            None => Line::from(format!("{}   q: quit", self.address)).dim(),
        };
        frame.render_widget(footer, areas[4]);
    }

    fn draw_summary(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let uptime = Duration::from_secs(status.uptime_secs as u64);
        let notes = if status.draining { ", draining" } else { "" };
        let [seeders, leechers] =
            [status.swarms.seeders, status.swarms.leechers].map(|count| count.iter().sum::<u64>());
        let mut lines = vec![
            Line::from(format!(
                "tsubame {}, up {}{notes}",
                status.version,
                humantime::format_duration(uptime)
            ))
            .bold(),
            Line::from(format!(
                "{} torrents, {} seeders, {} leechers, {} distinct peers",
                grouped(status.swarms.torrents),
                grouped(seeders),
                grouped(leechers),
                status.swarms.distinct_peers.map_or_else(|| "?".to_owned(), grouped)
            )),
            Line::from(format!(
                "{} of {} in swarm tables, {} resident, pressure {:.0} %",
                iec(status.memory.table_bytes),
                iec(status.memory.limit_bytes),
                status.memory.resident_bytes.map_or_else(|| "?".to_owned(), iec),
                status.memory.pressure * 100.0
            )),
            Line::from(format!(
                "UDP {}/s in, {}/s out; HTTP {}/s in, {}/s out, {} connections",
                iec(self.rate(|it| it.bytes.udp_received)),
                iec(self.rate(|it| it.bytes.udp_sent)),
                iec(self.rate(|it| it.bytes.http_received)),
                iec(self.rate(|it| it.bytes.http_sent)),
                grouped(status.http_connections)
            )),
        ];
        if let Some(cluster) = &status.cluster {
            let line = Line::from(format!("node {}: {}", cluster.node, cluster.state));
            lines.push(if cluster.complete { line } else { line.fg(Color::Yellow) });
        }
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_shards(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let of_shard = |number: usize, read: fn(&ShardStatus) -> u64| {
            grouped(self.rate(|status| status.shards.get(number).map_or(0, read)))
        };
        let rows = status.shards.iter().enumerate().map(|(number, shard)| {
            let row = Row::new([
                number.to_string(),
                format!("{:.0} %", self.busy_percent(number)),
                of_shard(number, |it| it.datagrams),
                of_shard(number, |it| it.kernel_dropped),
                grouped(shard.torrents),
                grouped(shard.peers),
                iec(shard.table_bytes),
            ]);
            if shard.is_stuck() { row.fg(Color::Red) } else { row }
        });
        let header = ["shard", "busy", "datagrams/s", "dropped/s", "torrents", "peers", "memory"];
        let widths = [6, 6, 13, 11, 13, 13, 12].map(Constraint::Length);
        let table = Table::new(rows, widths).header(Row::new(header).dim());
        frame.render_widget(table.block(Block::bordered().title("shards")), area);
    }

    fn draw_outcomes(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let rows = outcomes(status).into_iter().map(|(outcome, protocol, count)| {
            let rate = self.rate(|status| {
                let is_same = |it: &&(String, String, u64)| it.0 == outcome && it.1 == protocol;
                outcomes(status).iter().find(is_same).map_or(0, |it| it.2)
            });
            Row::new([outcome.clone(), protocol.clone(), grouped(rate), grouped(count)])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(5),
            Constraint::Length(11),
            Constraint::Length(16),
        ];
        let header = Row::new(["outcome", "", "per second", "in total"]).dim();
        let table = Table::new(rows, widths).header(header);
        frame.render_widget(table.block(Block::bordered().title("requests")), area);
    }
}

fn draw_clients(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let total: u64 = status.clients.iter().map(|client| client.announces).sum();
    let rows = status.clients.iter().filter(|client| client.announces > 0).map(|client| {
        let share = client.announces as f64 / total.max(1) as f64 * 100.0;
        Row::new([client.name.clone(), format!("{share:.1} %")])
    });
    let widths = [Constraint::Fill(1), Constraint::Length(8)];
    let table = Table::new(rows, widths).block(Block::bordered().title("client programs"));
    frame.render_widget(table, area);
}

/// Returns the number of requests that were answered.
fn answered(status: &Status) -> u64 {
    use crate::stats::outcome::Outcome;
    let is_answered = |name: &str| {
        Outcome::ALL.iter().any(|outcome| outcome.name() == name && outcome.is_answered())
    };
    status.requests.iter().filter(|it| is_answered(&it.outcome)).map(|it| it.count).sum()
}

/// Shows the state until the user ends it with `q`, Escape or Ctrl-C.
///
/// # Errors
///
/// Returns an error if the terminal cannot be used.
pub fn run(address: &ControlAddress, token: Option<&str>) -> std::io::Result<()> {
    let (clock, mut view) = (Clock::new(), TopView::default());
    view.address = address.to_string();
    let mut terminal = ratatui::try_init()?;
    let result = loop {
        view.update(clock.elapsed(), fetch(address, token));
        if let Err(error) = terminal.draw(|frame| view.draw(frame)) {
            break Err(error);
        }
        match wait_for_refresh_or_end(&clock, &mut |frame| view.draw(frame), &mut terminal) {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    result
}

/// Waits for the next refresh; returns whether the user ended the program. Draws at once when the terminal is resized.
fn wait_for_refresh_or_end(
    clock: &Clock,
    draw: &mut dyn FnMut(&mut Frame<'_>),
    terminal: &mut ratatui::DefaultTerminal,
) -> std::io::Result<bool> {
    let end = clock.elapsed() + REFRESH_INTERVAL;
    loop {
        let left = end.saturating_sub(clock.elapsed());
        if left.is_zero() || !event::poll(left)? {
            return Ok(false);
        }
        match event::read()? {
            Event::Key(key) => {
                let is_interrupt =
                    key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
            Event::Resize(..) => {
                terminal.draw(&mut *draw)?;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{
        ByteStatus, ClientStatus, ClusterSummary, MemoryStatus, RequestCount, SwarmStatus,
    };
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn status(uptime_secs: f64, count: u64) -> Status {
        Status {
            version: "1.2.3".to_owned(),
            uptime_secs,
            draining: false,
            steering: true,
            log_level: "info".to_owned(),
            swarms: SwarmStatus { torrents: 1_234_567, ..SwarmStatus::default() },
            memory: MemoryStatus::default(),
            requests: vec![RequestCount {
                protocol: "udp".to_owned(),
                family: "ipv4".to_owned(),
                kind: "announce".to_owned(),
                outcome: "refreshed".to_owned(),
                count,
            }],
            bytes: ByteStatus::default(),
            http_connections: 0,
            shards: vec![ShardStatus {
                busy_secs: uptime_secs / 2.0,
                last_update_age_secs: 0,
                datagrams: count,
                batches: 0,
                kernel_dropped: 0,
                torrents: 0,
                peers: 0,
                table_bytes: 0,
            }],
            clients: vec![ClientStatus { name: "-qB4650-".to_owned(), announces: 3 }],
            hooks: Vec::new(),
            cluster: Some(ClusterSummary {
                node: "a".to_owned(),
                state: "connected to NATS; other nodes: b".to_owned(),
                complete: true,
                nodes: Vec::new(),
            }),
        }
    }

    fn screen(view: &TopView, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a test terminal");
        terminal.draw(|frame| view.draw(frame)).expect("a test terminal draws");
        let cells = terminal.backend().buffer().content();
        cells.iter().map(ratatui::buffer::Cell::symbol).collect()
    }

    #[test]
    fn rates_are_differences_and_a_restart_begins_anew() {
        let mut view = TopView::default();
        view.update(Duration::from_secs(10), Ok(status(100.0, 1_000)));
        assert_eq!(view.rate(answered), 0);
        view.update(Duration::from_secs(12), Ok(status(102.0, 25_000)));
        assert_eq!((view.rate(answered), view.busy_percent(0).round()), (12_000, 50.0));
        let shown = screen(&view, 110, 40);
        for text in [
            "tsubame 1.2.3, up 1m 42s",
            "node a: connected to NATS; other nodes: b",
            "1,234,567 torrents",
            "12,000",
            "refreshed",
            "-qB4650-",
            "100.0 %",
        ] {
            assert!(shown.contains(text), "{text} is not in {shown}");
        }
        view.update(Duration::from_secs(13), Ok(status(1.0, 5)));
        assert_eq!(view.rate(answered), 0);
        let gone = ControlClientError::Unreachable(
            ControlAddress::Url("http://x".to_owned()),
            "no".to_owned(),
        );
        view.update(Duration::from_secs(14), Err(gone));
        assert!(screen(&view, 110, 40).contains("cannot reach the control plane"));
    }

    #[test]
    fn any_size_of_terminal_is_drawn() {
        let mut view = TopView::default();
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            screen(&view, width, height);
        }
        view.update(Duration::from_secs(1), Ok(status(1.0, 1)));
        for (width, height) in [(1, 1), (2, 2), (20, 5), (40, 12), (80, 24), (300, 100)] {
            screen(&view, width, height);
        }
    }
}
