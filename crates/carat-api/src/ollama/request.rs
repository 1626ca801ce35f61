//! The requests of `/api/chat` and `/api/generate`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::generation::take_silent_beginning;
use crate::openai::{MAX_INPUTS, Prompt, Thinking, arguments, effort, tool};
use crate::read::{OneOrMany, Whole, parse};
use crate::{
    ApiError, Format, GenerationRequest, KeepAlive, Media, Part, Role, Sampling, Tool, ToolCall, Turn,
};

/// Longer times to stay loaded are for ever, in seconds.
const LONGEST_S: f64 = 1e9;

#[derive(Deserialize)]
struct Chat {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    tools: Option<Vec<WireTool>>,
    #[serde(default)]
    format: Value,
    #[serde(default)]
    think: Value,
    stream: Option<bool>,
    options: Option<Options>,
    #[serde(default)]
    keep_alive: Value,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    images: Option<Vec<String>>,
    tool_calls: Option<Vec<Call>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Deserialize)]
struct WireTool {
    function: Declaration,
}

#[derive(Deserialize)]
struct Declaration {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Options {
    temperature: Option<f32>,
    top_k: Option<Whole>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<Whole>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<Whole>,
    num_predict: Option<Whole>,
    stop: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct Generate {
    model: Option<String>,
    prompt: Option<String>,
    suffix: Option<String>,
    system: Option<String>,
    template: Option<String>,
    images: Option<Vec<String>>,
    raw: Option<bool>,
    #[serde(default)]
    format: Value,
    #[serde(default)]
    think: Value,
    stream: Option<bool>,
    options: Option<Options>,
    #[serde(default)]
    keep_alive: Value,
}

/// A request of `/api/generate`.
#[derive(Debug)]
pub struct GenerateRequest {
    /// The text to continue as it stands, without a template.
    pub raw: Option<String>,
    /// The rest; the prompt is a turn of the user unless it is raw.
    pub generation: GenerationRequest,
}

/// Reads a request for a chat. No messages ask only whether the model is there.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn chat_request(body: &[u8]) -> Result<GenerationRequest, ApiError> {
    let wire: Chat = parse(body)?;
    let messages = wire.messages.unwrap_or_default().into_iter().enumerate();
    let tools = wire.tools.unwrap_or_default().into_iter().enumerate();
    let tools = tools.map(|(i, wire)| {
        let Declaration {
            name,
            description,
            parameters,
        } = wire.function;
        tool(name, description, parameters, None, &format!("tools[{i}]"))
    });
    let turns = messages.map(|(i, message)| message.into_turn(i));
    let mut turns: Vec<Turn> = turns.collect::<Result<_, _>>()?;
    Ok(GenerationRequest {
        continues: take_silent_beginning(&mut turns),
        turns,
        tools: tools.collect::<Result<Vec<Tool>, _>>()?,
        parallel_tool_calls: true,
        keep_alive: keep_alive(&wire.keep_alive)?,
        ..common(wire.model, wire.format, &wire.think, wire.stream, wire.options)?
    })
}

/// Reads a request to generate.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn generate_request(body: &[u8]) -> Result<GenerateRequest, ApiError> {
    let wire: Generate = parse(body)?;
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refused = [
        ("suffix", given(&wire.suffix)),
        ("template", given(&wire.template)),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(ApiError::field(
            *field,
            format!("`{field}` is not supported; leave it out"),
        ));
    }
    let mut generation = common(wire.model, wire.format, &wire.think, wire.stream, wire.options)?;
    generation.keep_alive = keep_alive(&wire.keep_alive)?;
    let prompt = wire.prompt.unwrap_or_default();
    let raw = if wire.raw == Some(true) {
        if wire.images.is_some_and(|images| !images.is_empty()) {
            let message =
                "`images` cannot go with a raw prompt, which has no place for them; leave out `raw`";
            return Err(ApiError::field("images", message));
        }
        Some(prompt)
    } else {
        let system = wire.system.filter(|text| !text.is_empty());
        generation
            .turns
            .extend(system.map(|text| Turn::text(Role::System, text)));
        let mut parts = images(wire.images, "")?;
        if !prompt.is_empty() {
            parts.push(Part::Text(prompt));
        }
        if !parts.is_empty() {
            generation.turns.push(Turn::new(Role::User, parts));
        }
        None
    };
    Ok(GenerateRequest { raw, generation })
}

