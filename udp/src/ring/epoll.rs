//! Finds the epoll instance of a runtime that does not tell its descriptor.

#![expect(unsafe_code, reason = "a descriptor that is known by its number only")]

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Returns a duplicate of the epoll instance that polls a descriptor of this process; `None` if it cannot be found, for
/// example because `/proc` is not mounted.
///
/// The instance must exist until this function returns.
pub fn epoll_that_polls(descriptor: BorrowedFd<'_>) -> Option<OwnedFd> {
    let polled = descriptor.as_raw_fd().to_string();
    // An epoll instance lists its targets, as in "tfd:       15 events: 19".
    let polls = |info: &str| {
        let mut targets = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
        targets.any(|line| line.split_whitespace().next() == Some(polled.as_str()))
    };
    let infos = fs::read_dir("/proc/self/fdinfo").ok()?.map_while(Result::ok);
    let found = infos.filter(|it| fs::read_to_string(it.path()).is_ok_and(|info| polls(&info)));
    let numbers = found.filter_map(|it| it.file_name().to_str()?.parse().ok());
    let number = numbers.into_iter().next()?;
    // SAFETY: the descriptor is open: it is that of an epoll instance that exists during this call.
    let epoll = unsafe { BorrowedFd::borrow_raw(number) };
    epoll.try_clone_to_owned().ok()
}
