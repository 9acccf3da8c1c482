//! Answers, and requests that had none.

use super::Engine;
use crate::check::check;
use crate::flight::{Arrival, FLOOD, Kind, Request, UNPROVEN};
use crate::udp::{self, Reply};
use std::io;
use tsubame_bench::batch::{Name, ReceiveBatch};

impl Engine<'_> {
    /// Takes what has arrived; returns how much
    pub(super) fn receive(&mut self, incoming: &mut ReceiveBatch) -> io::Result<usize> {
        let mut received = 0;
        for group in 0..self.wires.len() {
            let arrived = incoming.receive(&self.wires[group].socket)?;
            if arrived == 0 {
                continue;
            }
            received += arrived;
            self.tally.taken(arrived);
            let now_ns = self.now_ns();
            for (bytes, from) in incoming.datagrams() {
                self.judge(group, bytes, &from, now_ns);
            }
        }
        Ok(received)
    }

    fn judge(&mut self, group: usize, bytes: &[u8], from: &Name, now_ns: u64) {
        if !from.is(&self.wires[group].to) {
            return self.tally.wrong("from another address than was asked");
        }
        let (transaction, reply) = match udp::read(bytes) {
            Ok(read) => read,
            Err(what) => return self.tally.wrong(what),
        };
        if transaction & UNPROVEN != 0 {
            self.tally.step.answered_unproven += 1;
            return;
        }
        if transaction & FLOOD != 0 {
            self.tally.step.flood_connects_answered += 1;
            return;
        }
        let (request, number) = match self.flight.arrive(transaction) {
            Arrival::Expected(request, number) => (request, number),
            Arrival::Late => {
                self.tally.step.late += 1;
                return;
            }
            Arrival::Unknown => return self.tally.wrong("transaction id"),
        };
        let others_due = self.flight.waiting() > 0;
        self.tally.answered(name(&reply), &request, now_ns, others_due);
        if usize::from(request.group) != group {
            self.tally.wrong("family");
        }
        self.learn(&request, &reply, now_ns);
        let one_in = u64::from(self.run.check);
        if one_in > 0 && number.is_multiple_of(one_in) {
            self.tally.step.checked += 1;
            let alone = !self.run.shared;
            if let Err(what) = check(&self.population, &request, number, &reply, alone) {
                self.tally.wrong(what);
            }
        }
    }

    /// What a client takes from an answer
    fn learn(&mut self, request: &Request, reply: &Reply<'_>, now_ns: u64) {
        let group = usize::from(request.group);
        match (request.kind, reply) {
            (Kind::Connect, Reply::Connect { connection_id }) => {
                self.clients.got(group, request.source, *connection_id, now_ns);
            }
            (Kind::Announce { stopped }, Reply::Announce { peers, .. }) => {
                let compact_len = self.population.groups[group].compact_len();
                self.tally.step.peers += (peers.len() / compact_len) as u64;
                if stopped {
                    let departed = self.flight.departed();
                    self.population.confirm_gone(group, request.subject, departed);
                }
            }
            (_, Reply::Error) => self.clients.doubt(group, request.source, request.sent_ns),
            _ => {}
        }
    }

    /// Gives up what has waited too long
    pub(super) fn expire(&mut self, now_ns: u64) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns());
        while let Some(request) = self.flight.expire(before_ns) {
            self.lost(&request, now_ns);
        }
    }

    pub(super) fn lost(&mut self, request: &Request, now_ns: u64) {
        self.tally.lost(now_ns);
        let group = usize::from(request.group);
        self.clients.doubt(group, request.source, request.sent_ns);
        if self.entering && matches!(request.kind, Kind::Announce { .. }) {
            self.to_repeat.push((group, request.subject));
        }
    }
}

fn name(reply: &Reply<'_>) -> &'static str {
    match reply {
        Reply::Connect { .. } => "connect",
        Reply::Announce { .. } => "announce",
        Reply::Scrape { .. } => "scrape",
        Reply::Error => "error",
    }
}
