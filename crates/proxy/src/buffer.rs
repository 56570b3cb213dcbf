//! I/O buffers that a connection owns only while they hold data.
//!
//! An idle connection holds none; a read takes one from the worker's pool and gives it back when nothing
//! came. A head that arrives slowly is moved to a small buffer as soon as it has to wait.
//!
//! Invariant: the pool hands out at most its bound, whatever clients do.

use crate::limits::{BUFFER_BYTES, SMALL_BUFFER_BYTES};
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// Free buffers kept for the next read; the rest goes back to the allocator. Enough for many bodies on
/// their way at once, and given back by [`BufferPool::sweep`] when they are not needed.
const FREE_MAX: usize = 64;

/// Free vectors for heads kept for the next request.
const FREE_TEXTS_MAX: usize = 256;

/// How many of them outlive a sweep.
const FREE_TEXTS_IDLE: usize = 64;

/// What most heads and log lines fit in. Less than a page, so that those of many requests do not all
/// fall on the same lines of the processor's caches.
const TEXT_BYTES: usize = 960;

/// A worker's buffers, free and in use.
#[derive(Debug)]
pub(crate) struct BufferPool {
    free: RefCell<Vec<Box<[u8]>>>,
    texts: RefCell<Vec<Vec<u8>>>,
    /// Free buffers that nobody has needed since the last sweep.
    spare: Cell<usize>,
    in_use: Cell<usize>,
    bytes_max: usize,
}

impl BufferPool {
    pub(crate) fn new(bytes_max: usize) -> Rc<BufferPool> {
        Rc::new(BufferPool {
            free: RefCell::default(),
            texts: RefCell::default(),
            spare: Cell::new(0),
            in_use: Cell::new(0),
            bytes_max,
        })
    }

    /// Bytes of all buffers in use.
    #[cfg(test)]
    pub(crate) fn bytes_in_use(&self) -> usize {
        self.in_use.get()
    }

    fn take(&self, size: usize) -> io::Result<Box<[u8]>> {
        if self.in_use.get() + size > self.bytes_max {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.in_use.set(self.in_use.get() + size);
        let free = if size == BUFFER_BYTES { self.take_free() } else { None };
        Ok(free.unwrap_or_else(|| vec![0; size].into()))
    }

    fn take_free(&self) -> Option<Box<[u8]>> {
        let mut free = self.free.borrow_mut();
        let storage = free.pop();
        self.spare.set(self.spare.get().min(free.len()));
        storage
    }

    /// Gives free memory back to the allocator that was not needed since the last sweep.
    pub(crate) fn sweep(&self) {
        let mut free = self.free.borrow_mut();
        let needed = free.len() - self.spare.get().min(free.len());
        free.truncate(needed);
        self.spare.set(free.len());
        self.texts.borrow_mut().truncate(FREE_TEXTS_IDLE);
    }

    fn give(&self, storage: Box<[u8]>) {
        self.in_use.set(self.in_use.get() - storage.len());
        let mut free = self.free.borrow_mut();
        if storage.len() == BUFFER_BYTES && free.len() < FREE_MAX {
            free.push(storage);
        }
    }

    /// An empty vector to write a head into.
    pub(crate) fn text(&self) -> Vec<u8> {
        self.texts.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(TEXT_BYTES))
    }

    /// Takes a vector back.
    pub(crate) fn give_text(&self, mut text: Vec<u8>) {
        let mut texts = self.texts.borrow_mut();
        if texts.len() < FREE_TEXTS_MAX
            && text.capacity() <= 2 * SMALL_BUFFER_BYTES
            && text.capacity() > 0
        {
            text.clear();
            texts.push(text);
        }
    }
}

/// Bytes read and not yet used.
#[derive(Debug)]
pub(crate) struct Buffer {
    pool: Rc<BufferPool>,
    storage: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn new(pool: &Rc<BufferPool>) -> Buffer {
        Buffer { pool: pool.clone(), storage: None, start: 0, end: 0 }
    }

