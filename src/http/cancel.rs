//! Cancels operations of tokio-uring, which has no function for it.

use io_uring_of_tokio::cqueue;
use io_uring_of_tokio::opcode::AsyncCancel2;
use io_uring_of_tokio::types::{CancelBuilder, Fd};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use tokio_uring::net::TcpListener;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Cancels the accepts that wait on a listening socket. With them the kernel would accept connections of which this
/// process would not know.
pub(super) async fn cancel_accepts(listener: Rc<TcpListener>) {
    let accepts = CancelBuilder::fd(Fd(listener.as_raw_fd())).all();
    UnsubmittedOneshot::new((), CancelResult, AsyncCancel2::new(accepts).build()).submit().await;
}

/// The result of a cancel, which is of no interest: the accepts end.
struct CancelResult;

impl OneshotOutputTransform for CancelResult {
    type Output = ();
    type StoredData = ();

    fn transform_oneshot_output(self, (): (), _: cqueue::Entry) {}
}
