//! Streams cut into records: server-sent events, lines or frames.
//!
//! Bytes come in pieces of any size; a record is given out when its end has come. Lines may end in `\n`, `\r\n` or
//! `\r`; an event may have several `data:` lines and no space after the colon; comments are skipped. [`Record::raw`]
//! is the event as it came, for those who pass it on unread.

use std::borrow::Cow;

use crate::frames::{self, Found};
use crate::limits::EVENT_BYTES;

/// How a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Events,
    /// One JSON value a line.
    Lines,
    /// AWS's binary frames.
    Frames,
}

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// The event's name, empty without one.
    pub(crate) name: &'a [u8],
    /// What it says; empty for a comment.
    pub(crate) data: Cow<'a, [u8]>,
    /// All of it, with the end.
    pub(crate) raw: &'a [u8],
}

/// A record is larger than any that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Bytes on their way to be records.
#[derive(Debug)]
pub(crate) struct Records {
    framing: Framing,
    buffer: Vec<u8>,
    /// Where the next record begins.
    start: usize,
    /// Up to here no record ends, so that a large one is not searched anew at every read.
    searched: usize,
}

impl Records {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        }
    }

    /// Nothing more comes: ends a last record that lacks its end.
    pub(crate) fn end(&mut self) -> Result<(), TooLarge> {
        let is_empty = self.start == self.buffer.len();
        match self.framing {
            Framing::Events if !is_empty => self.feed(b"\n\n"),
            Framing::Lines if !is_empty => self.feed(b"\n"),
            _ => Ok(()),
        }
    }

    /// Takes what has come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
        } else {
            self.buffer.drain(..self.start);
        }
        self.searched = self.searched.saturating_sub(self.start);
        self.start = 0;
        if self.buffer.len() + bytes.len() > EVENT_BYTES {
            return Err(TooLarge);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole record.
    pub(crate) fn next(&mut self) -> Option<Record<'_>> {
        match self.framing {
            Framing::Events => self.next_event(),
            Framing::Lines => self.next_line(),
            Framing::Frames => self.next_frame(),
        }
    }

    fn next_line(&mut self) -> Option<Record<'_>> {
        loop {
            let from = self.start;
            let Some(end) = memchr::memchr(b'\n', &self.buffer[from.max(self.searched)..]) else {
                self.searched = self.buffer.len();
                return None;
            };
            self.start = from.max(self.searched) + end + 1;
            self.searched = self.start;
            let is_blank = self.buffer[from..self.start].iter().all(u8::is_ascii_whitespace);
            if !is_blank {
                let raw = &self.buffer[from..self.start];
                return Some(Record {
                    name: b"",
                    data: Cow::Borrowed(raw.trim_ascii()),
                    raw,
                });
            }
        }
    }

    fn next_frame(&mut self) -> Option<Record<'_>> {
        let from = self.start;
        match frames::next(&self.buffer[from..], EVENT_BYTES) {
            Found::More => None,
            Found::Broken => {
                self.start = self.buffer.len();
                Some(Record {
                    name: frames::BROKEN,
                    data: Cow::Borrowed(b""),
                    raw: b"",
                })
            }
            Found::Frame {
                length,
                name,
                payload,
                is_error,
            } => {
                self.start += length;
                let raw = &self.buffer[from..self.start];
                let name = match name {
                    Some(name) => &raw[name],
                    None if is_error => frames::ERROR,
                    None => b"",
                };
                Some(Record {
                    name,
                    data: Cow::Borrowed(&raw[payload]),
                    raw,
                })
            }
        }
    }

    /// Whether an empty line has come.
    fn may_end(&mut self) -> bool {
        let is_end = |byte: Option<&u8>| matches!(byte, Some(b'\n' | b'\r'));
        // An end has up to four bytes, of which three may have been seen before.
        let from = self.start.max(self.searched.saturating_sub(3));
        let rest = &self.buffer[from..];
        let ends = memchr::memchr2_iter(b'\n', b'\r', rest).any(|i| {
            let is_pair = rest[i] == b'\r' && rest.get(i + 1) == Some(&b'\n');
            is_end(rest.get(i + 1 + usize::from(is_pair)))
        });
        self.searched = if ends { self.start } else { self.buffer.len() };
        ends || is_end(self.buffer.get(self.start))
    }

    fn next_event(&mut self) -> Option<Record<'_>> {
        if !self.may_end() {
            return None;
        }
        let rest = &self.buffer[self.start..];
        let mut lines = Lines { rest, at: 0 };
        let (mut name, mut data): ((usize, usize), Option<(usize, usize)>) = ((0, 0), None);
        let mut joined: Option<Vec<u8>> = None;
        loop {
            let (from, to) = lines.next()?;
            let line = &rest[from..to];
            if line.is_empty() {
                break;
            }
            let (field, value) = field_of(line);
            let span = (to - value.len(), to);
            match (field, data) {
                (b"event", _) => name = span,
                (b"data", None) => data = Some(span),
                (b"data", Some((a, b))) => {
                    let joined = joined.get_or_insert_with(|| rest[a..b].to_vec());
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                }
                _ => {}
            }
        }
        let from = self.start;
        self.start += lines.at;
        let raw = &self.buffer[from..self.start];
        let (a, b) = data.unwrap_or_default();
        Some(Record {
            name: &raw[name.0..name.1],
            data: joined.map_or(Cow::Borrowed(&raw[a..b]), Cow::Owned),
            raw,
        })
    }
}

