//! Fetching one file over several connections into a [`Partial`].
//!
//! ```text
//! worker ─┐  ranges of the file,
//! worker ─┼─ bounded channel ─► the calling thread: writes, saves the state, reports, looks at cancel
//! worker ─┘
//! ```
//!
//! Only the calling thread touches the file, so the state needs no lock and a cancelled pull returns at
//! once: the workers find the channel closed at their next block and end by themselves.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{StatusCode, Url};

use crate::error::{Error, Fault, Result};
use crate::http::{Http, backoff, broken, text, unusable};
use crate::partial::Partial;
use crate::progress::{Event, Watch, pause};

/// Bytes handed over at a time. With eight blocks under way a pull holds about 3 MB.
const BLOCK: usize = 256 << 10;
const BLOCKS_UNDER_WAY: usize = 8;
/// Smallest piece: below it the requests cost more than the bytes.
const MIN_PIECE: u64 = 64 << 10;
/// How long the calling thread waits for a block before it looks at the cancel flag.
const POLL: Duration = Duration::from_millis(50);
/// How often a server that knew ranges and sends whole files is asked for ranges again, before it is believed.
const RANGES_AGAIN: u32 = 3;
/// Time between two byte counts to the caller.
const REPORT: Duration = Duration::from_millis(100);

/// Sent from a worker to the calling thread.
enum Message {
    Block {
        offset: u64,
        bytes: Vec<u8>,
    },
    Retry {
        reason: String,
        wait: Duration,
    },
    /// The server sends whole files only.
    NoRanges,
    Failed(Error),
}

/// What the workers share.
struct Job {
    http: Arc<Http>,
    url: Url,
    size: u64,
    asking: Asking,
    gaps: Mutex<Gaps>,
    stop: AtomicBool,
}

/// How the server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// For pieces, over several connections.
    Ranges,
    /// For the whole file at once: some servers know nothing else.
    Whole,
}

/// What is still to be asked for. Pieces are cut off one by one, so that a server that claims an absurd
/// size cannot make this long.
struct Gaps {
    ranges: VecDeque<Range<u64>>,
    piece: u64,
}

impl Gaps {
    fn next(&mut self) -> Option<Range<u64>> {
        let gap = self.ranges.pop_front()?;
        let cut = gap.end.min(gap.start.saturating_add(self.piece));
        if cut < gap.end {
            self.ranges.push_front(cut..gap.end);
        }
        Some(gap.start..cut)
    }
}

/// Fetches what `partial` lacks of the file at `url`, which has `size` bytes.
///
/// # Errors
/// The first fault that could not be mended. What has arrived is saved in every case.
pub(crate) fn fetch(
    http: &Arc<Http>,
    url: &Url,
    size: u64,
    partial: &mut Partial,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let outcome = patiently(http, url, size, partial, watch);
    // Also after a fault: this is what makes the next pull shorter. A full disk keeps the last state.
    let saved = partial.save();
    outcome.and(saved)?;
    match partial.is_complete() {
        true => Ok(()),
        false => Err(unusable(url, "it ended before the file was complete")),
    }
}

/// Asks for ranges as long as there is hope of them, then for the whole file, of which only what is missing is kept.
fn patiently(
    http: &Arc<Http>,
    url: &Url,
    size: u64,
    partial: &mut Partial,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let mut failures = 0;
    loop {
        let before = partial.done_bytes();
        if run(http, url, size, Asking::Ranges, partial, watch)? == Outcome::Done {
            return Ok(());
        }
        // One machine of many behind a name may know no ranges, or a proxy for a while.
        failures = if partial.done_bytes() > before {
            1
        } else {
            failures + 1
        };
        // Where nothing is there, nothing is read twice.
        if partial.done_bytes() == 0 || failures > RANGES_AGAIN {
            return run(http, url, size, Asking::Whole, partial, watch).map(drop);
        }
        let wait = backoff(&http.limits, failures, None);
        watch.tell(Event::Retrying {
            reason: "the server sent the whole file instead of the rest of it",
            wait,
        });
        watch.pause(wait)?;
    }
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    NoRanges,
}

