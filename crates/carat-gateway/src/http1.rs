//! HTTP/1.1 as it goes over a connection to a provider (RFC 9112): a request's head, an answer's head, an answer's body.
//!
//! Nothing here reads or writes. hyper's client would do, but keeps three buffers of 8 KB for a stream that says a word
//! now and then, and most of what a gateway holds are such streams; here nothing is kept between two reads but where in
//! the body they are. The heads are parsed by hyper's own parser.

use bytes::{BufMut, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};

/// Largest head of an answer, in bytes.
const HEAD_BYTES: usize = 64 << 10;
/// Most headers of an answer.
const HEADERS: usize = 128;
/// Most interim answers before an answer.
const INTERIM: usize = 16;
/// Most bytes of a body that are no part of what it says, between two pieces of it: extensions of chunks, trailers.
const ASIDE_BYTES: u32 = 16 << 10;

/// What a provider sends is no HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(&'static str);

/// The head of a request, whose URI is a path. How long its body is, is said here.
pub(crate) fn request_head(request: &Request<Bytes>) -> Vec<u8> {
    let mut head = Vec::with_capacity(1 << 10);
    head.put_slice(request.method().as_str().as_bytes());
    head.put_u8(b' ');
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // An address may have a query and no path.
    if !path.starts_with('/') {
        head.put_u8(b'/');
    }
    head.put_slice(path.as_bytes());
    head.put_slice(b" HTTP/1.1\r\n");
    let mut header = |name: &HeaderName, value: &[u8]| {
        head.put_slice(name.as_str().as_bytes());
        head.put_slice(b": ");
        head.put_slice(value);
        head.put_slice(b"\r\n");
    };
    for (name, value) in request.headers() {
        if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
            header(name, value.as_bytes());
        }
    }
    let n_bytes = request.body().len();
    if n_bytes > 0 || request.method() == http::Method::POST {
        header(&CONTENT_LENGTH, n_bytes.to_string().as_bytes());
    }
    head.put_slice(b"\r\n");
    head
}

/// The head of an answer, and how its body comes.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// The connection stays open after the body.
    pub(crate) is_kept: bool,
}

/// Reads the head of an answer, however it is cut. Interim answers before it are passed over.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    /// What came and is no part of a head that was read.
    pub(crate) unread: Vec<u8>,
    /// How much of it is known to hold no end of a head.
    n_searched: usize,
    n_interim: usize,
}

impl HeadReader {
    /// Takes what came: the head, once it is whole.
    ///
    /// # Errors
    /// If it is none, or too large.
    pub(crate) fn feed(&mut self, read: &[u8]) -> Result<Option<Head>, Malformed> {
        let is_first = self.unread.is_empty();
        self.unread.extend_from_slice(read);
        // What comes byte by byte is not parsed as often; what begins as no head does is told at once.
        while is_first || self.has_end() {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut parsed = httparse::Response::new(&mut headers);
            let n = match parsed.parse(&self.unread) {
                Ok(httparse::Status::Complete(n)) => n,
                Ok(httparse::Status::Partial) => break,
                Err(httparse::Error::TooManyHeaders) => {
                    return Err(Malformed("an answer's head is too large"));
                }
                Err(_) => return Err(Malformed("an answer's head is no HTTP")),
            };
            let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or(Malformed("an answer's status is none"))?;
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Malformed("an answer changes the protocol"));
            }
            let found = if status.is_informational() {
                None
            } else {
                Some(head(status, &parsed)?)
            };
            self.unread.drain(..n);
            self.n_searched = 0;
            if found.is_some() {
                return Ok(found);
            }
            self.n_interim += 1;
            if self.n_interim > INTERIM {
                return Err(Malformed("an answer has too many interim ones before it"));
            }
        }
        if self.unread.len() >= HEAD_BYTES {
            return Err(Malformed("an answer's head is too large"));
        }
        Ok(None)
    }

    /// Whether there is an empty line in what was not searched yet.
    fn has_end(&mut self) -> bool {
        let from = self.n_searched.saturating_sub(2);
        self.n_searched = self.unread.len();
        let rest = &self.unread[from..];
        memchr::memchr_iter(b'\n', rest)
            .any(|at| rest[at + 1..].starts_with(b"\n") || rest[at + 1..].starts_with(b"\r\n"))
    }
}

