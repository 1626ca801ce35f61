//! Tells which characters of a rendered prompt came from messages (or tools), through whatever the template does to
//! them.
//!
//! A message may hold `<end_of_turn>`; tokenized with the rest it would end the turn. So the conversation is rendered
//! a second time with each character that could start a special piece (`<` and `[` for Gemma) replaced,
//! in messages only, by a private character that occurs nowhere. Both renderings then have the same length, and
//! where the second has a stand-in, the first has a character of a message: no special piece may start there.
//! Trimming, joining and moving of texts by the template do not matter, nor do strings that only arise when
//! the template joins two texts.
//!
//! A template that looks for such characters renders the second conversation differently. Gemma 4's does, to cut
//! thoughts out of earlier answers: for answers, its two channel markers are then left as they are. If that does not
//! help either, fields keep their names, by which templates sort them, if those can be no part of a special piece. If all
//! that does not help, the conversation is refused.

use serde_json::Value;

use crate::chat::{Message, Part, Role, Tool, ToolCall, ToolResponse};
use crate::error::{Error, Result};

/// Markers that templates look for in earlier answers.
const CHANNEL_MARKERS: [&str; 2] = ["<|channel>", "<channel|>"];

/// What a vocabulary has of special pieces.
pub(crate) struct Specials<'a> {
    /// Their first characters, sorted.
    pub(crate) starts: &'a [char],
    /// Whether one of them begins with this text or is its beginning.
    pub(crate) may_begin: &'a dyn Fn(&str) -> bool,
}

/// Byte offsets in `rendered`, in order, of characters from messages and tools that could start a special piece.
pub(crate) fn shielded_offsets(
    messages: &[Message],
    tools: &[Tool],
    rendered: &str,
    specials: &Specials<'_>,
    render: impl Fn(&[Message], &[Tool]) -> Result<String>,
) -> Result<Vec<usize>> {
    let mut stand_ins = StandIns::choose(messages, tools, rendered, specials.starts)?;
    if stand_ins.pairs.is_empty() {
        return Ok(Vec::new());
    }
    let attempts = [
        (&[][..], false),
        (&CHANNEL_MARKERS, false),
        (&[], true),
        (&CHANNEL_MARKERS, true),
    ];
    for (kept, keeps_keys) in attempts {
        if keeps_keys && !keys_are_plain(messages, tools, specials) {
            break;
        }
        stand_ins.keeps_keys = keeps_keys;
        // A template may well refuse what it does not expect: then the next attempt decides.
        let messages: Vec<Message> = messages.iter().map(|one| stand_ins.message(one, kept)).collect();
        let tools: Vec<Tool> = tools.iter().map(|tool| stand_ins.tool(tool)).collect();
        let Ok(replaced) = render(&messages, &tools) else {
            continue;
        };
        if let Some(offsets) = stand_ins.compare(rendered, &replaced) {
            return Ok(offsets);
        }
    }
    Err(Error::UntraceableText)
}

/// Characters and the private ones that stand for them.
struct StandIns {
    pairs: Vec<(char, char)>,
    /// Whether the names of fields stay as they are.
    keeps_keys: bool,
}

impl StandIns {
    /// Stand-ins for those of `special_starts` that occur in messages or tools.
    fn choose(messages: &[Message], tools: &[Tool], rendered: &str, special_starts: &[char]) -> Result<Self> {
        let (mut needed, mut used) = (Vec::new(), Vec::new());
        let mut look = |text: &str| {
            needed.extend(text.chars().filter(|c| special_starts.binary_search(c).is_ok()));
            used.extend(text.chars().filter(|&c| c >= '\u{fdd0}'));
        };
        messages
            .iter()
            .for_each(|message| look_at_message(message, &mut look));
        tools.iter().for_each(|tool| look_at_tool(tool, &mut look));
        needed.sort_unstable();
        needed.dedup();
        if needed.is_empty() {
            return Ok(Self {
                pairs: Vec::new(),
                keeps_keys: false,
            });
        }
        used.extend(rendered.chars().filter(|&c| c >= '\u{fdd0}'));
        // Noncharacters first: honest text never holds them. Then planes 15 and 16, for private use.
        let candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{10fffd}');
        used.sort_unstable();
        used.dedup();
        let mut free = candidates.filter(|c| used.binary_search(c).is_err());
        let pairs: Option<Vec<_>> = needed.into_iter().map(|c| Some((c, free.next()?))).collect();
        Ok(Self {
            pairs: pairs.ok_or(Error::UntraceableText)?,
            keeps_keys: false,
        })
    }

