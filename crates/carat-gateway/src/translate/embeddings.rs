//! Texts to vectors, for clients and providers with different APIs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{numbers, refused, set, text, unknown};
use crate::endpoint::{Dialect, Endpoint};
use crate::failure::{Class, Failure};
use crate::provider::{Provider, Surface};
use crate::stream::{Forwarding, Whole};
use crate::usage::Usage;

/// What is asked.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Texts {
    texts: Vec<String>,
    dimensions: Option<u64>,
    /// What the vectors are for, in Cohere's words.
    purpose: Option<String>,
    pub(crate) wants_base64: bool,
    unknown: Vec<String>,
}

impl Texts {
    /// Reads a client's request.
    pub(crate) fn read(endpoint: Endpoint, body: &Value) -> Result<Self, Failure> {
        match endpoint {
            Endpoint::EmbedContent => Self::read_gemini(body, &[body]),
            Endpoint::BatchEmbedContents => {
                let requests = body["requests"].as_array();
                let requests = requests.ok_or_else(|| refused("requests", "`requests` must be an array"))?;
                Self::read_gemini(body, &requests.iter().collect::<Vec<_>>())
            }
            _ => Ok(Self {
                texts: inputs(&body["input"])?,
                dimensions: numbers::count(&body["dimensions"], "dimensions")?,
                purpose: text(&body["input_type"]),
                wants_base64: body["encoding_format"] == "base64",
                unknown: unknown(
                    body,
                    &["model", "input", "dimensions", "encoding_format", "input_type"],
                ),
            }),
        }
    }

    fn read_gemini(body: &Value, requests: &[&Value]) -> Result<Self, Failure> {
        let mut texts = Vec::new();
        for request in requests {
            let parts = request["content"]["parts"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            let said = parts
                .iter()
                .map(|part| part["text"].as_str())
                .collect::<Option<String>>();
            texts.push(
                said.ok_or_else(|| refused("content", "only texts can be passed on to this provider"))?,
            );
        }
        let first = requests.first().copied().unwrap_or(&Value::Null);
        let known = ["requests", "model", "content", "outputDimensionality", "taskType"];
        Ok(Self {
            texts,
            dimensions: numbers::count(&first["outputDimensionality"], "outputDimensionality")?,
            purpose: first["taskType"]
                .as_str()
                .and_then(purpose_of)
                .map(ToString::to_string),
            wants_base64: false,
            unknown: unknown(body, &known),
        })
    }

    /// Writes it for a provider, and the names of what it is not told.
    pub(crate) fn write(&self, provider: &Provider, model: &str) -> Result<(Value, Vec<String>), Failure> {
        let mut dropped = self.unknown.clone();
        let body = match provider.dialect {
            Dialect::OpenAi => {
                let mut body = json!({"model": model, "input": self.texts, "encoding_format": "float"});
                set(&mut body, "dimensions", self.dimensions);
                self.drop_purpose(&mut dropped);
                body
            }
            Dialect::Ollama => {
                // What is too long is an error, not cut in silence.
                let mut body = json!({"model": model, "input": self.texts, "truncate": false});
                set(&mut body, "dimensions", self.dimensions);
                self.drop_purpose(&mut dropped);
                body
            }
            Dialect::Gemini => self.gemini(provider, model),
            Dialect::Cohere => {
                let mut body = self.cohere();
                body["model"] = json!(model);
                body
            }
            Dialect::Bedrock => self.bedrock(model, &mut dropped)?,
            Dialect::Anthropic | Dialect::Replicate => {
                return Err(refused("model", format!("`{}` has no embeddings", provider.name)));
            }
        };
        Ok((body, dropped))
    }

    fn drop_purpose(&self, dropped: &mut Vec<String>) {
        if self.purpose.is_some() {
            dropped.push("input_type".into());
        }
    }

    fn gemini(&self, provider: &Provider, model: &str) -> Value {
        let task = self.purpose.as_deref().and_then(task_of);
        if provider.surface == Surface::Vertex {
            let instance = |text: &String| {
                let mut instance = json!({"content": text});
                set(&mut instance, "task_type", task);
                instance
            };
            let mut body = json!({"instances": self.texts.iter().map(instance).collect::<Vec<_>>()});
            if let Some(dimensions) = self.dimensions {
                body["parameters"] = json!({"outputDimensionality": dimensions});
            }
            return body;
        }
        let request = |text: &String| {
            let content = json!({"parts": [{"text": text}]});
            let mut request = json!({"model": format!("models/{model}"), "content": content});
            set(&mut request, "outputDimensionality", self.dimensions);
            set(&mut request, "taskType", task);
            request
        };
        json!({"requests": self.texts.iter().map(request).collect::<Vec<_>>()})
    }

    fn cohere(&self) -> Value {
        let purpose = self.purpose.as_deref().unwrap_or("search_document");
        let mut body = json!({
            "texts": self.texts, "input_type": purpose, "embedding_types": ["float"], "truncate": "NONE",
        });
        set(&mut body, "output_dimension", self.dimensions);
        body
    }

    fn bedrock(&self, model: &str, dropped: &mut Vec<String>) -> Result<Value, Failure> {
        if model.contains("cohere.") {
            return Ok(self.cohere());
        }
        if !model.contains("titan-embed") {
            let message = "of Bedrock's models, Titan's and Cohere's are asked for embeddings here";
            return Err(refused("model", message));
        }
        let [only] = self.texts.as_slice() else {
            return Err(refused("input", "this model takes one text at a time"));
        };
        self.drop_purpose(dropped);
        let mut body = json!({"inputText": only});
        if model.contains("titan-embed-text-v1") {
            dropped.extend(self.dimensions.map(|_| "dimensions".to_string()));
        } else {
            set(&mut body, "dimensions", self.dimensions);
        }
        Ok(body)
    }
}

fn inputs(input: &Value) -> Result<Vec<String>, Failure> {
    let as_text = || {
        refused(
            "input",
            "this provider takes texts, not tokens; send `input` as text",
        )
    };
    match input {
        Value::String(only) => Ok(vec![only.clone()]),
        Value::Array(all) if !all.is_empty() => all
            .iter()
            .map(text)
            .collect::<Option<Vec<String>>>()
            .ok_or_else(as_text),
        _ => Err(refused("input", "`input` must be a text or an array of texts")),
    }
}

/// Google's words for what vectors are for, and Cohere's.
const PURPOSES: [(&str, &str); 4] = [
    ("RETRIEVAL_QUERY", "search_query"),
    ("RETRIEVAL_DOCUMENT", "search_document"),
    ("CLASSIFICATION", "classification"),
    ("CLUSTERING", "clustering"),
];

fn purpose_of(task: &str) -> Option<&'static str> {
    PURPOSES
        .iter()
        .find(|(other, _)| *other == task)
        .map(|(_, purpose)| *purpose)
}

