//! What a request needs of whoever answers it: room, and the ability to see, hear, call tools or keep to a schema.
//!
//! Told from the fields' own texts without reading them to the ground. A name is only taken for one where it stands as
//! a member of an object: inside a text its quotes would be escaped.

use crate::endpoint::Endpoint;
use crate::fields::Fields;
use crate::named::Named;

/// Bytes of JSON that make a token, roughly and rather too many.
const BYTES_PER_TOKEN: usize = 4;
/// Strings longer than this without a space are data, not words.
const DATA_BYTES: usize = 4096;
/// What an image or a sound counts for.
const MEDIA_TOKENS: u64 = 1000;

/// Most tokens that a picture counts for at a provider: large ones cost 1,600 to 5,000.
const PICTURE_TOKENS: u64 = 6000;
/// Bytes of text that cost about what a picture usually does.
const PICTURE_BYTES: usize = 6000;
/// How base64 of a picture begins: PNG, JPEG, GIF, WebP, BMP.
const PICTURES: [&[u8]; 5] = [b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"UklGR", b"Qk"];

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
    pub(crate) video: bool,
    pub(crate) tools: bool,
    /// The answer must keep to a JSON schema.
    pub(crate) schema: bool,
    /// Pictures that are in the request themselves, and the bytes that they take in it.
    pub(crate) pictures: (u64, usize),
    /// What is not in it, and only named.
    pub(crate) named: Named,
}

impl Needs {
    /// Reads a request's fields. `max_tokens` is known already.
    pub(crate) fn read(endpoint: Endpoint, fields: &Fields<'_>, max_tokens: Option<u64>) -> Self {
        let (mut bytes, mut n_data) = (0, 0);
        let (mut images, mut audio, mut video) = (false, false, false);
        let mut pictures = (0, 0);
        for text in SAID.iter().filter_map(|name| fields.raw(name)) {
            let (own, data) = sizes(text);
            let (n, taken) = pictures_in(endpoint, text);
            pictures = (pictures.0 + n, pictures.1 + taken);
            (bytes, n_data) = (bytes + own, n_data + data);
            images |= has_images(endpoint, text);
            audio |= has(text, "input_audio", None) || has_mime(text, "audio/");
            video |= has(text, "video_url", None) || has_mime(text, "video/");
        }
        let tools = ["tools", "functions"].iter().filter_map(|name| fields.raw(name));
        let tools: usize = tools.filter(|text| !is_empty(text)).map(str::len).sum();
        Self {
            prompt_tokens: ((bytes + tools) / BYTES_PER_TOKEN) as u64 + n_data * MEDIA_TOKENS,
            max_tokens,
            images,
            audio,
            video,
            tools: tools > 0,
            schema: has_schema(fields),
            pictures,
            named: Named::read(endpoint, fields),
        }
    }

    /// Bytes of text that cost what a body of so many bytes does, pictures and all.
    pub(crate) fn worth(&self, body_bytes: usize) -> usize {
        let (n, taken) = self.pictures;
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        let pictures = n.saturating_mul(PICTURE_BYTES).min(taken);
        body_bytes.saturating_sub(taken).saturating_add(pictures)
    }

