//! The request of `/v1/chat/completions`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::format::{WireFormat, WireGrammar};
use crate::generation::take_beginning;
use crate::read::{OneOrMany, TextOr, exact, parse};
use crate::{ApiError, GenerationRequest, Media, Part, Role, Sampling, Tool, ToolCall, ToolChoice, Turn};

/// Most alternatives that may be asked for.
const MAX_TOP_LOGPROBS: u32 = 20;
/// Tokens that may be thought with low and with medium effort.
const LOW_EFFORT: usize = 1024;
const MEDIUM_EFFORT: usize = 8192;
/// Most answers to one prompt.
const MAX_CHOICES: u32 = 128;
/// The field of a call's arguments that holds them as text, where that is no object.
const UNREAD: &str = "arguments";

/// Reads the body.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn chat_request(body: &[u8]) -> Result<GenerationRequest, ApiError> {
    let (request, sampling, grammar): (ChatRequest, WireSampling, WireGrammar) =
        (parse(body)?, parse(body)?, parse(body)?);
    request.into_generation(sampling, grammar)
}

/// The body but for what others share. Groups of fields are read one by one: a nested group's errors would not
/// name their field.
#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: Option<String>,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
    stop: Option<OneOrMany>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    tools: Option<Vec<WireTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<WireFormat>,
    reasoning_effort: Option<String>,
    thinking_budget: Option<i64>,
    /// The same by other names, as below: an alias would refuse a request that has both.
    thinking_token_budget: Option<i64>,
    reasoning_budget: Option<i64>,
    chat_template_kwargs: Option<TemplateArguments>,
    /// vLLM's: the last message is the beginning of the answer.
    continue_final_message: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct TemplateArguments {
    enable_thinking: Option<bool>,
}

/// Fields of sampling, which chat and completions share; below the line the names of llama.cpp and vLLM.
#[derive(Debug, Default, Deserialize)]
pub(super) struct WireSampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
}

impl WireSampling {
    pub(super) fn into_sampling(self) -> Result<Sampling, ApiError> {
        let bias = |(id, bias): (String, f32)| {
            // Written in one way: `5`, `05` and `+5` would be any number of biases for one token.
            let number = id.parse().ok().filter(|number: &u32| number.to_string() == id);
            let number = number.ok_or_else(|| {
                let message = format!("`logit_bias` names `{id}`, which is not a token id");
                ApiError::field("logit_bias", message)
            })?;
            Ok::<_, ApiError>((number, bias))
        };
        let logit_bias = self.logit_bias.unwrap_or_default().into_iter().map(bias);
        Ok(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: logit_bias.collect::<Result<_, _>>()?,
            seed: Sampling::seed_of(self.seed),
            // Both -1 and 0 mean "all" to those who know this field.
            top_k: self.top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty.or(self.repeat_penalty),
            penalty_window: self
                .repeat_last_n
                .map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        })
    }
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: TextOr<WirePart>,
    reasoning_content: Option<String>,
    /// The same; vLLM and OpenRouter give both, and clients send messages back as they came.
    reasoning: Option<String>,
    tool_calls: Option<Vec<WireCall>>,
    /// How one call was given before `tool_calls`; its result is a message of the role `function`.
    function_call: Option<WireFunction>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct WirePart {
    r#type: String,
    text: Option<String>,
    refusal: Option<String>,
    image_url: Option<WireUrl>,
    /// vLLM's.
    audio_url: Option<WireUrl>,
    /// vLLM's.
    video_url: Option<WireUrl>,
    input_audio: Option<WireAudio>,
}

/// A URL, alone or in an object beside settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum WireUrl {
    Text(String),
    Object { url: String },
}

