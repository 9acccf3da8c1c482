//! Hooks in the simulation: the tracker must refuse exactly what the model of the hooks in this file predicts.

use super::{INTERVAL, TORRENTS, TrackerSimulation};
use std::collections::BTreeSet;
use tsubame::policy::access_list::{ListMode, ListSources};
use tsubame::policy::clients::ClientFilter;
use tsubame::policy::interval::{IntervalVariation, LoadBasedInterval};
use tsubame::policy::limits::{ExcessReply, LimitSettings};
use tsubame::policy::{CompiledPolicy, HookConfig, ReadMode, RefusalReply};
use tsubame::stats::outcome::Outcome;
use tsubame_storage::{InfoHash, PrefixLengths, SubnetPreference};

/// Average number of seconds between two exchanges of the policy.
const EXCHANGE_MEAN_SECS: u64 = 500;

/// Maximum number of seconds by which the interval is increased at random.
const INCREASE_MAX_SECS: u32 = 300;

/// Maximum interval under load, in seconds.
const INTERVAL_MAX_SECS: u32 = INTERVAL as u32 + 600;

/// Number of announces that a source may send at once. A client that repeats lost datagrams stays below it.
const BURST: u32 = 12;

/// Clients that at times ignore the interval: the first over HTTP, the second over UDP.
const AGGRESSIVE_CLIENTS: [usize; 2] = [11, 32];

/// The hooks that are in force.
pub(crate) struct Hooks {
    rng: fastrand::Rng,
    /// Torrents that the access list denies.
    denied: BTreeSet<usize>,
    /// Whether the tracker has the hooks already.
    is_applied: bool,
    keys: tempfile::NamedTempFile,
}

impl Hooks {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), "sesame\n").unwrap();
        Self { rng, denied: BTreeSet::new(), is_applied: false, keys }
    }

    fn compile(&self) -> CompiledPolicy {
        let info_hashes = self.denied.iter().map(|torrent| InfoHash([*torrent as u8; 20]));
        let sources = ListSources { info_hashes: info_hashes.collect(), ..ListSources::default() };
        let hooks = [
            HookConfig::Networks {
                mode: ListMode::Deny,
                networks: vec!["2a00:9::/32".parse().unwrap()],
                files: Vec::new(),
            },
            HookConfig::AccessList {
                mode: ListMode::Deny,
                sources,
                reply: RefusalReply::Empty(60),
            },
            HookConfig::Clients(ClientFilter {
                mode: ListMode::Deny,
                prefixes: vec![(*b"-XX").into()],
            }),
            HookConfig::Passkey { file: self.keys.path().to_owned(), scrapes: false },
            HookConfig::Limits(LimitSettings {
                announces_per_s: 1,
                burst: BURST,
                torrents_per_min: 0,
                ipv4_prefix: 32,
                ipv6_prefix: 128,
                exempt: Vec::new(),
                excess: ExcessReply::Drop,
                scrapes: false,
            }),
            HookConfig::IntervalVariation(IntervalVariation {
                probability: 0.5,
                increase_secs: INCREASE_MAX_SECS,
                min_interval: true,
            }),
            HookConfig::IntervalLoad(LoadBasedInterval {
                from: 0,
                to: 20,
                max_interval_secs: INTERVAL_MAX_SECS,
            }),
            HookConfig::SubnetPreference(SubnetPreference {
                v4: PrefixLengths::new(&[24, 16]).unwrap(),
                v6: PrefixLengths::new(&[112]).unwrap(),
                at_random_percent: 20,
            }),
        ];
        CompiledPolicy::load(&hooks, &CompiledPolicy::default(), 1, ReadMode::AtStart)
            .unwrap()
            .policy
    }
}

/// Returns whether the client software is denied: one client in thirteen.
fn is_banned(number: usize) -> bool {
    number % 13 == 5
}

pub(crate) fn peer_id_of(number: usize) -> &'static [u8; 20] {
    if is_banned(number) { b"-XX0001-abcdefghijkl" } else { b"-TT0001-abcdefghijkl" }
}

/// Returns the query of the announce URL of a client. Some have no passkey or a wrong one.
pub(crate) fn query_of(number: usize) -> &'static str {
    match number % 17 {
        3 => "x=1",
        4 => "passkey=abracadabra",
        _ => "passkey=sesame",
    }
}

