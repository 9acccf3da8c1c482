//! The records of a large swarm that an export would miss, because they are moved while it visits the swarm.

/// Maximum number of records that are kept. If more were moved since the last step of the export, it exports all of the
/// swarm again.
const RECORDS_MAX: usize = 1 << 16;

/// Records that were written to a position that the export had visited, but did not come from one.
#[derive(Debug, Default)]
pub(crate) struct MovedRecords<const N: usize> {
    /// The lowest visited position: all from it to the end were visited.
    pub(crate) visited_from: usize,
    records: Vec<[u8; N]>,
}

impl<const N: usize> MovedRecords<N> {
    /// Keeps a record that is written to a position, unless the export has seen it, or will. `from` is the position of
    /// a record that is moved. Returns false if there are too many.
    pub(crate) fn keep(&mut self, (from, to): (Option<usize>, usize), record: &[u8; N]) -> bool {
        let is_visited = |position| position >= self.visited_from;
        if is_visited(to) && !from.is_some_and(is_visited) {
            self.records.push(*record);
        }
        self.records.len() < RECORDS_MAX
    }

    /// Takes up to `count_max` records.
    pub(crate) fn take(&mut self, count_max: usize) -> Vec<[u8; N]> {
        self.records.split_off(self.records.len().saturating_sub(count_max))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}
