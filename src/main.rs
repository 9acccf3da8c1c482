//! The program: see `tsubame --help`.

#![forbid(unsafe_code)]

fn main() {}
