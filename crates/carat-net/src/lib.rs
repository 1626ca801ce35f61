#![forbid(unsafe_code)]
//! Connections from clients: accepted, served and ended in order.
//!
//! [`open`] takes connections until it is told to stop, plain ones with HTTP/1.1, those under TLS with HTTP/2 too where
//! the client wants it (ALPN). Each has a task of its own, so that nobody who is slow holds up others, on the caller's
//! runtime or on threads of their own ([`Hands`]); how many there are, how long handshakes and heads take, how large
//! heads are and how many requests share a connection is limited (`limits`), how slowly a body may come for services
//! that read it as [`Paced`], and for how long a client may take nothing of an answer (`taken`). [`Open::drain`] lets
//! answers end. [`Tls`] is a certificate with its key, which may be replaced while connections that began with the old
//! one go on.
//!
//! What requests mean is the service's affair. Without keys it should answer to names of its own machine alone
//! ([`is_own_name`]). Whoever asks servers in turn encrypts as [`client_tls`] says.

mod hands;
mod hangup;
mod held;
mod host;
mod limits;
mod paced;
mod serve;
mod taken;
mod tls;
mod trust;

pub use hands::{Hands, hand};
pub use hangup::Hangups;
pub use host::{is_loopback, is_of_a_foreign_page, is_own_name, name_of};
pub use paced::{Paced, TooSlow};
pub use serve::{Door, Open, open};
pub use tls::{CertificateFiles, Tls, TlsError, follow};
pub use trust::client_tls;
