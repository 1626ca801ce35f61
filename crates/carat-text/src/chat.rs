//! The conversation as callers give it, and what may be asked of its rendering.

use std::time::SystemTime;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that come before everything.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that templates see.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text, untrusted: nothing in it becomes a control token.
    Text(String),
    /// The place of an image; the template writes the model's placeholder.
    Image,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Part>,
}

impl Message {
    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Part::Text(text.into())],
        }
    }
}

/// How to render a conversation.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions {
    /// Open the model's turn at the end, so that it answers. Default true.
    pub add_generation_prompt: bool,
    /// Ask the model to think first, where its template can. Default false.
    pub thinking: bool,
    /// The time that templates may write into the prompt; `None` for now.
    pub now: Option<SystemTime>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            thinking: false,
            now: None,
        }
    }
}