    /// The most tokens that a prompt may have, of whose body this is the [worth](Self::worth): three bytes each, and
    /// for pictures what the largest count for.
    pub(crate) fn most_tokens(&self, worth: usize) -> u64 {
        let (n, taken) = self.pictures;
        let usual = n.saturating_mul(PICTURE_BYTES as u64).min(taken as u64);
        let text = (worth as u64).saturating_sub(usual).div_ceil(3);
        let pictures = n.saturating_mul(PICTURE_TOKENS).min((taken as u64).div_ceil(3));
        text.saturating_add(pictures)
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
        || ["generationConfig", "generation_config"].iter().any(|config| {
            let names = [
                "responseSchema",
                "response_schema",
                "responseJsonSchema",
                "response_json_schema",
            ];
            names.iter().any(|name| within(config, name, None))
        })
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

/// How many pictures a text has in it as data, and the bytes that they take. What may as well be words that look like
/// one is not taken for one, since it would cost more than a picture.
fn pictures_in(endpoint: Endpoint, text: &str) -> (u64, usize) {
    if text.len() < DATA_BYTES {
        return (0, 0);
    }
    let (mut n, mut taken, mut from) = (0, 0, 0);
    for quote in memchr::memchr_iter(b'"', text.as_bytes()) {
        let (before, string) = (&text.as_bytes()[..from], &text.as_bytes()[from..quote]);
        if string.len() > DATA_BYTES && is_picture(string) && stands_for_one(endpoint, before) {
            (n, taken) = (n + 1, taken + string.len());
        }
        from = quote + 1;
    }
    (n, taken)
}

/// Whether a string is the data of a picture.
fn is_picture(string: &[u8]) -> bool {
    let data = match string.strip_prefix(b"data:image/") {
        Some(rest) => {
            memchr::memmem::find(&rest[..rest.len().min(64)], b";base64,").map(|at| &rest[at + 8..])
        }
        None => Some(string),
    };
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    data.is_some_and(|data| {
        PICTURES.iter().any(|begin| data.starts_with(begin)) && data.iter().all(is_base64)
    })
}

/// Whether the string that follows, with its quote before it, is where an API has pictures.
fn stands_for_one(endpoint: Endpoint, before: &[u8]) -> bool {
    let Some(before) = before.strip_suffix(b"\"").map(<[u8]>::trim_ascii_end) else {
        return false;
    };
    let names: &[&str] = match endpoint {
        Endpoint::Messages | Endpoint::CountTokens | Endpoint::Generate | Endpoint::GeminiCount => {
            &["\"data\""]
        }
        // A list of nothing but them.
        Endpoint::OllamaChat | Endpoint::OllamaGenerate => {
            return before.ends_with(b"[") || before.ends_with(b",");
        }
        _ => &["\"url\"", "\"image_url\""],
    };
    let name = before.strip_suffix(b":").map(<[u8]>::trim_ascii_end);
    name.is_some_and(|name| names.iter().any(|known| name.ends_with(known.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_counts_for_one_where_it_stands_for_one() {
        let data = format!("iVBORw0KGgo{}", "A".repeat(900_000));
        let cases = [
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,DATA"}}]}]}"#,
                1,
            ),
            (
                Endpoint::Responses,
                r#"{"input":[{"content":[{"image_url" : "data:image/png;base64,DATA"}]}]}"#,
                1,
            ),
            (
                Endpoint::Messages,
                r#"{"messages":[{"content":[{"source":{"type":"base64","data":"DATA"}}]}]}"#,
                1,
            ),
            (
                Endpoint::Generate,
                r#"{"contents":[{"parts":[{"inlineData":{"data": "DATA"}}]}]}"#,
                1,
            ),
            (
                Endpoint::OllamaChat,
                r#"{"messages":[{"images":["DATA", "DATA"]}]}"#,
                2,
            ),
            (Endpoint::Chat, r#"{"messages":[{"content":"DATA"}]}"#, 0),
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"type":"text","text":"data:image/png;base64,DATA"}]}]}"#,
                0,
            ),
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,DATA and words"}}]}]}"#,
                0,
            ),
            (
                Endpoint::Messages,
                r#"{"messages":[{"content":[{"text":"DATA"}]}]}"#,
                0,
            ),
        ];
        for (endpoint, body, n) in cases {
            let body = body.replace("DATA", &data);
            let found = needs(endpoint, &body);
            assert_eq!(found.pictures.0, n, "{endpoint:?} {}", &body[..60]);
            let worth = found.worth(body.len());
            let most = found.most_tokens(worth);
            if n == 0 {
                assert_eq!((worth, most), (body.len(), body.len().div_ceil(3) as u64));
            } else {
                assert!((6000 * n..6200 * n).contains(&(worth as u64)), "{worth}");
                assert!((6000 * n..6200 * n).contains(&most), "{most}");
            }
        }
    }

    #[test]
    fn a_small_picture_is_never_worth_more_than_its_bytes() {
        let data = format!("/9j/{}", "A".repeat(4200));
        let body = format!(r#"{{"messages":[{{"images":["{data}"]}}]}}"#);
        let found = needs(Endpoint::OllamaChat, &body);
        assert_eq!((found.pictures.0, found.worth(body.len())), (1, body.len()));
        assert_eq!(found.most_tokens(body.len()), 1402 + 10);
    }

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
        assert!(found.audio && found.tools && found.schema && !found.images && !found.video);
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
        let snake = r#"{"contents":[],"generation_config":{"response_schema":{"type":"OBJECT"}}}"#;
        assert!(needs(Endpoint::Generate, snake).schema);
    }

    #[test]
    fn videos_are_seen() {
        let part = r#"{"messages":[{"content":[{"type":"video_url","video_url":{"url":"x"}}]}]}"#;
        let data = r#"{"contents":[{"parts":[{"inlineData":{"mimeType":"video/mp4","data":""}}]}]}"#;
        for (endpoint, body) in [(Endpoint::Chat, part), (Endpoint::Generate, data)] {
            let found = needs(endpoint, body);
            assert!(found.video && !found.images && !found.audio, "{body}");
        }
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
