//! `tsubame snapshot`: what is in a snapshot.

use crate::clock::Clock;
use crate::state::{BlockReader, HeaderError, ReadCounts, StreamTotals, VERSION};
use crate::text::grouped;
use humantime::{format_duration, format_rfc3339_seconds};
use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use tsubame_storage::StateRecord;

/// Reads a snapshot and returns a description of it, and whether it is intact.
///
/// # Errors
///
/// Returns an error if the file cannot be read or is no snapshot that this version can read.
pub fn describe(path: &Path, clock: &Clock) -> Result<(String, bool), HeaderError> {
    let mut reader = BlockReader::new(BufReader::new(File::open(path)?))?;
    let (mut found, mut records) = (StreamTotals::default(), Vec::new());
    let (mut youngest, mut oldest) = (None::<i64>, None::<i64>);
    let mut has_unknown = false;
    while let Some(block) = reader.next_block()? {
        records.clear();
        // With the time 0 for the block, an age is a negative time.
        has_unknown |= !block.records(0, &mut records);
        found.count(&records);
        for record in &records {
            if let StateRecord::Peer(peer) | StateRecord::Change(_, _, peer) = record {
                youngest = Some(youngest.map_or(peer.announced_at, |it| it.max(peer.announced_at)));
                oldest = Some(oldest.map_or(peer.announced_at, |it| it.min(peer.announced_at)));
            }
        }
    }
    let counts = reader.counts();
    let written_at = Duration::from_secs(reader.written_at());
    let age = clock.now().unix_secs.saturating_sub(written_at.as_secs());
    let mut text = format!("{}: snapshot, version {VERSION} of the format\n", path.display());
    let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<14}{value}");
    // A damaged header could have any time; the checksum excludes that but for forged files.
    let written = UNIX_EPOCH.checked_add(written_at).filter(|_| written_at.as_secs() < 1 << 37);
    let written =
        written.map_or_else(|| "?".to_owned(), |time| format_rfc3339_seconds(time).to_string());
    line("written", format!("{written}, {} ago", format_duration(Duration::from_secs(age))));
    line("torrents", grouped(found.torrents));
    line("peers", grouped(found.peers));
    line("changes", grouped(found.changes));
    if let (Some(youngest), Some(oldest)) = (youngest, oldest) {
        let shown = |time: i64| format_duration(Duration::from_secs(time.unsigned_abs()));
        line("ages", format!("{} to {} when written", shown(youngest), shown(oldest)));
    }
    line("blocks", grouped(counts.blocks));
    let problems = problems(&counts, &found, has_unknown);
    line("state", if problems.is_empty() { "intact".to_owned() } else { problems.join("; ") });
    Ok((text, problems.is_empty()))
}

fn problems(counts: &ReadCounts, found: &StreamTotals, has_unknown: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if counts.damaged_blocks > 0 {
        problems.push(format!("damaged blocks: {}", counts.damaged_blocks));
    }
    if counts.skipped_bytes > 0 {
        problems.push(format!("bytes that belong to no block: {}", counts.skipped_bytes));
    }
    if has_unknown {
        problems.push("invalid records".to_owned());
    }
    match counts.totals {
        None => problems.push("the end is missing".to_owned()),
        Some(totals) if totals != *found => problems.push(format!(
            "{} torrents, {} peers and {} changes were written",
            grouped(totals.torrents),
            grouped(totals.peers),
            grouped(totals.changes)
        )),
        Some(_) => {}
    }
    problems
}
