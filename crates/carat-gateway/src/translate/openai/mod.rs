//! OpenAI's chat completions.

mod answer;
mod question;
mod reader;
mod request;
mod writer;

use serde_json::{Value, json};

use super::{Piece, text_of, written};

pub(super) use answer::{answer, finish_name, usage_value};
pub(super) use question::{allowed, question};
pub(super) use reader::ChatReader;
pub(crate) use reader::finish_of;
pub(super) use request::{effort_of, request, safe};
pub(super) use writer::ChunkWriter;

/// A message of the assistant, as it is asked with and answered with. `named`: what its functions are called there.
fn assistant_message(pieces: &[Piece], named: impl Fn(&str) -> String) -> Value {
    let texts: String = pieces.iter().filter_map(text_of).collect();
    let content = if texts.is_empty() {
        Value::Null
    } else {
        Value::from(texts)
    };
    let mut message = json!({"role": "assistant", "content": content});
    let calls: Vec<Value> = pieces.iter().filter_map(|piece| call(piece, &named)).collect();
    if !calls.is_empty() {
        message["tool_calls"] = Value::from(calls);
    }
    message
}

fn call(piece: &Piece, named: impl Fn(&str) -> String) -> Option<Value> {
    let Piece::Call {
        id,
        name,
        arguments,
        signature,
    } = piece
    else {
        return None;
    };
    let function = json!({"name": named(name), "arguments": written(arguments)});
    let mut call = json!({"id": id, "type": "function", "function": function});
    if let Some(signature) = signature {
        call["extra_content"] = json!({"google": {"thought_signature": signature}});
    }
    Some(call)
}
