//! What a request may take, in one place.

use std::time::Duration;

/// Largest body, in bytes, unless set otherwise.
pub(crate) const BODY_BYTES: usize = 32 << 20;
/// Most text of a request that is prepared on the thread that serves its connection, and most turns.
pub(crate) const BRIEF_BYTES: usize = 2048;
pub(crate) const BRIEF_TURNS: usize = 16;
/// A stream without news gets a sign of life this often.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(10);
/// How long clients may take to be told that the server stops, when their answers have had their time to end.
pub(crate) const FAREWELL: Duration = Duration::from_millis(500);
/// What clients are told to wait when the queue is full, in seconds.
pub(crate) const RETRY_AFTER_S: u64 = 2;
/// Most videos of one request.
pub(crate) const VIDEOS: usize = 4;
/// Requests whose images, sounds and videos are decoded and encoded at once; others wait for them.
pub(crate) const ENCODINGS: usize = 2;
/// Requests whose files are fetched and held at once, before they are decoded; others wait for them. A request of a
/// kilobyte can name more than memory has.
pub(crate) const FETCHINGS: usize = 8;
/// Most bytes that are fetched for one request.
pub(crate) const FETCHED_BYTES: usize = 64 << 20;
/// Most clients connected at the same time; more wait to be accepted.
pub(crate) const CONNECTIONS: usize = 60_000;
/// Wrong keys after which an address is told to wait.
pub(crate) const WRONG_KEYS: u32 = 20;
/// How long wrong keys are remembered.
pub(crate) const WRONG_KEYS_FORGOTTEN: Duration = Duration::from_secs(60);
/// Addresses whose wrong keys are remembered.
pub(crate) const WRONG_KEY_ADDRESSES: usize = 4096;
/// Stop strings of one request.
pub(crate) const STOP_STRINGS: usize = 64;
/// Longest stop string, in bytes.
pub(crate) const STOP_STRING_BYTES: usize = 4096;
/// Answers that one request may ask for, over all its prompts.
pub(crate) const CHOICES: usize = 256;
/// Responses kept for `previous_response_id`.
pub(crate) const STORED_RESPONSES: usize = 1000;
/// Bytes of text in all of them together.
pub(crate) const STORED_BYTES: usize = 64 << 20;
