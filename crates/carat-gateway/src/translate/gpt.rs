//! What OpenAI's models take, told from their names: those that think choose their tokens themselves, and each knows other
//! words for how much.

use serde_json::Value;

use crate::fields::{Fate, Fields};

/// How much to think, from the least to the most.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// A family of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family<'a> {
    /// Some that never think.
    Plain,
    /// o1, o3, o4-mini and theirs.
    Omni,
    /// gpt-5 and later, with the rest of the name.
    Gpt(u8, u8, &'a str),
    /// Those that anybody may run.
    Oss,
    /// Somebody else's.
    Other,
}

impl<'a> Family<'a> {
    fn of(model: &'a str) -> Self {
        let name = model.rsplit('/').next().unwrap_or(model);
        let begins = |names: &[&str]| names.iter().any(|begin| name.starts_with(begin));
        if begins(&["gpt-oss"]) {
            return Self::Oss;
        }
        if begins(&["gpt-3", "gpt-4", "chatgpt-4"]) {
            return Self::Plain;
        }
        if ["o1", "o3", "o4"].iter().any(|omni| is_of(name, omni)) {
            return Self::Omni;
        }
        let Some(rest) = name.strip_prefix("gpt-") else {
            return Self::Other;
        };
        match version(rest) {
            Some((5, 0, rest)) if rest.starts_with("-chat") => Self::Plain,
            Some((major, minor, rest)) if major >= 5 => Self::Gpt(major, minor, rest),
            _ => Self::Other,
        }
    }
}

/// `o3` and `o3-mini`, but no `o30`.
fn is_of(name: &str, family: &str) -> bool {
    let rest = name.strip_prefix(family);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// `5.1-codex` as 5, 1 and `-codex`.
fn version(text: &str) -> Option<(u8, u8, &str)> {
    let end = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (major, rest) = text.split_at(end(text));
    let (minor, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(end(rest)),
        None => ("0", rest),
    };
    let is_name = rest.is_empty() || rest.starts_with('-');
    is_name.then_some((major.parse().ok()?, minor.parse().ok()?, rest))
}

/// The words that a model knows for how much it is to think, where that is known.
fn efforts(model: &str) -> Option<&'static [&'static str]> {
    let (major, minor, rest) = match Family::of(model) {
        Family::Other => return None,
        Family::Plain => return Some(&[]),
        Family::Omni | Family::Oss => return Some(&EFFORTS[2..5]),
        Family::Gpt(major, minor, rest) => (major, minor, rest),
    };
    let has = |part: &str| rest.contains(part);
    let is_first = (major, minor) == (5, 0);
    Some(if has("-search") {
        &[]
    } else if has("-chat") {
        &EFFORTS[3..4]
    } else if has("-pro") {
        if is_first { &EFFORTS[4..5] } else { &EFFORTS[3..6] }
    } else if has("-codex") {
        let is_more = (major, minor) >= (5, 2) || has("-max");
        if is_more { &EFFORTS[2..6] } else { &EFFORTS[2..5] }
    } else if is_first {
        &EFFORTS[1..5]
    } else if (major, minor) == (5, 1) {
        &["none", "low", "medium", "high"]
    } else {
        &["none", "low", "medium", "high", "xhigh"]
    })
}

/// The word that a model knows for this much: the same, else the next that is more, else the most it has. Nothing where it
/// knows none; a word that nobody here knows stays as it is.
pub(super) fn effort<'a>(model: &str, wish: &'a str) -> Option<&'a str> {
    let Some(known) = efforts(model) else {
        return Some(wish);
    };
    let rank = |word: &str| EFFORTS.iter().position(|effort| *effort == word);
    let Some(wished) = rank(wish) else {
        return Some(wish).filter(|_| !known.is_empty());
    };
    let enough = known.iter().find(|word| rank(word) >= Some(wished));
    enough.or(known.last()).copied()
}

/// Whether a model calls functions only if it need not think, in chat completions. Asked of OpenAI itself, where names have
/// no owner before them: others find their own way.
pub(super) fn calls_unthinking(model: &str) -> bool {
    let is_late = matches!(Family::of(model), Family::Gpt(major, minor, _) if (major, minor) >= (5, 4));
    is_late && !model.contains('/') && efforts(model).is_some_and(|known| known.contains(&"none"))
}

