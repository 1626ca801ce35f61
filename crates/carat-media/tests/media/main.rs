//! Media against what the reference's processors and the libraries under them gave for the same files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod audio;
mod bad_input;
mod formats;
mod gemma3;
mod gemma4;
mod video;