impl WireUrl {
    fn text(&self) -> &str {
        match self {
            Self::Text(url) | Self::Object { url } => url,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct WireAudio {
    data: String,
}

#[derive(Debug, Deserialize)]
struct WireCall {
    id: Option<String>,
    function: WireFunction,
}

#[derive(Debug, Deserialize)]
struct WireFunction {
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Debug, Deserialize)]
struct WireTool {
    r#type: Option<String>,
    function: Option<Declaration>,
}

#[derive(Debug, Deserialize)]
struct Declaration {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

impl ChatRequest {
    fn into_generation(
        self,
        sampling: WireSampling,
        grammar: WireGrammar,
    ) -> Result<GenerationRequest, ApiError> {
        let turns = self
            .messages
            .into_iter()
            .enumerate()
            .map(|(i, message)| message.into_turn(i));
        let mut turns: Vec<Turn> = turns.collect::<Result<_, _>>()?;
        let continues = match self.continue_final_message {
            Some(true) => Some(take_beginning(&mut turns).ok_or_else(|| {
                let message = "`continue_final_message` needs a last message of the assistant, of text alone";
                ApiError::field("continue_final_message", message)
            })?),
            _ => None,
        };
        if turns.is_empty() {
            return Err(ApiError::field(
                "messages",
                "`messages` is empty; give at least one",
            ));
        }
        let tools = self.tools.unwrap_or_default().into_iter().enumerate();
        let tools: Vec<Tool> = tools
            .map(|(i, tool)| tool.into_tool(i))
            .collect::<Result<_, _>>()?;
        let format = self.response_format.map(WireFormat::into_format).transpose()?;
        let (format, format_field) = grammar.over(format)?;
        let (limit, limit_field) = match self.max_completion_tokens {
            None => (self.max_tokens, "max_tokens"),
            limit => (limit, "max_completion_tokens"),
        };
        let mut thinking = effort(self.reasoning_effort.as_deref(), "reasoning_effort")?;
        let budgets = [
            self.thinking_budget,
            self.thinking_token_budget,
            self.reasoning_budget,
        ];
        if let Some(n) = budgets.into_iter().flatten().next() {
            thinking = thinking.within(n);
        }
        if let Some(enabled) = self
            .chat_template_kwargs
            .and_then(|kwargs| kwargs.enable_thinking)
        {
            thinking.wanted = Some(enabled);
        }
        Ok(GenerationRequest {
            model: self.model.unwrap_or_default(),
            tool_choice: tool_choice(self.tool_choice, &tools)?,
            continues,
            turns,
            tools,
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            format,
            format_field,
            sampling: sampling.into_sampling()?,
            max_tokens: max_tokens(limit, limit_field)?,
            stop: self.stop.unwrap_or_default().0,
            n: choices(self.n)?,
            logprobs: logprobs(self.logprobs, self.top_logprobs)?,
            thinking: thinking.wanted,
            thinking_budget: thinking.budget,
            stream: self.stream.unwrap_or(false),
            keep_alive: None,
            include_usage: self.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        })
    }
}

/// Whether the model thinks, and how much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Thinking {
    pub(crate) wanted: Option<bool>,
    pub(crate) budget: Option<usize>,
}

impl Thinking {
    /// The same with a budget in tokens: 0 is not to think, below 0 there is none.
    pub(crate) fn within(self, n: i64) -> Self {
        Self {
            wanted: if n == 0 {
                Some(false)
            } else {
                self.wanted.or(Some(true))
            },
            budget: usize::try_from(n).ok().filter(|n| *n > 0),
        }
    }
}

/// Effort to thinking: Gemma 4 knows on and off, and budgets do the rest.
pub(crate) fn effort(effort: Option<&str>, field: &str) -> Result<Thinking, ApiError> {
    let (wanted, budget) = match effort {
        None => (None, None),
        Some("none" | "minimal") => (Some(false), None),
        Some("low") => (Some(true), Some(LOW_EFFORT)),
        Some("medium") => (Some(true), Some(MEDIUM_EFFORT)),
        Some("high" | "xhigh" | "max") => (Some(true), None),
        Some(other) => {
            let message = format!("`{field}` is `{other}`; give none, minimal, low, medium, high or xhigh");
            return Err(ApiError::field(field, message));
        }
    };
    Ok(Thinking { wanted, budget })
}

/// The limit that `field` gives.
pub(super) fn max_tokens(n: Option<u32>, field: &str) -> Result<Option<usize>, ApiError> {
    if n == Some(0) {
        let message = format!("`{field}` is 0; allow at least one token");
        return Err(ApiError::field(field, message));
    }
    Ok(n.map(|n| n as usize))
}

pub(super) fn choices(n: Option<u32>) -> Result<usize, ApiError> {
    match n.unwrap_or(1) {
        n @ 1..=MAX_CHOICES => Ok(n as usize),
        n => Err(ApiError::field(
            "n",
            format!("`n` is {n}; give a number from 1 to {MAX_CHOICES}"),
        )),
    }
}

fn logprobs(wanted: Option<bool>, top: Option<u32>) -> Result<Option<usize>, ApiError> {
    match (wanted.unwrap_or(false), top) {
        (_, Some(top)) if top > MAX_TOP_LOGPROBS => Err(ApiError::field(
            "top_logprobs",
            format!("`top_logprobs` is {top}; give a number from 0 to {MAX_TOP_LOGPROBS}"),
        )),
        (false, Some(top)) if top > 0 => Err(ApiError::field(
            "top_logprobs",
            "`top_logprobs` needs `logprobs` to be true",
        )),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, _) => Ok(None),
    }
}

/// `none`, `auto`, `required`, or an object that names a function.
pub(super) fn tool_choice(value: Option<Value>, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    let field = "tool_choice";
    let choice = match &value {
        None | Some(Value::Null) => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(ToolChoice::None),
            "auto" => return Ok(ToolChoice::Auto),
            "required" | "any" => ToolChoice::Required,
            other => {
                let message = format!("`tool_choice` is `{other}`; give none, auto, required or a function");
                return Err(ApiError::field(field, message));
            }
        },
        Some(object) => {
            let name = object["function"]["name"].as_str().or(object["name"].as_str());
            let Some(name) = name else {
                return Err(ApiError::field(
                    field,
                    "`tool_choice` names no function; give none, auto, required or {\"type\": \"function\", \
                     \"function\": {\"name\": ...}}",
                ));
            };
            ToolChoice::Named(name.to_string())
        }
    };
    match &choice {
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => Err(ApiError::field(
            field,
            format!("`tool_choice` names `{name}`, which is not among `tools`"),
        )),
        ToolChoice::Required if tools.is_empty() => Err(ApiError::field(
            field,
            "`tool_choice` needs `tools` to choose from",
        )),
        _ => Ok(choice),
    }
}

