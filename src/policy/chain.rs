//! The policy of a shard: its hooks in the configured order.

use super::access_rule::AccessRule;
use super::hook::{Hook, check_passkey};
use super::networks::NetworkFilter;
use super::parameters::Parameters;
use super::refusal::{PausedRequest, PolicyStop, Refusal, RefusalReply};
use super::request::{AnnounceContext, Intervals, ParameterSource};
use crate::clock::Now;
use crate::stats::outcome::Outcome;
use std::net::IpAddr;
use std::sync::Arc;
use tsubame_storage::{InfoHash, SubnetPreference};
use tsubame_udp::wire::REQUEST_LEN_MAX;

/// The hooks of a shard, with their counters.
#[derive(Debug)]
pub struct Policy {
    networks: Vec<Arc<NetworkFilter>>,
    subnets: SubnetPreference,
    hooks: Vec<Hook>,
    reads_parameters: bool,
    covers_scrapes: bool,
    has_lists: bool,
    only_lists: bool,
    /// Number of policies that this shard had before this one.
    generation: u64,
    rng: fastrand::Rng,
    /// Buffer in which the URL of a UDP announce is assembled.
    scratch: Vec<u8>,
}

impl Default for Policy {
    /// Returns a policy without hooks.
    fn default() -> Self {
        Self::new(Vec::new(), SubnetPreference::default(), Vec::new(), 0)
    }
}

impl Policy {
    /// Creates a policy whose hooks draw random numbers from `seed`.
    pub(super) fn new(
        networks: Vec<Arc<NetworkFilter>>,
        subnets: SubnetPreference,
        hooks: Vec<Hook>,
        seed: u64,
    ) -> Self {
        Self {
            networks,
            subnets,
            reads_parameters: hooks.iter().any(Hook::reads_parameters),
            covers_scrapes: hooks.iter().any(Hook::covers_scrapes),
            has_lists: hooks.iter().any(|hook| matches!(hook, Hook::AccessList(_))),
            only_lists: hooks.iter().all(|hook| matches!(hook, Hook::AccessList(_))),
            hooks,
            generation: 0,
            rng: fastrand::Rng::with_seed(seed),
            // As large as the largest request, so that no packet allocates.
            scratch: Vec::with_capacity(REQUEST_LEN_MAX),
        }
    }

    /// Returns whether requests from an address are answered.
    #[inline(always)] // Without networks, a call is 7 % of the instructions of a connect.
    pub fn permits_source(&self, source: IpAddr) -> bool {
        self.networks.is_empty() || self.networks_permit(source)
    }

    #[inline(never)]
    fn networks_permit(&self, source: IpAddr) -> bool {
        self.networks.iter().all(|networks| networks.permits(source))
    }

    /// Returns the prefix lengths by which peers of the requester's subnets are selected first.
    pub fn subnets(&self) -> SubnetPreference {
        self.subnets
    }

    /// Returns whether there are lists of torrents.
    pub fn has_lists(&self) -> bool {
        self.has_lists
    }

    /// Returns whether all hooks are lists of torrents.
    pub fn has_only_lists(&self) -> bool {
        self.only_lists
    }

    /// Returns whether there are hooks that check announces.
    pub fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// Returns whether a hook reads the peer id, which an announce over HTTP may omit.
    pub fn needs_peer_id(&self) -> bool {
        self.hooks.iter().any(|hook| matches!(hook, Hook::Clients(_) | Hook::Custom(_)))
    }

    /// Returns whether a torrent is permitted by all lists. Scrapes report other torrents as empty.
    pub fn serves(&self, hash: &InfoHash) -> bool {
        !self.has_lists || self.lists().all(|torrents| torrents.permits(hash))
    }

    /// Returns whether two policies have the same lists of torrents.
    pub fn serves_same_torrents(&self, other: &Self) -> bool {
        self.lists().map(AccessRule::identity).eq(other.lists().map(AccessRule::identity))
    }

    fn lists(&self) -> impl Iterator<Item = &AccessRule> {
        self.hooks.iter().filter_map(|hook| match hook {
            Hook::AccessList(torrents) => Some(torrents),
            _ => None,
        })
    }

