//! The engine's thread: takes messages, steps, until it is told to stop.
//!
//! [`Engine`] is the handle that a server shares among its requests. Nothing here waits for the model: a job is
//! queued or refused at once, and what happens to it comes through its sink. A panic in a step fails the jobs at hand
//! and those on their way, and stops the engine, which then says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
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
    /// Without a bound of its own: whatever is on its way holds a place.
    sender: Sender<Message>,
    counters: Arc<Counters>,
    limits: Limits,
    /// Places that are taken, of [`Limits::n_jobs`].
    n_taken: Arc<AtomicUsize>,
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
        let limits = *scheduler.limits();
        let (sender, receiver) = channel();
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
            n_taken: Arc::default(),
            has_stopped,
            thread: Some(thread),
        })
    }

    /// Queues a job.
    ///
    /// # Errors
    /// As of [`Engine::submit_all`].
    pub fn submit(&self, job: Job) -> Result<(), Error> {
        self.submit_all(vec![job])
    }

    /// Queues jobs that belong together, all or none.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::TooManyTogether`], [`Error::Stopped`]; the jobs' sinks are then not told.
    pub fn submit_all(&self, jobs: Vec<Job>) -> Result<(), Error> {
        let places = Place::take(&self.n_taken, jobs.len(), self.limits.n_jobs())?;
        let jobs: Vec<Job> = jobs
            .into_iter()
            .zip(places)
            .map(|(job, place)| job.in_place(place))
            .collect();
        let message = Message::Generate(Sent {
            jobs: jobs.into_iter(),
            counters: Arc::clone(&self.counters),
        });
        let Err(SendError(message)) = self.sender.send(message) else {
            return Ok(());
        };
        if let Message::Generate(mut sent) = message {
            // Their owner is told by the error.
            drop(std::mem::take(&mut sent.jobs));
        }
        Err(Error::Stopped)
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
        // A thread that has ended needs no message.
        let _sent = self.sender.send(Message::Stop);
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
