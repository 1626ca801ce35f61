//! The conversation as callers give it, and what may be asked of its rendering.

use std::time::SystemTime;

use serde_json::Value;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that come before everything.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool, with the result of a call.
    Tool,
}

impl Role {
    /// The name that templates see.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
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
    /// The place of a sound.
    Audio,
    /// The place of a video.
    Video,
}

/// A call of a tool that the model made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// By which the result names it; empty where nothing does.
    pub id: String,
    /// The function.
    pub name: String,
    /// A JSON object; templates may take other values.
    pub arguments: Value,
}

/// The result of a call, as part of the message that called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResponse {
    /// The function.
    pub name: String,
    /// What it gave: an object, or a text.
    pub response: Value,
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object.
    pub parameters: Value,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Part>,
    /// What the model thought before it spoke or called; templates keep it where the model wants it.
    pub reasoning: Option<String>,
    /// Calls that the model made in this turn.
    pub tool_calls: Vec<ToolCall>,
    /// Their results, where they are not messages of their own.
    pub tool_responses: Vec<ToolResponse>,
    /// Of a tool's message: the call that it answers.
    pub tool_call_id: Option<String>,
    /// Of a tool's message: the function.
    pub name: Option<String>,
}

impl Message {
    /// A message of these parts and nothing else.
    pub fn new(role: Role, content: Vec<Part>) -> Self {
        Self {
            role,
            content,
            reasoning: None,
            tool_calls: Vec::new(),
            tool_responses: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self::new(role, vec![Part::Text(text.into())])
    }
}

/// How to render a conversation.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions<'a> {
    /// Open the model's turn at the end, so that it answers. Default true.
    pub add_generation_prompt: bool,
    /// Ask the model to think first, where its template can. Default false.
    pub thinking: bool,
    /// Tools that the model may call, where its template can tell of them. Default none.
    pub tools: &'a [Tool],
    /// The time that templates may write into the prompt; `None` for now.
    pub now: Option<SystemTime>,
}

impl Default for RenderOptions<'_> {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            thinking: false,
            tools: &[],
            now: None,
        }
    }
}
