//! Pages of the list of all torrents, made a bit at a time between turns.

use super::Shard;
use crate::datapath::Datapath;
use crate::mesh::{Listed, Message, PageRequest};
use std::collections::VecDeque;
use tsubame_storage::PageScan;

/// Pages that are being made, each for a node; the first is worked on
#[derive(Debug, Default)]
pub(super) struct Listings(VecDeque<Listing>);

#[derive(Debug)]
struct Listing {
    node: usize,
    request: PageRequest,
    pass: Option<PageScan>,
    made: bool,
}

impl Listings {
    pub(super) fn add(&mut self, node: usize, request: PageRequest) {
        self.0.push_back(Listing { node, request, pass: None, made: false });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<D: Datapath> Shard<D> {
    /// Takes a step towards the page that is asked for
    pub(super) fn list_some(&mut self) {
        let (swarms, policy) = (self.tracker.swarms(), self.tracker.policy());
        let Some(listing) = self.listings.0.front_mut() else { return };
        let after = listing.request.after;
        let pass = listing.pass.get_or_insert_with(|| PageScan::begin(swarms, after));
        listing.made = listing.made || pass.step(swarms, |info_hash| policy.serves(info_hash));
        let own = listing.node == usize::from(self.number);
        // It waits while the way is full: a page that is lost would be a list that is cut.
        if !listing.made || !own && !self.port.has_room(listing.node) {
            return;
        }
        if let Some(Listing { node, request, pass: Some(pass), .. }) = self.listings.0.pop_front() {
            let listed = Box::new(Listed { ticket: request.ticket, page: pass.finish() });
            if own {
                self.desk.listed(listed);
            } else {
                self.port.send(node, Message::Listed(listed));
                self.port.ring();
            }
        }
    }
}
