//! Chat templates: a conversation to the prompt that the model was trained on.
//!
//! The template inside the user's model file comes first ([`ChatTemplate::from_jinja`]); the formats of Gemma 3 and
//! Gemma 4 are built in for files without one. [`ChatTemplate::encode`] is the way from messages to ids: unlike tokenizing the rendered
//! text, it keeps control strings in messages plain.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Value;
use minijinja::{Environment, context};

use crate::chat::{Message, Part, RenderOptions, Tool};
use crate::error::Result;
use crate::prompt_text::PromptText;
use crate::tokenizer::Tokenizer;
use crate::{gemma3, gemma4, jinja, shield};

/// How a model wants its conversations written.
#[derive(Debug)]
pub struct ChatTemplate {
    format: Format,
    bos: String,
    eos: String,
}

#[derive(Debug)]
enum Format {
    Gemma3,
    Gemma4 { closes_thought: bool },
    Jinja(Box<Environment<'static>>),
}

impl ChatTemplate {
    /// The template `source` of a model file; `bos` and `eos` are the pieces that it sees as `bos_token` and
    /// `eos_token`.
    ///
    /// # Errors
    /// A source that is too large or not valid Jinja.
    pub fn from_jinja(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let environment = jinja::environment(source)?;
        Ok(Self {
            format: Format::Jinja(Box::new(environment)),
            bos: bos.into(),
            eos: eos.into(),
        })
    }

    /// Gemma 3's own format.
    pub fn gemma3() -> Self {
        Self {
            format: Format::Gemma3,
            bos: "<bos>".into(),
            eos: "<eos>".into(),
        }
    }

    /// Gemma 4's own format. `closes_thought` is for 12B and larger, which expect an empty thought at the begin of
    /// their answer when they shall not think; E2B and E4B do not.
    pub fn gemma4(closes_thought: bool) -> Self {
        Self {
            format: Format::Gemma4 { closes_thought },
            bos: "<bos>".into(),
            eos: "<eos>".into(),
        }
    }

    /// The prompt as text, beginning-of-sequence piece included where the template writes it.
    ///
    /// To get ids use [`ChatTemplate::encode`]: in this text, control strings of messages and of the template
    /// look the same.
    ///
    /// # Errors
    /// A conversation that the format does not allow, or a template that fails or exceeds its limits.
    pub fn render(&self, messages: &[Message], options: RenderOptions<'_>) -> Result<String> {
        let environment = match &self.format {
            Format::Gemma3 => return gemma3::render(messages, options, &self.bos),
            Format::Gemma4 { closes_thought } => {
                return gemma4::render(messages, options, &self.bos, *closes_thought);
            }
            Format::Jinja(environment) => environment,
        };
        let now = options.now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let context = context! {
            messages => messages.iter().map(message_value).collect::<Vec<_>>(),
            add_generation_prompt => options.add_generation_prompt,
            enable_thinking => options.thinking,
            tools => tools_value(options.tools),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            carat_now_seconds => seconds,
        };
        jinja::render(environment, context, messages.len())
    }

    /// Ids of the prompt. Control strings of the template become tokens, those in messages stay text; when
    /// messages hold none, the ids are those of the rendered text with [`Special::Parse`](crate::Special::Parse). No
    /// token is added.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and a template that hides which characters came from messages.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: RenderOptions<'_>,
    ) -> Result<Vec<u32>> {
        Ok(self.compose(tokenizer, messages, options)?.encode(tokenizer))
    }

    /// The prompt as text that knows what of it came from messages; for [`tokenizer`](Tokenizer)'s special tokens.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode`].
    pub fn compose(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: RenderOptions<'_>,
    ) -> Result<PromptText> {
        // Both renderings must see the same time.
        let options = RenderOptions {
            now: Some(options.now.unwrap_or_else(SystemTime::now)),
            ..options
        };
        let rendered = self.render(messages, options)?;
        let render =
            |messages: &[Message], tools: &[Tool]| self.render(messages, RenderOptions { tools, ..options });
        let specials = shield::Specials {
            starts: tokenizer.special_starts(),
            may_begin: &|text| tokenizer.may_begin_special(text),
        };
        let shielded = shield::shielded_offsets(messages, options.tools, &rendered, &specials, render)?;
        Ok(PromptText::new(rendered, shielded))
    }
}

/// A message as templates expect it: plain text when it is nothing else, a list of parts otherwise. What it lacks is
/// not there at all, since templates ask for what is defined.
fn message_value(message: &Message) -> Value {
    let content = match message.content.as_slice() {
        [] => Value::from(""),
        [Part::Text(text)] => Value::from(text.as_str()),
        parts => parts.iter().map(part_value).collect(),
    };
    let mut fields = vec![("role", Value::from(message.role.name())), ("content", content)];
    let texts = [
        ("reasoning", &message.reasoning),
        ("tool_call_id", &message.tool_call_id),
        ("name", &message.name),
    ];
    for (key, text) in texts {
        fields.extend(text.as_deref().map(|text| (key, Value::from(text))));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let arguments = json_value(&call.arguments);
            let function = context! { name => call.name.as_str(), arguments => arguments };
            context! { id => call.id.as_str(), type => "function", function => function }
        });
        fields.push(("tool_calls", calls.collect()));
    }
    if !message.tool_responses.is_empty() {
        let responses = message.tool_responses.iter().map(|one| {
            context! { name => one.name.as_str(), response => json_value(&one.response) }
        });
        fields.push(("tool_responses", responses.collect()));
    }
    Value::from_pairs(fields)
}

fn part_value(part: &Part) -> Value {
    match part {
        Part::Text(text) => context! { type => "text", text => text },
        Part::Image => context! { type => "image" },
        Part::Audio => context! { type => "audio" },
        Part::Video => context! { type => "video" },
    }
}

/// The tools as templates expect them; nothing where there are none.
fn tools_value(tools: &[Tool]) -> Value {
    if tools.is_empty() {
        return Value::from(());
    }
    let tool = |tool: &Tool| {
        let function = context! {
            name => tool.name.as_str(),
            description => tool.description.as_deref().unwrap_or_default(),
            parameters => json_value(&tool.parameters),
        };
        context! { type => "function", function => function }
    };
    tools.iter().map(tool).collect()
}

/// A JSON value as templates see it. The JSON reader has bounded its depth.
fn json_value(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(json_value).collect(),
        serde_json::Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| (key.as_str(), json_value(value)));
            Value::from_pairs(fields)
        }
    }
}
