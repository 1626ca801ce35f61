//! The commands of a chat: lines that begin with `/`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use carat_format::read_limited;
use carat_prompt::{Attached, Kind};
use carat_text::{Message, Role};
use serde::{Deserialize, Serialize};

use super::{Chat, Turn, text_of};
use crate::media_args::attachment;
use crate::output;
use crate::thoughts::Show;

/// Largest saved conversation that is read, in bytes.
const MAX_SAVED_BYTES: u64 = 64 << 20;

const HELP: &str = "\
/help               this list
/system [TEXT]      show or set the instructions; `/system -` removes them
/set [NAME VALUE]   show or change a setting: temperature, top_k, top_p,
                    min_p, typical_p, repetition_penalty, frequency_penalty,
                    presence_penalty, seed, max_tokens, verbose
/image PATH         look at an image with the next message (also /audio,
                    /video; or drag a file here)
/detach             leave out what was attached to the next message
/think [on|off]     let the model think before it answers, or not
/think show|hide    show thoughts as they come, or fold them into a line;
                    /think last shows the latest
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
    /// Files that went with it, in the order of their places: those before the text, then sounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<SavedAttachment>,
}

/// A file that went with a message; its content is not saved.
#[derive(Debug, Serialize, Deserialize)]
struct SavedAttachment {
    kind: SavedKind,
    path: PathBuf,
}