/// What becomes of a field of a request for chat completions by a model that thinks, where it is not taken as it is.
pub(crate) fn fate(model: &str, fields: &Fields<'_>, name: &str, value: &str) -> Option<Fate> {
    let family = Family::of(model);
    if !matches!(family, Family::Omni | Family::Gpt(..)) {
        return None;
    }
    let chooses = |fields: &Fields<'_>| chooses(family, fields.get("reasoning_effort"));
    let is_refused = match name {
        "max_tokens" if fields.raw("max_completion_tokens").is_none() => {
            return Some(Fate::Rename("max_completion_tokens".into()));
        }
        "max_tokens" => true,
        "reasoning_effort" => {
            let wish: String = fields.get(name)?;
            return Some(match effort(model, &wish) {
                Some(word) if word == wish => return None,
                Some(word) => Fate::Replace(Value::from(word).to_string()),
                None => Fate::Drop,
            });
        }
        "temperature" | "top_p" => !is(value, 1.0) && !chooses(fields),
        "logprobs" => value != "false" && !chooses(fields),
        "top_logprobs" => !chooses(fields),
        "presence_penalty" | "frequency_penalty" => !is(value, 0.0),
        "logit_bias" => true,
        "stop" => family != Family::Omni || !is_of(bare(model), "o1"),
        "parallel_tool_calls" => family == Family::Omni,
        _ => false,
    };
    is_refused.then_some(Fate::Drop)
}

/// The same of a request for a response, whose words for efforts stand in an object of their own.
pub(crate) fn response_fate(model: &str, fields: &Fields<'_>, name: &str, value: &str) -> Option<Fate> {
    let family = Family::of(model);
    if !matches!(family, Family::Omni | Family::Gpt(..)) {
        return None;
    }
    let reasoning: Value = fields.get("reasoning").unwrap_or_default();
    let wish = reasoning["effort"].as_str();
    match name {
        "reasoning" => {
            let word = effort(model, wish?).filter(|word| Some(*word) != wish)?;
            let mut told = reasoning.clone();
            told["effort"] = Value::from(word);
            Some(Fate::Replace(told.to_string()))
        }
        "temperature" | "top_p" if is(value, 1.0) => None,
        "temperature" | "top_p" | "top_logprobs" => {
            let is_taken = value == "null" || chooses(family, wish.map(ToString::to_string));
            (!is_taken).then_some(Fate::Drop)
        }
        _ => None,
    }
}

/// Whether a number is the usual one, which may be said even where no other may.
fn is(value: &str, usual: f64) -> bool {
    value.parse::<f64>().is_ok_and(|number| number == usual)
}