fn run(
    http: &Arc<Http>,
    url: &Url,
    size: u64,
    asking: Asking,
    partial: &mut Partial,
    watch: &mut Watch<'_>,
) -> Result<Outcome> {
    let missing = partial.missing();
    let gaps = match asking {
        Asking::Ranges => Gaps {
            ranges: missing.into(),
            piece: http.limits.piece_bytes.max(MIN_PIECE),
        },
        // From its beginning, past what is there already, to the last byte that is not.
        Asking::Whole => Gaps {
            ranges: missing.last().map(|last| 0..last.end).into_iter().collect(),
            piece: u64::MAX,
        },
    };
    let n_workers = match asking {
        Asking::Ranges => http.limits.connections.clamp(1, 16),
        Asking::Whole => 1,
    };
    let job = Arc::new(Job {
        http: Arc::clone(http),
        url: url.clone(),
        size,
        asking,
        gaps: Mutex::new(gaps),
        stop: AtomicBool::new(false),
    });
    let (sender, receiver) = sync_channel(BLOCKS_UNDER_WAY);
    for i in 0..n_workers {
        let (job, sender) = (Arc::clone(&job), sender.clone());
        let started = std::thread::Builder::new()
            .name(format!("pull-{i}"))
            .spawn(move || work(&job, &sender));
        match started {
            // One connection is slower than four, but enough.
            Err(error) if i == 0 => return Err(Error::io("start a connection for", partial.path(), error)),
            _ => {}
        }
    }
    drop(sender);
    let outcome = collect(&receiver, http.limits.save_every_bytes, size, partial, watch);
    job.stop.store(true, Ordering::Relaxed);
    outcome
}

/// The calling thread's side: ends when every worker has ended, or with the first fault.
fn collect(
    receiver: &Receiver<Message>,
    save_every: u64,
    size: u64,
    partial: &mut Partial,
    watch: &mut Watch<'_>,
) -> Result<Outcome> {
    let mut reported = Instant::now();
    loop {
        watch.check()?;
        match receiver.recv_timeout(POLL) {
            Ok(Message::Block { offset, bytes }) => {
                partial.write(offset, &bytes)?;
                if partial.unsaved_bytes() >= save_every {
                    partial.save()?;
                }
            }
            Ok(Message::Retry { reason, wait }) => watch.tell(Event::Retrying {
                reason: &reason,
                wait,
            }),
            Ok(Message::NoRanges) => return Ok(Outcome::NoRanges),
            Ok(Message::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                watch.tell(Event::Bytes {
                    done: partial.done_bytes(),
                    total: Some(size),
                });
                return Ok(Outcome::Done);
            }
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            watch.tell(Event::Bytes {
                done: partial.done_bytes(),
                total: Some(size),
            });
        }
    }
}

/// A worker: pieces from the queue until none is left or something ends it.
fn work(job: &Job, sender: &SyncSender<Message>) {
    loop {
        let piece = job.gaps.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(piece) = piece else { return };
        match fetch_piece(job, piece, sender) {
            Ok(()) => {}
            // The other side has gone; there is nobody to tell.
            Err(End::Stopped) => return,
            Err(End::Tell(message)) => {
                let _ = sender.send(message);
                return;
            }
        }
    }
}

/// Why a worker stops before its pieces are done.
enum End {
    Stopped,
    Tell(Message),
}

fn fetch_piece(job: &Job, piece: Range<u64>, sender: &SyncSender<Message>) -> std::result::Result<(), End> {
    let limits = &job.http.limits;
    let mut at = piece.start;
    let mut failures = 0;
    while at < piece.end {
        let before = at;
        let (error, after) = match read_some(job, &mut at, piece.end, sender) {
            Ok(()) => continue,
            Err(Trouble::End(end)) => return Err(end),
            Err(Trouble::Fault(Fault::Fatal(error))) => return Err(End::Tell(Message::Failed(error))),
            Err(Trouble::Fault(Fault::Again { error, after })) => (error, after),
        };
        // Bytes that stay are progress: a bad line may break often without ending the pull.
        let stays = at > before && job.asking == Asking::Ranges;
        failures = if stays { 1 } else { failures + 1 };
        if failures >= limits.attempts {
            return Err(End::Tell(Message::Failed(error)));
        }
        if job.asking == Asking::Whole {
            at = piece.start;
        }
        let wait = backoff(limits, failures, after);
        let retry = Message::Retry {
            reason: error.reason(),
            wait,
        };
        sender.send(retry).map_err(|_| End::Stopped)?;
        pause(wait, || job.stop.load(Ordering::Relaxed));
        if job.stop.load(Ordering::Relaxed) {
            return Err(End::Stopped);
        }
    }
    Ok(())
}

