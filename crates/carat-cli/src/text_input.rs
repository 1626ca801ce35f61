//! Text and token ids given as an argument, a file or by a pipe.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result};
use carat_format::read_limited;

use crate::failure::Hinted;

/// Most text that is taken in, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// What is piped into stdin; `None` when it is a terminal.
pub(crate) fn piped() -> Result<Option<String>> {
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .context("cannot read the input")?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Hinted::new("the input is larger than 1 GiB", "give a smaller text").into());
    }
    Ok(Some(
        String::from_utf8(bytes).context("the input is not UTF-8 text")?,
    ))
}

/// The argument, or else what is piped in.
pub(crate) fn argument_or_piped(argument: Option<String>, what: &str) -> Result<String> {
    let text = argument.map_or_else(piped, |text| Ok(Some(text)))?;
    text.ok_or_else(|| {
        Hinted::wrong_arguments(
            format!("no {what} is given"),
            format!("give the {what} as an argument or pipe it in"),
        )
        .into()
    })
}

/// A text file.
pub(crate) fn file(path: &Path) -> Result<String> {
    let bytes = read_limited(path, MAX_BYTES)?;
    String::from_utf8(bytes).with_context(|| format!("`{}` is not UTF-8 text", path.display()))
}

/// Token ids as a JSON array; `from` names where they come from, for the error.
pub(crate) fn parse_ids(text: &str, from: &str) -> Result<Vec<u32>> {
    serde_json::from_str(text).map_err(|error| {
        anyhow::Error::new(error).context(Hinted::new(
            format!("{from} is not a JSON array of token ids"),
            "write it like [2, 818, 5279]",
        ))
    })
}
