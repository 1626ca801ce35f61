//! Tokens that were added to a vocabulary after its training, and the small files that name them where no
//! `tokenizer.json` does: `tokenizer_config.json` with their flags, `added_tokens.json` without.

use std::collections::BTreeMap;
use std::path::Path;

use carat_format::read_limited;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ConvertError;
use crate::Error;

/// Largest file that is read, in bytes; Gemma's `tokenizer_config.json` has 1.2 MB.
const MAX_BYTES: u64 = 16 << 20;

/// One added token.
#[derive(Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Part of the prompt format, hidden from readers.
    #[serde(default)]
    pub(super) special: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, Described>,
}

#[derive(Deserialize)]
struct Described {
    content: String,
    #[serde(default)]
    special: bool,
}

/// The added tokens of a folder without `tokenizer.json`.
pub(super) fn beside(folder: &Path) -> Result<Vec<AddedToken>, ConvertError> {
    let config: TokenizerConfig = read_optional(&folder.join("tokenizer_config.json"))?;
    let bare: BTreeMap<String, u32> = read_optional(&folder.join("added_tokens.json"))?;
    let mut tokens = config.added_tokens_decoder;
    for (content, id) in bare {
        tokens.entry(id).or_insert(Described {
            content,
            special: false,
        });
    }
    let token = |(id, Described { content, special })| AddedToken { id, content, special };
    Ok(tokens.into_iter().map(token).collect())
}

fn read_optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ConvertError> {
    if !path.is_file() {
        return Ok(T::default());
    }
    let bytes = read_limited(path, MAX_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|source| {
        let path = path.to_owned();
        Error::Json { path, source }.into()
    })
}
