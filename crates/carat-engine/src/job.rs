//! What a scheduler is given and what it tells: a request with the circumstances it comes in.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::constraint::Constraint;
use crate::error::Error;
use crate::logprobs::TokenLogprobs;
use crate::request::{Event, Finished, Request};

/// Receives what happens to a job, on the engine's thread: it must not wait. `Break` cancels the job.
pub type Sink = Box<dyn FnMut(Update) -> ControlFlow<()> + Send>;

/// A request for a scheduler.
pub struct Job {
    /// What to generate.
    pub request: Request,
    /// The grammar that the answer must follow.
    pub constraint: Option<Constraint>,
    /// Who asks. Clients of equal priority get equal shares of the work, by weight.
    pub client: u64,
    /// The client's share compared with others', at least 1.
    pub weight: u32,
    /// Higher ones get a place first.
    pub priority: i32,
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
    /// Raised when the answer is no longer wanted.
    pub cancel: Cancel,
    /// Who is told.
    pub sink: Sink,
    /// What it is for.
    pub(crate) purpose: Purpose,
}

impl Job {
    /// A job of a client without particular claims.
    pub fn new(request: Request, sink: Sink) -> Self {
        Self {
            request,
            constraint: None,
            client: 0,
            weight: 1,
            priority: 0,
            deadline: None,
            cancel: Cancel::default(),
            sink,
            purpose: Purpose::Answer,
        }
    }

    /// The same job in a place, which it gives back before its owner hears of its end: whose next job may follow at once.
    /// A job that is dropped without an end gives it back too.
    pub(crate) fn in_place(self, place: Place) -> Self {
        let (mut sink, mut place) = (self.sink, Some(place));
        let sink = move |update: Update| {
            if update.is_end() {
                drop(place.take());
            }
            sink(update)
        };
        Self {
            sink: Box::new(sink),
            ..self
        }
    }

    /// A job that ends with one vector for `tokens`: the mean of their last hidden states, of length 1.
    pub fn embedding(tokens: Vec<u32>, sink: Sink) -> Self {
        let request = Request {
            prompt: tokens,
            ..Request::default()
        };
        Self {
            purpose: Purpose::Embedding,
            ..Self::new(request, sink)
        }
    }
}

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Tokens that follow the prompt.
    Answer,
    /// One vector for the prompt.
    Embedding,
}

/// What happens to a job: tokens, then one end.
#[derive(Debug)]
pub enum Update {
    /// A token of the answer was chosen.
    Token {
        /// Its id.
        id: u32,
        /// Text that is decided now; may be empty.
        text: String,
        /// Log-probabilities, when asked for.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The vector that was asked for; the last update.
    Embedded(Vec<f32>),
    /// The answer ended; the last update. Boxed, as is all that is large: a channel keeps room for 32 updates of any kind.
    Finished(Box<Finished>),
    /// There will be no answer, or no more of it; the last update.
    Failed(Box<Error>),
}

impl Update {
    /// What an event tells a job's owner; progress in the prompt is not told.
    pub(crate) fn of(event: Event<'_>) -> Option<Self> {
        match event {
            Event::Prefill { .. } => None,
            Event::Token { id, text, logprobs } => Some(Self::Token {
                id,
                text: text.to_string(),
                logprobs: logprobs.map(|logprobs| Box::new(logprobs.clone())),
            }),
            Event::Finished(finished) => Some(Self::Finished(Box::new(finished.clone()))),
        }
    }

    /// Whether nothing follows.
    fn is_end(&self) -> bool {
        !matches!(self, Self::Token { .. })
    }
}

/// A flag by which a job's owner takes it back, at any time and from any thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The answer is no longer wanted.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the answer is no longer wanted.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of a limited number of places, given back when dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    /// Takes so many places if no more than `limit` are taken then, or none of them.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::TooManyTogether`] where no waiting helps.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, n_wanted: usize, limit: usize) -> Result<Vec<Self>, Error> {
        if n_wanted > limit {
            return Err(Error::TooManyTogether { n_wanted, limit });
        }
        let taken_then = |n: usize| n.checked_add(n_wanted).filter(|sum| *sum <= limit);
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken_then)
            .map(|_| (0..n_wanted).map(|_| Self(Arc::clone(taken))).collect())
            .map_err(|_| Error::QueueFull { limit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