/// Returns the URL data of the UDP announces of a client (BEP 41), in two options.
pub(crate) fn url_data_of(number: usize) -> Vec<u8> {
    let url = format!("/announce?{}", query_of(number));
    let (first, second) = url.as_bytes().split_at(7);
    let option = |piece: &[u8]| [&[2, piece.len() as u8], piece].concat();
    [option(first), option(second)].concat()
}

pub(crate) fn is_refusal(outcome: Outcome) -> bool {
    use Outcome::{ForbiddenClient, ForbiddenTorrent, NoPasskey, TooManyAnnounces, WrongPasskey};
    let all = [ForbiddenTorrent, ForbiddenClient, NoPasskey, WrongPasskey, TooManyAnnounces];
    all.contains(&outcome)
}

impl TrackerSimulation {
    /// Replaces the denied torrents at random times and removes their peers. In the first minute of every 3,000
    /// seconds, two clients ignore the interval.
    pub(crate) fn exchange_hooks(&mut self) {
        let (now, clock) = (self.now, self.clock());
        let Some(hooks) = &mut self.hooks else { return };
        // Removes the peers of the torrents that the current policy denies.
        while self.tracker.purge(clock) {}
        if !hooks.is_applied || hooks.rng.u64(..EXCHANGE_MEAN_SECS) == 0 {
            hooks.is_applied = true;
            let rng = &mut hooks.rng;
            hooks.denied = (0..TORRENTS).filter(|_| rng.u8(..5) == 0).collect();
            let seed = hooks.rng.u64(..);
            self.tracker.exchange_policy(clock, &mut hooks.compile().policy(1, seed));
            hooks.denied.iter().for_each(|torrent| self.truth[*torrent].clear());
        }
        if now % 3_000 < 60 {
            for client in [AGGRESSIVE_CLIENTS; 3].as_flattened() {
                self.clients[*client].due = 0;
                self.act(*client);
            }
        }
    }

    /// Checks that an announce was refused exactly if a hook should refuse it, with the outcome of that hook.
    pub(crate) fn check_admitted(&mut self, number: usize, refused: Option<Outcome>) {
        let Some(hooks) = &self.hooks else { return assert_eq!(refused, None) };
        let torrent = self.clients[number].torrent;
        let expected = if hooks.denied.contains(&torrent) {
            Some(Outcome::ForbiddenTorrent)
        } else if is_banned(number) {
            Some(Outcome::ForbiddenClient)
        } else {
            match query_of(number) {
                "passkey=sesame" => None,
                "x=1" => Some(Outcome::NoPasskey),
                _ => Some(Outcome::WrongPasskey),
            }
        };
        let ip = |number: usize| self.clients[number].address.ip();
        let shares_address =
            AGGRESSIVE_CLIENTS.iter().any(|aggressive| ip(*aggressive) == ip(number));
        let too_many = refused == Some(Outcome::TooManyAnnounces);
        let limited = too_many && shares_address && expected.is_none();
        assert!(
            refused == expected || limited,
            "client {number}: {refused:?} instead of {expected:?}"
        );
        if let Some(outcome) = refused {
            // Refusals over HTTP are counted here only. Those over UDP are counted twice, which no check depends on.
            *self.outcomes.entry(outcome.name()).or_default() += 1;
        }
    }

    /// Checks that a scrape of a denied torrent returns zeros.
    pub(crate) fn check_scraped(&self, number: usize, reply: &[u8]) {
        let torrent = self.clients[number].torrent;
        if self.hooks.as_ref().is_some_and(|hooks| hooks.denied.contains(&torrent)) {
            assert_eq!(reply[8..20], [0; 12]);
        }
    }

    /// Checks that the interval of a reply is in the permitted range.
    pub(crate) fn check_interval(&self, interval: u32) {
        let usual = INTERVAL as u32;
        let longest = if self.hooks.is_some() {
            INTERVAL_MAX_SECS.max(usual + INCREASE_MAX_SECS)
        } else {
            usual
        };
        let denied = self.hooks.is_some() && interval == 60;
        assert!(denied || (usual..=longest).contains(&interval), "{interval}");
    }
}
