//! Providers' keys that are kept encrypted: where the store and its key are, and how one is typed.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use carat_gateway::Secrets;
use crossterm::event::{Event, KeyCode, KeyModifiers};
use crossterm::terminal;

use crate::failure::Hinted;
use crate::{output, settings};

/// Longest secret that is read, in bytes.
const MAX_SECRET: u64 = 16 << 10;

/// Where secrets are.
pub(crate) struct Vault {
    pub(crate) store: PathBuf,
    /// The key's file, where no variable has it.
    pub(crate) key: PathBuf,
}

impl Vault {
    /// The store, with a key made for it if there is none.
    pub(crate) fn open_or_make(&self) -> Result<Secrets> {
        if let Some(folder) = self.store.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        }
        let key = match settings::variable("CARAT_SECRETS_KEY") {
            Some(key) => key,
            None => Secrets::key_of_file(&self.key)?,
        };
        Ok(Secrets::open(&self.store, &key)?)
    }

    /// A secret, if there is one. What is wrong with the store is told, since the configuration would only miss a key.
    pub(crate) fn secret(&self, name: &str) -> Option<String> {
        if !self.store.exists() {
            return None;
        }
        let secret = self.open_or_make().and_then(|secrets| Ok(secrets.get(name)?));
        secret.unwrap_or_else(|error| {
            output::note(&format!("{error:#}"));
            None
        })
    }
}

/// Reads a secret from stdin; in a terminal, without showing it.
pub(crate) fn read_secret(name: &str) -> Result<String> {
    let mut text = String::new();
    if std::io::stdin().is_terminal() {
        let mut stderr = std::io::stderr();
        write!(stderr, "{name}: ").and_then(|()| stderr.flush())?;
        terminal::enable_raw_mode()?;
        let typed = typed(&mut text);
        terminal::disable_raw_mode()?;
        writeln!(stderr)?;
        typed?;
    } else {
        std::io::stdin().take(MAX_SECRET).read_to_string(&mut text)?;
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(Hinted::new("no secret was given", "type it, or send it to stdin").into());
    }
    Ok(text.to_string())
}

fn typed(text: &mut String) -> Result<()> {
    loop {
        match crossterm::event::read()? {
            Event::Key(key) if key.modifiers.contains(KeyModifiers::CONTROL) => {
                text.clear();
                return Ok(());
            }
            Event::Key(key) => match key.code {
                KeyCode::Enter => return Ok(()),
                KeyCode::Backspace => {
                    text.pop();
                }
                KeyCode::Char(letter) => text.push(letter),
                _ => {}
            },
            Event::Paste(pasted) => text.push_str(&pasted),
            _ => {}
        }
    }
}
