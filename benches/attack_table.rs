//! Prints how an attack on the memory of the swarm table affects honest clients; `benches/README.md` has the results.
//!
//! `attack [MIB]`: memory limit of the table, 64 by default. Each row has a number of /24 networks that attack.

use tsubame_bench::attack::{AttackParameters, simulate};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mib: usize =
        std::env::args().nth(1).map_or(64, |text| text.parse().expect("MIB must be a number"));
    println!(
        "networks | honest peers | honest torrents | new torrents | attack stored |  memory used"
    );
    for networks in [0, 1, 16, 256, 4_096] {
        let outcome = simulate(AttackParameters { memory_bytes: mib << 20, networks, seed: 1 });
        println!(
            "{networks:8} | {:10.2} % | {:13.2} % | {:10.2} % | {:11.2} % | {:10.2} %",
            outcome.peers_kept,
            outcome.torrents_kept,
            outcome.new_torrents_stored,
            outcome.attack_stored,
            outcome.memory_used_percent
        );
    }
}
