//! The program: see `tsubame --help`.

#![forbid(unsafe_code)]

/// Global allocator. mimalloc returns memory to the kernel after a flood; benches/README.md has the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    tsubame::cli::main(&[])
}
