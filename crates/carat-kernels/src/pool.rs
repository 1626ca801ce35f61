//! The one thread pool of the forward pass: resident workers that share out the chunks of a region.
//!
//! A region is a call of [`Pool::run`]: `n_chunks` calls of one closure, claimed from a shared counter by the
//! calling thread and the workers. It is over when its *chunks* are finished, not when every worker has
//! arrived, so a worker that the system has put aside delays nobody who has not given it work.
//!
//! The epoch, the chunk count and the next chunk live in one atomic word. A claim is a compare-and-swap of
//! that word, so a late worker can never claim a chunk of a region other than the one it read. A claimed
//! chunk keeps its region open until it is counted as finished, which is what makes it sound to look at the
//! borrowed closure after the claim.
//!
//! Waiting spins for some tens of microseconds, then yields, then parks: a decode step has some 100 regions
//! with a few microseconds between them, and an idle model must not burn a core.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::Error;
use crate::turns::Turns;

/// Turns of the spin loop before a waiting thread starts to yield: some 50 µs.
const SPIN_TURNS: u32 = 4_000;
/// Yields before a waiting worker parks.
const YIELD_TURNS: u32 = 20;

/// The most threads of a pool, far above any machine's: a mistyped number must not exhaust the system.
const MAX_THREADS: usize = 1024;

const CHUNK_BITS: u32 = 24;
const CHUNK_MASK: u64 = (1 << CHUNK_BITS) - 1;
/// The most chunks that one region may have.
const MAX_CHUNKS: usize = CHUNK_MASK as usize;

/// A region's closure: called with the worker's index (0 is the caller) and the chunk's index.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// A fixed set of threads for parallel loops. See the module's head.
pub struct Pool {
    threads: Arc<Threads>,
    /// Regions give way to passes: see [`Pool::beside`].
    is_beside: bool,
}

struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a region: regions of two callers take turns.
    region: Mutex<()>,
    turns: Turns,
}

/// A pass, or work beside passes, until it is dropped: see [`Pool::turn`].
pub struct Turn {
    threads: Arc<Threads>,
    /// When it began, if it is a pass.
    pass: Option<Instant>,
}

struct Shared {
    /// Epoch (16 bits), chunk count (24 bits), next chunk (24 bits).
    word: AtomicU64,
    n_done: AtomicUsize,
    task: UnsafeCell<Option<*const Task<'static>>>,
    /// What a chunk panicked with, the first if there were several.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    n_parked: AtomicUsize,
    park: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `task` is written only by the caller that holds `Pool::region` while no chunk is open, and read only
// by threads that hold a claimed chunk; the word's release/acquire orders the two. All else is atomic or a lock.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `task` is only ever followed while the region that set it is open.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `n_threads` threads, the caller of [`Pool::run`] counted as one of them. At least 1,
    /// at most 1,024.
    ///
    /// # Errors
    /// [`Error::Thread`] when the system gives no thread.
    pub fn new(n_threads: usize) -> Result<Pool, Error> {
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            n_done: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            n_parked: AtomicUsize::new(0),
            park: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut threads = Threads {
            shared,
            workers: Vec::new(),
            region: Mutex::new(()),
            turns: Turns::new(),
        };
        for index in 1..n_threads.clamp(1, MAX_THREADS) {
            let shared = Arc::clone(&threads.shared);
            let worker = std::thread::Builder::new()
                .name(format!("carat-{index}"))
                .spawn(move || shared.work(index))
                .map_err(|source| Error::Thread { index, source })?;
            threads.workers.push(worker);
        }
        Ok(Pool {
            threads: Arc::new(threads),
            is_beside: false,
        })
    }

    /// The same threads for long work beside a model's passes: its regions wait for passes under way, and one under way
    /// ends at its next chunk when a pass begins, to go on after it. So does work within a [`Pool::turn`] of this handle get
    /// half of the time.
    #[must_use]
    pub fn beside(&self) -> Pool {
        Pool {
            threads: Arc::clone(&self.threads),
            is_beside: true,
        }
    }

