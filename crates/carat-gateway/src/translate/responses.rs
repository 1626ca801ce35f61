//! OpenAI's responses, as clients ask for them; providers that have them are passed on to untouched.
//!
//! Nothing is kept between requests: what refers to earlier answers is refused, and thoughts come back to the client
//! whole. Their signatures travel as `encrypted_content` of reasoning items, with a letter before them that says what
//! they are: `s:` of the thoughts themselves, `r:` thoughts that only their provider reads, `g:` Gemini's signature of
//! the call that follows. What another provider encrypted has no such letter and goes nowhere.

use serde_json::{Value, json};

use super::{
    Answer, Choice, Event, Finish, Format, Piece, Question, Role, Source, Thinking, Tool, Writer, new_id,
    numbers, openai, parsed, refused, text, unknown, unknown_in, words, written,
};
use crate::clock::now_s;
use crate::failure::Failure;
use crate::usage::Usage;

const KNOWN: [&str; 15] = [
    "model",
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "temperature",
    "top_p",
    "max_output_tokens",
    "user",
    "stream",
    "stream_options",
    // Encrypted thoughts come anyway.
    "include",
];

pub(super) fn question(body: &Value) -> Result<Question, Failure> {
    refuse_memory(body)?;
    let tools = body["tools"].as_array().into_iter().flatten().map(tool);
    let format = &body["text"]["format"];
    let mut question = Question {
        tools: openai::allowed(tools.collect::<Result<_, _>>()?, &body["tool_choice"]["tools"]),
        choice: choice(&body["tool_choice"]),
        parallel: body["parallel_tool_calls"].as_bool(),
        format: Format::of_kind(&format["type"], format),
        max_tokens: numbers::count(&body["max_output_tokens"], "max_output_tokens")?,
        thinking: Thinking::of_effort(&body["reasoning"]["effort"]),
        user: text(&body["user"]),
        stream: body["stream"].as_bool().unwrap_or(false),
        wants_usage: true,
        unknown: unknown(body, &KNOWN),
        temperature: numbers::decimal(&body["temperature"], "temperature")?,
        top_p: numbers::decimal(&body["top_p"], "top_p")?,
        ..Question::default()
    };
    // Defaults that change nothing.
    let is_default = |name: &str| match name {
        "store" | "background" => body[name] == false,
        "truncation" => body[name] == "disabled",
        _ => false,
    };
    question.unknown.retain(|name| !is_default(name));
    question.unknown.extend(unknown_in(body, "text", &["format"]));
    question
        .unknown
        .extend(unknown_in(body, "reasoning", &["effort", "summary"]));
    question
        .system
        .extend(words(&body["instructions"]).map(Piece::text));
    match &body["input"] {
        Value::String(said) => question.push(Role::User, vec![Piece::text(said)]),
        Value::Array(items) => read_items(items, &mut question)?,
        _ => return Err(refused("input", "`input` must be a text or an array of items")),
    }
    Ok(question)
}

/// Whatever needs a memory of earlier requests, or outlives this one.
fn refuse_memory(body: &Value) -> Result<(), Failure> {
    if let Some(id) = body["previous_response_id"].as_str() {
        let id: String = id.chars().take(100).collect();
        return Err(Failure {
            status: 404,
            code: Some("previous_response_not_found".into()),
            ..refused(
                "previous_response_id",
                format!("no response `{id}` is kept here; send the whole conversation as `input`"),
            )
        });
    }
    for name in ["conversation", "prompt"] {
        if !body[name].is_null() {
            let message = format!("this provider keeps nothing; send what `{name}` stands for");
            return Err(refused(name, message));
        }
    }
    if body["background"] == true {
        return Err(refused(
            "background",
            "this provider answers while one waits; leave `background` out",
        ));
    }
    Ok(())
}

fn tool(tool: &Value) -> Result<Tool, Failure> {
    let name = words(&tool["name"]).filter(|_| tool["type"] == "function");
    Tool::of_function(name, tool)
}