/// A line's field and value; a comment has the empty field.
fn field_of(line: &[u8]) -> (&[u8], &[u8]) {
    let Some(colon) = memchr::memchr(b':', line) else {
        return (line, b"");
    };
    let value = &line[colon + 1..];
    (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
}

/// Whole lines, whatever ends them.
struct Lines<'a> {
    rest: &'a [u8],
    at: usize,
}

impl Lines<'_> {
    /// The span of the next line without its end.
    fn next(&mut self) -> Option<(usize, usize)> {
        let from = self.at;
        let to = from + memchr::memchr2(b'\n', b'\r', &self.rest[from..])?;
        self.at = match (self.rest[to], self.rest.get(to + 1)) {
            (b'\n', _) => to + 1,
            (_, Some(b'\n')) => to + 2,
            (_, Some(_)) => to + 1,
            // A `\n` may yet come. An event that ends in a bare `\r` is given out when more comes.
            (_, None) => return None,
        };
        Some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(framing: Framing, pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut records = Records::new(framing);
        let mut found = Vec::new();
        for piece in pieces {
            records.feed(piece).unwrap();
            while let Some(record) = records.next() {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                found.push((text(record.name), text(&record.data)));
            }
        }
        found
    }

    #[test]
    fn events_of_every_writing_are_read() {
        let text = b"data: a\n\nevent: x\r\ndata:b\r\n\r\n: wait\n\nid: 4\ndata: c\ndata: d\n\ndata: half";
        let expected = [("", "a"), ("x", "b"), ("", ""), ("", "c\nd")];
        let expected = expected.map(|(name, data)| (name.to_string(), data.to_string()));
        assert_eq!(all(Framing::Events, &[text]), expected);
        assert_eq!(
            all(Framing::Events, &[b"data: a\r\r", b"x"]),
            [(String::new(), "a".to_string())]
        );
    }

    #[test]
    fn lines_are_read_and_blank_ones_skipped() {
        let found = all(Framing::Lines, &[b"\n {\"a\":1}\r\n\n{\"b\"", b":2}\n"]);
        let found: Vec<_> = found.into_iter().map(|(_, data)| data).collect();
        assert_eq!(found, ["{\"a\":1}", "{\"b\":2}"]);
    }

    #[test]
    fn a_record_without_end_is_refused() {
        let mut records = Records::new(Framing::Events);
        records.feed(&vec![b'x'; EVENT_BYTES]).unwrap();
        assert!(records.next().is_none());
        assert_eq!(records.feed(b"x"), Err(TooLarge));
    }

    proptest! {
        #[test]
        fn where_reads_are_cut_changes_nothing(text in "(data: ?[a-zé]{0,5}(\n|\r\n)|event: y\n|\n|\r\n|:c\n){0,20}", cut in 0usize..200) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole = all(Framing::Events, &[bytes]);
            prop_assert_eq!(&all(Framing::Events, &[&bytes[..cut], &bytes[cut..]]), &whole);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&all(Framing::Events, &single), &whole);
        }
    }
}
