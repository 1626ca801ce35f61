//! What a request may do beyond its answer.
//!
//! A provider may call tools by itself, keep what it answers, or go on with a conversation that it keeps. Asked twice it
//! may do so twice, so that such a request is asked again only where nothing can have been done for it. Tools that the
//! client calls itself, and those that only look something up, do nothing; of tools that nobody here knows that cannot be
//! told. That `/v1/responses` keeps answers unless it is told not to does no harm: nobody knows of one that never came.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::endpoint::{Dialect, Endpoint};
use crate::fields::Fields;

/// How the kinds of tools begin that clients call themselves, or that only look something up or draw.
const HARMLESS: [&str; 13] = [
    "function",
    "custom",
    "web_search",
    "web_fetch",
    "file_search",
    "tool_search",
    "computer",
    "text_editor",
    "bash",
    "memory",
    "apply_patch",
    "local_shell",
    "image_generation",
];
/// Google's, by the member that they are in: small letters alone. What it calculates is forgotten with the answer.
const HARMLESS_GOOGLE: [&str; 9] = [
    "functiondeclarations",
    "googlesearch",
    "googlesearchretrieval",
    "enterprisewebsearch",
    "googlemaps",
    "urlcontext",
    "filesearch",
    "computeruse",
    "codeexecution",
];

/// A tool as clients name it.
#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(rename = "type", default, borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    environment: Option<Place<'a>>,
}

/// Where a tool runs.
#[derive(Deserialize)]
struct Place<'a> {
    #[serde(rename = "type", default, borrow)]
    kind: Option<Cow<'a, str>>,
}

impl Tool<'_> {
    fn is_harmless(&self) -> bool {
        let Some(kind) = self.kind.as_deref() else {
            return true;
        };
        let place = self.environment.as_ref().and_then(|place| place.kind.as_deref());
        // A shell is the client's own, or one in a container of the provider's.
        (kind == "shell" && place == Some("local")) || HARMLESS.iter().any(|known| kind.starts_with(known))
    }
}

/// Whether a provider that is asked this may do more than answer.
pub(crate) fn may_act(endpoint: Endpoint, fields: &Fields<'_>) -> bool {
    let is_stored = fields.get::<bool>("store").unwrap_or(false);
    is_stored || goes_on(endpoint, fields) || has_acting_tools(endpoint, fields)
}

/// Whether an earlier answer to the same request is none to this one: what it goes on with has gone on since, or what it
/// has done is to be done again.
pub(crate) fn is_never_the_same(endpoint: Endpoint, fields: &Fields<'_>) -> bool {
    goes_on(endpoint, fields) || has_acting_tools(endpoint, fields)
}

/// Whether it goes on with what its provider keeps, or goes on there when it was answered.
fn goes_on(endpoint: Endpoint, fields: &Fields<'_>) -> bool {
    let is_set = |name: &str| fields.raw(name).is_some_and(|text| !matches!(text, "[]" | "{}"));
    match endpoint {
        // A stored prompt may have tools of its own.
        Endpoint::Responses => {
            let is_later = fields.get::<bool>("background").unwrap_or(false);
            is_set("conversation") || is_set("prompt") || is_later
        }
        Endpoint::Messages => is_set("mcp_servers"),
        _ => false,
    }
}

/// Whether a tool is asked for with which a provider acts; also where the tools cannot be read.
fn has_acting_tools(endpoint: Endpoint, fields: &Fields<'_>) -> bool {
    let Some(text) = fields.raw("tools") else {
        return false;
    };
    if endpoint.dialect() == Dialect::Gemini {
        let tools: Result<Vec<BTreeMap<String, IgnoredAny>>, _> = serde_json::from_str(text);
        return tools.map_or(true, |tools| {
            tools.iter().flat_map(BTreeMap::keys).any(|name| !is_google(name))
        });
    }
    let tools: Result<Vec<Tool<'_>>, _> = serde_json::from_str(text);
    tools.map_or(true, |tools| !tools.iter().all(Tool::is_harmless))
}

/// Whether a member of Google's tools is harmless, in either way of writing it.
fn is_google(name: &str) -> bool {
    let small = name.replace('_', "").to_ascii_lowercase();
    HARMLESS_GOOGLE.contains(&small.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_acts_is_told_from_who_only_answers() {
        let cases = [
            (Endpoint::Responses, r#"{"input":"Hi"}"#, false),
            (Endpoint::Responses, r#"{"store":true}"#, true),
            (Endpoint::Responses, r#"{"conversation":"conv_1"}"#, true),
            (Endpoint::Responses, r#"{"conversation":null}"#, false),
            (Endpoint::Responses, r#"{"background":true}"#, true),
            (Endpoint::Responses, r#"{"prompt":{"id":"pmpt_1"}}"#, true),
            (
                Endpoint::Responses,
                r#"{"tools":[{"type":"function","name":"f"},{"type":"web_search"}]}"#,
                false,
            ),
            (
                Endpoint::Responses,
                r#"{"tools":[{"type":"function","name":"f"},{"type":"mcp","server_url":"x"}]}"#,
                true,
            ),
            (
                Endpoint::Responses,
                r#"{"tools":[{"type":"code_interpreter"}]}"#,
                true,
            ),
            (
                Endpoint::Responses,
                r#"{"tools":[{"type":"local_shell"},{"type":"shell","environment":{"type":"local"}}]}"#,
                false,
            ),
            (
                Endpoint::Responses,
                r#"{"tools":[{"type":"shell","environment":{"type":"container_auto"}}]}"#,
                true,
            ),
            (Endpoint::Responses, r#"{"tools":[{"type":"shell"}]}"#, true),
            (
                Endpoint::Chat,
                r#"{"tools":[{"type":"function","function":{"type":"mcp"}}]}"#,
                false,
            ),
            (Endpoint::Chat, r#"{"tools":[{"type":7}]}"#, true),
            (Endpoint::Completions, r#"{"prompt":"Hi"}"#, false),
            (
                Endpoint::Messages,
                r#"{"tools":[{"name":"f","input_schema":{}},{"type":"bash_20250124","name":"bash"}]}"#,
                false,
            ),
            (Endpoint::Messages, r#"{"mcp_servers":[{"url":"x"}]}"#, true),
            (Endpoint::Messages, r#"{"mcp_servers":[]}"#, false),
            (
                Endpoint::Messages,
                r#"{"tools":[{"type":"code_execution_20250825"}]}"#,
                true,
            ),
            (
                Endpoint::Generate,
                r#"{"tools":[{"function_declarations":[]},{"googleSearch":{}}]}"#,
                false,
            ),
            (Endpoint::Generate, r#"{"tools":[{"mcpServers":[]}]}"#, true),
        ];
        for (endpoint, body, expected) in cases {
            let fields = Fields::read(body.as_bytes()).unwrap();
            assert_eq!(may_act(endpoint, &fields), expected, "{endpoint:?} {body}");
        }
    }
}
