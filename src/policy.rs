//! Policy: which requests are answered and how, as hooks in the operator's order.
//!
//! The same hooks see announces over UDP and over HTTP, once the source is proven and before the swarm is touched.
//! Each may refuse, or change what the client is told. None waits: what is not known yet is refused, and the client
//! asks again. A [`Plan`] is made once, by a helper thread, and holds the lists; each shard makes its own [`Policy`]
//! of it, which holds the counts.
//!
//! To add a hook: a file here, a variant of `HookConfig`, `HookPlan` and `Hook`, its options in
//! `src/config/hooks.rs` and in `deploy/hooks.yaml`. Or, without a change here, one of one's [`own`].

pub mod access_list;
pub mod clients;
pub mod hash_list;
pub mod interval;
pub mod jwt;
pub mod limits;
pub mod networks;
pub mod overrides;
pub mod own;
mod parameters;
pub mod passkeys;
mod plan;
pub mod seeds;
pub mod torrent;

pub use parameters::Parameters;
pub use plan::{LoadedPlan, Plan, PlanError, Reading};

use crate::clock::Now;
use crate::outcome::Outcome;
use access_list::{Mode, Sources};
use clients::Clients;
use interval::{ByLoad, Load, Variation};
use ipnet::IpNet;
use jwt::{Jwt, JwtTerms, KeySource};
use limits::{LimitTerms, Limits, TooMuch};
use networks::Networks;
use own::{Own, OwnHook};
use passkeys::Passkeys;
use plan::Torrents;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tsubame_storage::{AnnounceEvent, InfoHash, PeerId, SubnetPreference};
use tsubame_udp::wire::UrlData;

/// A hook as the config has it
#[derive(Clone, Debug, PartialEq)]
pub enum HookConfig {
    /// Which torrents are served
    AccessList {
        /// Those on the list, or all others
        mode: Mode,
        /// Where the list comes from
        sources: Sources,
        /// What the others are answered
        answer: Answer,
    },
    /// Which programs are served
    Clients(Clients),
    /// From where requests are answered at all
    Networks {
        /// Those listed, or all others
        mode: Mode,
        /// Networks of the config itself
        networks: Vec<IpNet>,
        /// Files with a network a line
        files: Vec<PathBuf>,
    },
    /// Who may announce
    Passkey {
        /// A file with a key a line
        file: PathBuf,
        /// Whether scrapes need a key, too
        scrapes: bool,
    },
    /// Which torrents are approved, by tokens
    Jwt(Arc<JwtTerms>),
    /// How much one source may ask
    Limits(LimitTerms),
    /// Some clients are asked to come back later
    IntervalVariation(Variation),
    /// All are, where there is much to do
    IntervalLoad(ByLoad),
    /// Neighbours are handed out first
    SubnetPreference(SubnetPreference),
    /// What the program brings along beside these
    Own(Own),
}

impl HookConfig {
    /// Name of the hook in a config
    pub fn name(&self) -> &'static str {
        match self {
            Self::AccessList { .. } => "access_list",
            Self::Clients(_) => "clients",
            Self::Networks { .. } => "networks",
            Self::Passkey { .. } => "passkey",
            Self::Jwt(_) => "jwt",
            Self::Limits(_) => "limits",
            Self::IntervalVariation(_) => "interval_variation",
            Self::IntervalLoad(_) => "interval_load",
            Self::SubnetPreference(_) => "subnet_preference",
            Self::Own(own) => own.given.0,
        }
    }

    /// Whether the hook has a list, from files or in the config
    fn has_list(&self) -> bool {
        matches!(self, Self::AccessList { .. } | Self::Networks { .. })
    }

    /// Files and directories that it is read from, and read again from when they change
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::AccessList { sources: Sources { files, torrents, .. }, .. } => {
                files.iter().chain(torrents).map(PathBuf::as_path).collect()
            }
            Self::Networks { files, .. } => files.iter().map(PathBuf::as_path).collect(),
            Self::Passkey { file, .. } => vec![file],
            Self::Jwt(terms) => match &terms.keys {
                KeySource::File(file) => vec![file],
                KeySource::Url(_) => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

/// What is answered instead
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A text, which clients show to their users; they ask again soon
    Error(&'static str),
    /// Nothing about the swarm, as if it were empty, and to come back after so many seconds: clients that get an error
    /// try again within seconds or minutes
    Empty(u32),
    /// Over HTTP status 410 and not to come back (BEP 31); over UDP the text
    Gone(&'static str),
    /// Nothing; over HTTP, where somebody waits, the text
    Silence(&'static str),
}

impl Answer {
    /// What the client is told, where it is told anything
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::Error(text) | Self::Gone(text) | Self::Silence(text) => Some(text),
            Self::Empty(_) => None,
        }
    }
}

/// Why a request is not answered as asked
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it counts as
    pub outcome: Outcome,
    /// What is answered
    pub answer: Answer,
}

