//! Running a program with limits: its output is read piece by piece, its complaints are kept, and it is stopped
//! when its time is over or when what it wrote is enough.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Bytes of one piece of output.
const PIECE_BYTES: usize = 1 << 18;
/// Pieces that may wait to be taken.
const MAX_WAITING: usize = 4;
/// How much of the end of its complaints is kept, in bytes.
const KEPT_COMPLAINT_BYTES: usize = 2000;

/// A program at work on a file.
pub(super) struct Running<'a> {
    child: Child,
    tool: &'static str,
    file: &'a str,
    pieces: Receiver<Vec<u8>>,
    complaints: Option<JoinHandle<String>>,
    deadline: Instant,
    limit: Duration,
}

impl<'a> Running<'a> {
    /// Starts `command` (without a shell, without input) for at most `limit`.
    pub(super) fn start(
        mut command: Command,
        tool: &'static str,
        file: &'a str,
        limit: Duration,
    ) -> Result<Running<'a>> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Error::VideoTool {
            file: file.to_owned(),
            tool,
            reason: match error.kind() {
                ErrorKind::NotFound => "the program is not there".into(),
                _ => format!("the program cannot be run ({error})"),
            },
        })?;
        let (sender, pieces) = sync_channel(MAX_WAITING);
        // Both threads end when the program's ends of the pipes close, at the latest when it is stopped.
        if let Some(mut stdout) = child.stdout.take() {
            thread::spawn(move || {
                loop {
                    let mut piece = vec![0; PIECE_BYTES];
                    match stdout.read(&mut piece) {
                        Ok(0) | Err(_) => return,
                        Ok(n) => piece.truncate(n),
                    }
                    if sender.send(piece).is_err() {
                        return;
                    }
                }
            });
        }
        let complaints = child
            .stderr
            .take()
            .map(|stderr| thread::spawn(move || last_bytes(stderr)));
        Ok(Running {
            child,
            tool,
            file,
            pieces,
            complaints,
            deadline: Instant::now() + limit,
            limit,
        })
    }

    /// The next piece of output; `None` when there is no more.
    pub(super) fn next_piece(&mut self) -> Result<Option<Vec<u8>>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.pieces.recv_timeout(left) {
            Ok(piece) => Ok(Some(piece)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                self.stop();
                Err(Error::VideoTimeout {
                    file: self.file.to_owned(),
                    tool: self.tool,
                    seconds: self.limit.as_secs(),
                })
            }
        }
    }

    /// To be called at the end of the output: whether the program is content, or what it complained of.
    pub(super) fn finish(mut self) -> Result<()> {
        let status = self.child.wait();
        let complaints = self
            .complaints
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(match complaints.trim() {
                "" => format!("it ended with {status}"),
                text => text.lines().next_back().unwrap_or(text).to_owned(),
            })),
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    pub(super) fn failed(&self, reason: String) -> Error {
        Error::VideoTool {
            file: self.file.to_owned(),
            tool: self.tool,
            reason,
        }
    }

    fn stop(&mut self) {
        // It may have ended by itself meanwhile, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads to the end and keeps the last bytes as text.
fn last_bytes(mut source: impl Read) -> String {
    let mut kept = VecDeque::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = source.read(&mut buffer) {
        kept.extend(&buffer[..n]);
        let surplus = kept.len().saturating_sub(KEPT_COMPLAINT_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(kept.make_contiguous()).into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run(program: &str, arguments: &[&str], limit_ms: u64) -> Result<Vec<u8>> {
        let mut command = Command::new(program);
        command.args(arguments);
        let mut running = Running::start(command, "ffmpeg", "a.mp4", Duration::from_millis(limit_ms))?;
        let mut output = Vec::new();
        while let Some(piece) = running.next_piece()? {
            output.extend(piece);
        }
        running.finish().map(|()| output)
    }

    #[test]
    fn output_and_complaints_arrive() {
        assert_eq!(run("sh", &["-c", "printf abc"], 10_000).unwrap(), b"abc");
        let error = run(
            "sh",
            &["-c", "echo first >&2; echo 'no moov atom' >&2; exit 3"],
            10_000,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "ffmpeg cannot decode the video `a.mp4`: no moov atom"
        );
    }

    #[test]
    fn floods_and_sleepers_are_stopped() {
        let begun = Instant::now();
        assert!(matches!(
            run("sh", &["-c", "exec sleep 60"], 50),
            Err(Error::VideoTimeout { .. })
        ));
        assert!(begun.elapsed() < Duration::from_secs(30));
        let output = run(
            "sh",
            &["-c", "yes complaint | head -c 3000000 >&2; printf x"],
            20_000,
        );
        assert_eq!(output.unwrap(), b"x");
    }

    #[test]
    fn a_missing_program_is_told() {
        let error = run("/nowhere/ffmpeg", &[], 1000).unwrap_err();
        assert!(error.to_string().ends_with("the program is not there"));
    }
}