fn bare(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

/// Whether how tokens are chosen may be said: where the model does not think this time, told this effort.
fn chooses(family: Family<'_>, effort: Option<String>) -> bool {
    let Family::Gpt(major, minor, rest) = family else {
        return false;
    };
    if (major, minor) == (5, 0) {
        return false;
    }
    match effort.as_deref() {
        Some(effort) => effort == "none",
        // Those up to 5.4 do not unless they are told to, but for some that always do.
        None => {
            let always = ["-pro", "-codex", "-chat", "-search"];
            (major, minor) <= (5, 4) && !always.iter().any(|part| rest.contains(part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_told_a_word_that_it_knows() {
        for (model, wish, expected) in [
            ("gpt-4o-mini", "high", None),
            ("gpt-5-chat-latest", "low", None),
            ("gpt-5-search-api", "low", None),
            ("o3-mini", "minimal", Some("low")),
            ("o4-mini-2025-04-16", "xhigh", Some("high")),
            ("gpt-5", "none", Some("minimal")),
            ("openai/gpt-5-mini", "xhigh", Some("high")),
            ("gpt-5-codex", "minimal", Some("low")),
            ("gpt-5-pro", "low", Some("high")),
            ("gpt-5.1", "minimal", Some("low")),
            ("gpt-5.1", "max", Some("high")),
            ("gpt-5.1-chat-latest", "high", Some("medium")),
            ("gpt-5.1-codex-max", "xhigh", Some("xhigh")),
            ("gpt-5.2-2025-12-11", "none", Some("none")),
            ("gpt-5.2-pro", "none", Some("medium")),
            ("gpt-5.10", "xhigh", Some("xhigh")),
            ("gpt-oss:20b", "max", Some("high")),
            ("gpt-5", "hardly", Some("hardly")),
            ("qwen/qwen3-32b", "none", Some("none")),
            ("o30", "max", Some("max")),
            ("gpt-5x", "max", Some("max")),
        ] {
            assert_eq!(effort(model, wish), expected, "{model}: {wish}");
        }
    }

    #[test]
    fn responses_of_who_thinks_are_asked_for_without_samplers() {
        let left = |model: &str, body: &str| {
            let fields = Fields::read(body.as_bytes()).unwrap();
            let fate =
                |name: &str, value: &str| response_fate(model, &fields, name, value).unwrap_or(Fate::Keep);
            String::from_utf8(fields.compose(&[], fate)).unwrap()
        };
        let all = r#"{"max_output_tokens":5,"temperature":0.5,"top_p":0.9,"top_logprobs":2,"store":false}"#;
        for model in ["o3", "gpt-5", "gpt-5.2-codex", "gpt-5.5"] {
            assert_eq!(
                left(model, all),
                r#"{"max_output_tokens":5,"store":false}"#,
                "{model}"
            );
        }
        for model in ["gpt-4o", "gpt-5-chat-latest", "gpt-5.1", "gpt-oss-120b", "m"] {
            assert_eq!(left(model, all), all, "{model}");
        }
        let told = |effort: &str| format!(r#"{{"reasoning":{{"effort":"{effort}"}},"temperature":0}}"#);
        assert_eq!(left("gpt-5.5", &told("none")), told("none"));
        assert_eq!(left("gpt-5.1", &told("low")), r#"{"reasoning":{"effort":"low"}}"#);
        // A word that another model of the route knows may be none of this one's.
        assert_eq!(left("o3", &told("xhigh")), r#"{"reasoning":{"effort":"high"}}"#);
        let usual = r#"{"temperature":1.0,"top_p":1,"top_logprobs":null,"reasoning":{"summary":"auto"}}"#;
        assert_eq!(left("o3", usual), usual);
    }

    #[test]
    fn who_thinks_is_not_told_how_to_choose_tokens() {
        let left = |model: &str, body: &str| {
            let fields = Fields::read(body.as_bytes()).unwrap();
            let fate = |name: &str, value: &str| fate(model, &fields, name, value).unwrap_or(Fate::Keep);
            String::from_utf8(fields.compose(&[], fate)).unwrap()
        };
        let all = r#"{"max_tokens":5,"temperature":0.5,"top_p":0.9,"logprobs":true,"top_logprobs":2,"presence_penalty":1,"logit_bias":{},"stop":["x"],"parallel_tool_calls":false,"seed":1}"#;
        let few = r#"{"max_completion_tokens":5,"parallel_tool_calls":false,"seed":1}"#;
        for model in ["gpt-5", "gpt-5.2-codex", "gpt-5.5", "openai/gpt-5-mini"] {
            assert_eq!(left(model, all), few, "{model}");
        }
        assert_eq!(left("o3", all), r#"{"max_completion_tokens":5,"seed":1}"#);
        assert_eq!(
            left("o1", all),
            r#"{"max_completion_tokens":5,"stop":["x"],"seed":1}"#
        );
        for model in [
            "gpt-4o",
            "gpt-5-chat-latest",
            "gpt-oss-120b",
            "claude-opus-5",
            "m",
        ] {
            assert_eq!(left(model, all), all, "{model}");
        }
        let some = r#"{"max_completion_tokens":5,"temperature":0.5,"top_p":0.9,"logprobs":true,"top_logprobs":2,"parallel_tool_calls":false,"seed":1}"#;
        assert_eq!(left("gpt-5.1", all), some, "it thinks only if it is told to");
        let told = |effort: &str| format!(r#"{{"reasoning_effort":"{effort}","temperature":0}}"#);
        assert_eq!(left("gpt-5.1", &told("low")), r#"{"reasoning_effort":"low"}"#);
        assert_eq!(left("gpt-5.5", &told("none")), told("none"));
        assert_eq!(left("gpt-5", &told("none")), r#"{"reasoning_effort":"minimal"}"#);
        let usual = r#"{"temperature":1.0,"top_p":1,"logprobs":false,"frequency_penalty":0,"reasoning_effort":"high"}"#;
        assert_eq!(left("o3", usual), usual);
        assert_eq!(
            left("o3", r#"{"max_tokens":5,"max_completion_tokens":6}"#),
            r#"{"max_completion_tokens":6}"#
        );
    }
}
