//! What the clients hold: a connection id for each address.

use crate::population::Population;

/// A client asks anew before the minute is over for which an id may be used (BEP 15)
const ID_NS: u64 = 50_000_000_000;

#[derive(Clone, Copy, Default)]
struct Client {
    id: Option<u64>,
    since_ns: u64,
    asked_ns: Option<u64>,
    /// Whether a request with this id was refused or not answered: the tracker may have new keys
    doubted: bool,
}

/// The clients of each group, by the number of their address
pub(crate) struct Clients(Vec<Vec<Client>>);

impl Clients {
    pub(crate) fn new(population: &Population) -> Self {
        let of = |count: u32| vec![Client::default(); count as usize];
        Self(population.groups.iter().map(|group| of(group.sources.count)).collect())
    }

    pub(crate) fn id(&self, group: usize, source: u32) -> Option<u64> {
        self.0[group][source as usize].id
    }

    /// Whether it is time for a client to ask for an id; a time may be a little older than what came since
    pub(crate) fn should_connect(
        &self,
        group: usize,
        source: u32,
        now_ns: u64,
        timeout_ns: u64,
    ) -> bool {
        let client = &self.0[group][source as usize];
        let old =
            client.id.is_none() || client.doubted || now_ns.saturating_sub(client.since_ns) > ID_NS;
        old && client.asked_ns.is_none_or(|asked_ns| now_ns.saturating_sub(asked_ns) > timeout_ns)
    }

    /// Groups and addresses without an id
    pub(crate) fn without_id(&self) -> impl Iterator<Item = (usize, u32)> {
        let groups = self.0.iter().enumerate();
        groups.flat_map(|(group, clients)| {
            let clients = clients.iter().zip(0..).filter(|(client, _)| client.id.is_none());
            clients.map(move |(_, source)| (group, source))
        })
    }

    pub(crate) fn asked(&mut self, group: usize, source: u32, now_ns: u64) {
        self.0[group][source as usize].asked_ns = Some(now_ns);
    }

    pub(crate) fn got(&mut self, group: usize, source: u32, id: u64, now_ns: u64) {
        let client = &mut self.0[group][source as usize];
        *client = Client { id: Some(id), since_ns: now_ns, doubted: false, ..*client };
    }

    /// A request that left at this time was refused or not answered
    pub(crate) fn doubt(&mut self, group: usize, source: u32, sent_ns: u64) {
        let client = &mut self.0[group][source as usize];
        client.doubted |= client.since_ns <= sent_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::population::{Shape, Sources};

    #[test]
    fn an_id_is_renewed_when_old_or_doubted_and_asked_for_once() {
        let sources = Sources { first: [127, 1, 0, 1].into(), count: 2, many: true };
        let population = Population::new(1, Shape::Public, &[(sources, 2)], 0.0).unwrap();
        let mut clients = Clients::new(&population);
        assert!(clients.should_connect(0, 1, 0, 100));
        clients.asked(0, 1, 0);
        assert!(!clients.should_connect(0, 1, 100, 100) && clients.should_connect(0, 1, 101, 100));
        clients.got(0, 1, 7, 110);
        assert_eq!(clients.without_id().collect::<Vec<_>>(), [(0, 0)]);
        assert!(!clients.should_connect(0, 1, 1_000, 100));
        clients.doubt(0, 1, 109);
        assert!(!clients.should_connect(0, 1, 1_000, 100), "that request had the id before");
        clients.doubt(0, 1, 111);
        assert!(clients.should_connect(0, 1, 1_000, 100));
        clients.got(0, 1, 8, 1_000);
        assert!(clients.should_connect(0, 1, 1_001 + ID_NS, 100));
        assert_eq!(clients.id(0, 1), Some(8));
    }
}
