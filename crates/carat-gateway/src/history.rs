//! Earlier turns of a conversation as a certain provider takes them.
//!
//! A conversation may be answered by one provider now and by another then. What this gateway says of thoughts and calls in
//! a client's words, in an answer of somebody whose own words are others, comes back with the next request; a provider
//! whose words are the client's gets that request as it came, and may refuse what it never said itself. Such marks are
//! taken out here: thoughts that nobody signed, and signatures that stand where others have theirs. What a provider has
//! said itself stays as it is, to the byte: turns without a mark are not written anew.

use std::borrow::Cow;

use memchr::memmem;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::endpoint::{Dialect, Endpoint};
use crate::fields::Fields;
use crate::provider::{Provider, Unsupported};
use crate::route::Candidate;
use crate::sticky;
use crate::translate::gemini::NO_SIGNATURE;

/// Letters and digits of a short id.
const ID_CHARS: usize = 9;
const ID_ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A field of a request that is not told as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mended {
    pub(crate) field: &'static str,
    /// Its turns, as JSON.
    pub(crate) turns: String,
    /// The model cannot be asked to think with these turns.
    pub(crate) forbids_thinking: bool,
}

/// What becomes of a turn.
enum Turn {
    Same,
    Changed(Value),
    /// Nothing of it is left.
    Gone,
}

/// The turns of a request for this API as a candidate takes them, if it does not take them as they are.
pub(crate) fn mended(candidate: &Candidate, asked: Endpoint, fields: &Fields<'_>) -> Option<Mended> {
    let provider = candidate.provider.as_ref();
    let mend = |field, marks: &[&str], change: &dyn Fn(Value) -> Turn| {
        let turns = each(fields.raw(field)?, marks, change)?;
        Some(Mended {
            field,
            turns,
            forbids_thinking: false,
        })
    };
    match (provider.dialect, asked) {
        (Dialect::Anthropic, Endpoint::Messages | Endpoint::CountTokens) if is_claude(candidate) => {
            let mended = mend("messages", &["\"thinking\""], &of_claude)?;
            let thinking: Value = fields.get("thinking").unwrap_or_default();
            Some(Mended {
                forbids_thinking: thinking["type"] == "enabled" && calls_without_thoughts(&mended.turns),
                ..mended
            })
        }
        (Dialect::OpenAi, Endpoint::Chat) => {
            let rules = Rules::of(candidate);
            let mut marks: Vec<&str> = rules.refused.iter().map(String::as_str).collect();
            marks.extend(rules.has_short_ids.then_some("tool_call"));
            mend("messages", &marks, &|turn| of_chat(&rules, turn))
        }
        (Dialect::OpenAi, Endpoint::Responses) => {
            mend("input", &["\"reasoning\""], &|item| of_responses(provider, &item))
        }
        (Dialect::Gemini, Endpoint::Generate | Endpoint::GeminiCount) if signs(&candidate.model) => {
            mend("contents", &["\"functionCall\"", "\"function_call\""], &of_gemini)
        }
        _ => None,
    }
}

/// The list with its turns changed, if any is. Those without any of these words are not even read.
fn each(list: &str, words: &[&str], change: impl Fn(Value) -> Turn) -> Option<String> {
    let says = |text: &str| words.iter().any(|word| says(text, word));
    if !says(list) {
        return None;
    }
    let turns: Vec<&RawValue> = serde_json::from_str(list).ok()?;
    let changed = |turn: &&RawValue| match says(turn.get()) {
        // What nests too deep to be read is for its provider to refuse.
        true => serde_json::from_str(turn.get()).map_or(Turn::Same, &change),
        false => Turn::Same,
    };
    let changed: Vec<Turn> = turns.iter().map(changed).collect();
    if changed.iter().all(|turn| matches!(turn, Turn::Same)) {
        return None;
    }
    let texts = turns
        .iter()
        .zip(&changed)
        .filter_map(|(turn, changed)| match changed {
            Turn::Same => Some(Cow::Borrowed(turn.get())),
            Turn::Changed(value) => Some(Cow::Owned(value.to_string())),
            Turn::Gone => None,
        });
    Some(format!("[{}]", texts.collect::<Vec<_>>().join(",")))
}