    /// The message with stand-ins; in answers the strings `kept` stay.
    fn message(&self, message: &Message, kept: &[&str]) -> Message {
        let kept = if message.role == Role::Assistant {
            kept
        } else {
            &[]
        };
        let text = |text: &String| self.replace(text, &[]);
        let part = |part: &Part| match part {
            Part::Text(text) => Part::Text(self.replace(text, kept)),
            Part::Image => Part::Image,
            Part::Audio => Part::Audio,
            Part::Video => Part::Video,
        };
        let call = |call: &ToolCall| ToolCall {
            id: text(&call.id),
            name: text(&call.name),
            arguments: self.value(&call.arguments),
        };
        let response = |one: &ToolResponse| ToolResponse {
            name: text(&one.name),
            response: self.value(&one.response),
        };
        Message {
            role: message.role,
            content: message.content.iter().map(part).collect(),
            reasoning: message.reasoning.as_ref().map(text),
            tool_calls: message.tool_calls.iter().map(call).collect(),
            tool_responses: message.tool_responses.iter().map(response).collect(),
            tool_call_id: message.tool_call_id.as_ref().map(text),
            name: message.name.as_ref().map(text),
        }
    }

    fn tool(&self, tool: &Tool) -> Tool {
        Tool {
            name: self.replace(&tool.name, &[]),
            description: tool.description.as_ref().map(|text| self.replace(text, &[])),
            parameters: self.value(&tool.parameters),
        }
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.replace(text, &[])),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => {
                let key = |key: &String| {
                    if self.keeps_keys {
                        key.clone()
                    } else {
                        self.replace(key, &[])
                    }
                };
                let field = |(name, value): (&String, &Value)| (key(name), self.value(value));
                fields.iter().map(field).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn replace(&self, text: &str, kept: &[&str]) -> String {
        let mut replaced = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let is_kept = kept.iter().any(|marker| text[at..].starts_with(marker));
            replaced.push(if is_kept { c } else { self.stand_in(c) });
        }
        replaced
    }

    fn stand_in(&self, c: char) -> char {
        self.pairs
            .iter()
            .find(|(from, _)| *from == c)
            .map_or(c, |&(_, to)| to)
    }

    /// Offsets of stand-ins, if the two texts differ in nothing else.
    fn compare(&self, rendered: &str, replaced: &str) -> Option<Vec<usize>> {
        let mut offsets = Vec::new();
        let mut others = replaced.chars();
        for (at, c) in rendered.char_indices() {
            let other = others.next()?;
            if other == c {
                continue;
            }
            if !self.pairs.contains(&(c, other)) {
                return None;
            }
            offsets.push(at);
        }
        others.next().is_none().then_some(offsets)
    }
}

/// Whether no special piece can begin in the name of a field, whatever the template writes behind it.
fn keys_are_plain(messages: &[Message], tools: &[Tool], specials: &Specials<'_>) -> bool {
    let calls = messages.iter().flat_map(|message| &message.tool_calls);
    let responses = messages.iter().flat_map(|message| &message.tool_responses);
    let values = calls.map(|call| &call.arguments);
    let values = values.chain(responses.map(|one| &one.response));
    let mut are_plain = true;
    for value in values.chain(tools.iter().map(|tool| &tool.parameters)) {
        look_at_keys(value, &mut |key| {
            let starts = key.char_indices().filter(|(_, c)| specials.starts.contains(c));
            are_plain &= !starts.into_iter().any(|(at, _)| (specials.may_begin)(&key[at..]));
        });
    }
    are_plain
}

fn look_at_keys(value: &Value, look: &mut impl FnMut(&str)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| look_at_keys(item, look)),
        Value::Object(fields) => {
            for (key, value) in fields {
                look(key);
                look_at_keys(value, look);
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Shows `look` every text of a message that a template may write.
fn look_at_message(message: &Message, look: &mut impl FnMut(&str)) {
    for part in &message.content {
        if let Part::Text(text) = part {
            look(text);
        }
    }
    message
        .reasoning
        .iter()
        .chain(&message.name)
        .chain(&message.tool_call_id)
        .for_each(|text| look(text));
    for call in &message.tool_calls {
        look(&call.id);
        look(&call.name);
        look_at_value(&call.arguments, look);
    }
    for one in &message.tool_responses {
        look(&one.name);
        look_at_value(&one.response, look);
    }
}

fn look_at_tool(tool: &Tool, look: &mut impl FnMut(&str)) {
    look(&tool.name);
    look(tool.description.as_deref().unwrap_or_default());
    look_at_value(&tool.parameters, look);
}

fn look_at_value(value: &Value, look: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| look_at_value(item, look)),
        Value::Object(fields) => {
            for (key, value) in fields {
                look(key);
                look_at_value(value, look);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