impl Message {
    fn into_turn(self, i: usize) -> Result<Turn, ApiError> {
        let path = |rest: &str| format!("messages[{i}].{rest}");
        let role = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "function" => Role::Tool,
            other => {
                let message =
                    format!("`{other}` is no role; give system, developer, user, assistant or tool");
                return Err(ApiError::field(path("role"), message));
            }
        };
        let parts = match self.content {
            TextOr::Text(text) => vec![Part::Text(text)],
            TextOr::Parts(parts) => {
                let parts = parts.into_iter().enumerate();
                let parts = parts.map(|(j, part)| part.into_part(&path(&format!("content[{j}]"))));
                parts.collect::<Result<_, _>>()?
            }
        };
        let calls = self.tool_calls.unwrap_or_default().into_iter().enumerate();
        let calls = calls.map(|(j, call)| {
            let path = path(&format!("tool_calls[{j}].function"));
            call.function.into_call(call.id.unwrap_or_default(), &path)
        });
        let older = self.function_call.into_iter();
        let older = older.map(|function| function.into_call(String::new(), &path("function_call")));
        Ok(Turn {
            reasoning: self
                .reasoning_content
                .or(self.reasoning)
                .filter(|text| !text.is_empty()),
            tool_calls: calls.chain(older).collect::<Result<_, _>>()?,
            tool_call_id: self.tool_call_id,
            name: self.name,
            ..Turn::new(role, parts).at(format!("messages[{i}]"))
        })
    }
}

