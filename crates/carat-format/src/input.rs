//! Small files, read whole.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The content of a file of at most `max_bytes` bytes (a configuration, a template, an index).
///
/// # Errors
/// [`Error::FileTooLarge`] above the limit, also when the file grows while it is read; [`Error::NotAFile`]
/// for folders, pipes and devices; [`Error::Io`].
pub fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let io = |action| {
        move |source| Error::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let metadata = fs::metadata(path).map_err(io("open"))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    let too_large = |size| Error::FileTooLarge {
        path: path.to_owned(),
        size,
        limit: max_bytes,
    };
    if metadata.len() > max_bytes {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("open"))?;
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io("read"))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_last_size_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        let error = read_limited(&path, 4).unwrap_err();
        assert!(matches!(
            error,
            Error::FileTooLarge {
                size: 5,
                limit: 4,
                ..
            }
        ));
        assert!(matches!(read_limited(dir.path(), 4), Err(Error::NotAFile { .. })));
    }
}
