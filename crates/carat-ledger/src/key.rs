//! Keys: how they are made, and what belongs to one.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Limits};

/// What every key begins with.
const PREFIX: &str = "sk-carat-";
/// Letters of a key that lists show.
const SHOWN: usize = PREFIX.len() + 4;

/// A key's text. It is shown once; only its hash is kept.
pub struct Secret(String);

impl Secret {
    /// A new one, of 192 random bits.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut bytes = [0u8; 24];
        getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{PREFIX}{digits}")))
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn start(&self) -> &str {
        &self.0[..SHOWN.min(self.0.len())]
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The hash by which a key is kept and found. The text has so many random bits that it needs no salt, and looking up
/// by a hash tells nothing by the time that it takes.
pub(crate) fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// What a new key may do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// By which people know it; unique among keys in force.
    pub name: String,
    /// Whose it is.
    #[serde(default)]
    pub user: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub project: Option<String>,
    /// Whose budget it spends besides its own; if none is named, that of its project or its user.
    #[serde(default)]
    pub team: Option<String>,
    /// What it may ask and spend.
    #[serde(default)]
    pub limits: Limits,
    /// When it ends, in milliseconds since 1970.
    #[serde(default)]
    pub expires_ms: Option<u64>,
}

/// A key, without its text.
#[derive(Debug, Clone, Serialize)]
pub struct KeyInfo {
    /// Its number.
    pub id: i64,
    /// The beginning of its text.
    pub start: String,
    /// What it may do.
    pub rights: NewKey,
    /// Whether it was taken back.
    pub is_revoked: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_never_printed() {
        let (a, b) = (Secret::new().unwrap(), Secret::new().unwrap());
        assert_eq!(a.text().len(), PREFIX.len() + 48);
        assert!(a.text() != b.text() && hash(a.text()) != hash(b.text()));
        assert_eq!(format!("{a:?}"), "Secret(…)");
        assert_eq!(a.start().len(), SHOWN);
    }
}
