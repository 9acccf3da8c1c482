//! Who owns an info hash, in Rust and in the kernel.
//!
//! Each info hash belongs to one shard. The same function decides that everywhere: here for the mesh, and
//! as a classic BPF program on the SO_REUSEPORT group, so that the kernel puts announces and scrapes into
//! the queue of the shard that owns their first info hash. What the program does not understand (connects,
//! short datagrams) falls back to the kernel's own choice by address and port.

use tsubame_storage::InfoHash;

/// Shards a group can have: the function scales 16 bits to their number
pub const SHARDS_MAX: u16 = 1024;

/// Random odd keys, one for each 32-bit word of an info hash
///
/// All words count: with fewer, info hashes with a common prefix would all land on one shard, and finding
/// such ones is what an attacker would do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeringKeys([u32; 5]);

impl SteeringKeys {
    /// Keys from random words; they are made odd, so that no bit of a word is lost
    pub fn new(words: [u32; 5]) -> Self {
        Self(words.map(|word| word | 1))
    }

    /// The shard that owns an info hash, of so many
    ///
    /// Sum of word times key modulo 2^32, the upper 16 bits scaled to the number of shards.
    pub fn owner(&self, info_hash: &InfoHash, shards: u16) -> u16 {
        let (words, _) = info_hash.0.as_chunks::<4>();
        let products = words.iter().zip(self.0);
        let sum = products.fold(0_u32, |sum, (word, key)| {
            sum.wrapping_add(u32::from_be_bytes(*word).wrapping_mul(key))
        });
        (((sum >> 16) * u32::from(shards)) >> 16) as u16
    }
}

#[cfg(feature = "ring")]
pub use program::{attach, detach};

#[cfg(feature = "ring")]
mod program {
    use super::SteeringKeys;
    use crate::ring::set_option;
    use crate::wire::{ACTION_ANNOUNCE, ACTION_SCRAPE, INFO_HASH_OFFSET, SCRAPE_LEN_MIN, header};
    use libc::{
        BPF_ADD, BPF_ALU, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MUL,
        BPF_RET, BPF_RSH, BPF_ST, BPF_W, BPF_X, sock_filter, sock_fprog,
    };
    use std::io;
    use std::os::fd::BorrowedFd;

    const BPF_ABS: u32 = 0x20;
    const BPF_LEN: u32 = 0x80;
    const BPF_A: u32 = 0x10;

    /// An index no group has: the kernel then chooses by address and port
    const NO_SOCKET: u32 = u32::MAX;

    /// Has the kernel choose among the sockets of a group by the info hash
    ///
    /// `socket` may be any of the group; socket `i` in the order of binding must belong to shard `i`.
    /// Needs no privilege.
    pub fn attach(socket: BorrowedFd<'_>, keys: &SteeringKeys, shards: u16) -> io::Result<()> {
        let mut filter = program(keys, shards);
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
    }

    /// Leaves the choice to the kernel again
    pub fn detach(socket: BorrowedFd<'_>) -> io::Result<()> {
        set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &0_i32)
    }

    fn instruction(code: u32, operand: u32) -> sock_filter {
        sock_filter { code: code as u16, jt: 0, jf: 0, k: operand }
    }

    fn jump(code: u32, operand: u32, if_true: u8, if_false: u8) -> sock_filter {
        sock_filter { jt: if_true, jf: if_false, ..instruction(BPF_JMP | code | BPF_K, operand) }
    }

    /// Offset 0 is the first byte of the UDP payload; words are loaded big-endian
    fn program(keys: &SteeringKeys, shards: u16) -> Vec<sock_filter> {
        let load = |offset: usize| instruction(BPF_LD | BPF_W | BPF_ABS, offset as u32);
        let mut steer = Vec::new();
        for (word, key) in keys.0.iter().enumerate() {
            steer.push(load(INFO_HASH_OFFSET + 4 * word));
            steer.push(instruction(BPF_ALU | BPF_MUL | BPF_K, *key));
            if word > 0 {
                steer.push(instruction(BPF_LDX | BPF_MEM, 0));
                steer.push(instruction(BPF_ALU | BPF_ADD | BPF_X, 0));
            }
            steer.push(instruction(BPF_ST, 0));
        }
        steer.push(instruction(BPF_ALU | BPF_RSH | BPF_K, 16));
        steer.push(instruction(BPF_ALU | BPF_MUL | BPF_K, u32::from(shards)));
        steer.push(instruction(BPF_ALU | BPF_RSH | BPF_K, 16));
        steer.push(instruction(BPF_RET | BPF_A, 0));
        let to_end = steer.len() as u8;
        let mut program = vec![
            instruction(BPF_LD | BPF_W | BPF_LEN, 0),
            jump(BPF_JGE, SCRAPE_LEN_MIN as u32, 0, to_end + 3),
            load(header::ACTION.start),
            jump(BPF_JEQ, ACTION_ANNOUNCE, 1, 0),
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

    #[test]
    fn owners_are_spread_evenly_whatever_word_varies() {
        let keys =
            SteeringKeys::new([0x9e37_79b9, 0x7f4a_7c15, 0xf39c_c060, 0x5ced_c834, 0x1082_276b]);
        for shards in [1, 2, 3, 4, 16] {
            for word in 0..5 {
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
}
