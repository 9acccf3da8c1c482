//! Switches steering off while it overloads one shard, and on again.
//!
//! The steering program delivers every announce of an info hash to the shard that owns it, before the connection id is
//! checked. Thus a flood of forged announces for one info hash overloads one shard while others are idle. Without the
//! program the kernel distributes datagrams by address and port: all shards check connection ids, and only announces
//! with a valid one are forwarded.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tsubame_udp::steering::{SteeringKeys, attach, detach};

/// Busy share of a shard, from 0 to 1, from which it may be overloaded.
const OVERLOADED: f64 = 0.9;

/// Busy share of a shard, from 0 to 1, up to which it counts as idle.
const IDLE: f64 = 0.6;

/// Number of datagrams per second that the kernel drops at the sockets of a shard, from which the shard is overloaded.
const DROPPED_PER_SECOND: u64 = 100;

/// Number of times per second that datagrams wait for receive buffers, from which a busy shard is overloaded.
const WAITED_PER_SECOND: u64 = 100;

/// Number of consecutive seconds of overload after which steering is switched off.
const SECONDS_BEFORE_DETACH: u32 = 2;

/// Minimum time for which steering stays off. It is doubled each time that overload returns soon.
const OFF_MIN: Duration = Duration::from_secs(30);

/// Maximum time that steering stays off.
const OFF_MAX: Duration = Duration::from_secs(480);

/// Number of consecutive seconds without overload before steering is switched on.
const CALM_SECONDS: u32 = 5;

/// Load of a shard since the last check, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardLoad {
    /// Processor time of the thread as a share of the second, from 0 to 1.
    pub busy: f64,
    /// Number of datagrams that the kernel dropped at the sockets of the shard.
    pub dropped: u64,
    /// Number of times that datagrams waited in the kernel because all receive buffers of the shard were in use.
    pub waited: u64,
}

impl ShardLoad {
    fn is_overloaded(self) -> bool {
        // A shard that is busy with something else, such as eviction, does not run out of buffers.
        let is_behind = self.busy >= OVERLOADED && self.waited >= WAITED_PER_SECOND;
        is_behind || self.dropped >= DROPPED_PER_SECOND
    }
}

/// A change of steering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteeringChange {
    /// Steering was switched off because this shard was overloaded.
    Detached(usize),
    /// Steering was switched on again.
    Attached,
}

/// Decides when steering is switched off and on.
#[derive(Debug)]
struct SteeringDecision {
    attached: bool,
    overloaded_seconds: u32,
    calm_seconds: u32,
    changed_at: Duration,
    off_duration: Duration,
}

impl SteeringDecision {
    fn new() -> Self {
        Self {
            attached: true,
            overloaded_seconds: 0,
            calm_seconds: 0,
            changed_at: Duration::ZERO,
            off_duration: OFF_MIN,
        }
    }

    /// Evaluates the load of all shards in the last second, and returns a change that is due.
    fn observe(&mut self, now: Duration, loads: &[ShardLoad]) -> Option<SteeringChange> {
        let overloaded = loads.iter().position(|load| load.is_overloaded());
        if !self.attached {
            self.calm_seconds = if overloaded.is_none() { self.calm_seconds + 1 } else { 0 };
            let is_due =
                now - self.changed_at >= self.off_duration && self.calm_seconds >= CALM_SECONDS;
            return is_due.then(|| {
                (self.attached, self.changed_at, self.overloaded_seconds) = (true, now, 0);
                SteeringChange::Attached
            });
        }
        let others_idle = loads.iter().any(|load| load.busy <= IDLE && load.dropped == 0);
        let shard = overloaded.filter(|_| others_idle);
        self.overloaded_seconds = shard.map_or(0, |_| self.overloaded_seconds + 1);
        if self.overloaded_seconds < SECONDS_BEFORE_DETACH {
            return None;
        }
        // Overload that returns soon after steering was switched on had not ended.
        let soon = self.changed_at > Duration::ZERO && now - self.changed_at < OFF_MIN;
        self.off_duration = if soon { (self.off_duration * 2).min(OFF_MAX) } else { OFF_MIN };
        (self.attached, self.changed_at, self.calm_seconds) = (false, now, 0);
        shard.map(SteeringChange::Detached)
    }
}

/// Switches the steering program of all groups of sockets off and on.
#[derive(Debug)]
pub struct Steering {
    /// A socket of each group.
    groups: Vec<OwnedFd>,
    keys: SteeringKeys,
    shards: u16,
    decision: SteeringDecision,
    /// Number of times that steering was switched off.
    detach_count: u64,
}

