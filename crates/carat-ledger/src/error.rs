//! What can go wrong with a ledger.

use std::path::PathBuf;

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database failed.
    #[error("the ledger's database failed")]
    Database(#[from] rusqlite::Error),
    /// The server failed, or cannot be reached.
    #[error("the ledger's PostgreSQL server failed or cannot be reached")]
    Server(#[from] tokio_postgres::Error),
    /// The server took too long.
    #[error("the ledger's PostgreSQL server says nothing; see whether it runs and the network leads to it")]
    Silent,
    /// The system gives nothing to connect with.
    #[error("a connection to the ledger's PostgreSQL server cannot even be begun on this machine")]
    Connection(#[source] std::io::Error),
    /// The server's address makes no sense. It is not repeated, since it may hold a password.
    #[error("the ledger's address is none of a PostgreSQL server, such as postgres://user@host/database")]
    Address(#[source] tokio_postgres::Error),
    /// What the address says about TLS makes no sense, or cannot be had.
    #[error("the connection to the ledger's PostgreSQL server cannot be encrypted as its address says: {0}")]
    Encryption(String),
    /// The database was made by a newer version.
    #[error(
        "the ledger has version {found}, newer than the {known} that this carat knows; use a newer carat"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// A file of the journal failed.
    #[error("cannot use `{path}`", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else writes to it.
    #[error("another gateway writes to the ledger `{path}`; give each its own", path = path.display())]
    InUse {
        /// The lock's file.
        path: PathBuf,
    },
    /// The database's file has more than one name.
    #[error(
        "the ledger `{path}` has {n_names} names (hard links), each of which would have a journal of its own; remove \
         the others or copy it (`find -samefile` lists them)",
        path = path.display()
    )]
    Names {
        /// The one it was to be opened by.
        path: PathBuf,
        /// How many there are.
        n_names: u64,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers for a key")]
    Random,
    /// The database holds what this program did not put there.
    #[error("the ledger's database is not as it should be: {0}")]
    Shape(String),
    /// What was asked for makes no sense, such as a name that is taken.
    #[error("{0}")]
    Refused(String),
    /// A price makes no sense.
    #[error("the price of `{model}` cannot be used: {message}")]
    Price {
        /// The model.
        model: String,
        /// Why.
        message: String,
    },
}
