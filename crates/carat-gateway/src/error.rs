//! What can be wrong before a request comes: configuration, addresses, TLS.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the gateway cannot start, or a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store of secrets cannot be used.
    #[error("the secrets in `{path}` cannot be used: {message}", path = path.display())]
    Secrets {
        /// The file.
        path: PathBuf,
        /// Why, without a word of a secret.
        message: String,
    },
    /// The file is larger than any configuration.
    #[error("`{path}` has more than {limit} bytes, which no configuration needs", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most it may have.
        limit: u64,
    },
    /// The text is not TOML of the right shape. The line itself is not repeated: keys may stand in it.
    #[error("the configuration cannot be understood: {message} (line {line})")]
    Toml {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A value makes no sense.
    #[error("`{field}`: {message}")]
    Config {
        /// Where it stands, such as `routes.fast.candidates`.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another with `listen`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The ledger cannot be used.
    #[error("the ledger cannot be used")]
    Ledger(#[source] carat_ledger::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
    /// The certificate that clients are to be shown cannot be used.
    #[error("cannot serve https by `tls`")]
    Certificate(#[source] carat_net::TlsError),
    /// Certificates of this machine cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

impl Error {
    pub(crate) fn toml(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        Self::Toml {
            line: before.map_or(1, |before| before.matches('\n').count() + 1),
            message: error.message().to_string(),
        }
    }

    pub(crate) fn config(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config {
            field: field.into(),
            message: message.into(),
        }
    }
}
