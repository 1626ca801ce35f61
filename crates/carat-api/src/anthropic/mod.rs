//! Anthropic: messages.

mod answer;
mod request;

pub use answer::{MessageEvents, message};
pub use request::{count_request, message_request};
