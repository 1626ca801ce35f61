//! Every limit of this crate that no configuration changes.

use std::time::Duration;

/// Largest configuration file, in bytes.
pub(crate) const CONFIG_BYTES: u64 = 1 << 20;
/// Largest event of a stream, in bytes: pictures come as one event.
pub(crate) const EVENT_BYTES: usize = 32 << 20;
/// Most of an upstream's error body that is read, in bytes.
pub(crate) const ERROR_BYTES: usize = 64 << 10;
/// Images fetched for one request, together, in bytes.
pub(crate) const FETCHED_BYTES: usize = 40 << 20;
/// Largest prediction, in bytes: texts, and addresses of all else.
pub(crate) const PREDICTION_BYTES: usize = 16 << 20;
/// Longest message of an upstream's error that is passed on, in characters.
pub(crate) const MESSAGE_CHARS: usize = 2000;
/// Events held back until a stream has said something, in bytes.
pub(crate) const HELD_BYTES: usize = 1 << 20;
/// Idle connections kept for each upstream host.
pub(crate) const IDLE_CONNECTIONS: usize = 1024;
/// How long such a connection is kept; below the minute after which many servers close them.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(50);
/// Longest wait that an upstream can order for itself, whatever its headers say.
pub(crate) const WAIT: Duration = Duration::from_secs(24 * 3600);
/// Most clients connected at the same time; more wait to be accepted.
pub(crate) const CONNECTIONS: usize = 60_000;