/// Why hooks have not permitted a request
#[derive(Clone, Copy, Debug)]
pub enum Interrupted {
    /// A hook refuses it
    Refused(Refusal),
    /// A token's signature must be checked, and the checks of this turn are used up: go on there once one is permitted
    Paused(Paused),
}

/// Where hooks go on with a request that waited for the check of a token's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// Number of the hook that checks the token, and of the policy it is in
    hook: usize,
    generation: u64,
    /// What the hooks before it have changed
    told: Told,
}

impl From<Refusal> for Interrupted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Interrupted {
    /// Returns the refusal of a request that is not to wait: the client repeats it.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Paused(_) => {
                // Over UDP the client asks again by itself; an error would make it wait for longer.
                let answer = Answer::Silence("too many new tokens at once; try again");
                Refusal { outcome: Outcome::TokenNotChecked, answer }
            }
        }
    }
}

/// Whether a hook asks the same of scrapes
type Scrapes = bool;

/// A hook with its counts
#[derive(Debug)]
enum Hook {
    AccessList(Torrents),
    Clients(Arc<Clients>),
    Passkey(Arc<Passkeys>, Scrapes),
    Jwt(Box<Jwt>),
    Limits(Limits),
    IntervalVariation(Variation),
    IntervalLoad(ByLoad, Load),
    Own(Arc<dyn OwnHook>),
}

/// A shard's policy
#[derive(Debug)]
pub struct Policy {
    networks: Vec<Arc<Networks>>,
    subnets: SubnetPreference,
    hooks: Vec<Hook>,
    reads_parameters: bool,
    covers_scrapes: bool,
    has_lists: bool,
    lists_alone: bool,
    /// How many policies there were before
    generation: u64,
    rng: fastrand::Rng,
    /// Where the URL of a UDP announce is put together
    scratch: Vec<u8>,
}

/// An announce as hooks see it
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// When
    pub now: Now,
    /// From where
    pub source: IpAddr,
    /// The torrent
    pub info_hash: &'a InfoHash,
    /// What the client calls itself
    pub peer_id: &'a PeerId,
    /// Where it says that it listens
    pub port: u16,
    /// Why it announces
    pub event: AnnounceEvent,
    /// Bytes it lacks, by its own account
    pub left: u64,
    /// Whether it is known that no list forbids the torrent
    pub is_served: bool,
}

/// What the client is told, which hooks may change
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Seconds until the next announce
    pub interval_secs: u32,
    /// Seconds until then at the earliest
    pub min_interval_secs: u32,
}