    /// Begins a pass, or work beside passes if [`Pool::beside`] made this handle. A pass waits for another one's end, and
    /// for its turn where there is work beside. Not needed where nobody else has work for these threads.
    ///
    /// Not to be called by a thread that has one already: it would wait for itself.
    #[must_use = "it ends when it is dropped"]
    pub fn turn(&self) -> Turn {
        let turns = &self.threads.turns;
        let pass = if self.is_beside {
            turns.begin_beside();
            None
        } else {
            Some(turns.begin_pass())
        };
        Turn {
            threads: Arc::clone(&self.threads),
            pass,
        }
    }

    /// Threads that take part in a region.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.threads.workers.len() + 1
    }

    /// Calls `task(worker, chunk)` once for each chunk in `0..n_chunks`; returns when all are finished.
    /// `worker` is below [`Pool::n_threads`], and no two calls with the same worker overlap.
    ///
    /// Not to be called from within a task: the inner region would wait for the outer one forever.
    ///
    /// # Panics
    /// When a call of `task` panicked, with what it panicked with, after the others have finished.
    pub fn run(&self, n_chunks: usize, task: &Task<'_>) {
        if self.is_beside {
            return self.run_beside(n_chunks, task);
        }
        let _region = lock(&self.threads.region);
        // A region longer than the word can count runs in parts.
        let mut first = 0;
        while first < n_chunks {
            let part = (n_chunks - first).min(MAX_CHUNKS);
            self.threads
                .run_part(part, &|worker, chunk| task(worker, first + chunk));
            first += part;
        }
    }

    /// As [`Pool::run`], in as many parts as passes make of it.
    fn run_beside(&self, n_chunks: usize, task: &Task<'_>) {
        let Threads { region, turns, .. } = &*self.threads;
        let next = AtomicUsize::new(0);
        loop {
            let rest = n_chunks - next.load(Ordering::Relaxed);
            if rest == 0 {
                return;
            }
            turns.wait_for_passes();
            let _region = lock(region);
            // As many calls as there are chunks, each of which takes one or none: none is taken that is not there.
            self.threads.run_part(rest.min(MAX_CHUNKS), &|worker, _| {
                if !turns.is_in_pass() {
                    task(worker, next.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    }
}

impl Threads {
    fn run_part(&self, n_chunks: usize, task: &Task<'_>) {
        let shared = &*self.shared;
        if self.workers.is_empty() || n_chunks == 1 {
            (0..n_chunks).for_each(|chunk| task(0, chunk));
            return;
        }
        let pointer: *const Task<'_> = task;
        // SAFETY: only the lifetime is erased. This function returns after all chunks are counted as finished,
        // and nobody follows the pointer without an unfinished chunk, so it is never used after `task` is gone.
        let pointer: *const Task<'static> = unsafe { std::mem::transmute(pointer) };
        // SAFETY: the region lock is held and no chunk is open, so nobody else looks at `task` now.
        unsafe { *shared.task.get() = Some(pointer) };
        shared.n_done.store(0, Ordering::Relaxed);
        let epoch = (shared.word.load(Ordering::Relaxed) >> (2 * CHUNK_BITS)).wrapping_add(1);
        let word = (epoch << (2 * CHUNK_BITS)) | ((n_chunks as u64) << CHUNK_BITS);
        shared.word.store(word, Ordering::SeqCst);
        if shared.n_parked.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.park);
            shared.wake.notify_all();
        }
        while shared.claim_and_run(0) {}
        let mut turns = 0;
        while shared.n_done.load(Ordering::Acquire) < n_chunks {
            pause(&mut turns);
        }
        if let Some(payload) = lock(&shared.panic).take() {
            resume_unwind(payload);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        match self.pass {
            Some(begun) => self.threads.turns.end_pass(begun),
            None => self.threads.turns.end_beside(),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.park);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker only ends by `stop`; its panics were caught and passed on by `run`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut turns = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.claim_and_run(index) {
                turns = 0;
            } else if turns < SPIN_TURNS + YIELD_TURNS {
                pause(&mut turns);
            } else {
                self.park_until_work();
                turns = 0;
            }
        }
    }

    /// Takes one chunk and runs it. False when there is none to take.
    fn claim_and_run(&self, worker: usize) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if !has_work(word) {
                return false;
            }
            match self
                .word
                .compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        let chunk = (word & CHUNK_MASK) as usize;
        // SAFETY: this thread holds an unfinished chunk of the region that published the pointer, so the region
        // is open, `task` is not being written and what it points to is alive.
        let task = unsafe { (*self.task.get()).map(|task| &*task) };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(task) = task {
                task(worker, chunk);
            }
        }));
        if let Err(payload) = outcome {
            let mut first = lock(&self.panic);
            match &*first {
                None => *first = Some(payload),
                // Dropping a payload can panic again, which must not leave a region before its chunks are counted.
                Some(_) => std::mem::forget(payload),
            }
        }
        self.n_done.fetch_add(1, Ordering::Release);
        true
    }

    fn park_until_work(&self) {
        let mut guard = lock(&self.park);
        self.n_parked.fetch_add(1, Ordering::SeqCst);
        // Looked at again after `n_parked` is up: a caller that published before sees us parked and wakes us.
        while !has_work(self.word.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.n_parked.fetch_sub(1, Ordering::SeqCst);
    }
}

