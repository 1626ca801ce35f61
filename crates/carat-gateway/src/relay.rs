//! A stream on its way from an upstream to a client.
//!
//! It is the body of the answer: polled by the client's connection, it polls the upstream's, so that a slow client
//! slows the upstream and no task stands between them. [`Relay::begin`] reads up to the first words before anything is
//! sent, while another target may still be asked; after that a failure ends the stream with an error event, unless its
//! route lets another go on with it ([`crate::heir`]). A client that leaves drops the relay, and with it the upstream's
//! connection; of one that stays and reads nothing [`crate::timed`] takes care.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use crate::account::{Account, Outcome};
use crate::cache::Tape;
use crate::failure::{Class, Failure};
use crate::heir::{self, Heir, Inheritance, Nobody};
use crate::limits::HELD_BYTES;
use crate::line::Answered;
use crate::records::{Framing, Records};
use crate::stream::{Step, Transform};
use crate::upstream::AnswerBody;

/// How long an upstream may take to close a stream after its last word, or to go on after what may be the last.
const CLOSING: Duration = Duration::from_secs(1);
/// An upstream that says nothing for so long may be thinking.
const SILENCE: Duration = Duration::from_secs(1);
/// Events that are there at once go out together, up to about this size.
const GATHERED_BYTES: usize = 16 << 10;

/// A stream under way.
pub(crate) struct Relay {
    upstream: AnswerBody,
    records: Records,
    transform: Box<dyn Transform>,
    /// What the client gets next.
    ready: Vec<u8>,
    idle: Duration,
    /// Until when all of it must be there.
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    last_event: Instant,
    /// Since when something is waited for, if nothing has come since.
    waits: Option<Instant>,
    /// How long the next words were waited for, so far.
    waited: Duration,
    /// How long words were waited for in all, where that was long.
    silent: Duration,
    has_words: bool,
    /// What went wrong right after the first words, when it is to be told.
    broken: Option<Failure>,
    /// The upstream has said its last word; only the end of its stream is waited for.
    is_done: bool,
    /// Nothing more comes.
    is_over: bool,
    account: Option<Account>,
    /// The log's line, until it is written.
    line: Option<Box<Answered>>,
    /// The stream is to be kept.
    tape: Option<Tape>,
    /// How it ended, once it has.
    is_whole: bool,
    /// Who finds somebody to go on if it breaks.
    heir: Option<Box<Heir>>,
    /// The search for somebody.
    search: Option<Search>,
}

/// Ends with who searched, and what was found.
type Search = Pin<Box<dyn Future<Output = (Box<Heir>, Result<Inheritance, Box<Nobody>>)> + Send>>;

