//! The interactive chat: line editing, slash commands, one conversation.
//!
//! A line is a message. A pasted text of several lines is one message (bracketed paste), and so is what stands
//! between two `"""`, the second at the end of a line or a paste. Lines that begin with `/` and a name are commands, but
//! never what stands in such a block; see [`slash`]. Files that are dragged into a line are
//! offered as attachments; see [`dropped`]. Ctrl-C stops an answer or drops the line being typed, Ctrl-D leaves.

mod dropped;
mod history;
mod slash;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use carat_engine::FinishReason;
use carat_prompt::{Attached, Attachment};
use carat_text::{Message, Part, Role};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::answer::{AnswerOptions, Answerer, print_statistics};
use crate::failure::{Interrupted, OutputError, told};
use crate::interrupt::Interrupt;
use crate::media_args::{attachment, message};
use crate::output;
use crate::thoughts::Show;

use dropped::{dropped, without};
use history::History;
use slash::Next;

/// Opens and closes a message of several lines.
const BLOCK: &str = "\"\"\"";

/// A chat with a model.
pub(crate) struct Chat {
    answerer: Answerer,
    options: AnswerOptions,
    system: Option<String>,
    /// Turns of user and model, in order.
    turns: Vec<Turn>,
    /// What goes with the next message.
    pending: Vec<Arc<Attached>>,
    /// What the model thought before its latest answer.
    thoughts: String,
    verbose: bool,
    /// Whether the terminal takes colours.
    color: bool,
    model_name: String,
}

/// A message and what is attached to it, in the order of its places.
struct Turn {
    message: Message,
    attached: Vec<Arc<Attached>>,
}

/// What the user entered.
enum Input {
    /// A line or a paste, which may be a command.
    Line(String),
    /// What stood between two `"""`, which is a message whatever it says.
    Block(String),
    Nothing,
    End,
}

impl Chat {
    /// A chat without turns.
    pub(crate) fn new(
        answerer: Answerer,
        options: AnswerOptions,
        system: Option<String>,
        verbose: bool,
        model_name: &str,
    ) -> Self {
        Self {
            answerer,
            system,
            turns: Vec::new(),
            pending: Vec::new(),
            thoughts: String::new(),
            verbose,
            color: options.show == Show::Dim,
            options,
            model_name: model_name.to_string(),
        }
    }

    /// Reads and answers until the user leaves. Entered lines are remembered in `carat_dir`.
    pub(crate) fn run(mut self, carat_dir: &Path, interrupt: &Interrupt) -> Result<()> {
        let mut editor = DefaultEditor::new().context("the terminal cannot be used for a chat")?;
        let mut history = History::open(carat_dir, &mut editor);
        if self.answerer.template.is_none() {
            output::note("this is a base model: it continues each text you enter, on its own");
        }
        output::note("/help shows the commands, Ctrl-D leaves");
        loop {
            interrupt.clear();
            let (line, is_block) = match read_input(&mut editor)? {
                Input::Nothing => continue,
                Input::End => break,
                Input::Line(line) => (line, false),
                Input::Block(text) => (text, true),
            };
            history.add(&line, &mut editor);
            let is_command = |text: &str| !is_block && slash::is_command(text);
            let line = if is_command(&line) {
                line
            } else {
                match self.take_dropped(line, &mut editor)? {
                    Some(line) => line,
                    None => continue,
                }
            };
            // A path that was not to be attached is a text like any other.
            if !is_command(&line) {
                self.turn(&line, interrupt)?;
                continue;
            }
            match self.command(&line) {
                Ok(Next::Go) => {}
                Ok(Next::Leave) => break,
                Err(error) => output::note(&told(&error)),
            }
        }
        Ok(())
    }

    /// Reads a file for the next message and says what it takes.
    pub(crate) fn attach(&mut self, file: &Attachment) -> Result<()> {
        let attached = self.answerer.senses.attach(file)?;
        let (n, parts) = (attached.n_soft_tokens(), attached.n_parts());
        let parts = if parts > 1 {
            format!(" in {parts} parts")
        } else {
            String::new()
        };
        output::note(&format!(
            "{} goes with your next message ({}{parts})",
            attached.name(),
            output::counted(n, "token")
        ));
        self.pending.push(Arc::new(attached));
        Ok(())
    }

