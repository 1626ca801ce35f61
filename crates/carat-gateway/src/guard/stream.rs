//! A stream that is written anew: between two that speak different APIs with a guard between them, and where another
//! provider may have to go on with it.

use std::sync::Arc;

use super::scrub::{Denied, Scrubber};
use super::{Guard, answer_denied};
use crate::failure::Failure;
use crate::records::Record;
use crate::reply;
use crate::stream::{Forwarding, Step, Transform};
use crate::translate::{Counted, Event, Reader, Writer, reader, writer};
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

/// Longest answer that another may go on with, in bytes.
const CONTINUED_BYTES: usize = 1 << 20;

/// A stream that is written anew: looked at, if there is a guard, and remembered, so that another provider can go on
/// with it.
pub(crate) struct Rewritten {
    guard: Option<Arc<Guard>>,
    forwarding: Forwarding,
    reader: Box<dyn Reader>,
    writer: Box<dyn Writer>,
    scrubber: Scrubber,
    voice: Voice,
    counted: Counted,
    /// What the provider has said, as long as it is nothing but words.
    said: Option<String>,
    /// What those took who began the answer.
    before: Option<Usage>,
    /// White space that was said already, and that who goes on may say again.
    space: String,
    /// What ends it has been written.
    is_over: bool,
}

impl Rewritten {
    pub(crate) fn new(forwarding: Forwarding, guard: Option<Arc<Guard>>) -> Self {
        Self {
            reader: reader(forwarding.dialect, forwarding.reasoning_apart),
            writer: writer(forwarding.endpoint, !forwarding.hides_usage),
            guard,
            forwarding,
            scrubber: Scrubber::default(),
            voice: Voice::Words,
            counted: Counted::default(),
            said: Some(String::new()),
            before: None,
            space: String::new(),
            is_over: false,
        }
    }

    /// Writes events as far as they may go out: whether a client waits for one of them.
    fn write(&mut self, events: Vec<Event>, out: &mut Vec<u8>) -> Result<bool, Denied> {
        let mut has_words = false;
        for mut event in events {
            has_words |= self.counted.count(&event);
            self.forwarding.restore(&mut event);
            match event {
                Event::Text(text) => {
                    let new = self.unsaid(&text);
                    self.remember(new);
                    self.say(Voice::Words, new, out)?;
                }
                Event::Thinking(text) => self.say(Voice::Thoughts, &text, out)?,
                Event::Arguments(text) => self.say(Voice::Arguments, &text, out)?,
                Event::Usage(usage) => {
                    let all = self.before.map_or(usage, |before| before.plus(&usage));
                    self.writer.event(&Event::Usage(all), out);
                }
                // The answer has begun long ago.
                Event::Begin { .. } if self.before.is_some() => {}
                Event::Begin { .. } => self.writer.event(&event, out),
                event => {
                    if matches!(event, Event::Call { .. }) {
                        self.said = None;
                    }
                    self.flush(out)?;
                    self.writer.event(&event, out);
                }
            }
        }
        Ok(has_words)
    }

    fn say(&mut self, voice: Voice, text: &str, out: &mut Vec<u8>) -> Result<(), Denied> {
        if voice != self.voice {
            self.flush(out)?;
            self.voice = voice;
        }
        let text = match &self.guard {
            Some(guard) => self.scrubber.push(guard.answers(), text)?,
            None => text.to_string(),
        };
        self.give(text, out);
        Ok(())
    }

    /// A text without the white space that was said before.
    fn unsaid<'a>(&mut self, text: &'a str) -> &'a str {
        let mut new = text;
        while let (Some(space), Some(first)) = (self.space.chars().next(), new.chars().next()) {
            if space != first {
                self.space.clear();
                break;
            }
            self.space.drain(..space.len_utf8());
            new = &new[first.len_utf8()..];
        }
        new
    }

    fn remember(&mut self, text: &str) {
        if let Some(said) = &mut self.said {
            said.push_str(text);
            if said.len() > CONTINUED_BYTES {
                self.said = None;
            }
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), Denied> {
        if let Some(guard) = &self.guard {
            let rest = self.scrubber.finish(guard.answers())?;
            self.give(rest, out);
        }
        Ok(())
    }

    fn give(&mut self, text: String, out: &mut Vec<u8>) {
        if !text.is_empty() {
            self.writer.event(&self.voice.event(text), out);
        }
    }
}

impl Transform for Rewritten {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        // After the last word nothing goes out.
        if self.is_over {
            return Step::Quiet;
        }
        let mut events = Vec::new();
        match self.reader.record(record, &mut events) {
            Err(failure) => return Step::Failed(self.counted.failed(failure, &events, &self.forwarding)),
            Ok(false) => return Step::Malformed,
            Ok(true) => {}
        }
        let has_words = match self.write(events, out) {
            Err(Denied) => return Step::Failed(answer_denied()),
            Ok(has_words) => has_words,
        };
        if self.counted.is_last(self.forwarding.dialect, record) {
            // What was held back may be what must not go out.
            return if self.end(out) {
                Step::Done
            } else {
                Step::Failed(answer_denied())
            };
        }
        if has_words { Step::Words } else { Step::Quiet }
    }

    fn end(&mut self, out: &mut Vec<u8>) -> bool {
        if self.is_over {
            return true;
        }
        let mut events = Vec::new();
        let is_whole = self.reader.end(&mut events);
        let is_written = self.write(events, out).and_then(|_| self.flush(out)).is_ok();
        if is_whole && is_written {
            self.writer.end(out);
        }
        self.is_over = is_whole && is_written;
        self.is_over
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        reply::stream_error(self.forwarding.endpoint, failure, out);
    }

    fn usage(&self) -> Usage {
        self.counted.usage()
    }

    fn is_counted(&self) -> bool {
        self.counted.is_counted()
    }

    fn may_be_over(&self) -> bool {
        self.is_counted() && self.reader.may_be_over()
    }

    fn said(&self) -> Option<&str> {
        self.said.as_deref().filter(|said| !said.trim().is_empty())
    }

    fn hand_over(&mut self, to: Forwarding) {
        let took = self.usage();
        self.before = Some(self.before.map_or(took, |before| before.plus(&took)));
        self.counted = Counted::default();
        self.reader = reader(to.dialect, to.reasoning_apart);
        self.forwarding = to;
        let said = self.said.as_deref().unwrap_or_default();
        self.space = said[said.trim_end().len()..].to_string();
    }
}