fn says(text: &str, word: &str) -> bool {
    memmem::find(text.as_bytes(), word.as_bytes()).is_some()
}

/// Whether thoughts must be Claude's own there. Others that speak its API may sign nothing and want them back.
fn is_claude(candidate: &Candidate) -> bool {
    let like = candidate.provider.like.as_str();
    matches!(like, "anthropic" | "vertex-anthropic")
        || candidate.model.to_ascii_lowercase().contains("claude")
}

/// Thoughts that nobody signed are refused.
fn of_claude(mut turn: Value) -> Turn {
    let unsigned =
        |block: &Value| block["type"] == "thinking" && block["signature"].as_str().is_none_or(str::is_empty);
    let Some(content) = turn.get_mut("content").and_then(Value::as_array_mut) else {
        return Turn::Same;
    };
    let n_blocks = content.len();
    content.retain(|block| !unsigned(block));
    match content.len() {
        0 if n_blocks > 0 => Turn::Gone,
        n if n < n_blocks => Turn::Changed(turn),
        _ => Turn::Same,
    }
}

/// Whether the calls since the user last spoke begin without a thought: with a budget of thoughts that is refused.
fn calls_without_thoughts(turns: &str) -> bool {
    let turns: Vec<Value> = serde_json::from_str(turns).unwrap_or_default();
    let has = |turn: &Value, kind: &str| {
        let mut blocks = turn["content"].as_array().into_iter().flatten();
        blocks.any(|block| block["type"] == kind)
    };
    let speaks = |turn: &Value| turn["role"] == "user" && !has(turn, "tool_result");
    let from = turns.iter().rposition(speaks).map_or(0, |at| at + 1);
    let first = turns[from..].iter().find(|turn| turn["role"] == "assistant");
    first.is_some_and(|turn| {
        let begins = turn["content"][0]["type"].as_str();
        has(turn, "tool_use") && !matches!(begins, Some("thinking" | "redacted_thinking"))
    })
}

/// What turns of chat completions must keep to.
struct Rules<'a> {
    /// Fields that they may not have.
    refused: &'a [String],
    has_short_ids: bool,
}

impl<'a> Rules<'a> {
    fn of(candidate: &'a Candidate) -> Self {
        let provider = candidate.provider.as_ref();
        Self {
            refused: match provider.unsupported {
                Unsupported::Forward => &[],
                Unsupported::Drop | Unsupported::Refuse => provider.drop_in_turns.as_slice(),
            },
            // Who runs Mistral's models for others has their rules.
            has_short_ids: provider.short_call_ids || candidate.model.starts_with("mistralai/"),
        }
    }
}

fn of_chat(rules: &Rules<'_>, mut turn: Value) -> Turn {
    let is_assistant = turn["role"] == "assistant";
    let mut is_changed = false;
    let mut take_out = |object: &mut Value| {
        let Some(object) = object.as_object_mut() else {
            return;
        };
        for name in rules.refused {
            is_changed |= object.remove(name).is_some();
        }
    };
    if is_assistant {
        take_out(&mut turn);
        calls(&mut turn).for_each(&mut take_out);
    }
    if rules.has_short_ids {
        let ids = calls(&mut turn).filter_map(|call| call.get_mut("id"));
        let mut is_other = false;
        ids.for_each(|id| is_other |= shorten(id));
        is_other |= turn.get_mut("tool_call_id").is_some_and(shorten);
        is_changed |= is_other;
    }
    let is_empty = |name: &str| turn.get(name).is_none_or(Value::is_null);
    // Thoughts alone: an answer that was cut before its first word.
    let is_gone = is_assistant
        && ["content", "tool_calls", "function_call", "refusal", "audio"]
            .into_iter()
            .all(is_empty);
    match is_changed {
        false => Turn::Same,
        true if is_gone => Turn::Gone,
        true => Turn::Changed(turn),
    }
}

fn calls(turn: &mut Value) -> impl Iterator<Item = &mut Value> {
    let calls = turn.get_mut("tool_calls").and_then(Value::as_array_mut);
    calls.into_iter().flatten()
}

