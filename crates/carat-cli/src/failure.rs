//! How a failed command is told: one sentence, a `hint:` line where something can be done, an exit code.
//!
//! | code | means |
//! |---|---|
//! | 0 | done; also when the reader of the output has gone away (`| head`) |
//! | 1 | the user's fault, or their machine's: a missing file, a refused download, a damaged model |
//! | 2 | wrong arguments |
//! | 70 | a mistake in carat: please report it |
//! | 130 | stopped by Ctrl-C, or by another signal that asks it to end |

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::output;

/// Exit code of wrong arguments, as clap has it.
const WRONG_ARGUMENTS: u8 = 2;
/// Exit code of our own mistakes (`EX_SOFTWARE` of sysexits).
pub(crate) const OUR_MISTAKE: u8 = 70;

/// Exit code after Ctrl-C, as shells have it: 128 and the signal's number.
pub(crate) const INTERRUPTED: u8 = 130;

/// Context that says what failed and what the user can do about it.
#[derive(Clone, Debug)]
pub(crate) struct Hinted {
    message: String,
    hint: String,
    code: u8,
}

impl Hinted {
    /// A failure with advice.
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
            code: 1,
        }
    }

    /// Arguments that are wrong only in view of each other or of the model.
    pub(crate) fn wrong_arguments(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: WRONG_ARGUMENTS,
            ..Self::new(message, hint)
        }
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// Ctrl-C ended the command. Nothing needs to be said about it.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A failure told in exactly one line, with its advice: for commands whose errors scripts read.
#[derive(Debug)]
struct OneLine {
    text: String,
    code: u8,
}

impl fmt::Display for OneLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for OneLine {}

/// The same failure, to be told in one line.
pub(crate) fn in_one_line(error: anyhow::Error) -> anyhow::Error {
    if error.is::<Interrupted>() {
        return error;
    }
    let code = exit_code(&error);
    let hinted = error.downcast_ref::<Hinted>();
    let advice = hinted.map_or_else(String::new, |hinted| format!("; {}", hinted.hint));
    let text = sentence(&error) + &advice;
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    OneLine { text, code }.into()
}

/// Prints the failure of a command and gives its exit code. A closed output is no failure.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_output(error) {
        return ExitCode::SUCCESS;
    }
    if error.is::<Interrupted>() {
        return ExitCode::from(INTERRUPTED);
    }
    let mut stderr = io::stderr().lock();
    // When even stderr is closed, the exit code says it.
    let _unsaid = writeln!(stderr, "{}", told(error));
    if let Some(one_line) = error.downcast_ref::<OneLine>() {
        return ExitCode::from(one_line.code);
    }
    if is_ours(error) {
        let _unsaid = writeln!(
            stderr,
            "hint: this is a mistake in carat; please report it with the command you ran"
        );
    }
    ExitCode::from(exit_code(error))
}

/// A failure as it is told, with the advice that it brings. It may quote names and files of others.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let hint = error.downcast_ref::<Hinted>();
    let hint = hint.map_or_else(String::new, |hinted| format!("\nhint: {}", hinted.hint));
    output::printable_lines(&format!("error: {}{hint}", sentence(error)))
}

/// The exit code of a failure that is told.
fn exit_code(error: &anyhow::Error) -> u8 {
    if is_ours(error) {
        return OUR_MISTAKE;
    }
    if is_stopped_download(error) {
        return INTERRUPTED;
    }
    error.downcast_ref::<Hinted>().map_or(1, |hinted| hinted.code)
}

/// Whether Ctrl-C stopped a download; unlike other interruptions it is told, since what was fetched can be gone on from.
fn is_stopped_download(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(carat_hub::Error::Cancelled)))
}

/// The error and its causes in one sentence.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Some errors repeat their cause in their own message.
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Whether the output was closed by its reader.
fn is_closed_output(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<OutputError>()
            .is_some_and(|e| e.0.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Whether the error says that carat broke its own rules.
fn is_ours(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(carat_engine::Error::LogitsShape { .. } | carat_engine::Error::CacheLength { .. })
        )
    })
}

/// Writing to stdout failed. Kept apart from other input and output: only here a closed pipe is no failure.
#[derive(Debug)]
pub(crate) struct OutputError(pub(crate) io::Error);

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write the output: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn causes_become_one_sentence_without_repetition() {
        let error = anyhow!("file `x` is gone").context("cannot load the model: file `x` is gone");
        assert_eq!(sentence(&error), "cannot load the model: file `x` is gone");
        let error = anyhow!("no such file").context("cannot read `x`");
        assert_eq!(sentence(&error), "cannot read `x`: no such file");
    }

    #[test]
    fn advice_stands_on_a_line_of_its_own() {
        assert_eq!(
            told(&Hinted::new("it failed", "try again").into()),
            "error: it failed\nhint: try again"
        );
        assert_eq!(told(&anyhow!("it failed")), "error: it failed");
    }

    #[test]
    fn what_an_error_quotes_gives_a_terminal_no_orders() {
        let error = Hinted::new("no `a\u{1b}[31m\u{7}`", "try `b\u{1b}c`");
        assert_eq!(
            told(&error.into()),
            "error: no `a\\u{1b}[31m\\u{7}`\nhint: try `b\\u{1b}c`"
        );
    }

    #[test]
    fn a_download_that_was_stopped_is_told_and_ends_as_an_interruption() {
        let error = anyhow::Error::new(carat_hub::Error::Cancelled);
        assert_eq!(exit_code(&error), INTERRUPTED);
        assert!(sentence(&error).contains("run the same command again"));
        let error = error.context("cannot get the model");
        assert_eq!(exit_code(&error), INTERRUPTED);
        let one_line = in_one_line(error);
        assert_eq!(one_line.downcast_ref::<OneLine>().unwrap().code, INTERRUPTED);
        let other = anyhow::Error::new(carat_hub::Error::DiskFull("x".into()));
        assert_eq!(exit_code(&other), 1);
        assert_eq!(
            exit_code(&Hinted::wrong_arguments("a", "b").into()),
            WRONG_ARGUMENTS
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure_but_a_full_disk_is() {
        let error = |kind| anyhow::Error::new(OutputError(io::Error::from(kind))).context("cannot list");
        assert!(is_closed_output(&error(io::ErrorKind::BrokenPipe)));
        assert!(!is_closed_output(&error(io::ErrorKind::StorageFull)));
        let elsewhere = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe))
            .context("pull")
            .unwrap_err();
        assert!(!is_closed_output(&elsewhere));
    }
}
