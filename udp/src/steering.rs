//! Decides which shard owns an info hash, in Rust and in the kernel.
//!
//! Each info hash belongs to one shard. The same function is used for messages between shards and as a classic BPF
//! program on the SO_REUSEPORT group, by which the kernel delivers announces and scrapes to the socket of the shard
//! that owns their first info hash. Other datagrams (connects, short datagrams) are distributed by the kernel by
//! address and port.

use tsubame_storage::InfoHash;

/// Maximum number of shards: the function scales 16 bits to their number.
pub const SHARDS_MAX: u16 = 1024;

/// Number of random words from which steering keys are made.
pub const KEY_WORDS: usize = 2 * WORDS;

/// Number of 32-bit words of an info hash.
const WORDS: usize = 5;

/// Shift by which the mix is folded after each word.
const SHIFT: u32 = 15;

/// Multiplier of the final step, which mixes the bits of the last word as well as those of the words before.
const FINAL_MULTIPLIER: u32 = 0x9e37_79b1;

/// Random keys of the function that decides which shard owns an info hash.
///
/// Each word of an info hash has two keys: one is added, one multiplies. All words count: otherwise info hashes with a
/// common prefix would all belong to one shard. A shift after each step makes the function nonlinear: without the keys,
/// an attacker cannot find info hashes that belong to one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeringKeys {
    added: [u32; WORDS],
    multipliers: [u32; WORDS],
}

impl SteeringKeys {
    /// Creates keys from random words. Multipliers are made odd, so that no bit of a word is lost.
    pub fn new(words: [u32; KEY_WORDS]) -> Self {
        let (added, multipliers) =
            (std::array::from_fn(|at| words[at]), std::array::from_fn(|at| words[WORDS + at] | 1));
        Self { added, multipliers }
    }

    /// Returns the shard, of `shards`, that owns an info hash.
    ///
    /// For each word: `mix = (mix ^ word) + added`, `mix *= multiplier`, `mix ^= mix >> 15`, modulo 2^32. At the end
    /// the mix is multiplied and folded once more, and multiplied by the first multiplier; its upper 16 bits are scaled
    /// to the number of shards.
    pub fn owner(&self, info_hash: &InfoHash, shards: u16) -> u16 {
        let (words, _) = info_hash.0.as_chunks::<4>();
        let keys = self.added.iter().zip(&self.multipliers);
        let mix = words.iter().zip(keys).fold(0_u32, |mix, (word, (added, multiplier))| {
            let mix = (mix ^ u32::from_be_bytes(*word)).wrapping_add(*added);
            let mix = mix.wrapping_mul(*multiplier);
            mix ^ mix >> SHIFT
        });
        let mix = mix.wrapping_mul(FINAL_MULTIPLIER);
        let mix = (mix ^ mix >> SHIFT).wrapping_mul(self.multipliers[0]);
        (((mix >> 16) * u32::from(shards)) >> 16) as u16
    }
}

#[cfg(feature = "ring")]
pub use program::{attach, detach};

#[cfg(feature = "ring")]
mod program {
    use super::{FINAL_MULTIPLIER, SHIFT, SteeringKeys};
    use crate::ring::{set_option, set_reuseport_program};
    use crate::wire::{
        ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ACTION_SCRAPE, INFO_HASH_OFFSET, SCRAPE_LEN_MIN,
        header,
    };
    use libc::{
        BPF_ADD, BPF_ALU, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC,
        BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX, BPF_W, BPF_X, BPF_XOR, sock_filter,
    };
    use std::io;
    use std::os::fd::BorrowedFd;

    const BPF_ABS: u32 = 0x20;
    const BPF_LEN: u32 = 0x80;
    const BPF_A: u32 = 0x10;

    /// Index that no group has: the kernel then selects a socket by address and port.
    const NO_SOCKET: u32 = u32::MAX;

    /// Has the kernel select the socket of a group by the info hash.
    ///
    /// `socket` may be any socket of the group; socket `i` in the order of binding must belong to shard `i`. No
    /// privilege is needed.
    pub fn attach(socket: BorrowedFd<'_>, keys: &SteeringKeys, shards: u16) -> io::Result<()> {
        set_reuseport_program(socket, &mut program(keys, shards))
    }

