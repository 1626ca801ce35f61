//! Chat templates: a conversation to the prompt that the model was trained on.
//!
//! The template inside the user's model file comes first ([`ChatTemplate::from_jinja`]); Gemma 3's format is built in for
//! files without one. [`ChatTemplate::encode`] is the way from messages to ids: unlike tokenizing the rendered
//! text, it keeps control strings in messages plain.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Value;
use minijinja::{Environment, context};

use crate::chat::{Message, Part, RenderOptions};
use crate::error::Result;
use crate::tokenizer::{Special, Tokenizer};
use crate::{gemma3, jinja, shield};

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

    /// The prompt as text, beginning-of-sequence piece included where the template writes it.
    ///
    /// To get ids use [`ChatTemplate::encode`]: in this text, control strings of messages and of the template
    /// look the same.
    ///
    /// # Errors
    /// A conversation that the format does not allow, or a template that fails or exceeds its limits.
    pub fn render(&self, messages: &[Message], options: RenderOptions) -> Result<String> {
        let environment = match &self.format {
            Format::Gemma3 => return gemma3::render(messages, options, &self.bos),
            Format::Jinja(environment) => environment,
        };
        let now = options.now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let context = context! {
            messages => messages.iter().map(message_value).collect::<Vec<_>>(),
            add_generation_prompt => options.add_generation_prompt,
            enable_thinking => options.thinking,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            carat_now_seconds => seconds,
        };
        jinja::render(environment, context)
    }

    /// Ids of the prompt. Control strings of the template become tokens, those in messages stay text; when
    /// messages hold none, the ids are those of the rendered text with [`Special::Parse`]. No token is added.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and a template that hides which characters came from messages.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: RenderOptions,
    ) -> Result<Vec<u32>> {
        // Both renderings must see the same time.
        let options = RenderOptions {
            now: Some(options.now.unwrap_or_else(SystemTime::now)),
            ..options
        };
        let rendered = self.render(messages, options)?;
        let render = |messages: &[Message]| self.render(messages, options);
        let offsets = shield::shielded_offsets(messages, &rendered, tokenizer.special_starts(), render)?;
        if offsets.is_empty() {
            return Ok(tokenizer.encode(&rendered, Special::Parse));
        }
        Ok(tokenizer.encode_shielded(&rendered, &offsets))
    }
}

/// A message as templates expect it: plain text when it is nothing else, a list of parts otherwise.
fn message_value(message: &Message) -> Value {
    let content = match message.content.as_slice() {
        [] => Value::from(""),
        [Part::Text(text)] => Value::from(text.as_str()),
        parts => parts.iter().map(part_value).collect(),
    };
    context! { role => message.role.name(), content => content }
}

fn part_value(part: &Part) -> Value {
    match part {
        Part::Text(text) => context! { type => "text", text => text },
        Part::Image => context! { type => "image" },
    }
}
