//! Pages of the list of all torrents, made a bit at a time between turns.

use super::Shard;
use crate::mesh::Message;
use std::collections::VecDeque;
use tsubame_storage::{Census, InfoHash, Pass};

/// A page that somebody asks for
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Which request it is for
    pub ticket: u32,
    /// The torrents of the page come after this one
    pub after: Option<InfoHash>,
    /// Torrents of the page, at most
    pub most: usize,
}

/// A page of the list of a shard's torrents
#[derive(Debug)]
pub struct Page {
    /// Which request it is for
    pub ticket: u32,
    /// The torrents, in order
    pub rows: Vec<(InfoHash, Census)>,
    /// Whether there may be more behind them
    pub more: bool,
}

/// Pages that are being made, each for a node; the first is worked on
#[derive(Debug, Default)]
pub(super) struct Listings(VecDeque<(usize, PageRequest, Option<Pass>)>);

impl Listings {
    pub(super) fn add(&mut self, node: usize, request: PageRequest) {
        self.0.push_back((node, request, None));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Shard {
    /// Takes a step towards the page that is asked for
    pub(super) fn list_some(&mut self) {
        let swarms = self.tracker.swarms();
        let Some((_, request, pass)) = self.listings.0.front_mut() else { return };
        let pass = pass.get_or_insert_with(|| Pass::begin(swarms, request.after, request.most));
        if !pass.step(swarms) {
            return;
        }
        if let Some((node, PageRequest { ticket, .. }, Some(pass))) = self.listings.0.pop_front() {
            let (rows, more) = pass.end();
            let page = Box::new(Page { ticket, rows, more });
            if node == usize::from(self.number) {
                self.desk.listed(page);
            } else {
                // A full ring loses the page; who asked gives up.
                self.port.send(node, Message::Listed(page));
                self.port.ring();
            }
        }
    }
}