/// Gives a call that has another sort of id one of nine letters and digits, always the same: whether it had another.
fn shorten(id: &mut Value) -> bool {
    let Some(text) = id.as_str() else {
        return false;
    };
    if text.len() == ID_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let mut rest = sticky::hash(text.as_bytes());
    let mut short = String::with_capacity(ID_CHARS);
    for _ in 0..ID_CHARS {
        short.push(char::from(ID_ALPHABET[(rest % 62) as usize]));
        rest /= 62;
    }
    *id = Value::from(short);
    true
}

/// Providers that look thoughts up by their ids, and refuse those that they have never said.
const WITH_A_MEMORY: [&str; 3] = ["openai", "azure", "azure-deployments"];

fn of_responses(provider: &Provider, item: &Value) -> Turn {
    if item["type"] != "reasoning" {
        return Turn::Same;
    }
    let is_own = match item["encrypted_content"].as_str() {
        Some(sealed) => ["s:", "r:", "g:"].iter().any(|mark| sealed.starts_with(mark)),
        None => {
            let has_memory = WITH_A_MEMORY.contains(&provider.like.as_str());
            has_memory && item["id"].as_str().is_none_or(is_own_id)
        }
    };
    if is_own { Turn::Gone } else { Turn::Same }
}

/// Whether an id is one of this gateway's: those of providers are longer.
fn is_own_id(id: &str) -> bool {
    let number = id.strip_prefix("rs_").unwrap_or_default();
    number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether models of this name sign their calls, and refuse them unsigned.
fn signs(model: &str) -> bool {
    model.contains("gemini") && !["gemini-1", "gemini-2"].iter().any(|old| model.contains(old))
}

/// Calls of others are signed in the way that Google documents for them. Of several calls the first is signed alone.
fn of_gemini(mut turn: Value) -> Turn {
    let is_call = |part: &Value| part["functionCall"].is_object() || part["function_call"].is_object();
    let is_signed = |part: &Value| {
        let signatures = ["thoughtSignature", "thought_signature"].into_iter();
        signatures
            .filter_map(|name| part[name].as_str())
            .any(|signed| !signed.is_empty())
    };
    let is_model = turn["role"] == "model";
    let Some(parts) = turn.get_mut("parts").and_then(Value::as_array_mut) else {
        return Turn::Same;
    };
    if !is_model || parts.iter().any(is_signed) {
        return Turn::Same;
    }
    let Some(first) = parts.iter_mut().find(|part| is_call(part)) else {
        return Turn::Same;
    };
    first["thoughtSignature"] = Value::from(NO_SIGNATURE);
    Turn::Changed(turn)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::config::{Config, Env};

    fn told(target: &str, config: &str, asked: Endpoint, body: &Value) -> Option<(Value, bool)> {
        let env: Env = Arc::new(|_| None);
        let config = Config::parse(config, &env).unwrap();
        let candidate = config.target(target).unwrap();
        let text = body.to_string();
        let fields = Fields::read(text.as_bytes()).unwrap();
        let mended = mended(&candidate, asked, &fields)?;
        Some((
            serde_json::from_str(&mended.turns).unwrap(),
            mended.forbids_thinking,
        ))
    }

    #[test]
    fn claude_gets_no_thoughts_that_nobody_signed() {
        let thought = |signature: Value| json!({"type": "thinking", "thinking": "t", "signature": signature});
        let (unsigned, signed) = (thought(json!("")), thought(json!("Eq==")));
        let call = json!({"type": "tool_use", "id": "i", "name": "f", "input": {}});
        let said = json!({"type": "text", "text": "y"});
        let turn = |content: &[&Value]| json!({"role": "assistant", "content": content});
        let user = json!({"role": "user", "content": "\"thinking\""});
        let result =
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": "1"}]});
        let anthropic = |messages: &[&Value]| {
            let body = json!({"thinking": {"type": "enabled", "budget_tokens": 2000}, "messages": messages});
            let config = "[providers.anthropic]\n";
            told("anthropic/claude-sonnet-4-5", config, Endpoint::Messages, &body)
        };
        let (told_now, forbids) = anthropic(&[
            &user,
            &turn(&[&unsigned, &said]),
            &user,
            &turn(&[&unsigned]),
            &user,
            &turn(&[&signed, &call]),
            &result,
        ])
        .unwrap();
        assert_eq!(
            told_now,
            json!([user, turn(&[&said]), user, user, turn(&[&signed, &call]), result])
        );
        assert!(!forbids);
        let (told_now, forbids) = anthropic(&[&user, &turn(&[&unsigned, &call]), &result]).unwrap();
        assert_eq!(told_now, json!([user, turn(&[&call]), result]));
        assert!(forbids, "the call's own thoughts are not there");
        assert_eq!(anthropic(&[&user, &turn(&[&signed, &call]), &result]), None);
        // Who speaks the same API need not sign, and may want its thoughts back.
        let config = "[providers.local]\nbase-url = \"http://127.0.0.1:9\"\ndialect = \"anthropic\"\n";
        let body = json!({"messages": [turn(&[&unsigned, &said])]});
        assert_eq!(told("local/qwen3", config, Endpoint::Messages, &body), None);
        assert!(told("local/claude-opus-5", config, Endpoint::CountTokens, &body).is_some());
    }

    #[test]
    fn turns_have_no_fields_that_their_provider_refuses() {
        let call = |more: Value| {
            let mut call =
                json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
            if more.is_object() {
                call["extra_content"] = more;
            }
            call
        };
        let sealed = json!({"google": {"thought_signature": "s"}});
        let marked = json!({"role": "assistant", "content": null, "reasoning_content": "r", "thinking_blocks": [],
            "tool_calls": [call(sealed.clone()), call(Value::Null)]});
        let plain = json!({"role": "assistant", "content": null, "tool_calls": [call(Value::Null), call(Value::Null)]});
        let user = json!({"role": "user", "content": "reasoning_content", "reasoning_content": "mine"});
        let alone = json!({"role": "assistant", "content": null, "reasoning_content": "r"});
        let body = json!({"messages": [user, marked, alone]});
        let chat =
            |target: &str, config: &str| told(target, config, Endpoint::Chat, &body).map(|(turns, _)| turns);
        for name in ["openai", "groq", "cerebras", "azure-deployments"] {
            let vars = "vars = { resource = \"r\" }\n";
            let told = chat(&format!("{name}/m"), &format!("[providers.{name}]\n{vars}"));
            assert_eq!(told, Some(json!([user, plain])), "{name}");
        }
        assert_eq!(chat("deepseek/m", "[providers.deepseek]\n"), None);
        assert_eq!(
            chat("openai/m", "[providers.openai]\nunsupported = \"forward\"\n"),
            None
        );
        let own = "[providers.p]\nbase-url = \"http://127.0.0.1:9\"\ndrop-in-turns = [\"thinking_blocks\"]\n";
        let mut kept = marked.clone();
        kept.as_object_mut().unwrap().remove("thinking_blocks");
        assert_eq!(chat("p/m", own), Some(json!([user, kept, alone])));
    }

    #[test]
    fn mistral_gets_short_ids_that_stay_the_same() {
        let turns = |ids: [&str; 2]| {
            let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
            let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "1"});
            let calls = json!({"role": "assistant", "content": "", "tool_calls": ids.map(call)});
            json!([{"role": "user", "content": "x"}, calls, result(ids[0]), result(ids[1])])
        };
        let asked = |ids| {
            let body = json!({"messages": turns(ids)});
            let told = told("mistral/m", "[providers.mistral]\n", Endpoint::Chat, &body);
            told.map(|(turns, _)| turns)
        };
        let told = asked(["call_00_abcdefghijklmnop", "toolu_01"]).unwrap();
        let ids: Vec<&str> = [0, 1]
            .map(|i: usize| told[1]["tool_calls"][i]["id"].as_str().unwrap())
            .to_vec();
        assert_eq!(
            told,
            turns([ids[0], ids[1]]),
            "calls and results go by the same ids"
        );
        let fits = |id: &&str| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        assert!(ids.iter().all(fits) && ids[0] != ids[1], "{ids:?}");
        assert_eq!(
            asked(["call_00_abcdefghijklmnop", "toolu_01"]),
            Some(told.clone())
        );
        assert_eq!(asked(["D681PevKs", "bbc5b7ede"]), None, "its own stay");
        let body = json!({"messages": turns(["call_1", "call_2"])});
        let config = "[providers.openrouter]\n";
        let others = |target: &str| super::tests::told(target, config, Endpoint::Chat, &body);
        assert_eq!(others("openrouter/openai/gpt-5"), None);
        assert!(others("openrouter/mistralai/mistral-large").is_some());
    }

    #[test]
    fn thoughts_of_this_gateway_are_no_items_of_a_provider() {
        let thought = |id: Value, sealed: Value| {
            let mut item = json!({"type": "reasoning", "summary": [], "encrypted_content": sealed});
            if id.is_string() {
                item["id"] = id;
            }
            item
        };
        let (own, theirs) = (
            json!("rs_0123456789abcdef"),
            json!("rs_0f26baa4a8bfec6b0169326d7c20a8819499e6d836076cc00b"),
        );
        let user = json!({"role": "user", "content": "about \"reasoning\""});
        let kept = [
            user,
            thought(theirs.clone(), json!("gAAAA")),
            thought(Value::Null, json!("gAAAA")),
            thought(theirs, Value::Null),
        ];
        let marked = ["s:x", "r:x", "g:x"].map(|sealed| thought(own.clone(), json!(sealed)));
        let unsigned = [thought(own, Value::Null), thought(Value::Null, Value::Null)];
        let all = [kept.as_slice(), &marked, &unsigned].concat();
        let body = json!({"input": all});
        let asked = |target: &str, config: &str| {
            let told = told(target, config, Endpoint::Responses, &body);
            told.map(|(turns, _)| turns)
        };
        assert_eq!(asked("openai/m", "[providers.openai]\n"), Some(json!(kept)));
        // Others may read a summary.
        let local = "[providers.p]\nbase-url = \"http://127.0.0.1:9\"\nresponses = true\n";
        let all = [kept.as_slice(), &unsigned].concat();
        assert_eq!(asked("p/m", local), Some(json!(all)));
        let text = json!({"input": "\"reasoning\""});
        assert_eq!(
            told("openai/m", "[providers.openai]\n", Endpoint::Responses, &text),
            None
        );
    }

    #[test]
    fn calls_of_others_are_signed_for_gemini() {
        let call = |more: Value| {
            let mut part = json!({"functionCall": {"name": "f", "args": {}}});
            if more.is_string() {
                part["thoughtSignature"] = more;
            }
            part
        };
        let model = |parts: &[Value]| json!({"role": "model", "parts": parts});
        let bare = || call(Value::Null);
        let own = model(&[call(json!("Eq==")), bare()]);
        let body = json!({"contents": [own, model(&[json!({"text": "x"}), bare(), bare()])]});
        let asked = |target: &str| {
            let told = told(target, "[providers.gemini]\n", Endpoint::Generate, &body);
            told.map(|(turns, _)| turns)
        };
        let signed = model(&[json!({"text": "x"}), call(json!(NO_SIGNATURE)), bare()]);
        assert_eq!(asked("gemini/gemini-3-pro-preview"), Some(json!([own, signed])));
        assert_eq!(asked("gemini/gemini-2.5-pro"), None);
        assert_eq!(asked("gemini/gemma-4-31b-it"), None);
    }

    #[test]
    fn turns_without_marks_stay_as_they_came() {
        let body = r#"{"messages":[ {"role":"user", "content":"\u0041 1.50"},{"role":"assistant","reasoning_content":"r","content":"b"} ]}"#;
        let env: Env = Arc::new(|_| None);
        let config = Config::parse("[providers.groq]\n", &env).unwrap();
        let fields = Fields::read(body.as_bytes()).unwrap();
        let mended = mended(&config.target("groq/m").unwrap(), Endpoint::Chat, &fields).unwrap();
        let first = r#"[{"role":"user", "content":"\u0041 1.50"},{"#;
        assert!(mended.turns.starts_with(first), "{}", mended.turns);
        assert!(!mended.turns.contains("reasoning_content"), "{}", mended.turns);
    }
}
