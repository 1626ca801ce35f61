//! A stream whose words are looked at before they go out.
//!
//! It is always written anew, also between two that speak the same API, since a word's end may come in a later event.

use std::sync::Arc;

use super::scrub::{Denied, Scrubber};
use super::{Guard, answer_denied};
use crate::failure::Failure;
use crate::records::Record;
use crate::reply;
use crate::stream::{Forwarding, Step, Transform, estimated};
use crate::translate::{Event, Reader, Writer, reader, writer};
use crate::usage::Usage;

/// Which of an answer's texts goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    Words,
    Thoughts,
    Arguments,
}

impl Voice {
    fn event(self, text: String) -> Event {
        match self {
            Self::Words => Event::Text(text),
            Self::Thoughts => Event::Thinking(text),
            Self::Arguments => Event::Arguments(text),
        }
    }
}

/// A guarded stream.
pub(crate) struct Guarded {
    guard: Arc<Guard>,
    forwarding: Forwarding,
    reader: Box<dyn Reader>,
    writer: Box<dyn Writer>,
    scrubber: Scrubber,
    voice: Voice,
    usage: Option<Usage>,
    n_bytes: u64,
}

impl Guarded {
    pub(crate) fn new(forwarding: Forwarding, guard: Arc<Guard>) -> Self {
        Self {
            reader: reader(forwarding.dialect, forwarding.reasoning_apart),
            writer: writer(forwarding.endpoint, !forwarding.hides_usage),
            guard,
            forwarding,
            scrubber: Scrubber::default(),
            voice: Voice::Words,
            usage: None,
            n_bytes: 0,
        }
    }

    /// Writes events as far as they may go out: whether a client waits for one of them.
    fn write(&mut self, events: Vec<Event>, out: &mut Vec<u8>) -> Result<bool, Denied> {
        let mut has_words = false;
        for event in events {
            match event {
                Event::Text(text) => self.say(Voice::Words, &text, out)?,
                Event::Thinking(text) => self.say(Voice::Thoughts, &text, out)?,
                Event::Arguments(text) => self.say(Voice::Arguments, &text, out)?,
                Event::Usage(usage) => {
                    self.usage = Some(usage);
                    self.writer.event(&event, out);
                    continue;
                }
                Event::Begin { id, model } => {
                    let model = if model.is_empty() {
                        self.forwarding.model.clone()
                    } else {
                        model
                    };
                    self.writer.event(&Event::Begin { id, model }, out);
                    continue;
                }
                event => {
                    self.flush(out)?;
                    self.writer.event(&event, out);
                }
            }
            has_words = true;
        }
        Ok(has_words)
    }

    fn say(&mut self, voice: Voice, text: &str, out: &mut Vec<u8>) -> Result<(), Denied> {
        if voice != self.voice {
            self.flush(out)?;
            self.voice = voice;
        }
        self.n_bytes += text.len() as u64;
        let text = self.scrubber.push(self.guard.answers(), text)?;
        self.give(text, out);
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), Denied> {
        let rest = self.scrubber.finish(self.guard.answers())?;
        self.give(rest, out);
        Ok(())
    }

    fn give(&mut self, text: String, out: &mut Vec<u8>) {
        if !text.is_empty() {
            self.writer.event(&self.voice.event(text), out);
        }
    }
}

impl Transform for Guarded {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        let mut events = Vec::new();
        match self.reader.record(record, &mut events) {
            Err(failure) => return Step::Failed(failure.without(self.forwarding.secret.as_deref())),
            Ok(false) => return Step::Malformed,
            Ok(true) => {}
        }
        match self.write(events, out) {
            Err(Denied) => Step::Failed(answer_denied()),
            Ok(true) => Step::Words,
            Ok(false) => Step::Quiet,
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) -> bool {
        let mut events = Vec::new();
        let is_whole = self.reader.end(&mut events);
        let is_written = self.write(events, out).and_then(|_| self.flush(out)).is_ok();
        if is_whole && is_written {
            self.writer.end(out);
        }
        is_whole && is_written
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        reply::stream_error(self.forwarding.endpoint, failure, out);
    }

    fn usage(&self) -> Usage {
        self.usage.unwrap_or_else(|| estimated(self.n_bytes))
    }

    fn is_counted(&self) -> bool {
        self.usage.is_some()
    }
}
