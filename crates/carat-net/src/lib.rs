#![forbid(unsafe_code)]
//! Connections from clients: accepted, served and ended in order.
//!
//! [`open`] takes connections until it is told to stop, plain ones with HTTP/1.1, those under TLS with HTTP/2 too where
//! the client wants it (ALPN). Each has a task of its own, so that nobody who is slow holds up others; how many there
//! are, how long handshakes and heads take, how large heads are and how many requests share a connection is limited
//! (`limits`). [`Open::drain`] lets answers end. [`Tls`] is a certificate with its key, which may be replaced while
//! connections that began with the old one go on.
//!
//! What requests mean is the service's affair.

mod hangup;
mod held;
mod limits;
mod serve;
mod tls;

pub use hangup::Hangups;
pub use serve::{Door, Open, open};
pub use tls::{CertificateFiles, Tls, TlsError, follow};
