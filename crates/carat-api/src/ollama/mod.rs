//! Ollama: chat and generate, as lines of JSON.

mod answer;
mod request;

pub use answer::{Lines, Shape, timestamp};
pub use request::{GenerateRequest, chat_request, generate_request, keep_alive};
