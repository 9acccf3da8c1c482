//! Operations on the swarm table and on a simple model, which must agree.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../storage/tests/model/mod.rs"]
mod model;

fuzz_target!(|bytes: &[u8]| {
    let [first, second, rest @ ..] = bytes else { return };
    let peers = [3, 12, 80, 2_000][usize::from(first & 3)];
    let cap = |bits: u8, limit: u32| if bits == 0 { 0 } else { limit * u32::from(bits) };
    let caps = tsubame_storage::Caps {
        swarm: cap(first >> 2 & 3, 20),
        per_ipv4: cap(first >> 4 & 3, 2),
        per_ipv6_64: cap(first >> 6, 1),
    };
    let mut checker = model::Checker::new(u64::from(*second), peers, caps);
    for operation in rest.as_chunks::<5>().0 {
        match *operation {
            // Time without sweeps, as when the process is stopped.
            [0xff, high, low, ..] => {
                checker.wait_without_sweeps(u64::from(u16::from_be_bytes([high, low])))
            }
            operation => checker.apply(model::Operation::from_bytes(operation)),
        }
    }
    if rest.len() % 5 == 4 {
        checker.finish();
    }
});
