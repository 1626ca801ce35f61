//! The engine's thread: takes messages, steps, until it is told to stop.
//!
//! [`Engine`] is the handle that a server shares among its requests. Nothing here waits for the model: a job is
//! queued or refused at once, and what happens to it comes through its sink. A panic in a step fails the jobs at hand
//! and those on their way, and stops the engine, which then says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use carat_model::LanguageModel;
use carat_text::Tokenizer;

use crate::counters::Counters;
use crate::error::Error;
use crate::job::{Job, Place, Update};
use crate::scheduler::{Limits, Scheduler};
use crate::store::PrefixStore;

enum Message {
    Generate(Sent),
    Stop,
}

/// Jobs on their way to the thread. If that ends before it takes one, the job's owner is told: nobody else is there to do
/// it.
struct Sent {
    jobs: std::vec::IntoIter<Job>,
    counters: Arc<Counters>,
}

impl Sent {
    /// Takes a job out, whose end is then the taker's to tell.
    fn take(&mut self) -> Option<Job> {
        self.jobs.next()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        for mut job in self.jobs.by_ref() {
            self.counters.failed.add(1);
            let _nobody_goes_on = (job.sink)(Update::Failed(Box::new(Error::Stopped)));
        }
    }
}

/// A model that works on a thread of its own. Dropping it stops the thread after its present step.
pub struct Engine {
    sender: SyncSender<Message>,
    counters: Arc<Counters>,
    limits: Limits,
    n_waiting: Arc<AtomicUsize>,
    has_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the system gives no thread.
    pub fn start<M>(model: M, tokenizer: Arc<Tokenizer>, limits: Limits) -> Result<Self, Error>
    where
        M: LanguageModel + Send + 'static,
        M::Cache: Send,
    {
        Self::start_with(model, tokenizer, limits, None)
    }

    /// As [`Engine::start`], with a place for beginnings that memory has no room for.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the system gives no thread.
    pub fn start_with<M>(
        model: M,
        tokenizer: Arc<Tokenizer>,
        limits: Limits,
        store: Option<Box<dyn PrefixStore<M::Cache>>>,
    ) -> Result<Self, Error>
    where
        M: LanguageModel + Send + 'static,
        M::Cache: Send,
    {
        let mut scheduler = Scheduler::new(model, tokenizer, limits);
        if let Some(store) = store {
            scheduler.set_store(store);
        }
        let counters = Arc::clone(scheduler.counters());
        let (sender, receiver) = sync_channel(limits.n_waiting.saturating_add(limits.n_running));
        let has_stopped = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&has_stopped);
        let thread = std::thread::Builder::new()
            .name("carat-engine".to_string())
            .spawn(move || {
                work(scheduler, &receiver);
                flag.store(true, Ordering::Relaxed);
            })
            .map_err(|_| Error::Stopped)?;
        Ok(Self {
            sender,
            counters,
            limits,
            n_waiting: Arc::default(),
            has_stopped,
            thread: Some(thread),
        })
    }

    /// Queues a job.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Stopped`]; the job's sink is then not told.
    pub fn submit(&self, job: Job) -> Result<(), Error> {
        self.submit_all(vec![job])
    }

    /// Queues jobs that belong together, all or none. Where nobody waits they may be more than else may wait.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Stopped`]; the jobs' sinks are then not told.
    pub fn submit_all(&self, mut jobs: Vec<Job>) -> Result<(), Error> {
        let limit = self.limits.n_waiting;
        let places = Place::take(&self.n_waiting, jobs.len(), limit.max(1))?;
        for (job, place) in jobs.iter_mut().zip(places) {
            job.place = Some(place);
        }
        let message = Message::Generate(Sent {
            jobs: jobs.into_iter(),
            counters: Arc::clone(&self.counters),
        });
        let (error, message) = match self.sender.try_send(message) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(message)) => (Error::QueueFull { limit }, message),
            Err(TrySendError::Disconnected(message)) => (Error::Stopped, message),
        };
        if let Message::Generate(mut sent) = message {
            // Their owner is told by the error.
            drop(std::mem::take(&mut sent.jobs));
        }
        Err(error)
    }

    /// Totals and present state. Who holds them alone knows that the engine has ended and counts no more.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the engine may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether jobs are no longer taken.
    pub fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Relaxed)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A full or closed channel needs no message: the thread ends when the sender is gone.
        let _sent = self.sender.try_send(Message::Stop);
        let (closed, _) = sync_channel(1);
        self.sender = closed;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The thread's loop.
fn work<M>(mut scheduler: Scheduler<M>, receiver: &Receiver<Message>)
where
    M: LanguageModel,
{
    loop {
        let message = if scheduler.is_idle() {
            receiver.recv().map_err(|_| true)
        } else {
            receiver
                .try_recv()
                .map_err(|error| error == std::sync::mpsc::TryRecvError::Disconnected)
        };
        let done = catch_unwind(AssertUnwindSafe(|| match message {
            Ok(Message::Generate(mut sent)) => {
                while let Some(job) = sent.take() {
                    scheduler.submit(job);
                }
                true
            }
            Ok(Message::Stop) | Err(true) => false,
            Err(false) => {
                scheduler.step();
                true
            }
        }));
        if !matches!(done, Ok(true)) {
            scheduler.fail_all(|| Error::Stopped);
            if matches!(done, Ok(false)) {
                scheduler.close();
            }
            return;
        }
    }
}
