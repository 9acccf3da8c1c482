//! The limit on locked memory, for messages.

/// Returns the limit as text.
pub(crate) fn locked_memory_limit() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    limit.current.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
}