    /// Takes over the counters of the previous policy, for hooks that are in both.
    pub fn inherit(&mut self, from: &mut Self) {
        self.generation = from.generation + 1;
        // Hooks are matched by their configuration, not by their position: first those with the same options, then
        // others of the same kind.
        for same_options in [true, false] {
            for new in &mut self.hooks {
                from.hooks.iter_mut().any(|old| new.inherit(old, same_options));
            }
        }
    }

    /// Starts a new turn of the shard, with a new budget of token checks.
    pub fn begin_turn(&mut self) {
        if self.reads_parameters {
            for hook in &mut self.hooks {
                if let Hook::Jwt(jwt) = hook {
                    jwt.begin_turn();
                }
            }
        }
    }

    /// Checks a scrape received over UDP.
    pub fn check_udp_scrape(&mut self, now: Now, source: IpAddr) -> Result<(), Refusal> {
        if !self.covers_scrapes {
            return Ok(());
        }
        for hook in self.hooks.iter_mut().filter(|hook| hook.covers_scrapes()) {
            if let Hook::Limits(limits) = hook {
                limits.count_scrape(now.monotonic, source).map_err(|_| limits.refusal())?;
                continue;
            }
            // A UDP scrape has no URL data, thus neither a passkey nor a token.
            let reply = RefusalReply::Error("scrapes require a passkey or token; scrape over HTTP");
            return Err(Refusal { outcome: Outcome::ScrapeWithoutProof, reply });
        }
        Ok(())
    }

    /// Checks a scrape received over HTTP, by the hooks that cover scrapes.
    pub fn check_scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hashes: &[InfoHash],
        parameters: &Parameters<'_>,
        paused: Option<PausedRequest>,
    ) -> Result<(), PolicyStop> {
        let generation = self.generation;
        let paused = paused.filter(|paused| paused.generation == generation);
        let mut permitted = paused.is_some();
        let first = paused.map_or(0, |paused| paused.hook);
        for (number, hook) in self.hooks.iter_mut().enumerate().skip(first) {
            match hook {
                hook if !hook.covers_scrapes() => {}
                Hook::Passkey(keys, _) => check_passkey(keys, parameters)?,
                Hook::Jwt(_) if info_hashes.is_empty() => {
                    let reply =
                        RefusalReply::Error("a token permits single torrents, not a scrape of all");
                    return Err(Refusal { outcome: Outcome::NoToken, reply }.into());
                }
                Hook::Jwt(jwt) => {
                    for info_hash in info_hashes {
                        let permit = std::mem::take(&mut permitted);
                        let intervals = Intervals::default();
                        jwt.check(now, source, info_hash, parameters, permit).map_err(|stop| {
                            stop.at(PausedRequest { hook: number, generation, intervals })
                        })?;
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

    /// Checks an announce by all hooks in their order, until one refuses it; returns the intervals for the reply.
    ///
    /// With `paused`, it continues at the hook that paused the request, whose token check is permitted now. If the
    /// policy was replaced in the meantime, it starts at the first hook.
    pub fn check(
        &mut self,
        context: &AnnounceContext<'_>,
        parameters: ParameterSource<'_>,
        intervals: Intervals,
        paused: Option<PausedRequest>,
    ) -> Result<Intervals, PolicyStop> {
        let generation = self.generation;
        let paused = paused.filter(|paused| paused.generation == generation);
        let Self { hooks, rng, scratch, reads_parameters, .. } = self;
        let parameters = match parameters {
            ParameterSource::Http(parameters) => parameters,
            ParameterSource::Url(data) if *reads_parameters => Parameters::of_url(data, scratch),
            ParameterSource::Url(_) => Parameters::default(),
        };
        let PausedRequest { hook: first, mut intervals, .. } =
            paused.unwrap_or(PausedRequest { hook: 0, generation, intervals });
        let mut permitted = paused.is_some();
        for (number, hook) in hooks.iter_mut().enumerate().skip(first) {
            if let Hook::Jwt(jwt) = hook {
                let permit = std::mem::take(&mut permitted);
                jwt.check(context.now, context.source, context.info_hash, &parameters, permit)
                    .map_err(|stop| {
                        stop.at(PausedRequest { hook: number, generation, intervals })
                    })?;
            } else {
                hook.check(context, &parameters, rng, &mut intervals)?;
            }
        }
        Ok(intervals)
    }
}
