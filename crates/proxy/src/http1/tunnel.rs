//! After a 101: bytes in both directions until both sides have ended.

use super::body::Framing;
use super::wire::{BodyIn, BodyOut, Encoding};
use crate::buffer::Buffer;
use crate::record::ProxyStatus;
use crate::relay::Relay;
use crate::request::{Attempt, AttemptContext, ClientBody, ClientOut};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Carries a WebSocket. It ends when either side ends, or at the request's timeout; what was under way
/// in the other direction is still delivered.
pub(crate) async fn tunnel<B: ClientBody, O: ClientOut>(
    context: &mut AttemptContext<'_, '_>,
    stream: &RefCell<TcpStream>,
    inbox: &mut Buffer,
    source: &mut B,
    mut out: O,
) -> Attempt {
    source.become_tunnel();
    let mut up = Relay::new(source, BodyOut::new(stream, Vec::new(), Encoding::Plain));
    let started = poll_fn(|cx| out.poll_flush(cx)).await;
    let mut down = Relay::new(BodyIn::new(stream, inbox, Framing::UntilClose, false), out);
    let ends_at = context.ends_at;
    let mut upstream_shut = false;
    let deadline = &mut context.deadline;
    let ended = poll_fn(|cx| {
        let up_state = up.poll(cx);
        if up_state.is_ready() && !upstream_shut {
            upstream_shut = Pin::new(&mut *stream.borrow_mut()).poll_shutdown(cx).is_ready();
        }
        let down_state = down.poll(cx);
        match (up_state, down_state) {
            (_, Poll::Ready(_)) | (Poll::Ready(Err(_)), _) => Poll::Ready(true),
            _ => deadline.poll(ends_at, cx).map(|()| false),
        }
    })
    .await;
    let record = &mut context.forwarding.record;
    record.request_bytes += up.passed;
    record.response_bytes = down.drain.sent();
    if !ended || started.is_err() {
        let details = if ended { "by the client" } else { "at the request's timeout" };
        record.proxy_status = Some(ProxyStatus::new("connection_terminated", details));
        return Attempt::Broken;
    }
    Attempt::Ended { request_read: false }
}
