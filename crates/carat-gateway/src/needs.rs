//! What a request needs of whoever answers it: room, and the ability to see, hear, call tools or keep to a schema.
//!
//! Told from the fields' own texts without reading them to the ground. A name is only taken for one where it stands as
//! a member of an object: inside a text its quotes would be escaped.

use crate::endpoint::Endpoint;
use crate::fields::Fields;

/// Bytes of JSON that make a token, roughly and rather too many.
const BYTES_PER_TOKEN: usize = 4;
/// Strings longer than this without a space are data, not words.
const DATA_BYTES: usize = 4096;
/// What an image or a sound counts for.
const MEDIA_TOKENS: u64 = 1000;

/// Fields that hold what is said, in any API.
const SAID: [&str; 9] = [
    "messages",
    "system",
    "contents",
    "systemInstruction",
    "system_instruction",
    "input",
    "instructions",
    "prompt",
    "documents",
];

/// What a request needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Tokens of the prompt, estimated from below.
    pub(crate) prompt_tokens: u64,
    /// The most that the answer may have, if the request says so.
    pub(crate) max_tokens: Option<u64>,
    pub(crate) images: bool,
    pub(crate) audio: bool,
    pub(crate) tools: bool,
    /// The answer must keep to a JSON schema.
    pub(crate) schema: bool,
}

impl Needs {
    /// Reads a request's fields. `max_tokens` is known already.
    pub(crate) fn read(endpoint: Endpoint, fields: &Fields<'_>, max_tokens: Option<u64>) -> Self {
        let (mut bytes, mut n_data) = (0, 0);
        let (mut images, mut audio) = (false, false);
        for text in SAID.iter().filter_map(|name| fields.raw(name)) {
            let (own, data) = sizes(text);
            (bytes, n_data) = (bytes + own, n_data + data);
            images |= has_images(endpoint, text);
            audio |= has(text, "input_audio", None) || has_mime(text, "audio/");
        }
        let tools = ["tools", "functions"].iter().filter_map(|name| fields.raw(name));
        let tools: usize = tools.filter(|text| !is_empty(text)).map(str::len).sum();
        Self {
            prompt_tokens: ((bytes + tools) / BYTES_PER_TOKEN) as u64 + n_data * MEDIA_TOKENS,
            max_tokens,
            images,
            audio,
            tools: tools > 0,
            schema: has_schema(fields),
        }
    }

    /// Tokens of prompt and answer together.
    pub(crate) fn room(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.max_tokens.unwrap_or(0))
    }
}

fn is_empty(text: &str) -> bool {
    matches!(text.trim(), "[]" | "{}" | "null")
}

fn has_images(endpoint: Endpoint, text: &str) -> bool {
    match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => has(text, "type", Some("image")),
        Endpoint::Generate => has_mime(text, "image/"),
        Endpoint::OllamaChat | Endpoint::OllamaGenerate => has(text, "images", None),
        _ => has(text, "image_url", None),
    }
}

/// Gemini names what kind of data it is.
fn has_mime(text: &str, start: &str) -> bool {
    ["mimeType", "mime_type"].iter().any(|name| {
        values(text, name).any(|value| value.strip_prefix('"').is_some_and(|v| v.starts_with(start)))
    })
}

fn has_schema(fields: &Fields<'_>) -> bool {
    let within = |name: &str, member: &str, value: Option<&str>| {
        fields.raw(name).is_some_and(|text| has(text, member, value))
    };
    within("response_format", "type", Some("json_schema"))
        || within("text", "type", Some("json_schema"))
        || within("output_config", "schema", None)
        || within("generationConfig", "responseSchema", None)
        || within("generationConfig", "responseJsonSchema", None)
        || fields.raw("format").is_some_and(|text| text.starts_with('{'))
}

