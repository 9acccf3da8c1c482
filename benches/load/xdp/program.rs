//! Loads the programs of `load.c`, and repeats its maps.

use aya::maps::{Array, Map, MapData, MapError};
use aya::programs::xdp::{Xdp, XdpMode};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};
use aya::{Ebpf, EbpfError};
use std::error::Error;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The compiled programs: `udp/bpf/compile` makes them of `load.c`.
const OBJECT: &[u8] = aya::include_bytes_aligned!("load.o");

/// Bytes of the map `load`.
const SETTINGS_LEN: usize = 52;

/// Length of the longest frame: an announce.
const FRAME_LEN: usize = 42 + 98;

/// Runs of `generate` in the first system call; the next ones take as many as fit into the time, because each call has
/// to wait for the frames in flight.
const FIRST_RUNS: u32 = 200_000;

/// Frames that are prepared at a time.
const BATCH: u32 = 64;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadSettings {
    pub(super) server_mac: [u8; 6],
    pub(super) client_mac: [u8; 6],
    pub(super) server: Ipv4Addr,
    pub(super) port: u16,
    pub(super) first_client: Ipv4Addr,
    pub(super) clients: u32,
    pub(super) torrents: u32,
    pub(super) numwant: u32,
    pub(super) in_flight: u32,
    pub(super) interval_ns: u32,
    pub(super) connect_below: u32,
    pub(super) announce_below: u32,
}

impl LoadSettings {
    fn entry(&self) -> [u8; SETTINGS_LEN] {
        let mut entry = [0; SETTINGS_LEN];
        let words = [
            self.first_client.to_bits(),
            self.clients,
            self.torrents,
            self.numwant,
            self.in_flight,
            self.interval_ns,
            self.connect_below,
            self.announce_below,
        ];
        let parts = self.server_mac.into_iter().chain(self.client_mac).chain(self.server.octets());
        let parts = parts.chain(words.into_iter().flat_map(u32::to_ne_bytes));
        let parts = parts.chain(self.port.to_be_bytes());
        entry.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        entry
    }
}

/// Counts since the programs were loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LoadTotals {
    pub(super) connects_sent: u64,
    pub(super) announces_sent: u64,
    pub(super) forged_sent: u64,
    pub(super) connects: u64,
    pub(super) announces: u64,
    /// Replies that are errors, or of another kind.
    pub(super) others: u64,
    pub(super) peers: u64,
}

impl LoadTotals {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            connects_sent: self.connects_sent - before.connects_sent,
            announces_sent: self.announces_sent - before.announces_sent,
            forged_sent: self.forged_sent - before.forged_sent,
            connects: self.connects - before.connects,
            announces: self.announces - before.announces,
            others: self.others - before.others,
            peers: self.peers - before.peers,
        }
    }
}

/// The programs, of which `receive` is attached to an interface until this is dropped.
pub(super) struct LoadProgram {
    ebpf: Ebpf,
    totals: Array<MapData, [u64; 8]>,
    latencies: Array<MapData, u64>,
    index: u32,
}

impl LoadProgram {
    pub(super) fn attach(
        interface: &str,
        index: u32,
        settings: &LoadSettings,
    ) -> Result<Self, String> {
        let explain = |error: &dyn Error| {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!(
                "--xdp {interface}: {error}{cause}; root is needed, and an interface that supports XDP"
            )
        };
        let mut ebpf = Ebpf::load(OBJECT).map_err(|error| explain(&error))?;
        let mut start = || -> Result<_, EbpfError> {
            // The kernel needs the maps to load the programs; those that are taken afterwards may be closed.
            program(&mut ebpf, "generate")?.load()?;
            program(&mut ebpf, "receive")?.load()?;
            let mut load: Array<MapData, [u8; SETTINGS_LEN]> =
                take(&mut ebpf, "load")?.try_into()?;
            load.set(0, settings.entry(), 0)?;
            let receive = program(&mut ebpf, "receive")?;
            if receive.attach_to_if_index(index, XdpMode::Driver).is_err() {
                receive.attach_to_if_index(index, XdpMode::Skb)?;
            }
            let totals = take(&mut ebpf, "totals")?.try_into()?;
            Ok((totals, take(&mut ebpf, "latencies")?.try_into()?))
        };
        let (totals, latencies) = start().map_err(|error| explain(&error))?;
        Ok(Self { ebpf, totals, latencies, index })
    }

    /// Sends requests for a time.
    pub(super) fn send_for(&mut self, duration: Duration) -> Result<(), String> {
        let frame = [0; FRAME_LEN];
        // The fields of xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, FRAME_LEN as u32, 0, self.index, 0, 0].map(u32::to_ne_bytes);
        let (start, mut runs) = (now(), 0.0_f64);
        loop {
            let elapsed = start.elapsed();
            let Some(rest) = duration.checked_sub(elapsed).filter(|rest| !rest.is_zero()) else {
                return Ok(());
            };
            let per_second = runs / elapsed.as_secs_f64().max(1e-9);
            let repeat = match runs {
                0.0 => FIRST_RUNS,
                _ => (per_second * rest.as_secs_f64()).clamp(10_000.0, 1e9) as u32,
            };
            runs += f64::from(repeat);
            let options = TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(context.as_flattened()),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            let run = program(&mut self.ebpf, "generate").map(|program| program.test_run(options));
            match run {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(format!("sending frames: {error}")),
                Err(error) => return Err(format!("sending frames: {error}")),
            }
        }
    }

    pub(super) fn totals(&self) -> Result<LoadTotals, String> {
        let at = |position: u32| {
            let total = self.totals.get(&position, 0).map_err(|error| error.to_string());
            total.map(|[count, ..]| count)
        };
        Ok(LoadTotals {
            connects_sent: at(0)?,
            announces_sent: at(1)?,
            forged_sent: at(2)?,
            connects: at(8)?,
            announces: at(9)?,
            others: at(10)?,
            peers: at(11)?,
        })
    }

    /// Returns the numbers of replies by class of latency.
    pub(super) fn latencies(&self) -> Result<Vec<u64>, String> {
        self.latencies.iter().collect::<Result<_, _>>().map_err(|error: MapError| error.to_string())
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, MapError> {
    ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, EbpfError> {
    use aya::programs::ProgramError;
    let program = ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType);
    program.and_then(TryInto::try_into).map_err(EbpfError::from)
}

#[expect(clippy::disallowed_methods, reason = "the duration of a run")]
pub(super) fn now() -> Instant {
    Instant::now()
}
