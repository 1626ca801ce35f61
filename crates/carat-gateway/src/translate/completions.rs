//! OpenAI's older completions, for clients of providers that have conversations only: the prompt is what the user says.
//!
//! What only a model that continues texts can give (an echo, likelihoods, a suffix) is refused.

use serde_json::{Value, json};

use super::{Answer, Event, Finish, Piece, Question, Role, Writer, numbers, openai, refused, text, unknown};
use crate::clock::now_s;
use crate::failure::Failure;
use crate::usage::Usage;

const KNOWN: [&str; 15] = [
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "user",
    "stream",
    "stream_options",
    "echo",
    "n",
    "best_of",
];
/// Tokens of an answer where the client states none, as OpenAI has it.
const MAX_TOKENS: u64 = 16;

pub(super) fn question(body: &Value) -> Result<Question, Failure> {
    for name in ["n", "best_of"] {
        if numbers::count(&body[name], name)?.is_some_and(|n| n > 1) {
            return Err(refused(
                name,
                format!("this provider gives one answer at a time; leave `{name}` out"),
            ));
        }
    }
    if body["echo"] == true {
        return Err(refused("echo", "this provider does not repeat the prompt"));
    }
    for name in ["logprobs", "suffix"] {
        if !body[name].is_null() {
            let message = format!("this provider converses and does not continue texts; leave `{name}` out");
            return Err(refused(name, message));
        }
    }
    let prompt = match &body["prompt"] {
        Value::String(prompt) => prompt.clone(),
        Value::Array(prompts) if prompts.len() == 1 && prompts[0].is_string() => {
            text(&prompts[0]).unwrap_or_default()
        }
        _ => {
            return Err(refused(
                "prompt",
                "this provider takes one prompt at a time, as text",
            ));
        }
    };
    let mut question = Question {
        max_tokens: numbers::count(&body["max_tokens"], "max_tokens")?.or(Some(MAX_TOKENS)),
        user: text(&body["user"]),
        stream: body["stream"].as_bool().unwrap_or(false),
        wants_usage: body["stream_options"]["include_usage"] == true,
        unknown: unknown(body, &KNOWN),
        top_k: None,
        ..Question::sampled(body, "")?
    };
    question.push(Role::User, vec![Piece::text(prompt)]);
    Ok(question)
}

fn completion(id: &str, model: &str, created: u64, choices: &Value) -> Value {
    json!({"id": format!("cmpl-{id}"), "object": "text_completion", "created": created, "model": model, "choices": choices})
}

fn choice(said: &str, finish: Option<Finish>) -> Value {
    let finish = finish.map(openai::finish_name);
    json!([{"text": said, "index": 0, "logprobs": null, "finish_reason": finish}])
}

pub(super) fn answer(answer: &Answer) -> Value {
    let choices = choice(&answer.texts(), Some(answer.finish.unwrap_or(Finish::Stop)));
    let mut value = completion(&answer.id, &answer.model, now_s(), &choices);
    value["usage"] = openai::usage_value(&answer.usage);
    value
}

/// Writes chunks.
pub(super) struct TextWriter {
    wants_usage: bool,
    id: String,
    model: String,
    created: u64,
    usage: Usage,
}

impl TextWriter {
    pub(super) fn new(wants_usage: bool) -> Self {
        Self {
            wants_usage,
            id: String::new(),
            model: String::new(),
            created: now_s(),
            usage: Usage::default(),
        }
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>, out: &mut Vec<u8>) {
        let mut chunk = completion(&self.id, &self.model, self.created, choices);
        if self.wants_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        out.extend_from_slice(format!("data: {chunk}\n\n").as_bytes());
    }
}

impl Writer for TextWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        match event {
            Event::Begin { id, model } => (self.id, self.model) = (id.clone(), model.clone()),
            Event::Text(said) => self.chunk(&choice(said, None), None, out),
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.chunk(&choice("", Some(*finish)), None, out),
            // There is no place for thoughts, and nothing is called without tools.
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.wants_usage {
            self.chunk(&json!([]), Some(openai::usage_value(&self.usage)), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}
