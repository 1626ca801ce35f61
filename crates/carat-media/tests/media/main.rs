//! Media against what the reference's processors and the libraries under them gave for the same files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod audio;
#[path = "../../../../fuzz/exercise/audio.rs"]
mod audio_exercise;
mod bad_input;
mod corpus;
mod formats;
mod gemma3;
mod gemma4;
#[path = "../../../../fuzz/exercise/image.rs"]
mod image_exercise;
mod video;
