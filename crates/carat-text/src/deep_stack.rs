//! A thread with a deep stack for work whose recursion an untrusted template decides.
//!
//! The template engine recurses over long chains of operators when it compiles, and over nested lists when it frees
//! them. Neither has a limit of its own, and an overflow ends the process. The limits on a template's length and
//! on the instructions it runs bound both: 32 thousand operators, and as many nested lists as instructions, for which
//! the stack here is large enough. Its pages cost nothing until they are touched.

use std::thread;

use minijinja::{Error, ErrorKind};

/// Bytes; the deepest templates of two million instructions were measured to need between 16 and 32 MiB.
const STACK_BYTES: usize = 256 << 20;

/// Bytes for each instruction, of which there may be more.
const BYTES_PER_INSTRUCTION: usize = 32;

/// Runs `work`, of no more than so many instructions, to its end on a thread of its own.
///
/// # Errors
/// When the system gives no such thread, or the engine panicked.
pub(crate) fn run<T: Send>(n_instructions: u64, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new()
            .stack_size(STACK_BYTES.max(n_instructions as usize * BYTES_PER_INSTRUCTION))
            .spawn_scoped(scope, work);
        let handle = spawned.map_err(|error| {
            Error::new(ErrorKind::InvalidOperation, "the system gave no thread for it").with_source(error)
        })?;
        handle
            .join()
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "the template engine panicked"))
    })
}