impl WirePart {
    fn into_part(self, path: &str) -> Result<Part, ApiError> {
        let missing =
            |field: &str| ApiError::field(format!("{path}.{field}"), format!("`{path}.{field}` is missing"));
        match (self.r#type.as_str(), self.text.or(self.refusal)) {
            ("text" | "refusal" | "input_text" | "output_text", Some(text)) => Ok(Part::Text(text)),
            ("text" | "refusal" | "input_text" | "output_text", None) => {
                Err(ApiError::field(path, format!("`{path}` has no text")))
            }
            ("image_url" | "input_image", _) => match self.image_url {
                Some(url) => Ok(Part::Image(Media::of_url(
                    &format!("{path}.image_url"),
                    url.text(),
                )?)),
                None => Err(missing("image_url")),
            },
            ("input_audio", _) => match self.input_audio {
                Some(audio) => {
                    let path = format!("{path}.input_audio.data");
                    Ok(Part::Audio(Media::of_base64(&path, &audio.data)?))
                }
                None => Err(missing("input_audio")),
            },
            ("audio_url", _) => match self.audio_url {
                Some(url) => Ok(Part::Audio(Media::of_url(
                    &format!("{path}.audio_url"),
                    url.text(),
                )?)),
                None => Err(missing("audio_url")),
            },
            ("video_url", _) => match self.video_url {
                Some(url) => Ok(Part::Video(Media::of_url(
                    &format!("{path}.video_url"),
                    url.text(),
                )?)),
                None => Err(missing("video_url")),
            },
            (other, _) => {
                let message = format!(
                    "`{path}` is of type `{other}`, which is not supported; send text, image_url, input_audio, \
                     audio_url or video_url"
                );
                Err(ApiError::field(path, message))
            }
        }
    }
}

impl WireFunction {
    fn into_call(self, id: String, path: &str) -> Result<ToolCall, ApiError> {
        Ok(ToolCall {
            id,
            name: self.name,
            arguments: arguments(self.arguments, &format!("{path}.arguments"))?,
        })
    }
}

/// Arguments of an earlier call as an object; OpenAI writes them as text. Text that is none (the answer was cut, or another
/// model wrote it) is kept whole: clients send back what they were given, the conversation must be able to go on, and the
/// model shall see what came of its call.
pub(crate) fn arguments(value: Value, path: &str) -> Result<Value, ApiError> {
    let text = match value {
        Value::String(text) => text,
        Value::Null => return Ok(Value::Object(Default::default())),
        object @ Value::Object(_) => return Ok(object),
        _ => {
            let message = format!("`{path}` is no JSON object; send back the arguments as they were given");
            return Err(ApiError::field(path, message));
        }
    };
    Ok(match exact(&text) {
        Ok(object @ Value::Object(_)) => object,
        Ok(Value::Null) => Value::Object(Default::default()),
        _ if text.trim().is_empty() => Value::Object(Default::default()),
        _ => serde_json::json!({UNREAD: text}),
    })
}

impl WireTool {
    fn into_tool(self, i: usize) -> Result<Tool, ApiError> {
        match (self.r#type.as_deref().unwrap_or("function"), self.function) {
            ("function", Some(function)) => tool(
                function.name,
                function.description,
                function.parameters,
                function.strict,
                &format!("tools[{i}]"),
            ),
            ("function", None) => {
                let path = format!("tools[{i}].function");
                Err(ApiError::field(&path, format!("`{path}` is missing")))
            }
            (other, _) => {
                let path = format!("tools[{i}].type");
                let message = format!("`{path}` is `{other}`; only `function` is supported");
                Err(ApiError::field(path, message))
            }
        }
    }
}

