#![forbid(unsafe_code)]
//! Gemma's tokenizer and chat templates.
//!
//! - [`Tokenizer`]: text to ids and back, built from GGUF metadata, `tokenizer.json` or `tokenizer.model`. The three
//!   give the same ids. [`StreamDecoder`] turns ids into text as they arrive. [`SentencePieceModel`] is what a
//!   `tokenizer.model` says, for programs that write other files from it.
//! - [`ChatTemplate`]: a conversation to the model's prompt, by the model's own Jinja template or by the built-in
//!   formats of Gemma 3 and Gemma 4. [`ChatTemplate::encode`] keeps text of messages plain, whatever control strings it
//!   holds.
//! - [`AnswerReader`]: Gemma 4's answers to thoughts, text and calls of tools.
//!
//! ```
//! use carat_text::{ChatTemplate, Message, RenderOptions, Role};
//!
//! let conversation = [Message::text(Role::User, "Hi")];
//! let prompt = ChatTemplate::gemma3().render(&conversation, RenderOptions::default())?;
//! assert_eq!(prompt, "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n");
//! # Ok::<(), carat_text::Error>(())
//! ```
//!
//! Knows bytes and strings. Knows no file, no container, no tensor. Files are untrusted: every defect is an [`Error`].

mod answer;
mod border;
mod bpe;
mod chat;
mod decode;
mod deep_stack;
mod error;
mod gemma3;
mod gemma4;
mod jinja;
mod kind;
mod matcher;
mod merges;
mod piece_index;
mod prompt_text;
mod shield;
mod source;
mod strftime;
mod template;
mod tojson;
mod tokenizer;
mod vocabulary;

pub use answer::{AnswerPiece, AnswerReader, parse_answer};
pub use chat::{Message, Part, RenderOptions, Role, Tool, ToolCall, ToolResponse};
pub use decode::{ControlText, StreamDecoder};
pub use error::Error;
pub use prompt_text::PromptText;
pub use source::{GgufVocabulary, SentencePieceModel};
pub use template::ChatTemplate;
pub use tokenizer::{Special, Tokenizer};
