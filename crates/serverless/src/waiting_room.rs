//! Where requests wait that found no instance with room.
//!
//! First come, first served; whoever gives up leaves at once. The room has a bound, and each
//! visitor a time after which the answer is a refusal.
//!
//! Invariant: `len` is the number of visitors whenever the lock is free, and at least that number
//! while one is being let in, so that a permit given back in between is never overlooked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The most requests that wait for one revision.
pub const REQUESTS_WAITING_MAX: usize = 8192;

/// The visitors of one revision; `T` is what they wait for.
#[derive(Debug)]
pub(crate) struct WaitingRoom<T> {
    visitors: Mutex<Visitors<T>>,
    len: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Visitors<T> {
    by_number: BTreeMap<u64, oneshot::Sender<T>>,
    next_number: u64,
    is_closed: bool,
}

/// What a visitor holds: a number to leave with, and where the answer comes.
#[derive(Debug)]
pub(crate) struct Ticket<T> {
    pub(crate) number: u64,
    pub(crate) answer: oneshot::Receiver<T>,
}

/// What became of somebody at the door.
#[derive(Debug)]
pub(crate) enum Entrance<T> {
    /// What they came for was there after all.
    Served(T),
    /// They wait.
    Waits(Ticket<T>),
    /// The room is full.
    Full,
    /// The room is closed for good.
    Closed,
}

impl<T> WaitingRoom<T> {
    pub(crate) fn new() -> WaitingRoom<T> {
        let visitors = Visitors { by_number: BTreeMap::new(), next_number: 0, is_closed: false };
        WaitingRoom { visitors: Mutex::new(visitors), len: AtomicUsize::new(0) }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Lets a request in, unless `last_try` serves it at the door while nobody is ahead of it.
    pub(crate) fn enter(&self, last_try: impl FnOnce() -> Option<T>) -> Entrance<T> {
        let mut visitors = self.lock();
        if visitors.is_closed {
            return Entrance::Closed;
        }
        if visitors.by_number.len() >= REQUESTS_WAITING_MAX {
            return Entrance::Full;
        }
        // From here on whoever gives a permit back sees that somebody may want it, and then has to
        // wait for the lock; whoever gave one back before is seen by the last try.
        self.len.fetch_add(1, Ordering::SeqCst);
        if visitors.by_number.is_empty()
            && let Some(served) = last_try()
        {
            self.len.store(0, Ordering::SeqCst);
            return Entrance::Served(served);
        }
        let (sender, answer) = oneshot::channel();
        let number = visitors.next_number;
        visitors.next_number += 1;
        visitors.by_number.insert(number, sender);
        Entrance::Waits(Ticket { number, answer })
    }

    /// Closes the room for good, unless somebody waits in it.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut visitors = self.lock();
        visitors.is_closed |= visitors.by_number.is_empty();
        visitors.is_closed
    }

    /// Takes a visitor off the list, if it is still on it.
    pub(crate) fn leave(&self, number: u64) {
        let mut visitors = self.lock();
        visitors.by_number.remove(&number);
        self.len.store(visitors.by_number.len(), Ordering::SeqCst);
    }

    /// Serves visitors in order for as long as `take` has something for them. What the last one
    /// did not come for is returned.
    pub(crate) fn serve(&self, mut take: impl FnMut() -> Option<T>) -> Option<T> {
        let mut visitors = self.lock();
        let mut spare = None;
        while !visitors.by_number.is_empty() {
            let Some(served) = spare.take().or_else(&mut take) else { break };
            let Some((_, visitor)) = visitors.by_number.pop_first() else { break };
            spare = visitor.send(served).err();
        }
        self.len.store(visitors.by_number.len(), Ordering::SeqCst);
        spare
    }

    fn lock(&self) -> MutexGuard<'_, Visitors<T>> {
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits<T: std::fmt::Debug>(entrance: Entrance<T>) -> Ticket<T> {
        match entrance {
            Entrance::Waits(ticket) => ticket,
            other => panic!("does not wait: {other:?}"),
        }
    }

    #[test]
    fn visitors_are_served_in_the_order_they_came_and_those_who_left_are_skipped() {
        let room = WaitingRoom::new();
        let mut tickets: Vec<_> = (0..4).map(|_| waits(room.enter(|| None))).collect();
        room.leave(tickets.remove(1).number);
        // Gone without a word, as when a connection breaks between the answer and its delivery.
        drop(tickets.remove(1));
        assert_eq!(room.len(), 3);
        let mut supply = [10, 20].into_iter();
        assert_eq!(room.serve(|| supply.next()), None);
        let served: Vec<_> = tickets.iter_mut().map(|t| t.answer.try_recv().unwrap()).collect();
        assert_eq!((served, room.len()), (vec![10, 20], 0));
    }

    #[test]
    fn what_is_left_over_comes_back() {
        let room = WaitingRoom::new();
        drop(waits(room.enter(|| None)));
        let mut supply = [7].into_iter();
        assert_eq!(room.serve(|| supply.next()), Some(7));
    }

    #[test]
    fn somebody_at_the_door_is_served_only_if_nobody_is_ahead() {
        let room = WaitingRoom::new();
        assert!(matches!(room.enter(|| Some(1)), Entrance::Served(1)));
        assert_eq!(room.len(), 0);
        let first = waits(room.enter(|| None));
        waits(room.enter(|| Some(2)));
        assert!(!room.close_if_empty());
        room.leave(first.number);
    }

    #[test]
    fn a_closed_room_lets_nobody_in() {
        let room = WaitingRoom::<()>::new();
        assert!(room.close_if_empty());
        assert!(matches!(room.enter(|| Some(())), Entrance::Closed));
    }

    #[test]
    fn a_full_room_lets_nobody_in() {
        let room = WaitingRoom::<()>::new();
        let tickets: Vec<_> =
            (0..REQUESTS_WAITING_MAX).map(|_| waits(room.enter(|| None))).collect();
        assert!(matches!(room.enter(|| None), Entrance::Full));
        room.leave(tickets[0].number);
        waits(room.enter(|| None));
    }
}