    pub(crate) fn data(&self) -> &[u8] {
        match &self.storage {
            Some(storage) => &storage[self.start..self.end],
            None => b"",
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
        if self.start == self.end {
            self.release();
        }
    }

    /// Forgets everything.
    pub(crate) fn release(&mut self) {
        self.start = 0;
        self.end = 0;
        if let Some(storage) = self.storage.take() {
            self.pool.give(storage);
        }
    }

    /// Reads more behind what is there; 0 is the end of the stream.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut storage = match self.storage.take() {
            Some(storage) => storage,
            None => self.pool.take(BUFFER_BYTES)?,
        };
        if self.start > 0 {
            storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == storage.len() {
            if storage.len() == BUFFER_BYTES {
                self.storage = Some(storage);
                return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
            }
            storage = self.resized(storage, BUFFER_BYTES)?;
        }
        let mut free = ReadBuf::new(&mut storage[self.end..]);
        let read = Pin::new(io).poll_read(cx, &mut free);
        let count = free.filled().len();
        self.end += count;
        if self.end == 0 {
            self.pool.give(storage);
        } else if read.is_pending()
            && storage.len() > SMALL_BUFFER_BYTES
            && self.end <= SMALL_BUFFER_BYTES
        {
            self.storage = Some(self.resized(storage, SMALL_BUFFER_BYTES)?);
        } else {
            self.storage = Some(storage);
        }
        read.map_ok(|()| count)
    }

    fn resized(&mut self, storage: Box<[u8]>, size: usize) -> io::Result<Box<[u8]>> {
        let resized = self.pool.take(size);
        match resized {
            Ok(mut other) => {
                other[..self.end].copy_from_slice(&storage[..self.end]);
                self.pool.give(storage);
                Ok(other)
            }
            Err(error) => {
                self.end = 0;
                self.pool.give(storage);
                Err(error)
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_buffer_is_held_only_while_it_holds_data() {
        let pool = BufferPool::new(1 << 20);
        let mut buffer = Buffer::new(&pool);
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut noop = Context::from_waker(std::task::Waker::noop());
        assert!(buffer.poll_fill(&mut near, &mut noop).is_pending());
        assert_eq!(pool.bytes_in_use(), 0);

        far.write_all(b"partial head").await.unwrap();
        poll_fn(|cx| buffer.poll_fill(&mut near, cx)).await.unwrap();
        assert!(buffer.poll_fill(&mut near, &mut noop).is_pending());
        assert_eq!(pool.bytes_in_use(), SMALL_BUFFER_BYTES);
        assert_eq!(buffer.data(), b"partial head");

        far.write_all(&[b'x'; 10_000]).await.unwrap();
        while buffer.data().len() < 10_012 {
            poll_fn(|cx| buffer.poll_fill(&mut near, cx)).await.unwrap();
        }
        assert_eq!(pool.bytes_in_use(), BUFFER_BYTES);
        buffer.consume(10_012);
        assert_eq!(pool.bytes_in_use(), 0);
    }

    #[test]
    fn free_buffers_that_nobody_needs_are_given_back() {
        let pool = BufferPool::new(1 << 30);
        let held: Vec<_> = (0..8).map(|_| pool.take(BUFFER_BYTES).unwrap()).collect();
        held.into_iter().for_each(|storage| pool.give(storage));
        pool.sweep();
        let held: Vec<_> = (0..3).map(|_| pool.take(BUFFER_BYTES).unwrap()).collect();
        held.into_iter().for_each(|storage| pool.give(storage));
        assert_eq!(pool.free.borrow().len(), 8);
        pool.sweep();
        assert_eq!(pool.free.borrow().len(), 3);
        pool.sweep();
        assert_eq!(pool.free.borrow().len(), 0);
    }

    #[tokio::test]
    async fn the_pool_refuses_what_is_over_its_bound() {
        let pool = BufferPool::new(BUFFER_BYTES);
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(b"x").await.unwrap();
        let mut first = Buffer::new(&pool);
        poll_fn(|cx| first.poll_fill(&mut near, cx)).await.unwrap();
        let mut second = Buffer::new(&pool);
        let refused = poll_fn(|cx| second.poll_fill(&mut near, cx)).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        drop(first);
        assert_eq!(pool.bytes_in_use(), 0);
    }
}