fn task_of(purpose: &str) -> Option<&'static str> {
    PURPOSES
        .iter()
        .find(|(_, other)| *other == purpose)
        .map(|(task, _)| *task)
}

/// The vectors in a provider's answer; `None` where there are none.
fn vectors(value: &Value) -> Option<Vec<Vec<f32>>> {
    let many = |list: &Value, get: fn(&Value) -> &Value| {
        let list = list.as_array()?;
        list.iter()
            .map(|item| vector(get(item)))
            .collect::<Option<Vec<_>>>()
    };
    // OpenAI; Gemini; Vertex; Ollama; Cohere, in both of its shapes; Titan.
    many(&value["data"], |item| &item["embedding"])
        .or_else(|| many(&value["embeddings"], |item| &item["values"]))
        .or_else(|| many(&value["predictions"], |item| &item["embeddings"]["values"]))
        .or_else(|| many(&value["embeddings"], |item| item))
        .or_else(|| many(&value["embeddings"]["float"], |item| item))
        .or_else(|| vector(&value["embedding"]["values"]).map(|only| vec![only]))
        .or_else(|| vector(&value["embedding"]).map(|only| vec![only]))
}

fn vector(value: &Value) -> Option<Vec<f32>> {
    let numbers = value.as_array()?;
    numbers
        .iter()
        .map(|number| number.as_f64().map(|n| n as f32))
        .collect()
}

