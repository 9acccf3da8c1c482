//! Bodies of responses that are made while they are sent.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use std::pin::Pin;
use std::task::{Context, Poll};
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// A shard did not answer: it is stuck, or the tracker is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a shard has not answered in time; see /healthz")]
pub struct ShardTimeout;

/// Number of parts that are made ahead of the client.
const PARTS_AHEAD: usize = 2;

/// Sends the parts of a body; fails when the client has gone. An error part ends the connection, so that the client
/// does not take an incomplete body for a complete one.
pub(super) type PartSender = Sender<Result<Bytes, ShardTimeout>>;

/// Extension of a response whose body is made while it is sent: the client may take longer to read it.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamedBody;

/// Returns a response with a streamed body.
pub(super) fn response(content_type: &'static str, body: Body) -> Response {
    (Extension(StreamedBody), [(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Returns a body, and the sender of its parts.
pub(super) fn body() -> (PartSender, Body) {
    let (sender, parts) = channel(PARTS_AHEAD);
    (sender, Body::new(PartsBody(parts)))
}

/// A body that consists of the parts from a channel.
struct PartsBody(Receiver<Result<Bytes, ShardTimeout>>);

impl hyper::body::Body for PartsBody {
    type Data = Bytes;
    type Error = ShardTimeout;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ShardTimeout>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
    }
}
