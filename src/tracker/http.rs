//! Requests over HTTP, whose connection has proven the source.

use super::peer_list::PeerList;
use super::request::AdmittedAnnounce;
use super::{Tracker, role_of};
use crate::clock::Now;
use crate::policy::{
    AnnounceContext, ParameterSource, Parameters, PausedRequest, PolicyStop, Refusal, RefusalReply,
};
use crate::stats::outcome::Outcome;
use std::net::IpAddr;
use tsubame_http::query::AnnounceQuery;
use tsubame_storage::{Family, InfoHash, PeerId, PeerOutput, Prefetch};

impl Tracker {
    /// Decides whether an announce is admitted.
    ///
    /// If the signature of a token must be checked and this turn has no checks left, policy pauses the request. A later
    /// call with `paused` continues at the same hook.
    pub fn admit_announce(
        &mut self,
        now: Now,
        source: IpAddr,
        query: &AnnounceQuery,
        parameters: Parameters<'_>,
        paused: Option<PausedRequest>,
    ) -> Result<AdmittedAnnounce, PolicyStop> {
        let source = source.to_canonical();
        let AnnounceQuery { info_hash, port, event, left, .. } = *query;
        let peer_id = &match query.peer_id {
            Some(peer_id) => peer_id,
            None if self.policy.needs_peer_id() => {
                let reply = RefusalReply::Error("peer_id is missing");
                return Err(Refusal { outcome: Outcome::BadQuery, reply }.into());
            }
            None => PeerId([0; 20]),
        };
        let is_known_permitted = false;
        let context = AnnounceContext {
            now,
            source,
            info_hash: &info_hash,
            peer_id,
            port,
            event,
            left,
            is_known_permitted,
        };
        let parameters = ParameterSource::Http(parameters);
        let intervals = self.policy.check(&context, parameters, self.settings.intervals, paused)?;
        Ok(AdmittedAnnounce {
            info_hash,
            endpoint: self.endpoint(source, || query.claimed_address(source), port),
            event,
            role: role_of(event, left),
            numwant: self.numwant(query.numwant),
            family: Family::of(source),
            intervals,
            is_v6_action: false,
        })
    }

    /// Decides whether a scrape is admitted; for the list of all torrents, `info_hashes` is empty.
    pub fn admit_scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hashes: &[InfoHash],
        parameters: &Parameters<'_>,
        paused: Option<PausedRequest>,
    ) -> Result<(), PolicyStop> {
        self.policy.check_scrape(now, source.to_canonical(), info_hashes, parameters, paused)
    }

    /// Applies an announce to its swarm and writes the result to a list. `prefetch` is that of the torrent, if there
    /// was one.
    pub fn fill_peer_list(
        &mut self,
        now: Now,
        announce: &AdmittedAnnounce,
        prefetch: Option<Prefetch>,
        list: &mut PeerList,
    ) {
        let peers_max = usize::from(announce.numwant);
        list.v4.resize(peers_max * Family::V4.compact_len(), 0);
        list.v6.resize(peers_max * Family::V6.compact_len(), 0);
        let output = PeerOutput { v4: &mut list.v4, v6: &mut list.v6, peers_max };
        let prefetch = prefetch.unwrap_or_else(|| self.prefetch_index(&announce.info_hash));
        let announced = self.announce(now, prefetch, announce, output);
        list.v4.truncate(announced.v4_len);
        list.v6.truncate(announced.v6_len);
        list.outcome = Outcome::from(announced.change);
        list.counts = announced.counts;
    }
}
