//! Text and token ids given as an argument, a file or by a pipe.

use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use carat_format::read_limited;

use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::output;

/// Most text that is taken in, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Between two looks at whether Ctrl-C was pressed.
const LOOK: Duration = Duration::from_millis(50);
/// After this time of waiting for stdin it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is piped into stdin; `None` when it is a terminal.
pub(crate) fn piped(interrupt: &Interrupt) -> Result<Option<String>> {
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    let bytes = read_to_end(io::stdin(), interrupt, &mut || {
        output::note("reading stdin until it ends; Ctrl-C stops, `< /dev/null` gives no text");
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Hinted::new("the input is larger than 1 GiB", "give a smaller text").into());
    }
    Ok(Some(
        String::from_utf8(bytes).context("the input is not UTF-8 text")?,
    ))
}

/// All bytes up to the most that is taken in. A pipe that somebody keeps open and writes nothing to, as editors and build
/// servers do, would be waited for without end, so another thread waits, and this one hears Ctrl-C and calls `tell` after a
/// while.
fn read_to_end(
    input: impl Read + Send + 'static,
    interrupt: &Interrupt,
    tell: &mut dyn FnMut(),
) -> Result<Vec<u8>> {
    let (send, read) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = input.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        // Nobody waits any more after Ctrl-C.
        let _unheard = send.send(result.map(|_| bytes));
    });
    let began = Instant::now();
    let mut is_told = false;
    loop {
        match read.recv_timeout(LOOK) {
            Ok(result) => return result.context("cannot read the input"),
            Err(RecvTimeoutError::Timeout) => interrupt.check()?,
            Err(RecvTimeoutError::Disconnected) => bail!("cannot read the input"),
        }
        if !is_told && began.elapsed() >= PATIENCE {
            is_told = true;
            tell();
        }
    }
}

/// The argument, or else what is piped in.
pub(crate) fn argument_or_piped(
    argument: Option<String>,
    what: &str,
    interrupt: &Interrupt,
) -> Result<String> {
    let text = argument.map_or_else(|| piped(interrupt), |text| Ok(Some(text)))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Interrupted;

    #[test]
    fn a_pipe_that_stays_open_is_told_of_and_left_at_ctrl_c() {
        let (nobody_writes, writer) = io::pipe().unwrap();
        let interrupt = Interrupt::for_test(false);
        let mut n_told = 0;
        let error = read_to_end(nobody_writes, &interrupt, &mut || {
            n_told += 1;
            interrupt.flag().store(true, std::sync::atomic::Ordering::Relaxed);
        })
        .unwrap_err();
        assert!(error.is::<Interrupted>(), "{error}");
        assert_eq!(n_told, 1);
        drop(writer);
        let text = read_to_end(&b"text"[..], &interrupt, &mut || {}).unwrap();
        assert_eq!(text, b"text");
    }
}
