//! Requests over UDP.

use super::reply::UdpReply;
use super::request::{AdmittedAnnounce, AdmittedRequest, AdmittedScrape};
use super::{Tracker, role_of};
use crate::clock::Now;
use crate::policy::{AnnounceContext, ParameterSource, PolicyStop, Refusal, RefusalReply};
use crate::sizes::peers_fitting;
use crate::stats::outcome::Outcome;
use std::net::{IpAddr, SocketAddr};
use tsubame_storage::{AnnounceOutcome, Family, PeerOutput, Prefetch, SwarmCounts};
use tsubame_udp::wire::{
    AnnounceReply, AnnounceRequest, ERROR_REPLY_LEN, SCRAPE_LEN_MIN, ScrapeRequest, TransactionId,
    UdpRequest, write_connect, write_error,
};

/// Error text for a source that is not proven: the reply is not longer than the shortest request that it answers.
const WRONG_CONNECTION_ID: &str = "wrong connection id";

const _: () = assert!(ERROR_REPLY_LEN + WRONG_CONNECTION_ID.len() <= SCRAPE_LEN_MIN);

impl Tracker {
    /// Checks everything about a datagram that needs neither the swarm nor hooks other than `networks`. The returned
    /// request is admitted once [`Self::check_policy`] permits it, too. An `Err` is the reply to a refused request, or
    /// to a connect, which is answered here.
    ///
    /// The cheapest checks come first, as floods should cost the least. Until the connection id proves that the source
    /// is not forged, no reply is longer than the request.
    #[inline]
    pub fn prove(
        &self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<AdmittedRequest, UdpReply> {
        let unproven_len = reply.len().min(datagram.len());
        let reply = &mut reply[..unproven_len];
        let request =
            UdpRequest::parse(datagram).map_err(|error| UdpReply::none(Outcome::from(error)))?;
        if source.port() == 0 {
            return Err(UdpReply::none(Outcome::SourcePortZero));
        }
        let address = source.ip().to_canonical();
        if !self.policy.permits_source(address) {
            return Err(UdpReply::none(Outcome::ForbiddenNetwork));
        }
        let (connection_id, transaction_id) = match &request {
            UdpRequest::Connect(connect) => {
                let id = self.ids.issue(now.unix_secs, address);
                let len = write_connect(reply, connect.transaction_id(), id);
                return Err(UdpReply { outcome: Outcome::Connected, len });
            }
            UdpRequest::Announce(announce) => (announce.connection_id(), announce.transaction_id()),
            UdpRequest::Scrape(scrape) => (scrape.connection_id(), scrape.transaction_id()),
        };
        if !self.ids.accepts(now.unix_secs, address, connection_id) {
            let len = match self.settings.explain_wrong_connection_id {
                true => write_error(reply, transaction_id, WRONG_CONNECTION_ID),
                false => 0,
            };
            return Err(UdpReply { outcome: Outcome::WrongConnectionId, len });
        }
        match request {
            UdpRequest::Announce(announce) if announce.is_v6() && address.is_ipv4() => {
                Err(UdpReply::none(Outcome::UnknownAction))
            }
            UdpRequest::Announce(announce) => {
                let proven = self.proven_announce(address, &announce);
                Ok(AdmittedRequest::Announce(proven, transaction_id))
            }
            UdpRequest::Scrape(scrape) => proven_scrape(&scrape).map(AdmittedRequest::Scrape),
            UdpRequest::Connect(_) => Err(UdpReply::none(Outcome::UnknownAction)),
        }
    }

    /// Has the hooks check a request that [`Self::prove`] returned for the same datagram; `prefetch` is that of its
    /// first torrent.
    pub fn check_policy(
        &mut self,
        now: Now,
        source: IpAddr,
        request: &mut AdmittedRequest,
        prefetch: &Prefetch,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<(), UdpReply> {
        let source = source.to_canonical();
        match request {
            AdmittedRequest::Announce(announce, transaction_id) => {
                let refused = match self.check_announce(now, source, announce, prefetch, datagram) {
                    Ok(()) => return Ok(()),
                    Err(refusal) => refusal,
                };
                Err(refuse(refused, *transaction_id, Some(announce.is_v6_action), reply))
            }
            AdmittedRequest::Scrape(scrape) => self
                .policy
                .check_udp_scrape(now, source)
                .map_err(|refusal| refuse(refusal, scrape.transaction_id, None, reply)),
        }
    }

    fn check_announce(
        &mut self,
        now: Now,
        source: IpAddr,
        announce: &mut AdmittedAnnounce,
        prefetch: &Prefetch,
        datagram: &[u8],
    ) -> Result<(), Refusal> {
        // All lists permit a stored torrent: lists of millions need not be searched for it.
        let is_known_permitted = self.policy.has_lists()
            && self.purge.is_done()
            && self.swarms.contains(prefetch, &announce.info_hash);
        if is_known_permitted && self.policy.has_only_lists() {
            return Ok(());
        }
        let Ok(UdpRequest::Announce(request)) = UdpRequest::parse(datagram) else { return Ok(()) };
        let context = AnnounceContext {
            now,
            source,
            info_hash: &announce.info_hash,
            peer_id: &request.peer_id(),
            port: request.port(),
            event: announce.event,
            left: request.left(),
            is_known_permitted,
        };
        let parameters = ParameterSource::Url(request.url_data());
        let checked = self.policy.check(&context, parameters, announce.intervals, None);
        announce.intervals = checked.map_err(PolicyStop::refusal)?;
        Ok(())
    }

    /// Decides whether a datagram is admitted: [`Self::prove`] and [`Self::check_policy`].
    #[inline]
    pub fn admit(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<(AdmittedRequest, Prefetch), UdpReply> {
        let mut request = self.prove(now, source, datagram, reply)?;
        let prefetch = self.prefetch_index(&request.info_hash());
        if self.policy.has_hooks() {
            self.check_policy(now, source.ip(), &mut request, &prefetch, datagram, reply)?;
        }
        Ok((request, prefetch))
    }

    /// Answers an admitted request; this shard must own all of its torrents.
    ///
    /// A scrape reads its info hashes from the datagram; an announce does not need it.
    pub fn answer(
        &mut self,
        now: Now,
        prefetch: Prefetch,
        request: &AdmittedRequest,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> UdpReply {
        match request {
            AdmittedRequest::Announce(announce, transaction_id) => {
                self.answer_announce(now, prefetch, announce, *transaction_id, reply)
            }
            AdmittedRequest::Scrape(scrape) => {
                let mut len = scrape.begin_reply(reply);
                for (row, info_hash) in scrape.info_hashes(datagram).enumerate() {
                    let counts = self.scrape(&info_hash);
                    len += scrape.write_row(reply, row, counts);
                }
                UdpReply { outcome: Outcome::Scraped, len }
            }
        }
    }

    /// Answers an admitted announce.
    pub fn answer_announce(
        &mut self,
        now: Now,
        prefetch: Prefetch,
        announce: &AdmittedAnnounce,
        transaction_id: TransactionId,
        reply: &mut [u8],
    ) -> UdpReply {
        let len = reply.len().min(self.settings.reply_len_max);
        let Some(mut reply) = AnnounceReply::begin(&mut reply[..len]) else {
            return UdpReply::none(Outcome::Unreadable);
        };
        reply = reply.with_v6_action(announce.is_v6_action);
        let fitting = reply.peers().len() / announce.family.compact_len();
        let peers_len = fitting.min(usize::from(announce.numwant)) * announce.family.compact_len();
        let output = PeerOutput::for_family(announce.family, &mut reply.peers()[..peers_len]);
        let AnnounceOutcome { counts, v4_len, v6_len, change, .. } =
            self.announce(now, prefetch, announce, output);
        let interval = announce.intervals.interval_secs;
        let len = reply.finish(transaction_id, interval, counts, v4_len + v6_len);
        UdpReply { outcome: Outcome::from(change), len }
    }

    /// Admits and answers one datagram; this shard must own all torrents.
    pub fn handle(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> UdpReply {
        match self.admit(now, source, datagram, reply) {
            Ok((request, prefetch)) => self.answer(now, prefetch, &request, datagram, reply),
            Err(refused) => refused,
        }
    }

    /// Converts an announce whose source is proven; hooks may still refuse it, or change its intervals.
    #[inline(always)] // Called for announces over UDP only: a call and a copy are 4 % of their instructions.
    fn proven_announce(&self, source: IpAddr, request: &AnnounceRequest<'_>) -> AdmittedAnnounce {
        let family = Family::of(source);
        // The address field of BEP 15 has 4 bytes. In an announce over IPv6 it is not an IPv6 address and is ignored.
        let claimed = || request.ip().filter(|ip| Family::of(*ip) == family);
        let (event, left) = (request.event(), request.left());
        let fitting = peers_fitting(family, self.settings.reply_len_max);
        AdmittedAnnounce {
            info_hash: request.info_hash(),
            endpoint: self.endpoint(source, claimed, request.port()),
            event,
            role: role_of(event, left),
            numwant: self.numwant(request.num_want()).min(fitting as u16),
            family,
            intervals: self.settings.intervals,
            is_v6_action: request.is_v6(),
        }
    }
}

fn proven_scrape(request: &ScrapeRequest<'_>) -> Result<AdmittedScrape, UdpReply> {
    let mut info_hashes = request.info_hashes();
    // At most 74 rows.
    let rows = info_hashes.len() as u8;
    let first = info_hashes.next().ok_or(UdpReply::none(Outcome::TooShort))?;
    Ok(AdmittedScrape { first, rows, transaction_id: request.transaction_id() })
}

/// Writes the reply to a request that policy refuses. `is_v6_action` is that of an announce, `None` for a scrape.
#[cold]
fn refuse(
    Refusal { outcome, reply: refusal }: Refusal,
    transaction_id: TransactionId,
    is_v6_action: Option<bool>,
    reply: &mut [u8],
) -> UdpReply {
    let len = match (refusal, is_v6_action) {
        (RefusalReply::Error(text) | RefusalReply::Gone(text), _) => {
            write_error(reply, transaction_id, text)
        }
        (RefusalReply::Empty(secs), Some(is_v6_action)) => AnnounceReply::begin(reply)
            .map(|reply| reply.with_v6_action(is_v6_action))
            .map_or(0, |reply| reply.finish(transaction_id, secs, SwarmCounts::default(), 0)),
        // A scrape has no empty reply: counts of zero would be taken as true.
        (RefusalReply::Empty(_), None) | (RefusalReply::Silence(_), _) => 0,
    };
    UdpReply { outcome, len }
}