#[derive(Deserialize)]
struct Embed {
    model: Option<String>,
    /// `/api/embed`: a text or several.
    #[serde(default)]
    input: Value,
    /// `/api/embeddings`, the older one: a text.
    prompt: Option<String>,
    truncate: Option<bool>,
    dimensions: Option<Whole>,
    #[serde(default)]
    keep_alive: Value,
}

/// A request of `/api/embed`, or of the older `/api/embeddings`.
#[derive(Debug)]
pub struct EmbedRequest {
    /// The model's name.
    pub model: String,
    /// What to embed.
    pub inputs: Vec<Prompt>,
    /// Whether it is the older one, of one text.
    pub is_older: bool,
    /// Whether texts that are too long lose their ends, instead of being refused.
    pub truncates: bool,
    /// Length to cut vectors to.
    pub dimensions: Option<usize>,
    /// How long the model stays loaded.
    pub keep_alive: Option<KeepAlive>,
}

/// Reads a request for vectors.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn embed_request(body: &[u8]) -> Result<EmbedRequest, ApiError> {
    let wire: Embed = parse(body)?;
    let is_older = wire.prompt.is_some();
    let inputs = match (wire.prompt, wire.input) {
        (Some(text), _) | (None, Value::String(text)) => Some(vec![Prompt::Text(text)]),
        (None, Value::Array(texts)) => {
            let text = |text: &Value| Some(Prompt::Text(text.as_str()?.to_string()));
            texts.iter().map(text).collect()
        }
        _ => None,
    };
    let inputs = inputs.ok_or_else(|| {
        let message = "`input` must be a string or an array of strings";
        ApiError::field("input", message)
    })?;
    if inputs.len() > MAX_INPUTS {
        let message = format!("`input` may hold at most {MAX_INPUTS} texts");
        return Err(ApiError::field("input", message));
    }
    Ok(EmbedRequest {
        model: wire.model.unwrap_or_default(),
        inputs,
        is_older,
        truncates: wire.truncate.unwrap_or(true),
        // 0 is what Ollama's own clients send for none.
        dimensions: wire
            .dimensions
            .and_then(|Whole(n)| usize::try_from(n).ok())
            .filter(|n| *n > 0),
        keep_alive: keep_alive(&wire.keep_alive)?,
    })
}

/// Images of a message, as base64.
fn images(images: Option<Vec<String>>, before: &str) -> Result<Vec<Part>, ApiError> {
    let images = images.unwrap_or_default().into_iter().enumerate();
    images
        .map(|(i, text)| {
            Ok(Part::Image(Media::of_base64(
                &format!("{before}images[{i}]"),
                &text,
            )?))
        })
        .collect()
}

fn common(
    model: Option<String>,
    format: Value,
    think: &Value,
    stream: Option<bool>,
    options: Option<Options>,
) -> Result<GenerationRequest, ApiError> {
    let options = options.unwrap_or_default();
    let format = match format {
        Value::Null => Format::Text,
        Value::String(word) if word.is_empty() => Format::Text,
        Value::String(word) if word == "json" => Format::JsonObject,
        Value::Object(schema) => Format::JsonSchema(Value::Object(schema)),
        _ => {
            return Err(ApiError::field(
                "format",
                "`format` must be \"json\" or a JSON schema",
            ));
        }
    };
    let thinking = match think {
        Value::Null => Thinking::default(),
        Value::Bool(on) => Thinking {
            wanted: Some(*on),
            budget: None,
        },
        Value::String(level) => effort(Some(level), "think")?,
        _ => return Err(ApiError::field("think", "`think` must be true, false or a level")),
    };
    let all = |Whole(n)| usize::try_from(n).unwrap_or(usize::MAX);
    Ok(GenerationRequest {
        continues: None,
        model: model.unwrap_or_default(),
        format,
        format_field: "format",
        thinking: thinking.wanted,
        thinking_budget: thinking.budget,
        sampling: Sampling {
            temperature: options.temperature,
            top_k: options.top_k.map(|Whole(k)| usize::try_from(k).unwrap_or(0)),
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            repetition_penalty: options.repeat_penalty,
            frequency_penalty: options.frequency_penalty,
            presence_penalty: options.presence_penalty,
            penalty_window: options.repeat_last_n.map(all),
            seed: Sampling::seed_of(options.seed.map(|Whole(seed)| seed)),
            logit_bias: Vec::new(),
        },
        // -1 and -2 mean "until the end" and "until the context is full".
        max_tokens: options
            .num_predict
            .and_then(|Whole(n)| usize::try_from(n).ok())
            .filter(|n| *n > 0),
        stop: options.stop.unwrap_or_default().0,
        n: 1,
        stream: stream.unwrap_or(true),
        ..GenerationRequest::default()
    })
}