    /// Offers the files whose paths are in the line as attachments. What is left of the line, if anything.
    fn take_dropped(&mut self, line: String, editor: &mut DefaultEditor) -> Result<Option<String>> {
        let files = dropped(&line, &Path::is_file);
        if files.is_empty() {
            return Ok(Some(line));
        }
        let names: Vec<String> = files
            .iter()
            .map(|file| format!("`{}`", file.path.display()))
            .collect();
        let question = format!("attach {}? [Y/n] ", names.join(", "));
        let answer = read_line(editor, &question)?
            .flatten()
            .unwrap_or_else(|| "n".to_owned());
        if !matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes") {
            return Ok(Some(line));
        }
        for file in &files {
            if let Err(error) = self.attach(&attachment(file.kind, file.path.clone())) {
                output::note(&told(&error));
                return Ok(None);
            }
        }
        Ok(Some(without(&line, &files)).filter(|text| !text.is_empty()))
    }

    /// One message and its answer. Only a lost terminal ends the chat; anything else is told and forgotten.
    fn turn(&mut self, text: &str, interrupt: &Interrupt) -> Result<()> {
        let (message, attached) = message(text, std::mem::take(&mut self.pending));
        self.turns.push(Turn { message, attached });
        match self.answer(interrupt) {
            Ok(answer) => self.turns.push(Turn {
                message: Message::text(Role::Assistant, answer),
                attached: Vec::new(),
            }),
            Err(error) if error.is::<OutputError>() => return Err(error),
            Err(error) => {
                // The files stay for the next attempt.
                self.pending = self.turns.pop().map(|turn| turn.attached).unwrap_or_default();
                if !error.is::<Interrupted>() {
                    output::note(&told(&error));
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, interrupt: &Interrupt) -> Result<String> {
        // A base model continues the latest text on its own.
        let is_base = self.answerer.template.is_none();
        let first = if is_base { self.turns.len() - 1 } else { 0 };
        let turns = &self.turns[first..];
        let attached: Vec<Arc<Attached>> = turns
            .iter()
            .flat_map(|turn| turn.attached.iter().cloned())
            .collect();
        let messages = if is_base {
            turns.iter().map(|turn| turn.message.clone()).collect()
        } else {
            self.messages()
        };
        let prompt = self
            .answerer
            .prompt(&messages, &attached, &self.options, interrupt)?;
        let answer = self
            .answerer
            .answer(prompt, &self.options, interrupt, &mut |text| output::write(text))?;
        output::line("\n")?;
        // What was stopped before it began is no turn: the message's files wait for the next attempt.
        if answer.finished.reason == FinishReason::Cancelled && answer.text.is_empty() {
            return Err(Interrupted.into());
        }
        if answer.finished.reason == FinishReason::ContextFull {
            output::note("(the context is full, which ended the answer; /clear forgets the conversation)");
        }
        // Each answer is another draw, and the whole chat still follows from the first seed.
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        if self.verbose {
            print_statistics(&answer.finished);
        }
        self.thoughts = answer.thoughts;
        Ok(answer.text)
    }

    /// The conversation with its system text.
    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::text(Role::System, text));
        system
            .chain(self.turns.iter().map(|turn| turn.message.clone()))
            .collect()
    }
}

/// One line, or all the lines of a `"""` block.
fn read_input(editor: &mut DefaultEditor) -> Result<Input> {
    let Some(line) = read_line(editor, ">>> ")? else {
        return Ok(Input::End);
    };
    let Some(line) = line else {
        return Ok(Input::Nothing);
    };
    let line = line.trim();
    let input = match line.strip_prefix(BLOCK) {
        None => Input::Line(line.to_string()),
        Some(opened) => {
            let mut block = opened.to_string();
            loop {
                if let Some(text) = closed(&block) {
                    break Input::Block(text.to_string());
                }
                match read_line(editor, "... ")? {
                    Some(Some(line)) => block = block + "\n" + &line,
                    Some(None) => return Ok(Input::Nothing),
                    None => return Ok(Input::End),
                }
            }
        }
    };
    match input {
        Input::Line(text) | Input::Block(text) if text.is_empty() => Ok(Input::Nothing),
        input => Ok(input),
    }
}

/// The text of a block once it is closed. Only at the end of what was entered at once: a paste may hold `"""` itself.
fn closed(block: &str) -> Option<&str> {
    block.trim_end().strip_suffix(BLOCK).map(str::trim)
}

/// `None` at Ctrl-D, `Some(None)` at Ctrl-C.
fn read_line(editor: &mut DefaultEditor, prompt: &str) -> Result<Option<Option<String>>> {
    match editor.readline(prompt) {
        Ok(line) => Ok(Some(Some(line))),
        Err(ReadlineError::Interrupted) => {
            output::note("(Ctrl-D or /bye leaves)");
            Ok(Some(None))
        }
        Err(ReadlineError::Eof) => Ok(None),
        Err(error) => Err(error).context("cannot read from the terminal"),
    }
}

/// A message's text.
fn text_of(message: &Message) -> String {
    let texts = message.content.iter().map(|part| match part {
        Part::Text(text) => text.as_str(),
        Part::Image | Part::Audio | Part::Video => "",
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_testkit::ChatModel;

    #[test]
    fn a_block_ends_where_its_mark_ends_what_was_entered() {
        assert_eq!(closed("text\"\"\""), Some("text"));
        assert_eq!(closed("\ntext\n\"\"\" \n"), Some("text"));
        assert_eq!(closed("\"\"\""), Some(""));
        assert_eq!(closed(""), None);
        assert_eq!(closed("def f():\n    \"\"\"Does it.\"\"\"\n    return 1"), None);
        assert_eq!(
            closed("def f():\n    \"\"\"Does it.\"\"\"\n    return 1\n\"\"\""),
            Some("def f():\n    \"\"\"Does it.\"\"\"\n    return 1")
        );
    }

    #[test]
    fn an_answer_that_is_stopped_before_it_begins_leaves_no_turn() {
        let folder = tempfile::tempdir().unwrap();
        let model = ChatModel::new("gemma3-vision", folder.path());
        let answerer = Answerer::for_test(folder.path());
        let mut chat = Chat::new(answerer, AnswerOptions::for_test(), None, false, "test");
        chat.turn(&model.text, &Interrupt::for_test(true)).unwrap();
        assert_eq!(chat.turns.len(), 0);
        chat.turn(&model.text, &Interrupt::for_test(false)).unwrap();
        assert_eq!(chat.turns.len(), 2);
    }
}