/// Names as in `--image`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedKind {
    Image,
    Audio,
    Video,
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
                self.pending.clear();
                output::note("forgotten");
            }
            "/system" => self.set_system(rest)?,
            "/set" => self.set(rest)?,
            "/image" => self.attach(&attachment(Kind::Image, path_of(rest)?))?,
            "/audio" => self.attach(&attachment(Kind::Audio, path_of(rest)?))?,
            "/video" => self.attach(&attachment(Kind::Video, path_of(rest)?))?,
            "/detach" => output::note(&format!(
                "left out {} files",
                std::mem::take(&mut self.pending).len()
            )),
            "/think" => self.think(rest)?,
            "/save" => self.save(&path_of(rest)?)?,
            "/load" => self.load(&path_of(rest)?)?,
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

    fn think(&mut self, rest: &str) -> Result<()> {
        if !self.answerer.can_think() {
            return Err(anyhow!("`{}` has no channel for thoughts", self.model_name));
        }
        let shown = if self.color { Show::Dim } else { Show::Plain };
        match rest {
            "" => self.options.thinking = !self.options.thinking,
            "on" => self.options.thinking = true,
            "off" => self.options.thinking = false,
            "show" => self.options.show = shown,
            "hide" => self.options.show = Show::Folded,
            "last" if self.thoughts.is_empty() => {
                output::note("there were no thoughts before the latest answer")
            }
            "last" => output::line(&self.thoughts)?,
            other => {
                return Err(anyhow!(
                    "`/think {other}` means nothing; on, off, show, hide and last do"
                ));
            }
        }
        if rest != "last" {
            let thinks = if self.options.thinking {
                "thinks before it answers"
            } else {
                "answers at once"
            };
            let folded = if self.options.show == Show::Folded {
                "folded"
            } else {
                "shown"
            };
            output::note(&format!("the model {thinks}; thoughts are {folded}"));
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
            "verbose" => self.verbose = switch(value)?,
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

    /// Writes the conversation to a file: a new one, or one that a conversation was saved in before.
    fn save(&self, path: &Path) -> Result<()> {
        if path.exists() && read(path).is_err() {
            return Err(anyhow!(
                "`{}` is there already and is no saved conversation; give another name",
                path.display()
            ));
        }
        let messages = self.turns.iter().map(|turn| SavedMessage {
            role: if turn.message.role == Role::User {
                SavedRole::User
            } else {
                SavedRole::Assistant
            },
            content: text_of(&turn.message),
            attachments: turn.attached.iter().map(|one| saved(one)).collect(),
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
        let saved = read(path)?;
        let mut turns = Vec::with_capacity(saved.messages.len());
        for message in saved.messages {
            turns.push(self.loaded(message)?);
        }
        self.system = saved.system;
        self.turns = turns;
        output::note(&format!(
            "loaded {} messages from {}",
            self.turns.len(),
            path.display()
        ));
        Ok(())
    }
}

impl Chat {
    /// A message of a saved conversation, its files read again.
    fn loaded(&self, saved: SavedMessage) -> Result<Turn> {
        let role = match saved.role {
            SavedRole::User => Role::User,
            SavedRole::Assistant => Role::Assistant,
        };
        if saved.attachments.is_empty() {
            return Ok(Turn {
                message: Message::text(role, saved.content),
                attached: Vec::new(),
            });
        }
        let mut attached = Vec::with_capacity(saved.attachments.len());
        for one in saved.attachments {
            let kind = match one.kind {
                SavedKind::Image => Kind::Image,
                SavedKind::Audio => Kind::Audio,
                SavedKind::Video => Kind::Video,
            };
            attached.push(Arc::new(
                self.answerer.senses.attach(&attachment(kind, one.path))?,
            ));
        }
        let (message, attached) = crate::media_args::message(&saved.content, attached);
        Ok(Turn { message, attached })
    }
}

fn read(path: &Path) -> Result<Saved> {
    let bytes = read_limited(path, MAX_SAVED_BYTES)?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("`{}` is not a saved conversation", path.display()))
}

fn saved(attached: &Attached) -> SavedAttachment {
    SavedAttachment {
        kind: match attached.kind() {
            Kind::Image => SavedKind::Image,
            Kind::Audio => SavedKind::Audio,
            Kind::Video => SavedKind::Video,
        },
        path: attached.name().into(),
    }
}

/// Whether a line is a command rather than a path or a text: its first word is a slash and a name, which has letters
/// alone, or `/?`. A comment of a program begins with a slash too.
pub(super) fn is_command(line: &str) -> bool {
    let name = line.split_whitespace().next().unwrap_or_default();
    name.strip_prefix('/')
        .is_some_and(|name| name == "?" || !name.is_empty() && name.chars().all(char::is_alphabetic))
}

/// A path as it is typed or dropped.
fn path_of(rest: &str) -> Result<PathBuf> {
    if rest.is_empty() {
        return Err(anyhow!("name a file"));
    }
    let plain = Path::new(rest);
    if plain.exists() {
        return Ok(plain.to_path_buf());
    }
    Ok(super::dropped::path(rest, std::env::home_dir().as_deref()))
}

fn switch(value: &str) -> Result<bool> {
    match value {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        other => Err(anyhow!("`{other}` is neither on nor off")),
    }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| anyhow!("`{value}` is not a number that fits here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{AnswerOptions, Answerer};
    use carat_testkit::ChatModel;

    #[test]
    fn saving_writes_over_conversations_alone() {
        let folder = tempfile::tempdir().unwrap();
        let _model = ChatModel::new("gemma3-vision", folder.path());
        let answerer = Answerer::for_test(folder.path());
        let mut chat = Chat::new(answerer, AnswerOptions::for_test(), None, false, "test");
        let path = folder.path().join("a file.txt");
        let line = format!("/save '{}'", path.display());
        std::fs::write(&path, "precious").unwrap();
        let error = chat.command(&line).unwrap_err();
        assert!(error.to_string().contains("is there already"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(chat.command(&line).unwrap(), Next::Go);
        }
        assert!(read(&path).unwrap().messages.is_empty());
    }

    #[test]
    fn help_fits_into_eighty_columns() {
        assert!(HELP.lines().all(|line| line.chars().count() < 79));
    }

    #[test]
    fn switches_are_on_or_off_and_nothing_else() {
        assert!(switch("on").unwrap() && !switch("off").unwrap());
        assert!(switch("maybe").is_err());
    }

    #[test]
    fn commands_have_names_and_texts_and_paths_have_none() {
        for line in ["/help", "/?", "/set seed 3", "/hlep", "/load a.json"] {
            assert!(is_command(line), "{line}");
        }
        for line in [
            "/* a comment */ int x;",
            "/** says */",
            "//",
            "/",
            "/usr/bin is full",
            "/notes.txt",
            "help",
            "",
        ] {
            assert!(!is_command(line), "{line}");
        }
    }
}