/// What follows each member of this name.
fn values<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let quoted = format!("\"{name}\"");
    let length = quoted.len();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let found = at + memchr::memmem::find(text.as_bytes().get(at..)?, quoted.as_bytes())?;
            at = found + length;
            let after = text[at..].trim_start();
            if let Some(value) = after.strip_prefix(':') {
                return Some(value.trim_start());
            }
        }
    })
}

/// Whether there is a member of this name, and of this text as its value.
fn has(text: &str, name: &str, value: Option<&str>) -> bool {
    values(text, name).any(|found| match value {
        None => !found.starts_with("null"),
        Some(value) => {
            let rest = found.strip_prefix('"').and_then(|rest| rest.strip_prefix(value));
            rest.is_some_and(|rest| rest.starts_with('"'))
        }
    })
}

/// Bytes of a text without those of data in it, and how many pieces of data there are.
fn sizes(text: &str) -> (usize, u64) {
    if text.len() < DATA_BYTES {
        return (text.len(), 0);
    }
    let (mut bytes, mut n, mut from) = (text.len(), 0, 0);
    for quote in memchr::memchr_iter(b'"', text.as_bytes()) {
        let length = quote - from;
        let beginning = &text.as_bytes()[from..quote.min(from + 256)];
        if length > DATA_BYTES && !beginning.contains(&b' ') {
            bytes -= length;
            n += 1;
        }
        from = quote + 1;
    }
    (bytes, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(endpoint: Endpoint, body: &str) -> Needs {
        Needs::read(endpoint, &Fields::read(body.as_bytes()).unwrap(), None)
    }

    #[test]
    fn every_dialect_says_that_it_has_images() {
        let cases = [
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"type":"image_url","image_url": {"url":"x"}}]}]}"#,
            ),
            (
                Endpoint::Messages,
                r#"{"messages":[{"content":[{"type" : "image","source":{}}]}]}"#,
            ),
            (
                Endpoint::Generate,
                r#"{"contents":[{"parts":[{"inlineData":{"mimeType":"image/png","data":""}}]}]}"#,
            ),
            (
                Endpoint::OllamaChat,
                r#"{"messages":[{"content":"x","images":["AA"]}]}"#,
            ),
            (
                Endpoint::Responses,
                r#"{"input":[{"type":"input_image","image_url":"x"}]}"#,
            ),
        ];
        for (endpoint, body) in cases {
            let found = needs(endpoint, body);
            assert!(found.images && !found.audio && !found.tools, "{body}");
        }
        let quoted = r#"{"messages":[{"content":"say \"image_url\": and \"type\":\"image\""},{"content":"image_url"}]}"#;
        assert!(!needs(Endpoint::Chat, quoted).images && !needs(Endpoint::Messages, quoted).images);
    }

    #[test]
    fn tools_sounds_and_schemas_are_seen() {
        let body = r#"{"messages":[{"content":[{"input_audio":{}}]}],"tools":[{}],"response_format":{"type":"json_schema"}}"#;
        let found = needs(Endpoint::Chat, body);
        assert!(found.audio && found.tools && found.schema && !found.images);
        let plain = needs(
            Endpoint::Chat,
            r#"{"messages":[],"tools":[],"response_format":{"type":"text"}}"#,
        );
        assert!(!plain.tools && !plain.schema);
        assert!(
            needs(
                Endpoint::OllamaChat,
                r#"{"messages":[],"format":{"type":"object"}}"#
            )
            .schema
        );
        assert!(!needs(Endpoint::OllamaChat, r#"{"messages":[],"format":"json"}"#).schema);
    }

    #[test]
    fn an_image_is_not_counted_by_its_bytes() {
        let data = "A".repeat(400_000);
        let body = format!(
            r#"{{"messages":[{{"content":"{}"}},{{"images":["{data}"]}}]}}"#,
            "word ".repeat(8000)
        );
        let tokens = needs(Endpoint::OllamaChat, &body).prompt_tokens;
        assert!((10_900..11_200).contains(&tokens), "{tokens}");
    }
}
