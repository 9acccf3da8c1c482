//! Datagrams of UDP trackers as bytes, and an io_uring that receives and sends them. The two do not depend on each
//! other.
//!
//! * [`wire`]: the datagrams of BEP 15 and the options of BEP 41
//! * [`connection_id`]: proof that a source address is not forged
//! * [`ring`]: receives and sends datagrams over io_uring
//! * [`xdp`]: has the driver answer connects and drop forged requests, and receives the others in frames
//! * [`steering`]: has the kernel deliver announces to the shard that owns the info hash
//!
//! The crate does not decide what is answered and reads no clock. `unsafe` is confined to `ring` and to the sockets
//! and links of `xdp`. Without the features `ring` and `xdp`, these modules and the BPF program of `steering` are left
//! out, so that the rest can run under Miri.

#![deny(unsafe_code)]

pub mod connection_id;
#[cfg(any(feature = "ring", feature = "xdp"))]
mod locked_memory;
#[cfg(feature = "ring")]
pub mod ring;
pub mod steering;
pub mod wire;
#[cfg(feature = "xdp")]
pub mod xdp;
