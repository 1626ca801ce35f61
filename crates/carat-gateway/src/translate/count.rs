//! How many tokens a prompt has, asked in another API's words, or estimated where nobody can be asked.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Piece, Question, refused};
use crate::endpoint::{Dialect, Endpoint};
use crate::failure::{Class, Failure};
use crate::provider::{Provider, Surface};
use crate::stream::Forwarding;

/// Bytes of a token of ordinary text.
const BYTES: usize = 4;
/// Tokens that an image or a document stands for: what a picture of a megapixel takes at the large providers.
const MEDIA: usize = 1500;
/// Tokens of what is around each turn.
const TURN: usize = 4;

/// The request as a conversation: Gemini's clients may wrap it.
pub(crate) fn question(endpoint: Endpoint, body: &Value) -> Result<Question, Failure> {
    let wrapped = &body["generateContentRequest"];
    let body = if endpoint == Endpoint::GeminiCount && wrapped.is_object() {
        wrapped
    } else {
        body
    };
    Question::read(endpoint, body)
}

/// What a provider is asked; `None` where it cannot be.
pub(crate) fn request(
    provider: &Provider,
    question: &Question,
    model: &str,
) -> Result<Option<Value>, Failure> {
    let is_usual = provider.surface == Surface::Usual;
    match provider.dialect {
        Dialect::Gemini => {
            let (mut body, _) = question.write(Dialect::Gemini, model)?;
            if is_usual {
                body["model"] = json!(format!("models/{model}"));
                body = json!({"generateContentRequest": body});
            } else if let Some(fields) = body.as_object_mut() {
                // Vertex takes no more.
                let known = ["contents", "systemInstruction", "tools", "generationConfig"];
                fields.retain(|name, _| known.contains(&name.as_str()));
            }
            Ok(Some(body))
        }
        Dialect::Anthropic if is_usual => {
            let (mut body, _) = question.write(Dialect::Anthropic, model)?;
            if let Some(fields) = body.as_object_mut() {
                let known = ["model", "messages", "system", "tools", "tool_choice", "thinking"];
                fields.retain(|name, _| known.contains(&name.as_str()));
            }
            Ok(Some(body))
        }
        _ => Ok(None),
    }
}

/// A number in the client's words.
fn answer(endpoint: Endpoint, n_tokens: u64) -> Bytes {
    let value = match endpoint {
        Endpoint::GeminiCount => json!({"totalTokens": n_tokens}),
        _ => json!({"input_tokens": n_tokens}),
    };
    Bytes::from(value.to_string())
}

/// A provider's number in the client's words.
///
/// # Errors
/// When there is none.
pub(crate) fn translated(forwarding: &Forwarding, body: &[u8]) -> Result<Bytes, Failure> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let counted = value["totalTokens"].as_u64().or(value["input_tokens"].as_u64());
    let counted = counted.ok_or_else(|| {
        Failure::new(
            Class::ServerFault,
            502,
            "the provider answered with something that holds no count",
        )
    })?;
    Ok(answer(forwarding.endpoint, counted))
}

/// An estimate from the length of the texts.
///
/// # Errors
/// When it is more than anybody counts.
pub(crate) fn estimated(endpoint: Endpoint, question: &Question) -> Result<Bytes, Failure> {
    let tools: usize = question
        .tools
        .iter()
        .map(|tool| {
            let described = tool.description.as_ref().map_or(0, String::len);
            tool.name.len() + described + tool.schema.to_string().len()
        })
        .sum();
    let turns: usize = question
        .turns
        .iter()
        .map(|turn| TURN + tokens(&turn.pieces))
        .sum();
    let all = tokens(&question.system) + turns + tools.div_ceil(BYTES);
    let all = u64::try_from(all).map_err(|_| refused("messages", "this is too long to be counted"))?;
    Ok(answer(endpoint, all))
}

fn tokens(pieces: &[Piece]) -> usize {
    let of = |piece: &Piece| match piece {
        Piece::Text { text, .. } | Piece::Thinking { text, .. } => text.len().div_ceil(BYTES),
        Piece::Image { .. } | Piece::Document { .. } => MEDIA,
        Piece::Redacted(data) => data.len().div_ceil(BYTES),
        Piece::Call { name, arguments, .. } => (name.len() + arguments.to_string().len()).div_ceil(BYTES),
        Piece::Result { content, .. } => tokens(content),
    };
    pieces.iter().map(of).sum()
}