/// Where parameters are read from, by hooks that do
#[derive(Clone, Copy, Debug)]
pub enum Carrier<'a> {
    /// The URL data of a UDP announce
    Url(UrlData<'a>),
    /// The path and query of an HTTP request
    Http(Parameters<'a>),
}

/// Without hooks
impl Default for Policy {
    fn default() -> Self {
        Plan::default().policy(1, 0)
    }
}

impl Policy {
    /// Whether requests from an address are answered at all
    pub fn permits_source(&self, source: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().all(|networks| networks.permit(source))
    }

    /// Whose peers are handed out first
    pub fn subnets(&self) -> SubnetPreference {
        self.subnets
    }

    /// Whether there are lists of torrents
    pub fn has_lists(&self) -> bool {
        self.has_lists
    }

    /// Whether there is nothing else
    pub fn has_lists_alone(&self) -> bool {
        self.lists_alone
    }

    /// Whether there is anything to be judged by
    pub fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// Whether a hook looks at peer ids, which an announce over HTTP may leave out
    pub fn needs_peer_id(&self) -> bool {
        self.hooks.iter().any(|hook| matches!(hook, Hook::Clients(_) | Hook::Own(_)))
    }

    /// Whether a torrent is served: others look empty to scrapes
    pub fn serves(&self, hash: &InfoHash) -> bool {
        !self.has_lists || self.lists().all(|torrents| torrents.permits(hash))
    }

    /// Whether the same torrents are served as by another
    pub fn serves_as(&self, other: &Self) -> bool {
        self.lists().map(Torrents::identity).eq(other.lists().map(Torrents::identity))
    }

    fn lists(&self) -> impl Iterator<Item = &Torrents> {
        self.hooks.iter().filter_map(|hook| match hook {
            Hook::AccessList(torrents) => Some(torrents),
            _ => None,
        })
    }

    /// Takes over what another policy has counted, as far as it counts the same
    pub fn inherit(&mut self, from: &mut Self) {
        self.generation = from.generation + 1;
        // A hook that stands elsewhere now is the same hook: first those that are configured alike, then those of a
        // kind.
        for alike in [true, false] {
            for new in &mut self.hooks {
                from.hooks.iter_mut().any(|old| new.inherit(old, alike));
            }
        }
    }

    /// Permits checks of tokens again: a shard begins a turn
    pub fn begin_turn(&mut self) {
        if self.reads_parameters {
            for hook in &mut self.hooks {
                if let Hook::Jwt(jwt) = hook {
                    jwt.begin_turn();
                }
            }
        }
    }

    /// Has the hooks look at a scrape that came over UDP
    pub fn judge_udp_scrape(&mut self, now: Now, source: IpAddr) -> Result<(), Refusal> {
        if !self.covers_scrapes {
            return Ok(());
        }
        for hook in self.hooks.iter_mut().filter(|hook| hook.covers_scrapes()) {
            if let Hook::Limits(limits) = hook {
                limits.count_scrape(now.monotonic, source).map_err(|_| limits.refusal())?;
                continue;
            }
            // A scrape has no URL data, and so neither passkey nor token.
            let answer = Answer::Error("scrapes need a key or token here; scrape over HTTP");
            return Err(Refusal { outcome: Outcome::ScrapeNotCovered, answer });
        }
        Ok(())
    }

    /// Has the hooks look at a scrape that came over HTTP, as far as they cover scrapes
    pub fn judge_scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hashes: &[InfoHash],
        parameters: &Parameters<'_>,
        paused: Option<Paused>,
    ) -> Result<(), Interrupted> {
        let generation = self.generation;
        let paused = paused.filter(|paused| paused.generation == generation);
        let mut permitted = paused.is_some();
        let first = paused.map_or(0, |paused| paused.hook);
        for (number, hook) in self.hooks.iter_mut().enumerate().skip(first) {
            match hook {
                hook if !hook.covers_scrapes() => {}
                Hook::Passkey(keys, _) => check_passkey(keys, parameters)?,
                Hook::Jwt(_) if info_hashes.is_empty() => {
                    let answer = Answer::Error("a token approves one torrent, not the list of all");
                    return Err(Refusal { outcome: Outcome::NoToken, answer }.into());
                }
                Hook::Jwt(jwt) => {
                    for info_hash in info_hashes {
                        let permit = std::mem::take(&mut permitted);
                        let told = Told::default();
                        jwt.judge(now, source, info_hash, parameters, permit)
                            .map_err(|stop| stop.at(Paused { hook: number, generation, told }))?;
                    }
                }
                Hook::Limits(limits) => {
                    limits.count_scrape(now.monotonic, source).map_err(|_| limits.refusal())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the hooks look at an announce in their order, until one refuses it
    ///
    /// With `paused` it goes on there, and the check of a token that it waited for is permitted. If
    /// this policy is not the one it was paused in, it begins anew.
    pub fn judge(
        &mut self,
        asked: &Asked<'_>,
        carrier: Carrier<'_>,
        told: Told,
        paused: Option<Paused>,
    ) -> Result<Told, Interrupted> {
        let generation = self.generation;
        let paused = paused.filter(|paused| paused.generation == generation);
        let Self { hooks, rng, scratch, reads_parameters, .. } = self;
        let parameters = match carrier {
            Carrier::Http(parameters) => parameters,
            Carrier::Url(data) if *reads_parameters => Parameters::of_url(data, scratch),
            Carrier::Url(_) => Parameters::default(),
        };
        let Paused { hook: first, mut told, .. } =
            paused.unwrap_or(Paused { hook: 0, generation, told });
        let mut permitted = paused.is_some();
        for (number, hook) in hooks.iter_mut().enumerate().skip(first) {
            if let Hook::Jwt(jwt) = hook {
                let permit = std::mem::take(&mut permitted);
                jwt.judge(asked.now, asked.source, asked.info_hash, &parameters, permit)
                    .map_err(|stop| stop.at(Paused { hook: number, generation, told }))?;
            } else {
                hook.judge(asked, &parameters, rng, &mut told)?;
            }
        }
        Ok(told)
    }
}

fn check_passkey(keys: &Passkeys, parameters: &Parameters<'_>) -> Result<(), Refusal> {
    let refused = |outcome, text| Err(Refusal { outcome, answer: Answer::Error(text) });
    match parameters.key.or_else(|| parameters.get("passkey")) {
        Some(key) if keys.has(key) => Ok(()),
        Some(_) => refused(Outcome::WrongPasskey, "unknown passkey"),
        None => refused(Outcome::NoPasskey, "no passkey in the announce URL"),
    }
}

impl Hook {
    fn covers_scrapes(&self) -> bool {
        match self {
            Self::Passkey(_, scrapes) => *scrapes,
            Self::Jwt(jwt) => jwt.covers_scrapes(),
            Self::Limits(limits) => limits.terms().scrapes && limits.terms().announces_per_s > 0,
            _ => false,
        }
    }

    /// Takes over the state of another hook, if it is of the same kind, configured `alike` or not; true if it has
    fn inherit(&mut self, from: &mut Self, alike: bool) -> bool {
        match (self, from) {
            (Self::Limits(new), Self::Limits(old)) => new.inherit(old, alike),
            (Self::IntervalLoad(by_load, new), Self::IntervalLoad(before, old)) => {
                (by_load == before) == alike && new.take_over(old)
            }
            (Self::Jwt(new), Self::Jwt(old)) => alike && new.inherit(old),
            _ => false,
        }
    }

    fn judge(
        &mut self,
        asked: &Asked<'_>,
        parameters: &Parameters<'_>,
        rng: &mut fastrand::Rng,
        told: &mut Told,
    ) -> Result<(), Refusal> {
        let refused = |outcome, answer| Err(Refusal { outcome, answer });
        match self {
            Self::AccessList(torrents)
                if !asked.is_served && !torrents.permits(asked.info_hash) =>
            {
                refused(Outcome::ForbiddenTorrent, torrents.answer)
            }
            Self::Clients(clients) if !clients.permits(asked.peer_id) => {
                let text = "this client is not permitted on this tracker";
                refused(Outcome::ForbiddenClient, Answer::Error(text))
            }
            Self::Passkey(keys, _) => check_passkey(keys, parameters),
            Self::Limits(limits) => {
                let counted = limits.count(asked.now.monotonic, asked.source, asked.info_hash);
                let Err(too_much) = counted else { return Ok(()) };
                let outcome = match too_much {
                    TooMuch::Announces => Outcome::TooManyAnnounces,
                    TooMuch::Torrents => Outcome::TooManyTorrents,
                };
                refused(outcome, limits.refusal().answer)
            }
            Self::IntervalVariation(variation) => {
                let added = variation.draw(rng);
                let added_min = if variation.min_interval { added } else { 0 };
                told.interval_secs = told.interval_secs.saturating_add(added);
                told.min_interval_secs = told.min_interval_secs.saturating_add(added_min);
                Ok(())
            }
            Self::IntervalLoad(by_load, load) => {
                let load = load.count(asked.now.monotonic.0);
                told.interval_secs = by_load.interval(told.interval_secs, load);
                Ok(())
            }
            Self::Own(hook) => hook
                .judge(asked, parameters, told)
                .map_err(|answer| Refusal { outcome: Outcome::OwnHook, answer }),
            // Tokens are looked at before this: they may have to wait.
            Self::AccessList(_) | Self::Clients(_) | Self::Jwt(_) => Ok(()),
        }
    }
}
