//! Client programs of sampled announces, sent from a shard to the control plane.

use rtrb::{Consumer, Producer, RingBuffer};
use tsubame_storage::PeerId;

/// Maximum number of samples of a shard between two reads of the control plane, which reads once a second.
const SAMPLES_MAX: usize = 256;

/// The first bytes of a peer id, which identify the client program and its version (BEP 20).
pub type ClientPrefix = [u8; 8];

/// End of the queue on which a shard adds samples.
#[derive(Debug)]
pub struct ClientSamples(Producer<ClientPrefix>);

/// End of the queue from which the control plane reads samples.
pub type SampleReader = Consumer<ClientPrefix>;

impl ClientSamples {
    /// Creates a queue.
    pub fn new() -> (Self, SampleReader) {
        let (producer, consumer) = RingBuffer::new(SAMPLES_MAX);
        (Self(producer), consumer)
    }

    /// Returns whether the queue can take another sample.
    pub fn wants_more(&self) -> bool {
        !self.0.is_full()
    }

    /// Adds the program of an announce. If the queue is full, nothing happens.
    pub fn add(&mut self, peer_id: &PeerId) {
        let prefix = peer_id.0.first_chunk().copied().unwrap_or_default();
        let _ = self.0.push(prefix);
    }
}