/// Reads how long a model stays: seconds, or a text such as `5m` or `1h30m`; negative means for ever.
///
/// # Errors
/// When it is neither.
pub fn keep_alive(value: &Value) -> Result<Option<KeepAlive>, ApiError> {
    let wrong = || {
        ApiError::field(
            "keep_alive",
            "`keep_alive` must be seconds, or a text such as \"5m\" or \"-1\"",
        )
    };
    let seconds = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => seconds_of(text),
        _ => None,
    };
    let seconds = seconds.filter(|seconds| seconds.is_finite()).ok_or_else(wrong)?;
    if (0.0..LONGEST_S).contains(&seconds) {
        return Ok(Some(KeepAlive::For(Duration::from_secs_f64(seconds))));
    }
    Ok(Some(KeepAlive::Forever))
}

/// Seconds of a text such as `90`, `1.5h` or `1h30m10s`, by Go's units.
fn seconds_of(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.trim().strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.trim()),
    };
    if let Ok(seconds) = rest.parse::<f64>() {
        return Some(sign * seconds);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let n_digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(n_digits);
        let n_letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(n_letters);
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    (!text.trim().is_empty()).then_some(sign * sum)
}

impl Message {
    fn into_turn(self, i: usize) -> Result<Turn, ApiError> {
        let role = match self.role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => {
                let message = format!("`{other}` is no role; give system, user, assistant or tool");
                return Err(ApiError::field(format!("messages[{i}].role"), message));
            }
        };
        let mut parts = images(self.images, &format!("messages[{i}]."))?;
        parts.extend(self.content.map(Part::Text));
        let call = |(j, call): (usize, Call)| {
            let path = format!("messages[{i}].tool_calls[{j}].function.arguments");
            Ok(ToolCall {
                id: call.id.unwrap_or_default(),
                name: call.function.name,
                arguments: arguments(call.function.arguments, &path)?,
            })
        };
        let calls = self.tool_calls.unwrap_or_default().into_iter().enumerate();
        Ok(Turn {
            reasoning: self.thinking,
            tool_calls: calls.map(call).collect::<Result<_, ApiError>>()?,
            tool_call_id: self.tool_call_id,
            name: self.tool_name,
            ..Turn::new(role, parts).at(format!("messages[{i}]"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_become_settings_and_streams_are_the_default() {
        let body = json!({
            "model": "m", "messages": [{"role": "user", "content": "x"}], "format": "json", "think": false,
            "options": {"num_predict": -1, "temperature": 0, "top_k": 40.0, "stop": ["a"], "num_ctx": 4096},
        });
        let request = chat_request(body.to_string().as_bytes()).unwrap();
        assert!(request.stream && request.max_tokens.is_none());
        assert_eq!(
            (request.format, request.thinking),
            (Format::JsonObject, Some(false))
        );
        assert_eq!(
            (request.sampling.temperature, request.sampling.top_k),
            (Some(0.0), Some(40))
        );
        let limit = |n: Value| {
            let body = json!({"prompt": "x", "options": {"num_predict": n}});
            let request = generate_request(body.to_string().as_bytes());
            request
                .map(|request| request.generation.max_tokens)
                .map_err(|error| error.param)
        };
        assert_eq!(limit(json!(128.0)), Ok(Some(128)));
        assert_eq!(limit(json!(-2.0)), Ok(None));
        assert_eq!(limit(json!(1.5)), Err(Some("options.num_predict".to_string())));
    }

    #[test]
    fn vectors_may_be_shorter_and_texts_cut() {
        let read = |body: Value| embed_request(body.to_string().as_bytes());
        let request = read(json!({"model": "m", "input": ["a", "b"], "dimensions": 64.0, "truncate": false}));
        let request = request.unwrap();
        assert_eq!(
            (request.inputs.len(), request.dimensions, request.truncates),
            (2, Some(64), false)
        );
        let request = read(json!({"prompt": "a", "dimensions": 0})).unwrap();
        assert_eq!(
            (request.is_older, request.dimensions, request.truncates),
            (true, None, true)
        );
        for wrong in [
            json!({}),
            json!({"input": [1]}),
            json!({"input": vec!["a"; MAX_INPUTS + 1]}),
        ] {
            assert_eq!(read(wrong).unwrap_err().param.as_deref(), Some("input"));
        }
    }

    #[test]
    fn arguments_of_earlier_calls_are_not_lost() {
        let read = |arguments: Value| {
            let call = json!({"function": {"name": "f", "arguments": arguments}});
            let body = json!({"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user"}]});
            let request = chat_request(body.to_string().as_bytes());
            request
                .map(|request| request.turns[0].tool_calls[0].arguments.clone())
                .map_err(|error| error.param)
        };
        assert_eq!(read(json!({"a": 1})), Ok(json!({"a": 1})));
        assert_eq!(read(json!("{\"a\": 1}")), Ok(json!({"a": 1})));
        let path = "messages[0].tool_calls[0].function.arguments";
        assert_eq!(read(json!([1])), Err(Some(path.to_string())));
    }

    #[test]
    fn every_number_but_minus_one_is_a_seed() {
        let seed = |number: i64| {
            let body = json!({"prompt": "x", "options": {"seed": number}});
            let request = generate_request(body.to_string().as_bytes()).unwrap();
            request.generation.sampling.seed
        };
        assert_eq!(seed(-1), None);
        assert_eq!(seed(0), Some(0));
        assert_eq!((seed(-7), seed(-7) == seed(-8)), (Some(u64::MAX - 6), false));
    }

    #[test]
    fn how_long_a_model_stays_is_seconds_or_a_text() {
        let read = |value: Value| keep_alive(&value);
        let time = |seconds: f64| Ok(Some(KeepAlive::For(Duration::from_secs_f64(seconds))));
        assert_eq!(read(Value::Null), Ok(None));
        assert_eq!(read(json!(0)), time(0.0));
        assert_eq!(read(json!("5m")), time(300.0));
        assert_eq!(read(json!("1h30m1.5s")), time(5401.5));
        assert_eq!(read(json!(-1)), Ok(Some(KeepAlive::Forever)));
        assert_eq!(read(json!("-1m")), Ok(Some(KeepAlive::Forever)));
        assert_eq!(read(json!(1e300)), Ok(Some(KeepAlive::Forever)));
        for wrong in [
            json!("soon"),
            json!(""),
            json!("5x"),
            json!([1]),
            json!(true),
            json!("m"),
        ] {
            assert_eq!(read(wrong).unwrap_err().param.as_deref(), Some("keep_alive"));
        }
    }

    #[test]
    fn a_raw_prompt_has_no_turns() {
        let request = generate_request(br#"{"prompt": "a", "raw": true, "stream": false}"#).unwrap();
        assert_eq!(
            (request.raw.as_deref(), request.generation.turns.len()),
            (Some("a"), 0)
        );
        let request = generate_request(br#"{"prompt": "a", "system": "s"}"#).unwrap();
        assert_eq!(request.generation.turns.len(), 2);
        assert_eq!(
            generate_request(br#"{"suffix": "x"}"#)
                .unwrap_err()
                .param
                .as_deref(),
            Some("suffix")
        );
    }
}