enum Trouble {
    End(End),
    Fault(Fault),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Trouble::Fault(fault)
    }
}

/// One request: sends on the blocks that it gives and moves `at` forward.
fn read_some(
    job: &Job,
    at: &mut u64,
    end: u64,
    sender: &SyncSender<Message>,
) -> std::result::Result<(), Trouble> {
    let range = (job.asking == Asking::Ranges).then_some((*at, end));
    let mut response = job.http.get_range(&job.url, range)?;
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let header = text(response.headers(), "content-range").unwrap_or_default();
        if job.asking == Asking::Whole || !range_fits(&header, *at, job.size) {
            let reason = format!("it sent the range `{header}`, which was not asked for");
            return Err(Fault::Fatal(unusable(&job.url, &reason)).into());
        }
    } else {
        let length = text(response.headers(), "content-length").and_then(|length| length.parse().ok());
        if let Some(length) = length.filter(|length: &u64| *length != job.size) {
            // A page of something in between, such as a proxy that is in trouble: what is there must not suffer for it.
            let reason = format!(
                "it sent {length} bytes, and the file has {}: that is not the file",
                job.size
            );
            let error = unusable(&job.url, &reason);
            return Err(Fault::Again { error, after: None }.into());
        }
        if job.asking == Asking::Ranges && (*at, end) != (0, job.size) {
            return Err(Trouble::End(End::Tell(Message::NoRanges)));
        }
    }
    while *at < end {
        if job.stop.load(Ordering::Relaxed) {
            return Err(Trouble::End(End::Stopped));
        }
        let want = BLOCK.min(usize::try_from(end - *at).unwrap_or(BLOCK));
        let mut bytes = vec![0; want];
        let (n, fault) = read_full(&mut response, &mut bytes, &job.url);
        bytes.truncate(n);
        if n > 0 {
            sender
                .send(Message::Block { offset: *at, bytes })
                .map_err(|_| Trouble::End(End::Stopped))?;
            *at += n as u64;
        }
        if let Some(error) = fault {
            return Err(Fault::Again { error, after: None }.into());
        }
    }
    Ok(())
}

/// Fills the buffer as far as the connection gives; a fault comes with what arrived before it.
fn read_full(from: &mut impl Read, buffer: &mut [u8], url: &Url) -> (usize, Option<Error>) {
    let mut n = 0;
    while n < buffer.len() {
        match from.read(&mut buffer[n..]) {
            Ok(0) => {
                let early = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return (n, Some(broken(url, &early)));
            }
            Ok(more) => n += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return (n, Some(broken(url, &e))),
        }
    }
    (n, None)
}

/// Whether `bytes start-end/total` begins where asked and speaks of a file of the right size.
fn range_fits(header: &str, start: u64, size: u64) -> bool {
    let parse = || {
        let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
        let first: u64 = range.split_once('-')?.0.trim().parse().ok()?;
        let total = total.trim();
        Some(first == start && (total == "*" || total.parse() == Ok(size)))
    };
    parse().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_gaps() {
        let mut gaps = Gaps {
            ranges: VecDeque::from([0..5, 8..20, 30..u64::MAX]),
            piece: 8,
        };
        let first: Vec<_> = std::iter::from_fn(|| gaps.next()).take(4).collect();
        assert_eq!(first, [0..5, 8..16, 16..20, 30..38]);
    }

    #[test]
    fn ranges_are_checked() {
        assert!(range_fits("bytes 5-9/100", 5, 100));
        assert!(range_fits("bytes 5-9/*", 5, 100));
        for bad in [
            "",
            "bytes 4-9/100",
            "bytes 5-9/101",
            "bytes */100",
            "items 5-9/100",
            "bytes 5",
        ] {
            assert!(!range_fits(bad, 5, 100), "{bad}");
        }
    }
}