fn choice(choice: &Value) -> Choice {
    match choice.as_str().or(choice["mode"].as_str()) {
        Some("none") => Choice::None,
        Some("required") => Choice::Required,
        Some(_) => Choice::Auto,
        None => text(&choice["name"]).map_or(Choice::Auto, Choice::Named),
    }
}

fn read_items(items: &[Value], question: &mut Question) -> Result<(), Failure> {
    // Gemini's signature of the call that comes next.
    let mut signature = None;
    for (i, item) in items.iter().enumerate() {
        let path = format!("input[{i}]");
        match item["type"].as_str() {
            None | Some("message") => {
                let content = pieces(&item["content"], &path)?;
                match item["role"].as_str() {
                    Some("user") => question.push(Role::User, content),
                    Some("assistant") => question.push(Role::Assistant, content),
                    Some("system" | "developer") => question.system.extend(content),
                    _ => {
                        let message = "the role must be user, assistant, system or developer";
                        return Err(refused(&format!("{path}.role"), message));
                    }
                }
            }
            Some("function_call") => {
                let call = Piece::Call {
                    id: text(&item["call_id"]).unwrap_or_default(),
                    name: text(&item["name"]).unwrap_or_default(),
                    arguments: parsed(item["arguments"].as_str().unwrap_or_default()),
                    signature: signature.take(),
                };
                question.push(Role::Assistant, vec![call]);
            }
            Some("function_call_output") => {
                let result = Piece::Result {
                    id: text(&item["call_id"]).unwrap_or_default(),
                    name: None,
                    content: pieces(&item["output"], &path)?,
                    is_error: false,
                    cache: None,
                };
                question.push(Role::User, vec![result]);
            }
            Some("reasoning") => match item["encrypted_content"]
                .as_str()
                .and_then(|data| data.split_once(':'))
            {
                Some(("s", signed)) => {
                    let thought = Piece::Thinking {
                        text: summary(item),
                        signature: Some(signed.to_string()),
                    };
                    question.push(Role::Assistant, vec![thought]);
                }
                Some(("r", data)) => question.push(Role::Assistant, vec![Piece::Redacted(data.into())]),
                Some(("g", signed)) => signature = Some(signed.to_string()),
                // Thoughts that nobody signed: some want them back in plain words.
                _ if item["encrypted_content"].is_null() => {
                    let thought = Some(summary(item)).filter(|text| !text.is_empty());
                    let thought = thought.map(|text| Piece::Thinking {
                        text,
                        signature: None,
                    });
                    question.push(Role::Assistant, thought.into_iter().collect());
                }
                _ => {}
            },
            Some(other) => {
                let message = format!("items of type `{other}` cannot be passed on to this provider");
                return Err(refused(&format!("{path}.type"), message));
            }
        }
    }
    Ok(())
}

