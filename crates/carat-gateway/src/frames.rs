//! AWS's event streams: frames of bytes instead of lines.
//!
//! ```text
//! length u32 | headers' length u32 | CRC-32 of these 8 bytes | headers | payload | CRC-32 of all before
//! ```
//!
//! Numbers are big-endian. A header is its name's length (u8), the name, a type (u8) and a value; only texts (type 7)
//! say something of interest: `:message-type`, and `:event-type` or `:exception-type`. A wrong checksum ends the
//! stream, since nobody can say where the next frame begins.

use std::ops::Range;

/// The name under which a stream is given out that makes no sense any more.
pub(crate) const BROKEN: &[u8] = b"!broken";
/// The name of an error that has none of its own.
pub(crate) const ERROR: &[u8] = b"!error";

/// Bytes before the headers.
const PRELUDE: usize = 12;
/// Bytes of a frame without headers and payload.
const LEAST: usize = 16;

/// What a buffer begins with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Part of a frame.
    More,
    /// A frame: its length, and where in it the event's name (if it has one) and the payload are.
    Frame {
        length: usize,
        name: Option<Range<usize>>,
        payload: Range<usize>,
        is_error: bool,
    },
    /// No frame.
    Broken,
}

/// Looks for a frame at the beginning, of at most `most` bytes.
pub(crate) fn next(bytes: &[u8], most: usize) -> Found {
    let Some(prelude) = bytes.get(..PRELUDE) else {
        return Found::More;
    };
    let (Some(length), Some(headers_length), Some(sum)) =
        (number(prelude, 0), number(prelude, 4), number(prelude, 8))
    else {
        return Found::Broken;
    };
    let (length, headers_length) = (length as usize, headers_length as usize);
    let is_possible = length >= LEAST && length <= most && headers_length <= length - LEAST;
    if !is_possible || crc32fast::hash(&prelude[..8]) != sum {
        return Found::Broken;
    }
    let Some(frame) = bytes.get(..length) else {
        return Found::More;
    };
    if number(frame, length - 4) != Some(crc32fast::hash(&frame[..length - 4])) {
        return Found::Broken;
    }
    let end = PRELUDE + headers_length;
    let Some(headers) = headers(frame, end) else {
        return Found::Broken;
    };
    Found::Frame {
        length,
        name: headers.name,
        payload: end..length - 4,
        is_error: headers.is_error,
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

#[derive(Default)]
struct Headers {
    name: Option<Range<usize>>,
    is_error: bool,
}

/// Reads the headers between the prelude and `end`.
fn headers(frame: &[u8], end: usize) -> Option<Headers> {
    let (mut at, mut found) = (PRELUDE, Headers::default());
    let take = |at: &mut usize, n: usize| {
        let from = *at;
        *at = from.checked_add(n).filter(|to| *to <= end)?;
        Some(from..*at)
    };
    while at < end {
        let n = usize::from(frame[take(&mut at, 1)?.start]);
        let name = take(&mut at, n)?;
        let kind = frame[take(&mut at, 1)?.start];
        let n = match kind {
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            4 => 4,
            5 | 8 => 8,
            9 => 16,
            6 | 7 => {
                let length = take(&mut at, 2)?;
                usize::from(u16::from_be_bytes([frame[length.start], frame[length.start + 1]]))
            }
            _ => return None,
        };
        let value = take(&mut at, n)?;
        match (&frame[name], kind) {
            (b":event-type" | b":exception-type" | b":error-code", 7) => found.name = Some(value),
            (b":message-type", 7) => found.is_error = &frame[value] != b"event",
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// botocore's own example: an event with a text, a number and a payload.
    fn made(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in headers {
            block.push(u8::try_from(name.len()).unwrap());
            block.extend_from_slice(name.as_bytes());
            block.push(7);
            block.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
            block.extend_from_slice(value.as_bytes());
        }
        let length = u32::try_from(LEAST + block.len() + payload.len()).unwrap();
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
        frame.extend_from_slice(&block);
        frame.extend_from_slice(payload);
        frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
        frame
    }

    #[test]
    fn a_frame_of_the_published_examples_is_read() {
        // No headers, the payload `{'foo':'bar'}`.
        let frame = [
            0x00, 0x00, 0x00, 0x1d, 0x00, 0x00, 0x00, 0x00, 0xfd, 0x52, 0x8c, 0x5a, 0x7b, 0x27, 0x66, 0x6f,
            0x6f, 0x27, 0x3a, 0x27, 0x62, 0x61, 0x72, 0x27, 0x7d, 0xc3, 0x65, 0x39, 0x36,
        ];
        let Found::Frame {
            length,
            name,
            payload,
            is_error,
        } = next(&frame, 1000)
        else {
            panic!()
        };
        assert_eq!((length, name, is_error), (29, None, false));
        assert_eq!(&frame[payload], b"{'foo':'bar'}");
        assert_eq!(next(&frame[..28], 1000), Found::More);
        assert_eq!(next(&frame, 28), Found::Broken, "larger than allowed");
    }

    #[test]
    fn exceptions_are_told_from_events() {
        let frame = made(
            &[
                (":message-type", "exception"),
                (":exception-type", "throttlingException"),
            ],
            b"{}",
        );
        let Found::Frame {
            name: Some(name),
            is_error: true,
            ..
        } = next(&frame, 1000)
        else {
            panic!()
        };
        assert_eq!(&frame[name], b"throttlingException");
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_goes_unseen(at in 0usize..60, bit in 0u8..8) {
            let mut frame = made(&[(":message-type", "event"), (":event-type", "messageStart")], b"{\"a\":1}");
            let at = at.min(frame.len() - 1);
            frame[at] ^= 1 << bit;
            prop_assert_eq!(next(&frame, 1 << 20), Found::Broken);
        }

        #[test]
        fn nonsense_is_never_more_than_nonsense(bytes in prop::collection::vec(any::<u8>(), 0..200), headers in prop::collection::vec(any::<u8>(), 0..60)) {
            let _found = next(&bytes, 1 << 20);
            let mut frame = u32::try_from(LEAST + headers.len()).unwrap().to_be_bytes().to_vec();
            frame.extend_from_slice(&u32::try_from(headers.len()).unwrap().to_be_bytes());
            frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
            frame.extend_from_slice(&headers);
            frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
            prop_assert!(next(&frame, 1 << 20) != Found::More);
        }
    }
}
