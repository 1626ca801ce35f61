//! Images, sounds and videos as requests bring them: as base64, as a `data:` URL, or by address.

use std::sync::Arc;

use crate::ApiError;

/// An image, a sound or a video of a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Media {
    /// The path of the field that brought it, for errors.
    pub path: String,
    /// Where its bytes are.
    pub source: MediaSource,
}

/// Where the bytes of one are.
#[derive(Clone, PartialEq)]
pub enum MediaSource {
    /// Here: a whole file.
    Bytes(Arc<[u8]>),
    /// At an http or https address.
    Url(String),
}

impl std::fmt::Debug for MediaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Url(url) => write!(f, "Url({url:?})"),
        }
    }
}

impl Media {
    /// What a `data:`, `http:` or `https:` URL stands for.
    ///
    /// # Errors
    /// Other URLs, and data that is no base64.
    pub fn of_url(path: &str, url: &str) -> Result<Self, ApiError> {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("http" | "https") => Ok(Self {
                path: path.to_string(),
                source: MediaSource::Url(url.to_string()),
            }),
            Some("data") => match url.split_once(',') {
                Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => {
                    Self::of_base64(path, data)
                }
                _ => Err(ApiError::field(
                    path,
                    format!("`{path}` must be a data URL in base64, as in `data:image/png;base64,...`"),
                )),
            },
            _ => Err(ApiError::field(
                path,
                format!("`{path}` must be an http, https or data URL"),
            )),
        }
    }

    /// What base64 stands for.
    ///
    /// # Errors
    /// When it is none, or empty.
    pub fn of_base64(path: &str, text: &str) -> Result<Self, ApiError> {
        let bytes = decode(text).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| ApiError::field(path, format!("`{path}` holds no base64 data")))?;
        Ok(Self {
            path: path.to_string(),
            source: MediaSource::Bytes(bytes.into()),
        })
    }

    /// Bytes that are held for it.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match &self.source {
            MediaSource::Bytes(bytes) => bytes.len(),
            MediaSource::Url(url) => url.len(),
        }
    }
}

/// Bytes of base64 in either alphabet, with or without padding; blanks are skipped.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut word, mut n_bits, mut n_padding) = (0u32, 0, 0);
    for c in text.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => {
                n_padding += 1;
                continue;
            }
            b' ' | b'\n' | b'\r' | b'\t' => continue,
            _ => return None,
        };
        if n_padding > 0 {
            return None;
        }
        word = word << 6 | u32::from(digit);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((word >> n_bits & 0xff) as u8);
        }
    }
    // A lone digit stands for no byte.
    (n_padding <= 2 && n_bits < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_in_all_its_forms() {
        for (text, expected) in [
            ("aGk=", &b"hi"[..]),
            ("aGk", b"hi"),
            ("aG\nkh", b"hi!"),
            ("-_8=", &[0xfb, 0xff]),
            ("+/8", &[0xfb, 0xff]),
        ] {
            assert_eq!(decode(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["a", "aGk=a", "aGk===", "a*Gk", "aGkhb"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn urls_are_data_or_addresses() {
        let media = Media::of_url("x", "data:image/png;base64,aGk=").unwrap();
        assert_eq!(media.source, MediaSource::Bytes((*b"hi").into()));
        let media = Media::of_url("x", "HTTPS://a.example/b.png").unwrap();
        assert!(matches!(media.source, MediaSource::Url(_)));
        for wrong in [
            "file:///etc/passwd",
            "data:text/plain,hi",
            "data:;base64,",
            "data:;base64,*",
            "x",
            "ftp://a/b",
        ] {
            assert_eq!(
                Media::of_url("x", wrong).unwrap_err().param.as_deref(),
                Some("x"),
                "{wrong}"
            );
        }
    }
}