    /// Has the kernel select the socket of a group by address and port again.
    pub fn detach(socket: BorrowedFd<'_>) -> io::Result<()> {
        set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0)
    }

    fn instruction(code: u32, operand: u32) -> sock_filter {
        sock_filter { code: code as u16, jt: 0, jf: 0, k: operand }
    }

    fn jump(code: u32, operand: u32, if_true: u8, if_false: u8) -> sock_filter {
        sock_filter { jt: if_true, jf: if_false, ..instruction(BPF_JMP | code | BPF_K, operand) }
    }

    /// Returns the BPF program. Offset 0 is the first byte of the UDP payload; words are loaded as big-endian.
    ///
    /// The program computes the same function as [`SteeringKeys::owner`].
    fn program(keys: &SteeringKeys, shards: u16) -> Vec<sock_filter> {
        let load = |offset: usize| instruction(BPF_LD | BPF_W | BPF_ABS, offset as u32);
        let mut steer = Vec::new();
        let (alu, mix) =
            (|operation: u32, operand| instruction(BPF_ALU | operation | BPF_K, operand), 0);
        let with_x = |operation: u32| instruction(BPF_ALU | operation | BPF_X, 0);
        for (word, (added, multiplier)) in keys.added.iter().zip(&keys.multipliers).enumerate() {
            steer.push(load(INFO_HASH_OFFSET + 4 * word));
            if word > 0 {
                steer.push(instruction(BPF_LDX | BPF_MEM, mix));
                steer.push(with_x(BPF_XOR));
            }
            steer.push(alu(BPF_ADD, *added));
            steer.push(alu(BPF_MUL, *multiplier));
            steer.push(instruction(BPF_MISC | BPF_TAX, 0));
            steer.push(alu(BPF_RSH, SHIFT));
            steer.push(with_x(BPF_XOR));
            steer.push(instruction(BPF_ST, mix));
        }
        steer.push(alu(BPF_MUL, FINAL_MULTIPLIER));
        steer.push(instruction(BPF_MISC | BPF_TAX, 0));
        steer.push(alu(BPF_RSH, SHIFT));
        steer.push(with_x(BPF_XOR));
        steer.push(alu(BPF_MUL, keys.multipliers[0]));
        steer.push(alu(BPF_RSH, 16));
        steer.push(alu(BPF_MUL, u32::from(shards)));
        steer.push(alu(BPF_RSH, 16));
        steer.push(instruction(BPF_RET | BPF_A, 0));
        let to_end = steer.len() as u8;
        let mut program = vec![
            instruction(BPF_LD | BPF_W | BPF_LEN, 0),
            jump(BPF_JGE, SCRAPE_LEN_MIN as u32, 0, to_end + 4),
            load(header::ACTION.start),
            jump(BPF_JEQ, ACTION_ANNOUNCE, 2, 0),
            jump(BPF_JEQ, ACTION_ANNOUNCE_V6, 1, 0),
            jump(BPF_JEQ, ACTION_SCRAPE, 0, to_end),
        ];
        program.extend(steer);
        program.push(instruction(BPF_RET | BPF_K, NO_SOCKET));
        program
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(rng: &mut fastrand::Rng) -> SteeringKeys {
        SteeringKeys::new(std::array::from_fn(|_| rng.u32(..)))
    }

    #[test]
    fn owners_are_distributed_evenly_whichever_word_varies() {
        let mut rng = fastrand::Rng::with_seed(1);
        for shards in [1, 2, 3, 4, 16] {
            for word in 0..5 {
                let keys = keys(&mut rng);
                let mut owned = vec![0_u32; usize::from(shards)];
                for number in 0..16_384_u32 {
                    let mut info_hash = InfoHash([0x33; 20]);
                    let varied = number.wrapping_mul(0x0001_0193).to_be_bytes();
                    info_hash.0[word * 4..][..4].copy_from_slice(&varied);
                    owned[usize::from(keys.owner(&info_hash, shards))] += 1;
                }
                let fair = 16_384 / u32::from(shards);
                let off = owned.iter().map(|owned| owned.abs_diff(fair)).max().unwrap();
                assert!(off < fair / 4 + 1, "word {word}, {shards} shards: {owned:?}");
            }
        }
    }

    /// The owner of an info hash, and whether two info hashes have the same owner, depend on the keys.
    #[test]
    fn owners_cannot_be_predicted_without_the_keys() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut differences: Vec<[u8; 20]> = (0..160)
            .map(|bit| {
                let mut difference = [0; 20];
                difference[bit / 8] = 1 << (bit % 8);
                difference
            })
            .collect();
        // The upper bits of two words, which would cancel out if the function had only products and sums.
        for (a, b) in (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b))) {
            let mut difference = [0; 20];
            (difference[4 * a], difference[4 * b]) = (0x80, 0x80);
            differences.push(difference);
        }
        differences.push([0xff; 20]);
        for info_hash in [InfoHash([0; 20]), InfoHash([0xff; 20]), InfoHash([0x5a; 20])] {
            let mut owned = [0_u32; 4];
            let mut same = vec![0_u32; differences.len()];
            for _ in 0..4_000 {
                let keys = keys(&mut rng);
                let owner = keys.owner(&info_hash, 4);
                owned[usize::from(owner)] += 1;
                for (difference, same) in differences.iter().zip(&mut same) {
                    let other = std::array::from_fn(|at| info_hash.0[at] ^ difference[at]);
                    *same += u32::from(keys.owner(&InfoHash(other), 4) == owner);
                }
            }
            assert!(owned.iter().all(|count| (850..1_150).contains(count)), "{owned:?}");
            // By chance 1,000 of 4,000 are equal; the bits of the last word are mixed with the fewest others.
            assert!(same.iter().all(|count| (400..1_600).contains(count)), "{same:?}");
        }
    }
}
