//! Replicate's predictions: a prompt in, text out.
//!
//! Models there take what they like; `prompt`, `system_prompt` and a few samplers are common to those that write text.
//! A conversation becomes one prompt with its speakers named. Tools and images are refused.

use serde_json::{Value, json};

use super::{Event, Finish, Format, Piece, Question, Reader, Role, joined, new_id, refused, set, text};
use crate::failure::{Class, Failure};
use crate::records::Record;
use crate::usage::Usage;

pub(super) fn request(question: &Question, model: &str, dropped: &mut Vec<String>) -> Result<Value, Failure> {
    if !question.tools.is_empty() {
        return Err(refused("tools", "this provider's models call no tools"));
    }
    let mut input = json!({"prompt": prompt(question)?});
    if !question.system.is_empty() {
        input["system_prompt"] = json!(joined(&question.system));
    }
    set(&mut input, "max_tokens", question.max_tokens);
    set(&mut input, "temperature", question.temperature);
    set(&mut input, "top_p", question.top_p);
    set(&mut input, "top_k", question.top_k);
    set(&mut input, "seed", question.seed);
    set(&mut input, "presence_penalty", question.presence);
    set(&mut input, "frequency_penalty", question.frequency);
    if !question.stop.is_empty() {
        input["stop_sequences"] = json!(question.stop.join(","));
    }
    if question.format != Format::Text {
        dropped.push("response_format".into());
    }
    if question.thinking.is_some() {
        dropped.push("reasoning_effort".into());
    }
    question.drop_set(&["user"], dropped);
    let mut body = json!({"input": input, "stream": question.stream});
    // A version of a model is named in the body, a model in the path.
    set(
        &mut body,
        "version",
        model.split_once(':').map(|(_, version)| version),
    );
    Ok(body)
}

fn prompt(question: &Question) -> Result<String, Failure> {
    let mut turns = Vec::new();
    for turn in &question.turns {
        let mut said = Vec::new();
        for piece in &turn.pieces {
            match piece {
                Piece::Text { text, .. } => said.push(text.as_str()),
                Piece::Thinking { .. } | Piece::Redacted(_) => {}
                _ => return Err(refused("messages", "this provider takes texts only")),
            }
        }
        turns.push((turn.role, said.join("\n")));
    }
    if let [(Role::User, only)] = turns.as_slice() {
        return Ok(only.clone());
    }
    let line = |(role, said): &(Role, String)| match role {
        Role::User => format!("User: {said}\n\n"),
        Role::Assistant => format!("Assistant: {said}\n\n"),
    };
    let lines: String = turns.iter().map(line).collect();
    Ok(lines + "Assistant:")
}

/// Reads predictions and their streams, whose events say in their names what they are.
#[derive(Default)]
pub(super) struct OutputReader {
    has_begun: bool,
    is_done: bool,
}

impl OutputReader {
    fn begin(&mut self, id: Option<String>, events: &mut Vec<Event>) {
        if !self.has_begun {
            self.has_begun = true;
            events.push(Event::Begin {
                id: id.unwrap_or_else(|| new_id("")),
                model: String::new(),
            });
        }
    }
}

fn failed(why: &str) -> Failure {
    let why = if why.is_empty() {
        "for no stated reason"
    } else {
        why
    };
    Failure::new(Class::ServerFault, 502, format!("the prediction failed: {why}"))
}

impl Reader for OutputReader {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let said = String::from_utf8_lossy(&record.data);
        match record.name {
            b"output" => {
                self.begin(None, events);
                if !said.is_empty() {
                    events.push(Event::Text(said.into_owned()));
                }
            }
            b"error" => {
                let told: Value = serde_json::from_str(&said).unwrap_or_default();
                return Err(failed(told["detail"].as_str().unwrap_or(&said)));
            }
            b"done" => {
                let told: Value = serde_json::from_str(&said).unwrap_or_default();
                if let Some(reason @ ("error" | "canceled")) = told["reason"].as_str() {
                    return Err(failed(reason));
                }
                self.begin(None, events);
                self.is_done = true;
                events.push(Event::End(Finish::Stop));
            }
            _ => {}
        }
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if answer["status"] != "succeeded" {
            let why = answer["error"].as_str().or(answer["status"].as_str());
            return Err(failed(why.unwrap_or_default()));
        }
        self.begin(text(&answer["id"]), events);
        let output: String = super::strings(&answer["output"]).concat();
        if !output.is_empty() {
            events.push(Event::Text(output));
        }
        let metrics = &answer["metrics"];
        let count = |name: &str| metrics[name].as_u64();
        if let (Some(input), Some(output)) = (count("input_token_count"), count("output_token_count")) {
            events.push(Event::Usage(Usage {
                input,
                output,
                ..Usage::default()
            }));
        }
        events.push(Event::End(Finish::Stop));
        Ok(())
    }

    fn end(&mut self, _events: &mut Vec<Event>) -> bool {
        self.is_done
    }
}
