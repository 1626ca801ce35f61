//! `/v1/embeddings`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::completion::{Prompt, Prompts};
use crate::ApiError;
use crate::read::parse;

/// Most texts in one request, as OpenAI has it.
pub const MAX_INPUTS: usize = 2048;

/// What to embed.
#[derive(Debug)]
pub struct EmbeddingRequest {
    /// The model's name.
    pub model: String,
    /// Texts or token ids.
    pub inputs: Vec<Prompt>,
    /// Whether vectors are written as base64 of little-endian floats.
    pub base64: bool,
    /// Length to cut vectors to.
    pub dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct Wire {
    model: Option<String>,
    input: Prompts,
    encoding_format: Option<String>,
    dimensions: Option<u32>,
}

/// Reads the body.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn embedding_request(body: &[u8]) -> Result<EmbeddingRequest, ApiError> {
    let wire: Wire = parse(body)?;
    let base64 = match wire.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let message = format!("`encoding_format` is `{other}`; give float or base64");
            return Err(ApiError::field("encoding_format", message));
        }
    };
    if wire.input.0.len() > MAX_INPUTS {
        return Err(ApiError::field(
            "input",
            format!("`input` may hold at most {MAX_INPUTS} texts"),
        ));
    }
    if wire.dimensions == Some(0) {
        return Err(ApiError::field(
            "dimensions",
            "`dimensions` is 0; give at least 1",
        ));
    }
    Ok(EmbeddingRequest {
        model: wire.model.unwrap_or_default(),
        inputs: wire.input.0,
        base64,
        dimensions: wire.dimensions.map(|n| n as usize),
    })
}

/// The answer.
pub fn embedding_list(model: &str, vectors: &[Vec<f32>], base64: bool, n_tokens: usize) -> Value {
    let one = |(index, vector): (usize, &Vec<f32>)| {
        let embedding = if base64 {
            Value::from(encode(vector))
        } else {
            json!(vector)
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.iter().enumerate().map(one).collect();
    json!({
        "object": "list", "data": data, "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })
}

/// Base64 of the little-endian bytes.
fn encode(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            if i <= three.len() {
                text.push(DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_written_as_clients_read_them() {
        assert_eq!(encode(&[1.0]), "AACAPw==");
        assert_eq!(encode(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(encode(&[0.0, 0.0, 0.0]), "AAAAAAAAAAAAAAAA");
        let list = embedding_list("m", &[vec![0.5]], false, 3);
        assert_eq!(list["data"][0]["embedding"], json!([0.5]));
        assert_eq!(list["usage"]["total_tokens"], 3);
    }
}
