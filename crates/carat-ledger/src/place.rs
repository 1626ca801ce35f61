//! Where a ledger is kept.

use std::fmt;
use std::path::{Path, PathBuf};

/// A file of this machine, or a server that several gateways share.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A SQLite database; its journal is in a folder beside it. One gateway at a time writes to it.
    Sqlite(PathBuf),
    /// A PostgreSQL database, for any number of gateways.
    Postgres {
        /// Its address, such as `postgres://user:password@host/database`. It is never printed.
        url: String,
        /// A folder of this gateway alone, for what the server has not heard of yet.
        journal: PathBuf,
    },
}

impl Place {
    /// The folder of the journal.
    pub(crate) fn journal(&self) -> PathBuf {
        match self {
            Self::Sqlite(path) => {
                let mut folder = path.clone().into_os_string();
                folder.push(".journal");
                folder.into()
            }
            Self::Postgres { journal, .. } => journal.clone(),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "Sqlite({})", path.display()),
            Self::Postgres { journal, .. } => write!(f, "Postgres(…, {})", journal.display()),
        }
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_path_buf())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        let place = Place::Postgres {
            url: "postgres://carat:secret@db/carat".into(),
            journal: "j".into(),
        };
        assert_eq!(format!("{place:?}"), "Postgres(…, j)");
        assert_eq!(
            Place::from(Path::new("a/l.db")).journal(),
            Path::new("a/l.db.journal")
        );
    }
}
