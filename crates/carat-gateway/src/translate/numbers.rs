//! Numbers that clients state, in whatever way of writing some provider would read.
//!
//! What is held for an answer follows from the same numbers ([`fields::count`]): one that was left out here because it has
//! a point, or stands in quotes, would be a bound that binds nobody. What is no number at all is refused.

use serde_json::Value;

use super::refused;
use crate::failure::Failure;
use crate::fields;

/// A number of tokens, answers or the like; a negative one says that there is no bound. `name` is its field's.
pub(super) fn count(value: &Value, name: &str) -> Result<Option<u64>, Failure> {
    if fields::integer(value).is_some_and(|number| number < 0) {
        return Ok(None);
    }
    stated(value, name, fields::count)
}

/// A whole number of either sign, such as a seed.
pub(super) fn integer(value: &Value, name: &str) -> Result<Option<i64>, Failure> {
    stated(value, name, fields::integer)
}

/// A number such as a temperature.
pub(super) fn decimal(value: &Value, name: &str) -> Result<Option<f64>, Failure> {
    stated(value, name, Value::as_f64)
}

fn stated<T>(value: &Value, name: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Failure> {
    if value.is_null() {
        return Ok(None);
    }
    let number = read(value).ok_or_else(|| refused(name, format!("`{name}` must be a number")))?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::{Dialect, Endpoint};
    use crate::translate::Question;

    #[test]
    fn numbers_are_carried_however_they_are_written() {
        let said = || json!([{"role": "user", "content": "x"}]);
        let body = |endpoint, max: Value, k: Value, seed: Value| match endpoint {
            Endpoint::Responses => json!({"input": "x", "max_output_tokens": max}),
            Endpoint::Completions => json!({"prompt": "x", "max_tokens": max, "seed": seed}),
            Endpoint::Messages => json!({"messages": said(), "max_tokens": max, "top_k": k}),
            Endpoint::Generate => json!({"contents": [{"parts": [{"text": "x"}]}],
                "generationConfig": {"maxOutputTokens": max, "topK": k, "seed": seed}}),
            Endpoint::OllamaChat => {
                json!({"messages": said(), "options": {"num_predict": max, "top_k": k, "seed": seed}})
            }
            _ => json!({"messages": said(), "max_completion_tokens": max, "top_k": k, "seed": seed}),
        };
        let endpoints = [
            Endpoint::Chat,
            Endpoint::Responses,
            Endpoint::Completions,
            Endpoint::Messages,
            Endpoint::Generate,
            Endpoint::OllamaChat,
        ];
        for endpoint in endpoints {
            for (max, k, seed) in [
                (json!(5), json!(40), json!(7)),
                (json!(5.0), json!(40.0), json!(7.0)),
                (json!("5"), json!("40"), json!("7")),
            ] {
                let body = body(endpoint, max, k, seed);
                let question = Question::read(endpoint, &body).unwrap();
                let (told, dropped) = question.write(Dialect::Ollama, "m").unwrap();
                let options = &told["options"];
                // Not every API has all of them.
                let (k, seed) = match endpoint {
                    Endpoint::Responses => (Value::Null, Value::Null),
                    Endpoint::Completions => (Value::Null, json!(7)),
                    Endpoint::Messages => (json!(40), Value::Null),
                    _ => (json!(40), json!(7)),
                };
                let expected = (&json!(5), &k, &seed);
                assert_eq!(
                    (&options["num_predict"], &options["top_k"], &options["seed"]),
                    expected,
                    "{endpoint:?} {body}"
                );
                assert_eq!(dropped, [""; 0], "{body}");
            }
            let unbound = Question::read(endpoint, &body(endpoint, json!(-1), json!(null), json!(null)));
            assert!(unbound.is_ok(), "{endpoint:?}");
            let failure = Question::read(endpoint, &body(endpoint, json!("many"), json!(null), json!(null)));
            let failure = failure.unwrap_err();
            assert_eq!(
                (failure.status, failure.class.is_final()),
                (400, false),
                "{endpoint:?}"
            );
            assert!(
                failure.message.contains("must be a number"),
                "{}",
                failure.message
            );
        }
    }

    #[test]
    fn google_is_read_in_either_way_of_writing() {
        let body = json!({"contents": [{"role": "model", "parts": [{"function_call": {"name": "f", "args": {}}}]},
                {"role": "user", "parts": [{"function_response": {"name": "f", "response": {}}}]}],
            "system_instruction": {"parts": [{"text": "s"}]},
            "tools": [{"function_declarations": [{"name": "f"}]}],
            "tool_config": {"function_calling_config": {"mode": "NONE"}},
            "generation_config": {"max_output_tokens": 5, "top_k": 40, "new_one": 1}});
        let (told, dropped) = Question::read(Endpoint::Generate, &body)
            .unwrap()
            .write(Dialect::OpenAi, "m")
            .unwrap();
        assert_eq!(told["max_completion_tokens"], 5);
        assert_eq!(
            (&told["tool_choice"], told["messages"].as_array().unwrap().len()),
            (&json!("none"), 3)
        );
        assert_eq!(dropped, ["generationConfig.new_one", "top_k"]);
    }
}
