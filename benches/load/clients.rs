//! The connection ids of the clients, one for each source address.

use crate::population::Population;

/// Age at which a client requests a new connection id: before the minute for which BEP 15 permits its use is over.
const ID_AGE_MAX_NS: u64 = 50_000_000_000;

/// The connection id of a client.
#[derive(Clone, Copy, Default)]
struct LoadClient {
    id: Option<u64>,
    since_ns: u64,
    connect_sent_ns: Option<u64>,
    /// Whether a request with this id failed: the tracker may have new keys.
    is_suspect: bool,
}

/// The clients of each peer group, by the index of their address.
pub(crate) struct LoadClients(Vec<Vec<LoadClient>>);

impl LoadClients {
    pub(crate) fn new(population: &Population) -> Self {
        let of = |count: u32| vec![LoadClient::default(); count as usize];
        Self(population.groups.iter().map(|group| of(group.sources.count)).collect())
    }

    /// Returns the connection id of a client.
    pub(crate) fn id(&self, group: usize, source: u32) -> Option<u64> {
        self.0[group][source as usize].id
    }

    /// Returns whether a client must request a connection id now. `now_ns` may be slightly older than the last update.
    pub(crate) fn should_connect(
        &self,
        group: usize,
        source: u32,
        now_ns: u64,
        timeout_ns: u64,
    ) -> bool {
        let client = &self.0[group][source as usize];
        let is_outdated = client.id.is_none()
            || client.is_suspect
            || now_ns.saturating_sub(client.since_ns) > ID_AGE_MAX_NS;
        is_outdated
            && client
                .connect_sent_ns
                .is_none_or(|connect_sent_ns| now_ns.saturating_sub(connect_sent_ns) > timeout_ns)
    }

    /// Returns the groups and addresses of the clients without a connection id.
    pub(crate) fn without_id(&self) -> impl Iterator<Item = (usize, u32)> {
        let groups = self.0.iter().enumerate();
        groups.flat_map(|(group, clients)| {
            let clients = clients.iter().zip(0..).filter(|(client, _)| client.id.is_none());
            clients.map(move |(_, source)| (group, source))
        })
    }

    /// Notes that a client has requested a connection id.
    pub(crate) fn connect_sent(&mut self, group: usize, source: u32, now_ns: u64) {
        self.0[group][source as usize].connect_sent_ns = Some(now_ns);
    }

    /// Stores the connection id of a client.
    pub(crate) fn set_id(&mut self, group: usize, source: u32, id: u64, now_ns: u64) {
        let client = &mut self.0[group][source as usize];
        *client = LoadClient { id: Some(id), since_ns: now_ns, is_suspect: false, ..*client };
    }

    /// Marks a connection id as suspect, after a request that was sent at `sent_ns` was refused or lost.
    pub(crate) fn mark_suspect(&mut self, group: usize, source: u32, sent_ns: u64) {
        let client = &mut self.0[group][source as usize];
        client.is_suspect |= client.since_ns <= sent_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::population::{Shape, SourceAddresses};

    #[test]
    fn old_and_suspect_ids_are_renewed() {
        let sources =
            SourceAddresses { first: [127, 1, 0, 1].into(), count: 2, sets_source_address: true };
        let population = Population::new(1, Shape::Public, &[(sources, 2)], 0.0).unwrap();
        let mut clients = LoadClients::new(&population);
        assert!(clients.should_connect(0, 1, 0, 100));
        clients.connect_sent(0, 1, 0);
        assert!(!clients.should_connect(0, 1, 100, 100) && clients.should_connect(0, 1, 101, 100));
        clients.set_id(0, 1, 7, 110);
        assert_eq!(clients.without_id().collect::<Vec<_>>(), [(0, 0)]);
        assert!(!clients.should_connect(0, 1, 1_000, 100));
        clients.mark_suspect(0, 1, 109);
        assert!(!clients.should_connect(0, 1, 1_000, 100), "that request used the previous id");
        clients.mark_suspect(0, 1, 111);
        assert!(clients.should_connect(0, 1, 1_000, 100));
        clients.set_id(0, 1, 8, 1_000);
        assert!(clients.should_connect(0, 1, 1_001 + ID_AGE_MAX_NS, 100));
        assert_eq!(clients.id(0, 1), Some(8));
    }
}
