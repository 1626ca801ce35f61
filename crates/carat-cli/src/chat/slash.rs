//! The commands of a chat: lines that begin with `/`.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use carat_format::read_limited;
use carat_text::{Message, Role};
use serde::{Deserialize, Serialize};

use super::{Chat, text_of};
use crate::output;

/// Largest saved conversation that is read, in bytes.
const MAX_SAVED_BYTES: u64 = 64 << 20;

const HELP: &str = "\
/help               this list
/system [TEXT]      show or set the instructions; `/system -` removes them
/set [NAME VALUE]   show or change a setting: temperature, top_k, top_p, min_p, typical_p,
                    repetition_penalty, frequency_penalty, presence_penalty, seed, max_tokens, verbose
/save FILE          write the conversation to a file
/load FILE          go on with a saved conversation
/clear              forget the conversation
/bye                leave (also Ctrl-D)
\"\"\"                 begins and ends a message of several lines
Ctrl-C              stops the answer";

/// Whether the chat goes on after a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Leave,
}

/// A conversation in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    model: String,
    system: Option<String>,
    messages: Vec<SavedMessage>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedMessage {
    role: SavedRole,
    content: String,
}

/// Names as other programs write them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedRole {
    User,
    Assistant,
}

impl Chat {
    /// Carries out a line that begins with `/`.
    pub(super) fn command(&mut self, line: &str) -> Result<Next> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match name {
            "/help" | "/?" => output::note(HELP),
            "/bye" | "/exit" | "/quit" => return Ok(Next::Leave),
            "/clear" => {
                self.turns.clear();
                output::note("forgotten");
            }
            "/system" => self.set_system(rest)?,
            "/set" => self.set(rest)?,
            "/save" => self.save(path_of(rest)?)?,
            "/load" => self.load(path_of(rest)?)?,
            _ => return Err(anyhow!("there is no command `{name}`; /help shows them")),
        }
        Ok(Next::Go)
    }

    fn set_system(&mut self, text: &str) -> Result<()> {
        match text {
            _ if self.answerer.template.is_none() => {
                return Err(anyhow!("a base model takes no instructions"));
            }
            "" => output::note(self.system.as_deref().unwrap_or("no instructions")),
            "-" => self.system = None,
            text => self.system = Some(text.to_string()),
        }
        Ok(())
    }

    fn set(&mut self, rest: &str) -> Result<()> {
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            if !rest.is_empty() {
                return Err(anyhow!("`/set {rest}` lacks a value"));
            }
            output::note(&self.settings());
            return Ok(());
        };
        let value = value.trim();
        let before = self.options.clone();
        let sampling = &mut self.options.sampling;
        match name {
            "temperature" => sampling.temperature = number(value)?,
            "top_k" => sampling.top_k = number(value)?,
            "top_p" => sampling.top_p = number(value)?,
            "min_p" => sampling.min_p = number(value)?,
            "typical_p" => sampling.typical_p = number(value)?,
            "repetition_penalty" => sampling.repetition_penalty = number(value)?,
            "frequency_penalty" => sampling.frequency_penalty = number(value)?,
            "presence_penalty" => sampling.presence_penalty = number(value)?,
            "seed" => sampling.seed = number(value)?,
            "max_tokens" => self.options.max_tokens = Some(number(value)?).filter(|&n| n > 0),
            "verbose" => self.verbose = matches!(value, "on" | "true" | "1"),
            _ => return Err(anyhow!("there is no setting `{name}`; /set shows them")),
        }
        if let Err(error) = self.options.sampling.validate(usize::MAX) {
            self.options = before;
            return Err(error.into());
        }
        Ok(())
    }

    fn settings(&self) -> String {
        let s = &self.options.sampling;
        let max_tokens = self
            .options
            .max_tokens
            .map_or_else(|| "no limit".to_string(), |n| n.to_string());
        format!(
            "temperature {}\ntop_k {}\ntop_p {}\nmin_p {}\ntypical_p {}\nrepetition_penalty {}\nfrequency_penalty \
             {}\npresence_penalty {}\nseed {}\nmax_tokens {max_tokens}\nverbose {}",
            s.temperature,
            s.top_k,
            s.top_p,
            s.min_p,
            s.typical_p,
            s.repetition_penalty,
            s.frequency_penalty,
            s.presence_penalty,
            s.seed,
            if self.verbose { "on" } else { "off" }
        )
    }

    fn save(&self, path: &Path) -> Result<()> {
        let messages = self.turns.iter().map(|turn| SavedMessage {
            role: if turn.role == Role::User {
                SavedRole::User
            } else {
                SavedRole::Assistant
            },
            content: text_of(turn),
        });
        let saved = Saved {
            model: self.model_name.clone(),
            system: self.system.clone(),
            messages: messages.collect(),
        };
        let text = serde_json::to_string_pretty(&saved)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        output::note(&format!(
            "saved {} messages to {}",
            saved.messages.len(),
            path.display()
        ));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = read_limited(path, MAX_SAVED_BYTES)?;
        let saved: Saved = serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` is not a saved conversation", path.display()))?;
        self.system = saved.system;
        self.turns = saved
            .messages
            .into_iter()
            .map(|message| {
                let role = match message.role {
                    SavedRole::User => Role::User,
                    SavedRole::Assistant => Role::Assistant,
                };
                Message::text(role, message.content)
            })
            .collect();
        output::note(&format!(
            "loaded {} messages from {}",
            self.turns.len(),
            path.display()
        ));
        Ok(())
    }
}

fn path_of(rest: &str) -> Result<&Path> {
    if rest.is_empty() {
        Err(anyhow!("name a file"))
    } else {
        Ok(Path::new(rest))
    }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| anyhow!("`{value}` is not a number that fits here"))
}
