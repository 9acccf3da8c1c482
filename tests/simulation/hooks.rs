//! Hooks in the simulation: which requests they should refuse, by a model that knows nothing of theirs.

use super::{INTERVAL, TORRENTS, World};
use std::collections::BTreeSet;
use tsubame::outcome::Outcome;
use tsubame::policy::access_list::{Mode, Sources};
use tsubame::policy::clients::Clients;
use tsubame::policy::interval::{ByLoad, Variation};
use tsubame::policy::limits::{Excess, LimitTerms};
use tsubame::policy::{Answer, HookConfig, Plan, Reading};
use tsubame_storage::{InfoHash, PrefixLengths, SubnetPreference};

/// Seconds between two exchanges, on average
const EXCHANGED: u64 = 500;

/// Seconds that clients are asked to stay away longer, at most
const VARIED: u32 = 300;

/// The longest interval, where there is something to do
const LONGEST: u32 = INTERVAL as u32 + 600;

/// Announces a source may make at once: more than a client whose datagrams are lost
const BURST: u32 = 12;

/// Clients that now and then do not care when they should come back: over HTTP and over UDP
const GREEDY: [usize; 2] = [11, 32];

/// What the hooks are at the moment
pub(crate) struct Hooks {
    rng: fastrand::Rng,
    /// Torrents that are not served
    denied: BTreeSet<usize>,
    is_set: bool,
    keys: tempfile::NamedTempFile,
}

impl Hooks {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), "sesame\n").unwrap();
        Self { rng, denied: BTreeSet::new(), is_set: false, keys }
    }

    fn plan(&self) -> Plan {
        let info_hashes = self.denied.iter().map(|torrent| InfoHash([*torrent as u8; 20]));
        let sources = Sources { info_hashes: info_hashes.collect(), ..Sources::default() };
        let hooks = [
            HookConfig::Networks {
                mode: Mode::Deny,
                networks: vec!["2a00:9::/32".parse().unwrap()],
                files: Vec::new(),
            },
            HookConfig::AccessList { mode: Mode::Deny, sources, answer: Answer::Empty(60) },
            HookConfig::Clients(Clients { mode: Mode::Deny, prefixes: vec![(*b"-XX").into()] }),
            HookConfig::Passkey { file: self.keys.path().to_owned(), scrapes: false },
            HookConfig::Limits(LimitTerms {
                announces_per_s: 1,
                burst: BURST,
                torrents_per_min: 0,
                ipv4_prefix: 32,
                ipv6_prefix: 128,
                exempt: Vec::new(),
                excess: Excess::Drop,
                scrapes: false,
            }),
            HookConfig::IntervalVariation(Variation {
                probability: 0.5,
                increase_secs: VARIED,
                min_interval: true,
            }),
            HookConfig::IntervalLoad(ByLoad { from: 0, to: 20, longest_secs: LONGEST }),
            HookConfig::SubnetPreference(SubnetPreference {
                v4: PrefixLengths::new(&[24, 16]).unwrap(),
                v6: PrefixLengths::new(&[112]).unwrap(),
                at_random_percent: 20,
            }),
        ];
        Plan::load(&hooks, &Plan::default(), 1, Reading::AtStart).unwrap().plan
    }
}

/// One in thirteen is of a client that is not permitted
fn is_banned(number: usize) -> bool {
    number % 13 == 5
}

pub(crate) fn peer_id_of(number: usize) -> &'static [u8; 20] {
    if is_banned(number) { b"-XX0001-abcdefghijkl" } else { b"-TT0001-abcdefghijkl" }
}

/// What stands behind the question mark of its announce URL; some have no key, or that of nobody
pub(crate) fn query_of(number: usize) -> &'static str {
    match number % 17 {
        3 => "x=1",
        4 => "passkey=abracadabra",
        _ => "passkey=sesame",
    }
}

/// The URL data of its announces over UDP (BEP 41), in two pieces
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

impl World {
    /// Denies other torrents now and then, whose peers go soon
    pub(crate) fn exchange_hooks(&mut self) {
        let (now, clock) = (self.now, self.clock());
        let Some(hooks) = &mut self.hooks else { return };
        // A second after they were exchanged.
        while self.tracker.purge(clock) {}
        if !hooks.is_set || hooks.rng.u64(..EXCHANGED) == 0 {
            hooks.is_set = true;
            let rng = &mut hooks.rng;
            hooks.denied = (0..TORRENTS).filter(|_| rng.u8(..5) == 0).collect();
            let seed = hooks.rng.u64(..);
            self.tracker.exchange_policy(clock, &mut hooks.plan().policy(1, seed));
            hooks.denied.iter().for_each(|torrent| self.truth[*torrent].clear());
        }
        if now % 3_000 < 60 {
            for client in [GREEDY; 3].as_flattened() {
                self.clients[*client].due = 0;
                self.act(*client);
            }
        }
    }

    /// Whether an announce was refused for what it should be refused for, and for nothing else
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
        let near_greedy = GREEDY.iter().any(|greedy| ip(*greedy) == ip(number));
        let too_many = refused == Some(Outcome::TooManyAnnounces);
        let limited = too_many && near_greedy && expected.is_none();
        assert!(refused == expected || limited, "{number}: {refused:?} and not {expected:?}");
        if let Some(outcome) = refused {
            // Over HTTP nothing else counts it.
            *self.answered.entry(outcome.name()).or_default() += 1;
        }
    }

    /// Torrents that are not served look empty
    pub(crate) fn check_scraped(&self, number: usize, reply: &[u8]) {
        let torrent = self.clients[number].torrent;
        if self.hooks.as_ref().is_some_and(|hooks| hooks.denied.contains(&torrent)) {
            assert_eq!(reply[8..20], [0; 12]);
        }
    }

    /// Whether a client may be told to come back after so long
    pub(crate) fn check_interval(&self, interval: u32) {
        let usual = INTERVAL as u32;
        let longest = if self.hooks.is_some() { LONGEST.max(usual + VARIED) } else { usual };
        let denied = self.hooks.is_some() && interval == 60;
        assert!(denied || (usual..=longest).contains(&interval), "{interval}");
    }
}