/// Tokens that an answer says it took.
pub(crate) fn usage(value: &Value) -> Usage {
    let predictions = value["predictions"].as_array().into_iter().flatten();
    let counts = predictions.map(|one| one["embeddings"]["statistics"]["token_count"].as_f64());
    let counted: Option<f64> = counts.sum();
    let of_vertex = counted.filter(|n| *n > 0.0).map(|n| n as u64);
    let input = value["usage"]["prompt_tokens"]
        .as_u64()
        .or(value["usageMetadata"]["promptTokenCount"].as_u64())
        .or(value["prompt_eval_count"].as_u64())
        .or(value["inputTextTokenCount"].as_u64())
        .or(value["meta"]["billed_units"]["input_tokens"]
            .as_f64()
            .map(|n| n.max(0.0) as u64))
        .or(of_vertex);
    Usage {
        input: input.unwrap_or(0),
        ..Usage::default()
    }
}

/// A whole answer in the client's words, and what it took.
///
/// # Errors
/// When there are no vectors in it.
pub(crate) fn translated(forwarding: &Forwarding, body: &[u8]) -> Result<Whole, Failure> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(vectors) = vectors(&value) else {
        let message = "the provider answered with something that holds no vectors";
        return Err(Failure::new(Class::ServerFault, 502, message));
    };
    let usage = usage(&value);
    let answer = match forwarding.endpoint {
        Endpoint::OllamaEmbed => json!({
            "model": forwarding.model, "embeddings": vectors, "total_duration": 0, "load_duration": 0,
            "prompt_eval_count": usage.input,
        }),
        Endpoint::EmbedContent => json!({"embedding": {"values": vectors.first()}}),
        Endpoint::BatchEmbedContents => {
            let values: Vec<Value> = vectors.iter().map(|vector| json!({"values": vector})).collect();
            json!({"embeddings": values})
        }
        _ => {
            let item = |(i, vector): (usize, &Vec<f32>)| {
                let embedding = if forwarding.wants_base64 {
                    let bytes: Vec<u8> = vector.iter().flat_map(|n| n.to_le_bytes()).collect();
                    Value::from(STANDARD.encode(bytes))
                } else {
                    json!(vector)
                };
                json!({"object": "embedding", "index": i, "embedding": embedding})
            };
            let data: Vec<Value> = vectors.iter().enumerate().map(item).collect();
            json!({
                "object": "list", "data": data, "model": forwarding.model,
                "usage": {"prompt_tokens": usage.input, "total_tokens": usage.input},
            })
        }
    };
    Ok(Whole {
        bytes: Bytes::from(answer.to_string()),
        usage,
        is_counted: usage.input > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_and_tokens_are_found_wherever_they_stand() {
        let cases = [
            (
                json!({"data": [{"embedding": [1.5, 2]}], "usage": {"prompt_tokens": 3}}),
                3,
            ),
            (json!({"embeddings": [{"values": [1.5, 2]}]}), 0),
            (
                json!({"predictions": [{"embeddings": {"values": [1.5, 2], "statistics": {"token_count": 3.0}}}]}),
                3,
            ),
            (json!({"embeddings": [[1.5, 2]], "prompt_eval_count": 3}), 3),
            (
                json!({"embeddings": {"float": [[1.5, 2]]}, "meta": {"billed_units": {"input_tokens": 3.0}}}),
                3,
            ),
            (json!({"embedding": [1.5, 2], "inputTextTokenCount": 3}), 3),
            (json!({"embedding": {"values": [1.5, 2]}}), 0),
        ];
        for (value, n_tokens) in cases {
            assert_eq!(vectors(&value), Some(vec![vec![1.5, 2.0]]), "{value}");
            assert_eq!(usage(&value).input, n_tokens, "{value}");
        }
        for bad in [
            json!({}),
            json!({"data": [{"embedding": "AAAA"}]}),
            json!({"embedding": [1, "x"]}),
        ] {
            assert_eq!(vectors(&bad), None, "{bad}");
        }
    }

    #[test]
    fn tokens_in_the_place_of_texts_are_refused() {
        for input in [
            json!([[1, 2]]),
            json!([1, 2]),
            json!([]),
            json!(null),
            json!(["a", 1]),
        ] {
            assert!(
                Texts::read(Endpoint::Embeddings, &json!({"input": input})).is_err(),
                "{input}"
            );
        }
        let batch = json!({"requests": [{"content": {"parts": [{"text": "a"}, {"text": "b"}]}, "taskType": "RETRIEVAL_QUERY"}]});
        let read = Texts::read(Endpoint::BatchEmbedContents, &batch).unwrap();
        assert_eq!(
            (read.texts, read.purpose.as_deref()),
            (vec!["ab".to_string()], Some("search_query"))
        );
    }
}