fn has_work(word: u64) -> bool {
    (word & CHUNK_MASK) < ((word >> CHUNK_BITS) & CHUNK_MASK)
}

fn pause(turns: &mut u32) {
    if *turns < SPIN_TURNS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
    *turns = turns.saturating_add(1);
}

/// No code panics while it holds one of these locks: go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_in_every_region() {
        let pool = Pool::new(4).unwrap();
        for n_chunks in [0, 1, 2, 3, 7, 64, 1000] {
            for _ in 0..50 {
                let counts: Vec<AtomicUsize> = (0..n_chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_chunks, &|worker, chunk| {
                    assert!(worker < 4);
                    counts[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn no_worker_runs_two_chunks_at_once() {
        let pool = Pool::new(3).unwrap();
        let busy: Vec<AtomicBool> = (0..3).map(|_| AtomicBool::new(false)).collect();
        pool.run(2000, &|worker, _| {
            assert!(!busy[worker].swap(true, Ordering::SeqCst));
            std::hint::spin_loop();
            busy[worker].store(false, Ordering::SeqCst);
        });
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(2).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while pool.threads.shared.n_parked.load(Ordering::SeqCst) == 0 {
            assert!(std::time::Instant::now() < deadline, "the worker never parked");
            std::thread::yield_now();
        }
        let both = AtomicUsize::new(0);
        // Two chunks that wait for each other: only two threads can finish them.
        pool.run(2, &|_, _| {
            both.fetch_add(1, Ordering::SeqCst);
            while both.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
        assert_eq!(both.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|_, chunk| assert!(chunk != 5, "expected by the test"));
        }));
        assert!(outcome.is_err());
        let n = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn work_beside_stands_still_during_a_pass_and_is_done_once() {
        let pool = Pool::new(2).unwrap();
        let beside = pool.beside();
        let counts: Vec<AtomicUsize> = (0..500).map(|_| AtomicUsize::new(0)).collect();
        let sum = || -> usize { counts.iter().map(|count| count.load(Ordering::SeqCst)).sum() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _turn = beside.turn();
                beside.run(counts.len(), &|_, chunk| {
                    counts[chunk].fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_micros(100));
                });
            });
            while sum() < 10 {
                std::thread::yield_now();
            }
            for _ in 0..5 {
                let _turn = pool.turn();
                // Its region comes after the chunks that were under way.
                pool.run(2, &|_, _| ());
                let before = sum();
                std::thread::sleep(std::time::Duration::from_millis(3));
                assert_eq!(sum(), before);
            }
        });
        assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == 1));
    }
}