/// A tool whose name and schema can be used.
pub(crate) fn tool(
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
    path: &str,
) -> Result<Tool, ApiError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(is_plain) {
        let message = format!("`{path}` is named `{name}`; use up to 128 letters, digits, `_`, `-` or `.`");
        return Err(ApiError::field(path, message));
    }
    let parameters = match parameters {
        None | Some(Value::Null) => serde_json::json!({"type": "object", "properties": {}}),
        Some(Value::Object(schema)) => Value::Object(schema),
        Some(_) => {
            let message = format!("`{path}` has parameters that are no JSON schema; give an object");
            return Err(ApiError::field(path, message));
        }
    };
    Ok(Tool {
        name,
        description,
        parameters,
        is_strict: strict.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn convert(body: Value) -> Result<GenerationRequest, ApiError> {
        chat_request(body.to_string().as_bytes())
    }

    fn refused(change: Value) -> (Option<String>, String) {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let error = convert(body).unwrap_err();
        (error.param, error.message)
    }

    #[test]
    fn a_whole_conversation_with_tools_is_understood() {
        let request = convert(json!({
            "model": "m", "unknown_field": {"x": 1}, "temperature": null, "top_k": -1, "seed": -1,
            "logit_bias": {"5": -100}, "stop": "END", "max_completion_tokens": 7, "max_tokens": 9,
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "w", "arguments": "{\"a\": 1}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
            "tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "w"}},
            "response_format": {"type": "text"},
        }))
        .unwrap();
        assert_eq!(request.turns.len(), 4);
        assert_eq!(request.turns[0].role, Role::System);
        assert_eq!(request.turns[2].tool_calls[0].arguments, json!({"a": 1}));
        assert_eq!(request.tool_choice, ToolChoice::Named("w".into()));
        assert_eq!(
            (request.max_tokens, request.n, request.stop),
            (Some(7), 1, vec!["END".to_string()])
        );
        assert_eq!(request.sampling.logit_bias, [(5, -100.0)]);
        assert_eq!(
            (request.sampling.top_k, request.sampling.seed),
            (Some(0), None),
            "-1 is all, and no seed"
        );
    }

    #[test]
    fn arguments_that_were_cut_are_kept_as_text() {
        let read = |given: Value| arguments(given, "x").map_err(|error| error.param);
        for (given, expected) in [
            (json!("{\"a\": 1}"), json!({"a": 1})),
            (json!({"a": 1}), json!({"a": 1})),
            (json!(null), json!({})),
            (json!(" "), json!({})),
            (json!("null"), json!({})),
            (json!("{\"city\": \"Ro"), json!({"arguments": "{\"city\": \"Ro"})),
            (json!("[1]"), json!({"arguments": "[1]"})),
            (json!("{\"a\": 1e999}"), json!({"a": "1e999"})),
        ] {
            assert_eq!(read(given.clone()), Ok(expected), "{given}");
        }
        for wrong in [json!([1]), json!(7), json!(true)] {
            assert_eq!(read(wrong), Err(Some("x".to_string())));
        }
    }

    #[test]
    fn the_beginning_of_an_answer_is_taken_off_the_conversation() {
        let turns = |last: Value| {
            json!({"model": "m", "continue_final_message": true, "add_generation_prompt": false,
                   "messages": [{"role": "user", "content": "Hi"}, last]})
        };
        let request = convert(turns(json!({"role": "assistant", "content": "Good "}))).unwrap();
        assert_eq!(
            (request.turns.len(), request.continues.as_deref()),
            (1, Some("Good "))
        );
        for last in [
            json!({"role": "user", "content": "x"}),
            json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]}),
        ] {
            let error = convert(turns(last)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("continue_final_message"));
        }
    }

    #[test]
    fn of_several_names_the_first_that_is_given_counts() {
        let messages = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ha", "reasoning": "hm", "reasoning_content": "hm"},
            {"role": "assistant", "content": "Ha", "reasoning": "so", "reasoning_content": null},
        ]);
        let request = convert(json!({
            "messages": messages, "repetition_penalty": 1.5, "repeat_penalty": 1.1,
            "thinking_budget": null, "thinking_token_budget": 7, "reasoning_budget": 9,
        }));
        let request = request.unwrap();
        let thoughts: Vec<Option<&str>> = request
            .turns
            .iter()
            .map(|turn| turn.reasoning.as_deref())
            .collect();
        assert_eq!(thoughts, [None, Some("hm"), Some("so")]);
        assert_eq!(request.sampling.repetition_penalty, Some(1.5));
        assert_eq!(request.thinking_budget, Some(7));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let check = |change: Value, param: &str| assert_eq!(refused(change).0.as_deref(), Some(param));
        check(json!({"temperature": "hot"}), "temperature");
        check(json!({"messages": []}), "messages");
        check(
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            "messages[0].role",
        );
        check(
            json!({"messages": [{"role": "user", "content": [{"type": "video"}]}]}),
            "messages[0].content[0]",
        );
        check(json!({"n": 0}), "n");
        check(json!({"top_logprobs": 3}), "top_logprobs");
        check(json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs");
        check(json!({"tool_choice": "required"}), "tool_choice");
        check(
            json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
            "tools[0]",
        );
        check(
            json!({"response_format": {"type": "yaml"}}),
            "response_format.type",
        );
        check(
            json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
            "guided_regex",
        );
        check(json!({"reasoning_effort": "huge"}), "reasoning_effort");
        for id in ["x", "05", "+5", "5 ", "-1", "4294967296", ""] {
            check(json!({"logit_bias": {id: 1}}), "logit_bias");
        }
        check(json!({"max_tokens": 0}), "max_tokens");
        check(
            json!({"max_tokens": 9, "max_completion_tokens": 0}),
            "max_completion_tokens",
        );
    }
}
