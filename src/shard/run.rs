//! The main loop of a shard, as a task on the runtime of its thread.

use super::datapath::RingDatapath;
use super::runtime_watch::{DueTasks, RING_WAIT_MAX, RuntimeWatch};
use super::{NextStep, Shard};
use crate::http::{self, HttpResources};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;
use tsubame_udp::ring::WatchMode;

/// Steps of a busy shard without connections after which accepts and closes of HTTP are submitted to the kernel.
const STEPS_PER_SUBMIT: u32 = 64;

/// How long the operations of the datapath may take to end when the shard stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// How often messages are handled while connections end when the shard stops.
const STOP_INTERVAL: Duration = Duration::from_millis(2);

impl<D: RingDatapath> Shard<D> {
    /// Serves until the control plane stops the shard.
    pub async fn run(mut self, http: HttpResources) -> io::Result<()> {
        let event = awaitable(self.udp.datapath.ring().event().try_clone_to_owned()?)?;
        let waker = self.node().endpoint.wakeup_receiver();
        let clock = self.node().clock;
        let ring = self.udp.datapath.ring();
        let mesh = ring.add_watch(waker.event().try_clone_to_owned()?, WatchMode::Always);
        ring.set_watch_enabled(mesh, true)?;
        let mut runtime = RuntimeWatch::new(ring, event.as_fd(), clock.elapsed());
        let http = http::serve(http, &self.node)?;
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        // Nothing awaits the ticks while the shard waits in its ring: otherwise all missed ones would fire at once.
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut steps: u32 = 0;
        loop {
            let (now, ring) = (clock.elapsed(), self.udp.datapath.ring());
            if runtime.permits_ring_wait(ring, now, http.has_connections())? {
                if self.step_with_wait(RING_WAIT_MAX)? == NextStep::Stop {
                    break;
                }
                let due = runtime.due_tasks(self.udp.datapath.ring(), clock.elapsed());
                run_tasks(due).await?;
                continue;
            }
            match self.step()? {
                NextStep::Continue => {
                    steps = steps.wrapping_add(1);
                    if http.has_connections() || steps.is_multiple_of(STEPS_PER_SUBMIT) {
                        // tokio-uring submits its operations only before it waits, and a task that yields keeps it
                        // from waiting: awaiting an operation makes it submit.
                        tokio_uring::no_op().await?;
                    } else {
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                NextStep::Stop => break,
                NextStep::Sleep => {}
            }
            tokio::select! {
                biased;
                ready = event.readable() => {
                    reset(event.get_ref());
                    ready?.clear_ready();
                }
                () = waker.notified() => {}
                _ = seconds.tick() => {}
            }
            self.wake_up();
        }
        let keeps_listeners = self.node().keeps_listeners;
        http.stop(keeps_listeners);
        while !http.has_stopped() {
            // Other shards may wait for replies from this one, and this one for theirs.
            let now = self.node().clock.now();
            self.handle_messages(now)?;
            self.node.borrow_mut().scan(now);
            self.node.borrow_mut().endpoint.notify();
            tokio::time::sleep(STOP_INTERVAL).await;
        }
        self.node_mut().finish_export();
        self.node_mut().send_published();
        self.publish();
        self.udp.datapath.stop(STOP_TIMEOUT);
        // The process is about to end: freeing gigabytes would only delay that.
        std::mem::forget(self);
        Ok(())
    }
}

/// Has the runtime look for events and timers, run the tasks that wait for those, and submit their operations.
async fn run_tasks(due: DueTasks) -> io::Result<()> {
    if due != DueTasks::None {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    if due == DueTasks::Events {
        // The runtime submits operations only before it waits. Awaiting one makes it wait.
        tokio_uring::no_op().await?;
    }
    Ok(())
}

#[expect(
    deprecated,
    reason = "deprecated because types that can change their descriptor are unsound here; an OwnedFd cannot"
)]
fn awaitable(event: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(event, Interest::READABLE)
}

/// Resets the counter of a nonblocking eventfd.
fn reset(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0; 8]);
}
