//! The interactive chat: line editing, slash commands, one conversation.
//!
//! A line is a message. A pasted text of several lines is one message (bracketed paste), and so is what stands
//! between two `"""`. Lines that begin with `/` are commands; see [`slash`]. Ctrl-C stops an answer or drops the
//! line being typed, Ctrl-D leaves.

mod slash;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use carat_text::{Message, Part, Role};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::answer::{AnswerOptions, Answerer, print_statistics};
use crate::failure::{OutputError, sentence};
use crate::interrupt::Interrupt;
use crate::output;

use slash::Next;

/// Opens and closes a message of several lines.
const BLOCK: &str = "\"\"\"";

/// A chat with a model.
pub(crate) struct Chat {
    answerer: Answerer,
    options: AnswerOptions,
    system: Option<String>,
    /// Turns of user and model, in order.
    turns: Vec<Message>,
    verbose: bool,
    model_name: String,
}

/// What the user entered.
enum Input {
    Line(String),
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
            options,
            system,
            turns: Vec::new(),
            verbose,
            model_name: model_name.to_string(),
        }
    }

    /// Reads and answers until the user leaves. Entered lines are remembered in `carat_dir`.
    pub(crate) fn run(mut self, carat_dir: &Path, interrupt: &Interrupt) -> Result<()> {
        let mut editor = DefaultEditor::new().context("the terminal cannot be used for a chat")?;
        let history = carat_dir.join("history");
        // The first chat has no history yet, and without one a chat is still a chat.
        let _none_yet = editor.load_history(&history);
        if self.answerer.template.is_none() {
            output::note("this is a base model: it continues each text you enter, on its own");
        }
        output::note("/help shows the commands, Ctrl-D leaves");
        loop {
            interrupt.clear();
            match read_input(&mut editor)? {
                Input::Nothing => {}
                Input::End => break,
                Input::Line(line) if line.starts_with('/') => match self.command(&line) {
                    Ok(Next::Go) => {}
                    Ok(Next::Leave) => break,
                    Err(error) => output::note(&format!("error: {}", sentence(&error))),
                },
                Input::Line(line) => self.turn(line, interrupt)?,
            }
        }
        let _no_folder = fs::create_dir_all(carat_dir);
        if let Err(error) = editor.save_history(&history) {
            output::note(&format!(
                "the history cannot be kept in {}: {error}",
                history.display()
            ));
        }
        Ok(())
    }

    /// One message and its answer. Only a lost terminal ends the chat; anything else is told and forgotten.
    fn turn(&mut self, text: String, interrupt: &Interrupt) -> Result<()> {
        self.turns.push(Message::text(Role::User, text.clone()));
        match self.answer(&text, interrupt) {
            Ok(answer) => self.turns.push(Message::text(Role::Assistant, answer)),
            Err(error) if error.is::<OutputError>() => return Err(error),
            Err(error) => {
                self.turns.pop();
                output::note(&format!("error: {}", sentence(&error)));
            }
        }
        Ok(())
    }

    fn answer(&mut self, text: &str, interrupt: &Interrupt) -> Result<String> {
        let prompt = self.answerer.prompt(&self.messages(), text)?;
        let answer = self
            .answerer
            .answer(prompt, &self.options, interrupt, &mut |text| output::write(text))?;
        output::line("\n")?;
        // Each answer is another draw, and the whole chat still follows from the first seed.
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        if self.verbose {
            print_statistics(&answer.finished);
        }
        Ok(answer.text)
    }

    /// The conversation with its system text.
    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::text(Role::System, text));
        system.chain(self.turns.iter().cloned()).collect()
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
    let mut text = line.trim().to_string();
    if let Some(opened) = text.strip_prefix(BLOCK) {
        let mut block = opened.to_string();
        while !block.contains(BLOCK) {
            match read_line(editor, "... ")? {
                Some(Some(line)) => block = block + "\n" + &line,
                Some(None) => return Ok(Input::Nothing),
                None => return Ok(Input::End),
            }
        }
        text = block.split(BLOCK).next().unwrap_or_default().trim().to_string();
    }
    if text.is_empty() {
        return Ok(Input::Nothing);
    }
    // A history that is full or unwritable must not keep anybody from chatting.
    let _kept = editor.add_history_entry(&text);
    Ok(Input::Line(text))
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
