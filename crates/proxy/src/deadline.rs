//! A timer that costs nothing while things move.
//!
//! Most waits end long before their deadline, so the runtime's timer is armed once and left alone while
//! the deadline moves into the future; only when it fires is it compared with the deadline of that moment.
//!
//! Invariant: one deadline belongs to one task, whose waker never changes.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// The deadline passed before the operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// The one timer of a task.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    sleep: Option<Pin<Box<Sleep>>>,
    registered: bool,
}

impl Deadline {
    /// Ready when `at` has passed.
    pub(crate) fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
            self.registered = false;
        }
        loop {
            if self.registered && !sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.registered = sleep.as_mut().poll(cx).is_pending();
            if self.registered {
                return Poll::Pending;
            }
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }

    /// Runs `operation` until `at`.
    pub(crate) async fn until<T>(
        &mut self,
        at: Instant,
        mut operation: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Elapsed> {
        poll_fn(|cx| match operation(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => self.poll(at, cx).map(|()| Err(Elapsed)),
        })
        .await
    }

    /// Runs `operation`, which may take `span` from its first wait on.
    pub(crate) async fn within<T>(
        &mut self,
        span: Duration,
        mut operation: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Elapsed> {
        let mut at = None;
        poll_fn(|cx| match operation(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => {
                let at = *at.get_or_insert_with(|| Instant::now() + span);
                self.poll(at, cx).map(|()| Err(Elapsed))
            }
        })
        .await
    }
}

/// Tells how long a body may stand still: the limit moves on whenever bytes have passed.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    passed: Option<u64>,
    at: Option<Instant>,
}

impl Stall {
    /// The moment from which on the body counts as stalled; asked whenever nothing moves.
    pub(crate) fn at(&mut self, passed: u64, span: Duration) -> Instant {
        match self.at {
            Some(at) if self.passed == Some(passed) => at,
            _ => {
                self.passed = Some(passed);
                *self.at.insert(Instant::now() + span)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_on_fires_at_its_last_place() {
        let mut deadline = Deadline::default();
        let start = Instant::now();
        let short = start + Duration::from_secs(1);
        let first = deadline.until(short, |_| Poll::Ready(7)).await;
        assert_eq!(first, Ok(7));
        let long = start + Duration::from_secs(10);
        assert_eq!(deadline.until::<()>(long, |_| Poll::Pending).await, Err(Elapsed));
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_can_move_nearer() {
        let mut deadline = Deadline::default();
        let start = Instant::now();
        let mut polls = 0;
        let late = start + Duration::from_secs(100);
        let operation = |cx: &mut Context<'_>| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        };
        assert_eq!(deadline.until(late, operation).await, Ok(()));
        let soon = Duration::from_secs(2);
        assert_eq!(deadline.within::<()>(soon, |_| Poll::Pending).await, Err(Elapsed));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