impl Steering {
    /// Creates the controller of groups to which the program is attached.
    pub fn new(groups: Vec<OwnedFd>, keys: SteeringKeys, shards: u16) -> Self {
        Self { groups, keys, shards, decision: SteeringDecision::new(), detach_count: 0 }
    }

    /// Returns whether the kernel steers now.
    pub fn is_attached(&self) -> bool {
        self.decision.attached && !self.groups.is_empty()
    }

    /// Returns the number of times that steering was switched off.
    pub fn detach_count(&self) -> u64 {
        self.detach_count
    }

    /// Evaluates the load of all shards in the last second, and switches steering off or on if that is due.
    ///
    /// # Errors
    ///
    /// Returns the error of the kernel if the program could not be attached or detached. A detach is tried again by the
    /// next call with overload, an attach after the off time has passed once more.
    pub fn observe(
        &mut self,
        now: Duration,
        loads: &[ShardLoad],
    ) -> io::Result<Option<SteeringChange>> {
        if self.groups.is_empty() {
            return Ok(None);
        }
        let change = self.decision.observe(now, loads);
        let result = match change {
            Some(SteeringChange::Detached(_)) => self.each_group(|group| detach(group.as_fd())),
            Some(SteeringChange::Attached) => {
                self.each_group(|group| attach(group.as_fd(), &self.keys, self.shards))
            }
            None => Ok(()),
        };
        if let Err(error) = result {
            // Later calls decide again; the time of the change is not restored, so an attach waits for the off time
            // again.
            self.decision.attached = !self.decision.attached;
            return Err(error);
        }
        self.detach_count += u64::from(matches!(change, Some(SteeringChange::Detached(_))));
        Ok(change)
    }

    /// Applies a change to every group, and returns the first error after all groups were tried.
    fn each_group(&self, change: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
        self.groups.iter().map(change).fold(Ok(()), io::Result::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Repeats the loads for `count` seconds, and returns the changes with their seconds.
    fn observe_seconds(
        decision: &mut SteeringDecision,
        from: u64,
        count: u64,
        loads: [f64; 2],
    ) -> Vec<(u64, SteeringChange)> {
        // In this test, datagrams wait at every shard that is not idle.
        let waited = |busy| if busy > IDLE { 1_000 } else { 0 };
        let loads = loads.map(|busy| ShardLoad { busy, dropped: 0, waited: waited(busy) });
        let each = (from..from + count).filter_map(|second| {
            decision.observe(Duration::from_secs(second), &loads).map(|change| (second, change))
        });
        each.collect()
    }

    #[test]
    fn steering_is_off_while_one_shard_is_overloaded_and_others_idle() {
        use SteeringChange::{Attached, Detached};
        let mut decision = SteeringDecision::new();
        assert_eq!(observe_seconds(&mut decision, 1, 50, [0.5, 0.2]), []);
        assert_eq!(observe_seconds(&mut decision, 51, 50, [1.0, 0.8]), [], "no shard is idle");
        assert_eq!(
            observe_seconds(&mut decision, 101, 1, [0.1, 1.0]),
            [],
            "one second of overload changes nothing"
        );
        assert_eq!(observe_seconds(&mut decision, 102, 50, [0.1, 0.1]), []);
        assert_eq!(observe_seconds(&mut decision, 152, 40, [0.1, 1.0]), [(153, Detached(1))]);
        assert_eq!(
            observe_seconds(&mut decision, 192, 20, [0.7, 0.7]),
            [(196, Attached)],
            "the overload has ended"
        );
        // The overload returns at once: steering stays off for longer.
        assert_eq!(observe_seconds(&mut decision, 212, 10, [1.0, 0.1]), [(213, Detached(0))]);
        assert_eq!(observe_seconds(&mut decision, 222, 60, [0.2, 0.2]), [(273, Attached)]);
        assert_eq!(observe_seconds(&mut decision, 400, 2, [1.0, 0.1]), [(401, Detached(0))]);
        assert_eq!(observe_seconds(&mut decision, 402, 40, [0.2, 0.2]), [(431, Attached)]);
        let idle = ShardLoad { busy: 0.1, dropped: 0, waited: 0 };
        let dropping = [ShardLoad { busy: 0.5, dropped: 5_000, ..idle }, idle];
        assert_eq!(decision.observe(Duration::from_secs(600), &dropping), None);
        assert_eq!(decision.observe(Duration::from_secs(601), &dropping), Some(Detached(0)));
        let mut decision = SteeringDecision::new();
        let evicting = [ShardLoad { busy: 1.0, ..idle }, idle];
        for second in 0..10 {
            let change = decision.observe(Duration::from_secs(second), &evicting);
            assert_eq!(change, None, "a busy shard without waiting datagrams is not overloaded");
        }
    }
}
