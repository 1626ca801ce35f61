//! Where a ledger is kept.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::Error;

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
    /// The folder of the journal. A file's is beside the file itself, whatever link led to it: two names of one ledger
    /// must not have two journals, each with a lock of its own.
    pub(crate) fn journal(&self) -> Result<PathBuf, Error> {
        match self {
            Self::Sqlite(path) => {
                let mut folder = real(path)?.into_os_string();
                folder.push(".journal");
                Ok(folder.into())
            }
            Self::Postgres { journal, .. } => Ok(journal.clone()),
        }
    }
}

/// A database's path without links; the file is made if there is none.
fn real(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::File {
        path: path.to_path_buf(),
        source,
    };
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
    // By SQLite, not by ourselves: closing a file takes away all locks that this process has on it, those of other
    // connections too, and only SQLite knows of these. Nothing is read or written yet.
    drop(open(path)?);
    fs::canonicalize(path).map_err(failed)
}

/// Opens a database, or makes it: a file with one name. Journals, ours and SQLite's, lie beside the name under which a
/// file was opened, so that a second hard link would have a second set of them.
pub(crate) fn open(path: &Path) -> Result<Connection, Error> {
    let connection = Connection::open(path)?;
    let n_names = n_names(path).map_err(|source| Error::File {
        path: path.to_path_buf(),
        source,
    })?;
    if n_names > 1 {
        return Err(Error::Names {
            path: path.to_path_buf(),
            n_names,
        });
    }
    Ok(connection)
}

/// How many hard links a file has.
#[cfg(unix)]
fn n_names(path: &Path) -> std::io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(path)?))
}

/// Elsewhere nobody says how many hard links a file has.
#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "as where it can fail")]
fn n_names(_: &Path) -> std::io::Result<u64> {
    Ok(1)
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
        assert_eq!(place.journal().unwrap(), Path::new("j"));
    }

    #[test]
    fn a_journal_is_beside_the_file_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/l.db");
        let expected = folder.path().canonicalize().unwrap().join("a/l.db.journal");
        assert_eq!(Place::from(&path).journal().unwrap(), expected);
        assert_eq!(Place::from(&path).journal().unwrap(), expected, "a second time");
    }

    #[cfg(unix)]
    #[test]
    fn every_name_of_a_file_has_the_same_journal() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["l.db", "link.db", "deep/../l.db"].map(|name| folder.path().join(name));
        fs::create_dir(folder.path().join("deep")).unwrap();
        // A link that leads nowhere yet, too.
        std::os::unix::fs::symlink(&names[0], &names[1]).unwrap();
        let journals: Vec<PathBuf> = names
            .iter()
            .rev()
            .map(|name| Place::from(name).journal().unwrap())
            .collect();
        assert!(
            journals.iter().all(|journal| *journal == journals[0]),
            "{journals:?}"
        );
        assert!(journals[0].ends_with("l.db.journal"));
    }
}