impl Relay {
    pub(crate) fn new(
        upstream: AnswerBody,
        framing: Framing,
        transform: Box<dyn Transform>,
        idle: Duration,
        deadline: Instant,
    ) -> Self {
        let now = Instant::now();
        Self {
            upstream,
            records: Records::new(framing),
            transform,
            ready: Vec::new(),
            idle,
            deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline.min(now + idle))),
            last_event: now,
            waits: None,
            waited: Duration::ZERO,
            silent: Duration::ZERO,
            has_words: false,
            broken: None,
            is_done: false,
            is_over: false,
            account: None,
            line: None,
            tape: None,
            is_whole: false,
            heir: None,
            search: None,
        }
    }

    /// Reads up to the first words. Until then nothing has been promised to the client.
    ///
    /// # Errors
    /// What went wrong at the upstream; somebody else may be asked.
    pub(crate) async fn begin(&mut self, until: Instant, account: &Account) -> Result<(), Failure> {
        while !self.has_words && !self.is_done && self.ready.len() < HELD_BYTES {
            let frame = tokio::time::timeout_at(until, self.upstream.frame());
            match frame.await {
                Err(_) => return Err(slow("the provider took too long to begin its answer")),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        match self.take(&data, account) {
                            // What was said must be paid for, so it is not asked of another as if it had not been.
                            Err(failure) if self.has_words => self.broken = Some(failure),
                            taken => taken?,
                        }
                    }
                }
                Ok(Some(Err(_)) | None) => return Err(cut()),
            }
        }
        self.last_event = Instant::now();
        Ok(())
    }

    /// From here on the client is told of everything, and the account is settled at the end.
    pub(crate) fn commit(mut self: Box<Self>, account: Account) -> Box<Self> {
        self.account = Some(account);
        self.look_at_end();
        self
    }

    /// What goes out is written down, and kept if it ends well.
    pub(crate) fn record(&mut self, tape: Tape) {
        self.tape = Some(tape);
    }

    /// What became of it is told to the log when it has ended, which it may have.
    pub(crate) fn tell(&mut self, line: Answered) {
        if self.account.is_some() || self.search.is_some() {
            self.line = Some(Box::new(line));
        } else {
            line.end(&Outcome::Complete, Some(&self.transform.usage()));
        }
    }

    /// If it breaks somebody else may go on.
    pub(crate) fn bequeath(&mut self, heir: Heir) {
        self.heir = Some(Box::new(heir));
    }

    /// Takes bytes from the upstream.
    fn take(&mut self, data: &[u8], account: &Account) -> Result<(), Failure> {
        let too_large = |_| Failure::new(Class::ServerFault, 502, "the provider sent an event without end");
        self.records.feed(data).map_err(too_large)?;
        while let Some(record) = self.records.next() {
            account.heard(&record.data);
            match self.transform.record(&record, &mut self.ready) {
                Step::Quiet => {}
                Step::Words => {
                    self.end_silence();
                    self.has_words = true;
                }
                Step::Malformed => account.malformed(),
                Step::Failed(failure) => return Err(failure),
                Step::Done => self.is_done = true,
            }
        }
        Ok(())
    }

    /// Something has come, or nothing more does.
    fn end_wait(&mut self, now: Instant) {
        if let Some(since) = self.waits.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }

    /// Words have come, or no more do. How long the first ones took is known to the account.
    fn end_silence(&mut self) {
        let waited = std::mem::take(&mut self.waited);
        if self.has_words && waited >= SILENCE {
            self.silent += waited;
        }
    }

    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let is_last = self.is_over || self.search.is_some();
            if !self.ready.is_empty() && (is_last || self.ready.len() >= GATHERED_BYTES) {
                return Poll::Ready(Some(self.take_ready()));
            }
            if let Some(search) = &mut self.search {
                let (heir, found) = ready!(search.as_mut().poll(cx));
                self.search = None;
                self.inherit(heir, found);
                continue;
            }
            if self.is_over {
                self.keep();
                return Poll::Ready(None);
            }
            if let Some(failure) = self.broken.take() {
                self.end(Some(failure));
                continue;
            }
            match Pin::new(&mut self.upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.last_event = Instant::now();
                    self.end_wait(self.last_event);
                    if let Ok(data) = frame.into_data() {
                        self.take_late(&data);
                    }
                }
                Poll::Ready(Some(Err(_))) => self.end(Some(cut())),
                Poll::Ready(None) => {
                    self.take_rest();
                    if !self.is_over {
                        self.close();
                    }
                }
                // Nothing waits for more to come.
                Poll::Pending if !self.ready.is_empty() => return Poll::Ready(Some(self.take_ready())),
                Poll::Pending => {
                    self.waits.get_or_insert_with(Instant::now);
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.timer_rang();
                }
            }
        }
    }

    /// What goes out now.
    fn take_ready(&mut self) -> Bytes {
        let ready = std::mem::take(&mut self.ready);
        if self.tape.as_mut().is_some_and(|tape| !tape.record(&ready)) {
            self.tape = None;
        }
        ready.into()
    }

    /// A last record may lack what ends it.
    fn take_rest(&mut self) {
        if !self.is_done && self.records.end().is_ok() {
            self.take_late(b"");
        }
    }

    /// Takes bytes when failures go to the client.
    fn take_late(&mut self, data: &[u8]) {
        let Some(account) = self.account.take() else {
            return;
        };
        let result = self.take(data, &account);
        self.account = Some(account);
        if self.has_words
            && let Some(account) = &mut self.account
        {
            account.goes_on();
        }
        match result {
            Err(failure) => self.end(Some(failure)),
            Ok(()) => self.look_at_end(),
        }
    }

    /// Where the last word has come only the end of the connection is waited for, and not for long; where it may have come
    /// more is not waited for long either.
    fn look_at_end(&mut self) {
        if self.is_done {
            // Before the last words go out, so that what a client has whole is written down.
            self.settle(&Outcome::Complete);
        }
        if self.is_done || self.transform.may_be_over() {
            self.timer.as_mut().reset(Instant::now() + CLOSING);
        }
    }

    /// The upstream says no more.
    fn close(&mut self) {
        let is_whole = self.transform.end(&mut self.ready);
        self.end((!is_whole).then(cut));
    }

    /// The timer is set for the earliest moment that may matter, and only moved when it has rung.
    fn timer_rang(&mut self) {
        // After the last word an upstream may still close its stream, so that the connection can be used again.
        let may_be_over = self.transform.may_be_over();
        let patience = if self.is_done || may_be_over {
            self.idle.min(CLOSING)
        } else {
            self.idle
        };
        let due = self.deadline.min(self.last_event + patience);
        let now = Instant::now();
        if now < due {
            self.timer.as_mut().reset(due);
        } else if may_be_over {
            self.close();
        } else if now < self.deadline {
            self.end(Some(slow(
                "the provider stopped sending in the middle of its answer",
            )));
        } else {
            self.end(Some(overdue()));
        }
    }

    /// Until when all of it must be there.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Its time is over and its client has not come for more: what it holds is given back.
    pub(crate) fn expire(&mut self) {
        if !self.is_over {
            // Whoever searches writes down himself that the client did not wait.
            self.search = None;
            self.settle(&Outcome::ClientGone);
            self.end(Some(overdue()));
        }
    }

    /// Keeps what was written down, if it is all and well.
    fn keep(&mut self) {
        if let Some(tape) = self.tape.take()
            && self.is_whole
            && self.ready.is_empty()
        {
            tape.keep(self.transform.usage());
        }
    }

    fn end(&mut self, failure: Option<Failure>) {
        // After its last word an upstream may close as it likes.
        let failure = failure.filter(|_| !self.is_done);
        if failure.as_ref().is_some_and(|failure| self.seek(failure)) {
            return;
        }
        self.is_over = true;
        // Nothing more is read, however long the client takes to read what is left.
        self.upstream = AnswerBody::whole(String::new());
        if let Some(failure) = &failure {
            self.transform.fail(failure, &mut self.ready);
        }
        self.is_whole = failure.is_none();
        let outcome = failure.map_or(Outcome::Complete, Outcome::Cut);
        self.settle(&outcome);
    }

    /// Looks for somebody who goes on, if that is wanted and can be.
    fn seek(&mut self, failure: &Failure) -> bool {
        if !heir::is_worth_it(failure) || Instant::now() >= self.deadline {
            return false;
        }
        let Some(said) = self.transform.said().map(ToString::to_string) else {
            return false;
        };
        let (Some(mut heir), Some(account)) = (self.heir.take(), self.account.take()) else {
            return false;
        };
        let (usage, is_counted) = (self.transform.usage(), self.transform.is_counted());
        let entry = account.hand_over(failure, usage, is_counted);
        // What is kept is what one provider said.
        self.tape = None;
        let broke = failure.clone();
        self.search = Some(Box::pin(async move {
            let found = heir.go_on(&said, broke, entry).await;
            (heir, found)
        }));
        true
    }

    /// Goes on with what was found, or ends.
    fn inherit(&mut self, heir: Box<Heir>, found: Result<Inheritance, Box<Nobody>>) {
        match found {
            Ok(inheritance) => {
                self.heir = Some(heir);
                self.upstream = inheritance.body;
                self.records = Records::new(inheritance.framing);
                self.transform.hand_over(inheritance.forwarding);
                self.account = Some(inheritance.account);
                self.has_words = false;
                (self.waits, self.waited, self.silent) = (None, Duration::ZERO, Duration::ZERO);
                self.last_event = Instant::now();
                self.timer
                    .as_mut()
                    .reset(self.deadline.min(self.last_event + self.idle));
            }
            Err(nobody) => {
                self.is_over = true;
                self.transform.fail(&nobody.failure, &mut self.ready);
                if let Some(entry) = nobody.entry {
                    entry.cut();
                }
                self.settle(&Outcome::Cut(nobody.failure));
            }
        }
    }

    fn settle(&mut self, outcome: &Outcome) {
        if let Some(mut account) = self.account.take() {
            self.end_wait(Instant::now());
            self.end_silence();
            account.fell_silent(self.silent);
            account.settle(outcome, self.transform.usage(), self.transform.is_counted());
        }
        if let Some(line) = self.line.take() {
            line.end(outcome, Some(&self.transform.usage()));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let outcome = if self.is_done {
            Outcome::Complete
        } else {
            Outcome::ClientGone
        };
        self.settle(&outcome);
    }
}

fn cut() -> Failure {
    Failure::new(Class::Network, 502, "the provider's answer was cut off")
}

fn overdue() -> Failure {
    slow("the answer took longer than any may take here (`timeouts.total-ms`); ask for a shorter one")
}

fn slow(message: &str) -> Failure {
    Failure::new(Class::Slow, 504, message)
}
