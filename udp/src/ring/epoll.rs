//! Finds the epoll instance of a runtime that does not expose its descriptor.

#![expect(unsafe_code, reason = "a descriptor that is known by its number only")]

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Returns a duplicate of the epoll instance that polls a descriptor of this process; `None` if it cannot be found, for
/// example because `/proc` is not mounted.
///
/// Until this function returns, that instance must stay open, and no other one may have polled the descriptor.
pub fn epoll_that_polls(descriptor: BorrowedFd<'_>) -> Option<OwnedFd> {
    let polled = descriptor.as_raw_fd().to_string();
    // The file of an epoll instance lists the descriptors that it polls, as in "tfd:       15 events: 19".
    let polls = |path: &Path| {
        let info = fs::read_to_string(path).unwrap_or_default();
        let mut targets = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
        targets.any(|line| line.split_whitespace().next() == Some(polled.as_str()))
    };
    let infos = fs::read_dir("/proc/self/fdinfo").ok()?.map_while(Result::ok);
    let found = infos.filter(|info| polls(&info.path()));
    let mut numbers = found.filter_map(|it| it.file_name().to_str()?.parse::<i32>().ok());
    let number = numbers.next()?;
    // SAFETY: the number is not negative, and it is used only to duplicate the descriptor. If another thread closed it
    // meanwhile, that fails, or duplicates another file.
    let epoll = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().ok()?;
    polls(&Path::new("/proc/self/fdinfo").join(epoll.as_raw_fd().to_string())).then_some(epoll)
}
