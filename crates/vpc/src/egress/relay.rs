//! One connection carried on: bytes both ways until both ends are done.
//!
//! Invariant: a connection that cannot be carried on is reset, not closed, so that nobody takes it
//! for an empty answer.

use socket2::SockRef;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

/// Carries until both directions have ended; an error in one ends both.
pub(super) async fn carry(mut inner: TcpStream, mut outer: TcpStream) {
    for stream in [&inner, &outer] {
        // It costs latency at worst.
        let _ = stream.set_nodelay(true);
    }
    if let Err(error) = copy_bidirectional(&mut inner, &mut outer).await {
        tracing::trace!(%error, "a connection out of an instance broke off");
        refuse(inner);
        refuse(outer);
    }
}

/// Ends a connection with a reset.
pub(super) fn refuse(stream: TcpStream) {
    // One that is gone already needs no reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
