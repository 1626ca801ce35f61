//! Keys: how they are made, and what belongs to one.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::{Budget, Error};

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

/// What a new key may do. Nothing set is no limit.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// By which people know it; unique among keys in force.
    pub name: String,
    /// Whose budget it spends besides its own.
    pub team: Option<String>,
    /// Routes and models that it may ask for; one that ends in `*` means all that begin so.
    pub models: Vec<String>,
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
    /// Requests at the same time.
    pub concurrency: Option<u64>,
    /// What it may spend.
    pub budget: Option<Budget>,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// A key, without its text.
#[derive(Debug, Clone)]
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

impl KeyInfo {
    /// Whether it may ask for a model.
    pub(crate) fn allows(&self, model: &str) -> bool {
        let models = &self.rights.models;
        models.is_empty()
            || models.iter().any(|allowed| match allowed.strip_suffix('*') {
                Some(start) => model.starts_with(start),
                None => allowed == model,
            })
    }
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

    #[test]
    fn models_are_allowed_by_name_or_beginning() {
        let key = |models: &[&str]| KeyInfo {
            id: 1,
            start: String::new(),
            rights: NewKey {
                models: models.iter().map(ToString::to_string).collect(),
                ..NewKey::default()
            },
            is_revoked: false,
            created_ms: 0,
        };
        assert!(key(&[]).allows("x"));
        let some = key(&["chat", "openai/*"]);
        assert!(
            some.allows("chat")
                && some.allows("openai/gpt")
                && !some.allows("chat2")
                && !some.allows("groq/x")
        );
    }
}