fn head(status: StatusCode, parsed: &httparse::Response<'_, '_>) -> Result<Head, Malformed> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let is_1_0 = parsed.version == Some(0);
    let headers = response.headers_mut();
    headers.reserve(parsed.headers.len());
    for header in &*parsed.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let value = HeaderValue::from_bytes(header.value);
        match (name, value) {
            (Ok(name), Ok(value)) => headers.append(name, value),
            _ => return Err(Malformed("an answer's header is none")),
        };
    }
    let framing = framing(status, is_1_0, headers)?;
    let is_kept = if is_1_0 {
        says(headers, &CONNECTION, "keep-alive")
    } else {
        !says(headers, &CONNECTION, "close")
    };
    // With both lengths somebody on the way has not understood the other: it is believed for the last time.
    let is_doubtful = headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH);
    Ok(Head {
        is_kept: is_kept && !is_doubtful && framing != Framing::UntilClosed,
        framing,
        response,
    })
}

/// Whether a header's list has a word.
fn says(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    words(headers, name).any(|said| said.eq_ignore_ascii_case(word.as_bytes()))
}

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
    })
}

/// Section 6.3, for an answer to anything but HEAD and CONNECT.
fn framing(status: StatusCode, is_1_0: bool, headers: &HeaderMap) -> Result<Framing, Malformed> {
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    if let Some(last) = words(headers, &TRANSFER_ENCODING).last() {
        return match last.eq_ignore_ascii_case(b"chunked") {
            true if is_1_0 => Err(Malformed("an answer in HTTP/1.0 comes in chunks")),
            true => Ok(Framing::Chunks(Chunks::default())),
            false => Ok(Framing::UntilClosed),
        };
    }
    let mut length = None;
    for said in words(headers, &CONTENT_LENGTH) {
        let is_number = !said.is_empty() && said.iter().all(u8::is_ascii_digit);
        let n = std::str::from_utf8(said).ok().filter(|_| is_number);
        let n: Option<u64> = n.and_then(|digits| digits.parse().ok());
        if n.is_none() || length.is_some_and(|other| Some(other) != n) {
            return Err(Malformed("an answer's length is none"));
        }
        length = n;
    }
    Ok(length.map_or(Framing::UntilClosed, Framing::Length))
}

/// How a body comes, and where in it the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes are to come.
    Length(u64),
    Chunks(Chunks),
    UntilClosed,
}

impl Framing {
    /// Adds what `read` says to `said`, and tells how many bytes of it belong to the body.
    ///
    /// # Errors
    /// If it cannot be understood. What was said before that is in `said`.
    pub(crate) fn decode(&mut self, read: &[u8], said: &mut Vec<u8>) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let n = read.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                said.extend_from_slice(&read[..n]);
                *left -= n as u64;
                Ok(n)
            }
            Self::Chunks(chunks) => chunks.decode(read, said),
            Self::UntilClosed => {
                said.extend_from_slice(read);
                Ok(read.len())
            }
        }
    }

    /// Nothing is to come.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunks(chunks) => chunks.at == At::End,
            Self::UntilClosed => false,
        }
    }

    /// How many bytes are to come, if that was said.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }
}

/// Where in a body of chunks a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Chunks {
    at: At,
    /// Of the chunk; while its size is read, what was read of that.
    left: u64,
    /// Bytes since the last chunk that say nothing.
    n_aside: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// Before the first digit of a chunk's size.
    #[default]
    Size,
    /// After a digit of it.
    Digits,
    /// After its size, before the line's end.
    Extension,
    /// Before the LF that ends its size.
    SizeLf,
    Data,
    /// Before the CR and the LF after its data.
    DataCr,
    DataLf,
    /// At the beginning of a line after the last chunk.
    Trailer,
    /// Inside such a line.
    Line,
    /// Before the last LF.
    LastLf,
    End,
}