fn summary(item: &Value) -> String {
    let parts = item["summary"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect()
}

fn pieces(content: &Value, path: &str) -> Result<Vec<Piece>, Failure> {
    let parts = match content {
        Value::String(said) if said.is_empty() => return Ok(Vec::new()),
        Value::String(said) => return Ok(vec![Piece::text(said)]),
        Value::Array(parts) => parts,
        Value::Null => return Ok(Vec::new()),
        _ => return Err(refused(path, "the content must be a text or an array of parts")),
    };
    let part = |part: &Value| match part["type"].as_str() {
        Some("input_text" | "output_text") => Ok(Piece::text(part["text"].as_str().unwrap_or_default())),
        Some("refusal") => Ok(Piece::text(part["refusal"].as_str().unwrap_or_default())),
        Some("input_image") if part["image_url"].is_string() => Ok(Piece::Image {
            source: Source::of_url(part["image_url"].as_str().unwrap_or_default()),
            cache: None,
        }),
        Some("input_file") if part["file_data"].is_string() || part["file_url"].is_string() => {
            let url = part["file_data"].as_str().or(part["file_url"].as_str());
            Ok(Piece::Document {
                source: Source::of_url(url.unwrap_or_default()),
                name: text(&part["filename"]),
            })
        }
        _ => {
            let message =
                "only texts, and images and files with their data, can be passed on to this provider";
            Err(refused(&format!("{path}.content"), message))
        }
    };
    parts.iter().map(part).collect()
}

fn message_item(id: &str, said: &str) -> Value {
    json!({"id": id, "type": "message", "status": "completed", "role": "assistant", "content": [text_part(said)]})
}

fn text_part(said: &str) -> Value {
    json!({"type": "output_text", "text": said, "annotations": [], "logprobs": []})
}

fn reasoning_item(id: &str, said: &str, encrypted: Option<&str>) -> Value {
    let summary = match said {
        "" => json!([]),
        said => json!([{"type": "summary_text", "text": said}]),
    };
    json!({"id": id, "type": "reasoning", "summary": summary, "encrypted_content": encrypted})
}

fn call_item(id: &str, call_id: &str, name: &str, arguments: &str, status: &str) -> Value {
    json!({"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments})
}

/// A piece of an answer as items.
fn items(piece: &Piece) -> Vec<Value> {
    match piece {
        Piece::Text { text, .. } => vec![message_item(&new_id("msg_"), text)],
        Piece::Thinking { text, signature } => {
            let signature = signature.as_ref().map(|signed| format!("s:{signed}"));
            vec![reasoning_item(&new_id("rs_"), text, signature.as_deref())]
        }
        Piece::Redacted(data) => vec![reasoning_item(&new_id("rs_"), "", Some(&format!("r:{data}")))],
        Piece::Call {
            id,
            name,
            arguments,
            signature,
        } => {
            let signed = signature.as_ref().map(|signed| format!("g:{signed}"));
            let signed = signed.map(|signed| reasoning_item(&new_id("rs_"), "", Some(&signed)));
            let call = call_item(&new_id("fc_"), id, name, &written(arguments), "completed");
            signed.into_iter().chain([call]).collect()
        }
        _ => Vec::new(),
    }
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input.saturating_add(usage.output),
    })
}

/// A response as it stands: under way without `finish`.
fn response(id: &str, model: &str, created: u64, output: &[Value], end: Option<(Finish, &Usage)>) -> Value {
    let (status, reason) = match end {
        None => ("in_progress", None),
        Some((Finish::Length, _)) => ("incomplete", Some("max_output_tokens")),
        Some((Finish::Filter, _)) => ("incomplete", Some("content_filter")),
        Some(_) => ("completed", None),
    };
    json!({
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status,
        "error": null,
        "incomplete_details": reason.map(|reason| json!({"reason": reason})),
        "instructions": null,
        "metadata": {},
        "model": model,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "store": false,
        "temperature": null,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": null,
        "usage": end.map(|(_, usage)| usage_value(usage)),
    })
}

pub(super) fn answer(answer: &Answer) -> Value {
    let output: Vec<Value> = answer.pieces.iter().flat_map(items).collect();
    let end = (answer.finish.unwrap_or(Finish::Stop), &answer.usage);
    response(
        &format!("resp_{}", answer.id),
        &answer.model,
        now_s(),
        &output,
        Some(end),
    )
}

/// The item that is being written.
enum Open {
    Message {
        id: String,
        said: String,
    },
    Reasoning {
        id: String,
        said: String,
    },
    Call {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
    },
}

/// Writes events, each with its number.
#[derive(Default)]
pub(super) struct EventWriter {
    n_events: u64,
    id: String,
    model: String,
    created: u64,
    /// Items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    finish: Option<Finish>,
    usage: Usage,
}

impl EventWriter {
    fn write(&mut self, kind: &str, mut value: Value, out: &mut Vec<u8>) {
        value["type"] = json!(kind);
        value["sequence_number"] = json!(self.n_events);
        self.n_events += 1;
        out.extend_from_slice(format!("event: {kind}\ndata: {value}\n\n").as_bytes());
    }

    fn added(&mut self, item: &Value, out: &mut Vec<u8>) {
        let value = json!({"output_index": self.output.len(), "item": item});
        self.write("response.output_item.added", value, out);
    }

    fn done(&mut self, item: Value, out: &mut Vec<u8>) {
        let value = json!({"output_index": self.output.len(), "item": item});
        self.write("response.output_item.done", value, out);
        self.output.push(item);
    }

    /// What all events within an item say of where they are.
    fn place(&self, id: &str) -> Value {
        json!({"item_id": id, "output_index": self.output.len()})
    }

    fn text(&mut self, more: &str, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.close(out);
            let id = new_id("msg_");
            let item = json!({"id": id, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
            self.added(&item, out);
            let mut value = self.place(&id);
            value["content_index"] = json!(0);
            value["part"] = text_part("");
            self.write("response.content_part.added", value, out);
            self.open = Some(Open::Message {
                id,
                said: String::new(),
            });
        }
        let Some(Open::Message { id, said }) = &mut self.open else {
            return;
        };
        said.push_str(more);
        let id = id.clone();
        let mut value = self.place(&id);
        value["content_index"] = json!(0);
        value["delta"] = json!(more);
        value["logprobs"] = json!([]);
        self.write("response.output_text.delta", value, out);
    }

    fn thinking(&mut self, more: &str, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open::Reasoning { .. })) {
            self.close(out);
            let id = new_id("rs_");
            self.added(&reasoning_item(&id, "", None), out);
            let mut value = self.place(&id);
            value["summary_index"] = json!(0);
            value["part"] = json!({"type": "summary_text", "text": ""});
            self.write("response.reasoning_summary_part.added", value, out);
            self.open = Some(Open::Reasoning {
                id,
                said: String::new(),
            });
        }
        let Some(Open::Reasoning { id, said }) = &mut self.open else {
            return;
        };
        said.push_str(more);
        let id = id.clone();
        let mut value = self.place(&id);
        value["summary_index"] = json!(0);
        value["delta"] = json!(more);
        self.write("response.reasoning_summary_text.delta", value, out);
    }

    /// Thoughts that nobody reads here, as an item of their own.
    fn sealed(&mut self, data: &str, out: &mut Vec<u8>) {
        self.close(out);
        let item = reasoning_item(&new_id("rs_"), "", Some(data));
        self.added(&item, out);
        self.done(item, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        self.close_signed(None, out);
    }

    fn close_signed(&mut self, signature: Option<&str>, out: &mut Vec<u8>) {
        match self.open.take() {
            None => {}
            Some(Open::Message { id, said }) => {
                let mut value = self.place(&id);
                value["content_index"] = json!(0);
                let mut part = value.clone();
                value["text"] = json!(said);
                value["logprobs"] = json!([]);
                self.write("response.output_text.done", value, out);
                part["part"] = text_part(&said);
                self.write("response.content_part.done", part, out);
                self.done(message_item(&id, &said), out);
            }
            Some(Open::Reasoning { id, said }) => {
                let mut value = self.place(&id);
                value["summary_index"] = json!(0);
                let mut part = value.clone();
                value["text"] = json!(said);
                self.write("response.reasoning_summary_text.done", value, out);
                part["part"] = json!({"type": "summary_text", "text": said});
                self.write("response.reasoning_summary_part.done", part, out);
                self.done(reasoning_item(&id, &said, signature), out);
            }
            Some(Open::Call {
                id,
                call_id,
                name,
                arguments,
            }) => {
                // A call without arguments has an empty object of them.
                let arguments = if arguments.is_empty() {
                    "{}".into()
                } else {
                    arguments
                };
                let mut value = self.place(&id);
                value["name"] = json!(name);
                value["arguments"] = json!(arguments);
                self.write("response.function_call_arguments.done", value, out);
                self.done(call_item(&id, &call_id, &name, &arguments, "completed"), out);
            }
        }
    }

    fn snapshot(&self, end: Option<(Finish, &Usage)>) -> Value {
        json!({"response": response(&self.id, &self.model, self.created, &self.output, end)})
    }
}

impl Writer for EventWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        match event {
            Event::Begin { id, model } => {
                self.id = format!("resp_{id}");
                self.model.clone_from(model);
                self.created = now_s();
                self.write("response.created", self.snapshot(None), out);
                self.write("response.in_progress", self.snapshot(None), out);
            }
            Event::Text(more) => self.text(more, out),
            Event::Thinking(more) => self.thinking(more, out),
            Event::Signature(signed) => {
                let signed = format!("s:{signed}");
                if matches!(self.open, Some(Open::Reasoning { .. })) {
                    self.close_signed(Some(&signed), out);
                } else {
                    self.sealed(&signed, out);
                }
            }
            Event::Redacted(data) => self.sealed(&format!("r:{data}"), out),
            Event::Call {
                id: call_id,
                name,
                signature,
            } => {
                self.close(out);
                if let Some(signed) = signature {
                    self.sealed(&format!("g:{signed}"), out);
                }
                let id = new_id("fc_");
                self.added(&call_item(&id, call_id, name, "", "in_progress"), out);
                self.open = Some(Open::Call {
                    id,
                    call_id: call_id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                });
            }
            Event::Arguments(more) => {
                let Some(Open::Call { id, arguments, .. }) = &mut self.open else {
                    return;
                };
                arguments.push_str(more);
                let id = id.clone();
                let mut value = self.place(&id);
                value["delta"] = json!(more);
                self.write("response.function_call_arguments.delta", value, out);
            }
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.finish = Some(*finish),
            Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.close(out);
        let finish = self.finish.unwrap_or(Finish::Stop);
        let kind = match finish {
            Finish::Length | Finish::Filter => "response.incomplete",
            Finish::Stop | Finish::Calls => "response.completed",
        };
        let usage = self.usage;
        self.write(kind, self.snapshot(Some((finish, &usage))), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_and_their_seals_come_back_as_they_went_out() {
        let pieces = vec![
            Piece::Thinking {
                text: "t".into(),
                signature: Some("sig".into()),
            },
            Piece::Redacted("red".into()),
            Piece::Call {
                id: "c1".into(),
                name: "f".into(),
                arguments: json!({"x": 1}),
                signature: Some("goo".into()),
            },
        ];
        let mut items: Vec<Value> = pieces.iter().flat_map(items).collect();
        assert_eq!(items.len(), 4);
        let foreign = json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAA-of-others"});
        items.insert(0, foreign);
        items.push(json!({"type": "function_call_output", "call_id": "c1", "output": "21"}));
        let question = question(&json!({"input": items, "store": false})).unwrap();
        assert_eq!(question.turns[0].pieces, pieces);
        assert_eq!(question.turns.len(), 2);
        assert!(question.unknown.is_empty());
    }

    #[test]
    fn what_needs_a_memory_is_refused() {
        let failure = |body: Value| question(&body).unwrap_err();
        let unknown = failure(json!({"input": "x", "previous_response_id": "resp_1"}));
        assert_eq!((unknown.status, unknown.class.is_final()), (404, false));
        assert!(
            failure(json!({"input": "x", "background": true}))
                .message
                .contains("background")
        );
        assert!(
            failure(json!({"input": [{"type": "item_reference", "id": "x"}]}))
                .message
                .contains("item_reference")
        );
        assert!(
            failure(json!({"input": "x", "tools": [{"type": "web_search"}]}))
                .message
                .contains("functions")
        );
        assert!(failure(json!({"input": 5})).param.as_deref() == Some("input"));
        let mut told =
            question(&json!({"input": "x", "store": true, "text": {"verbosity": "low"}, "metadata": {}}))
                .unwrap();
        // Objects keep their order or not, as the features of the build have it.
        told.unknown.sort();
        assert_eq!(told.unknown, ["metadata", "store", "text.verbosity"]);
    }
}
