//! What a client may take before it has asked for anything.

use std::time::Duration;

/// Longest TLS handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// How long a client may take to send the head of a request; also how long a connection of HTTP/2 may be idle.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a body may keep its reader waiting; see [`crate::Paced`].
pub(crate) const BODY_WAIT: Duration = Duration::from_secs(20);
/// Bytes a second that a body must come at, once that is used up.
pub(crate) const BODY_RATE: u64 = 8 << 10;
/// How long a client may take nothing of its answer; see [`crate::taken`].
pub(crate) const TAKING_WAIT: Duration = Duration::from_secs(60);
/// Bytes that a client may take before it is seen: a third of the largest send buffer that Linux makes by itself (4 MB),
/// and a part of the client's own.
pub(crate) const TAKING_BYTES: u64 = 2 << 20;
/// Bytes of a body that nobody wants which are read all the same; see [`crate::Paced`].
pub(crate) const UNWANTED_BYTES: usize = 64 << 20;
/// How long such bytes are waited for.
pub(crate) const UNWANTED_TIME: Duration = Duration::from_secs(5);
/// How long the answer gets to go before them.
pub(crate) const UNWANTED_DELAY: Duration = Duration::from_millis(10);
/// Most requests at the same time on one connection of HTTP/2.
pub(crate) const STREAMS: u32 = 128;
/// Bytes that a client may send ahead in one request of HTTP/2, and in all of a connection.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// See [`STREAM_WINDOW`].
pub(crate) const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of an answer that wait for a slow reader of HTTP/2.
pub(crate) const SEND_BUFFER: usize = 64 << 10;
/// How often a connection of HTTP/2 with answers under way is asked whether it is still there, and how long it may take
/// to say so.
pub(crate) const PING: Duration = Duration::from_secs(30);
/// See [`PING`].
pub(crate) const PONG: Duration = Duration::from_secs(20);
/// How often the files of a certificate are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Largest file of a certificate or key, in bytes.
pub(crate) const PEM_BYTES: u64 = 1 << 20;