impl Chunks {
    fn decode(&mut self, read: &[u8], said: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < read.len() && self.at != At::End {
            if self.at == At::Data {
                let rest = &read[at..];
                let n = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                said.extend_from_slice(&rest[..n]);
                at += n;
                self.left -= n as u64;
                if self.left == 0 {
                    (self.at, self.n_aside) = (At::DataCr, 0);
                }
            } else {
                self.step(read[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// A byte between chunks.
    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.n_aside += 1;
        if self.n_aside > ASIDE_BYTES {
            return Err(Malformed("an answer has more between its chunks than is taken"));
        }
        self.at = match (self.at, byte) {
            (At::Size | At::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from(char::from(byte).to_digit(16).unwrap_or(0));
                let left = self.left.checked_mul(16);
                self.left = left.ok_or(Malformed("a chunk of an answer is too large"))? | digit;
                At::Digits
            }
            (At::Digits | At::Extension, b'\r') => At::SizeLf,
            (At::Digits, b';' | b' ' | b'\t') => At::Extension,
            (At::Extension, _) if byte != b'\n' => At::Extension,
            (At::SizeLf, b'\n') if self.left == 0 => At::Trailer,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::Trailer, b'\r') => At::LastLf,
            (At::Line, b'\n') => At::Trailer,
            (At::Trailer | At::Line, _) if byte != b'\n' => At::Line,
            (At::LastLf, b'\n') => At::End,
            _ => return Err(Malformed("an answer's chunks are none")),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a head that comes in pieces of `n` bytes, and what is left.
    fn read(text: &[u8], n: usize) -> Result<Option<(Head, Vec<u8>)>, Malformed> {
        let mut reader = HeadReader::default();
        let mut pieces = text.chunks(n);
        while let Some(piece) = pieces.next() {
            if let Some(head) = reader.feed(piece)? {
                let rest = pieces.flatten().copied();
                return Ok(Some((head, reader.unread.into_iter().chain(rest).collect())));
            }
        }
        Ok(None)
    }

    fn whole(text: &str) -> Head {
        for n in 1..text.len() {
            let (_, rest) = read([text, "rest"].concat().as_bytes(), n).unwrap().unwrap();
            assert_eq!(rest, b"rest", "in pieces of {n}");
            assert!(read(&text.as_bytes()[..text.len() - 1], n).unwrap().is_none());
        }
        read(text.as_bytes(), text.len()).unwrap().unwrap().0
    }

    /// What a body says, read in pieces of `n` bytes, with how much of the input was taken (of a piece that cannot be
    /// understood all), and whether it ended.
    fn said(mut framing: Framing, body: &[u8], n: usize) -> (Vec<u8>, usize, Result<bool, Malformed>) {
        let (mut said, mut at) = (Vec::new(), 0);
        for piece in body.chunks(n) {
            match framing.decode(piece, &mut said) {
                Ok(n_read) => at += n_read,
                Err(error) => return (said, at + piece.len(), Err(error)),
            }
            if framing.is_done() {
                break;
            }
        }
        (said, at, Ok(framing.is_done()))
    }

    const CHUNKS: Framing = Framing::Chunks(Chunks {
        at: At::Size,
        left: 0,
        n_aside: 0,
    });

    #[test]
    fn a_request_says_how_long_it_is() {
        let request = Request::post("/v1/x?a=b")
            .header("host", "h:1")
            .header("x-a", "1")
            .header("content-length", "77")
            .header("transfer-encoding", "chunked")
            .body(Bytes::from_static(b"{}"))
            .unwrap();
        assert_eq!(
            String::from_utf8(request_head(&request)).unwrap(),
            "POST /v1/x?a=b HTTP/1.1\r\nhost: h:1\r\nx-a: 1\r\ncontent-length: 2\r\n\r\n"
        );
        for (address, path) in [("/", "/"), ("http://h", "/"), ("http://h?x=1", "/?x=1")] {
            let request = Request::get(address).body(Bytes::new()).unwrap();
            let head = format!("GET {path} HTTP/1.1\r\n\r\n");
            assert_eq!(request_head(&request), head.as_bytes());
        }
    }

    #[test]
    fn heads_tell_how_bodies_come_and_whether_connections_stay() {
        let cases = [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\ncontent-length: 5\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: x, Close\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: Keep-Alive\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n",
                CHUNKS,
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\ncontent-length: 9\r\n\r\n",
                CHUNKS,
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
                Framing::UntilClosed,
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClosed, false),
            ("HTTP/1.1 204 No\r\n\r\n", Framing::Length(0), true),
            (
                "HTTP/1.1 304 No\r\ncontent-length: 7\r\n\r\n",
                Framing::Length(0),
                true,
            ),
            (
                "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n",
                Framing::Length(1),
                true,
            ),
        ];
        for (text, framing, is_kept) in cases {
            let head = whole(text);
            assert_eq!((head.framing, head.is_kept), (framing, is_kept), "{text}");
        }
        let head = whole(
            "HTTP/1.1 429 Slow\r\nretry-after: 3\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n",
        );
        assert_eq!(head.response.status(), 429);
        assert_eq!(head.response.headers()["retry-after"], "3");
        assert_eq!(head.response.headers().get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS + 1));
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(HEAD_BYTES));
        for text in [
            "HTTP/2 200\r\n\r\n",
            "<html>",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 101 Other\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            &many,
            &long,
            &"HTTP/1.1 103 Hints\r\n\r\n".repeat(INTERIM + 1),
        ] {
            for n in [1, 7, text.len()] {
                assert!(
                    read(text.as_bytes(), n).is_err(),
                    "{} by {n}",
                    &text[..text.len().min(80)]
                );
            }
        }
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        for body in [
            "\r\n",
            ";x\r\n",
            "5\nhello",
            "5\rxhello",
            "5\r\nhello!\r\n",
            "5\r\nhello\r!",
            "g\r\n",
            "-1\r\n",
            "11111111111111111\r\n",
            "0\r\n\n",
            "0\r\n\r\r",
        ] {
            for n in [1, 100] {
                assert!(said(CHUNKS, body.as_bytes(), n).2.is_err(), "{body}");
            }
        }
        let aside = format!("5;{}", "x".repeat(ASIDE_BYTES as usize));
        assert!(said(CHUNKS, aside.as_bytes(), 100).2.is_err());
    }

    proptest! {
        #[test]
        fn a_body_says_the_same_however_it_is_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            (extension, upper) in (prop::sample::select(vec!["", ";a=b", " ;c=\"d\"", "\t"]), any::<bool>()),
            trailers in prop::sample::select(vec!["", "a: b\r\n", "a: b\r\nc: d\r\n"]),
            n in 1_usize..64,
        ) {
            let mut body = Vec::new();
            for piece in &pieces {
                let size = format!("{:x}", piece.len());
                let size = if upper { size.to_uppercase() } else { size };
                body.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
                body.extend_from_slice(piece);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(format!("000\r\n{trailers}\r\n").as_bytes());
            let (expected, n_bytes) = (pieces.concat(), body.len());
            for cut in 0..n_bytes.min(40) {
                let (_, _, ended) = said(CHUNKS, &body[..n_bytes - 1 - cut], n);
                prop_assert_eq!(ended, Ok(false));
            }
            body.extend_from_slice(b"HTTP/1.1 200");
            for n in [n, 10_000] {
                prop_assert_eq!(said(CHUNKS, &body, n), (expected.clone(), n_bytes, Ok(true)));
            }
            let n_said = expected.len();
            let plain = [expected.clone(), b"more".to_vec()].concat();
            if n_said > 0 {
                prop_assert_eq!(said(Framing::Length(n_said as u64), &plain, n), (expected, n_said, Ok(true)));
            }
            prop_assert_eq!(said(Framing::UntilClosed, &plain, n), (plain.clone(), plain.len(), Ok(false)));
        }

        #[test]
        fn nothing_that_comes_is_a_panic(
            start in prop::sample::select(vec!["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "ffffffffffffffff\r\n"]),
            rest in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"0123456789abcdef\r\n:; ".to_vec())], 0..300),
            n in 1_usize..64,
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            if let Ok(Some((head, rest))) = read(&bytes, n) {
                let (words, n_read, _) = said(head.framing, &rest, n);
                prop_assert!(n_read <= rest.len() && words.len() <= n_read);
            }
            let (words, n_read, _) = said(CHUNKS, &bytes, n);
            prop_assert!(n_read <= bytes.len() && words.len() <= n_read);
        }
    }
}
