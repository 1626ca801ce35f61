//! What a model thinks before it answers: shown dim, or folded into one line.

use std::time::Instant;

use crate::failure::OutputError;
use crate::output;

/// Dim, and back.
const DIM: [&str; 2] = ["\x1b[2m", "\x1b[0m"];
/// Where a terminal takes no colours.
const PLAIN: [&str; 2] = ["(thinking) ", ""];

/// How thoughts are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// As they come.
    Dim,
    /// As they come, where nothing can be dim.
    Plain,
    /// One line that says how long it took.
    Folded,
    /// Not at all: answers for programs.
    Never,
}

/// Shows the thoughts of one answer.
#[derive(Debug)]
pub(crate) struct Thoughts {
    show: Show,
    began: Option<Instant>,
    text: String,
}

impl Thoughts {
    pub(crate) fn new(show: Show) -> Self {
        Self {
            show,
            began: None,
            text: String::new(),
        }
    }

    /// More of them.
    pub(crate) fn push(&mut self, text: &str) -> Result<(), OutputError> {
        let is_first = self.began.is_none();
        if is_first {
            self.began = Some(Instant::now());
        }
        self.text.push_str(text);
        let marks = self.marks();
        match (marks, is_first) {
            (Some([open, _]), true) => output::write(&format!("{open}{text}")),
            (Some(_), false) => output::write(text),
            (None, _) => Ok(()),
        }
    }

    /// The answer begins, or everything ends.
    pub(crate) fn close(&mut self) -> Result<(), OutputError> {
        let Some(began) = self.began.take() else {
            return Ok(());
        };
        if let Some([_, close]) = self.marks() {
            output::write(&format!("{close}\n\n"))?;
        } else if self.show == Show::Folded {
            let seconds = began.elapsed().as_secs_f64();
            output::note(&format!("(thought for {seconds:.1} s; /think last shows it)"));
        }
        Ok(())
    }

    /// All of them.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    fn marks(&self) -> Option<[&'static str; 2]> {
        match self.show {
            Show::Dim => Some(DIM),
            Show::Plain => Some(PLAIN),
            Show::Folded | Show::Never => None,
        }
    }
}
