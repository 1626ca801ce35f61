//! Ollama: chat and generate, as lines of JSON.

mod answer;
mod request;

pub use answer::{Lines, Shape, timestamp};
pub use request::{EmbedRequest, GenerateRequest, chat_request, embed_request, generate_request, keep_alive};
