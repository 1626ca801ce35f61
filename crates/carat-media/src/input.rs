//! Files, read whole but never beyond a limit, and decoders that may not bring a program down.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, Result};

/// How a path is called in errors.
pub(crate) fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Opens a file (or a pipe; a folder is refused by the first read).
pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Io {
        action: "open",
        file: display(path),
        source,
    })
}

/// The bytes of a file that is read as `kind`.
///
/// # Errors
/// [`Error::FileTooLarge`] above `limit_bytes`, [`Error::Io`].
pub(crate) fn read(path: &Path, kind: &'static str, limit_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Io {
            action: "read",
            file: display(path),
            source,
        })?;
    if bytes.len() as u64 > limit_bytes {
        return Err(Error::FileTooLarge {
            file: display(path),
            kind,
            limit_bytes,
        });
    }
    Ok(bytes)
}

/// What `decode` returns; what `damaged` makes of a decoder that gives up in a panic, as some do over a header that
/// nobody would write.
pub(crate) fn decode_guarded<T>(
    decode: impl FnOnce() -> Result<T>,
    damaged: impl FnOnce() -> Error,
) -> Result<T> {
    // What it was working on is dropped with it.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(damaged()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_last_size_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, "an image", 5).unwrap(), b"12345");
        let error = read(&path, "an image", 4).unwrap_err();
        assert!(matches!(error, Error::FileTooLarge { limit_bytes: 4, .. }));
        let error = read(dir.path(), "an image", 4).unwrap_err();
        assert!(matches!(error, Error::Io { .. }));
    }

    #[test]
    fn a_decoder_that_panics_is_a_damaged_file() {
        let damaged = || Error::AudioDamaged {
            file: "x".to_owned(),
            reason: "y".to_owned(),
        };
        assert_eq!(decode_guarded(|| Ok(1), damaged).unwrap(), 1);
        let error = decode_guarded::<i32>(|| panic!("index out of bounds"), damaged).unwrap_err();
        assert!(matches!(error, Error::AudioDamaged { .. }), "{error}");
    }
}
