//! Answers of `/api/chat` and `/api/generate`: one JSON object a line, the last with the totals.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{ApiError, Delta, Finish, whole_arguments};

/// Which of the two APIs answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `/api/chat`: a message.
    Chat,
    /// `/api/generate`: a response.
    Generate,
}

/// Writes an answer's lines, or gathers them to one.
pub struct Lines {
    model: String,
    shape: Shape,
    /// Calls are told whole.
    calls: Vec<(String, String)>,
}

impl Lines {
    /// Lines of an answer by `model`.
    pub fn new(model: String, shape: Shape) -> Self {
        Self {
            model,
            shape,
            calls: Vec::new(),
        }
    }

    /// A piece; `now` is since 1970.
    pub fn delta(&mut self, delta: &Delta, now: Duration, out: &mut Vec<u8>) {
        match delta {
            Delta::Text(text) => self.line(text, "", now, out),
            Delta::Reasoning(text) => self.line("", text, now, out),
            Delta::ToolCall { name, .. } => self.calls.push((name.clone(), String::new())),
            Delta::Arguments { index, text } => {
                if let Some((_, arguments)) = self.calls.get_mut(*index) {
                    arguments.push_str(text);
                }
            }
            Delta::Logprob(_) => {}
        }
    }

    /// The end. `prefill` and `decode` are what the parts took.
    pub fn finish(&mut self, finish: &Finish, now: Duration, times: [Duration; 2], out: &mut Vec<u8>) {
        if let Some(calls) = self.take_calls() {
            let mut value = self.value("", "", now);
            value["message"]["tool_calls"] = calls;
            push(&value, out);
        }
        let last = self.last("", "", finish, now, times);
        push(&last, out);
    }

    /// The whole answer as one object.
    pub fn whole(mut self, deltas: &[Delta], finish: &Finish, now: Duration, times: [Duration; 2]) -> Value {
        let (mut text, mut thinking, mut unused) = (String::new(), String::new(), Vec::new());
        for delta in deltas {
            match delta {
                Delta::Text(more) => text.push_str(more),
                Delta::Reasoning(more) => thinking.push_str(more),
                other => self.delta(other, now, &mut unused),
            }
        }
        let mut value = self.last(&text, &thinking, finish, now, times);
        if let Some(calls) = self.take_calls() {
            value["message"]["tool_calls"] = calls;
        }
        value
    }

    /// A failure in mid-stream.
    pub fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        push(&error.ollama(), out);
    }

    /// The calls, if there are any.
    fn take_calls(&mut self) -> Option<Value> {
        let calls = self.calls.drain(..).filter_map(|(name, arguments)| {
            let arguments = whole_arguments(&arguments)?;
            Some(json!({"function": {"name": name, "arguments": arguments}}))
        });
        let calls: Vec<Value> = calls.collect();
        (!calls.is_empty()).then(|| calls.into())
    }

    fn line(&self, text: &str, thinking: &str, now: Duration, out: &mut Vec<u8>) {
        push(&self.value(text, thinking, now), out);
    }

    fn value(&self, text: &str, thinking: &str, now: Duration) -> Value {
        let mut value = json!({"model": self.model, "created_at": timestamp(now), "done": false});
        let told = match self.shape {
            Shape::Chat => {
                value["message"] = json!({"role": "assistant", "content": text});
                &mut value["message"]
            }
            Shape::Generate => {
                value["response"] = text.into();
                &mut value
            }
        };
        if !thinking.is_empty() {
            told["thinking"] = thinking.into();
        }
        value
    }

    fn last(
        &self,
        text: &str,
        thinking: &str,
        finish: &Finish,
        now: Duration,
        times: [Duration; 2],
    ) -> Value {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut value = self.value(text, thinking, now);
        let totals = json!({
            "done": true, "done_reason": if finish.kind.is_cut() { "length" } else { "stop" },
            "total_duration": ns(times[0] + times[1]), "load_duration": 0,
            "prompt_eval_count": finish.usage.prompt, "prompt_eval_duration": ns(times[0]),
            "eval_count": finish.usage.completion, "eval_duration": ns(times[1]),
        });
        if let (Some(value), Value::Object(totals)) = (value.as_object_mut(), totals) {
            value.extend(totals);
        }
        value
    }
}

fn push(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
    out.push(b'\n');
}

/// A time since 1970 as RFC 3339 has it, in UTC.
pub fn timestamp(since: Duration) -> String {
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970, in eras of 400 years that begin on 1 March.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FinishKind, Usage};

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        let at = |seconds| timestamp(Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(at(4_102_444_799), "2099-12-31T23:59:59.000000005Z");
    }

    #[test]
    fn calls_are_told_whole_and_the_last_line_has_the_totals() {
        let deltas = [
            Delta::Text("a".into()),
            Delta::ToolCall {
                index: 0,
                id: "x".into(),
                name: "f".into(),
            },
            Delta::Arguments {
                index: 0,
                text: "{\"b\": ".into(),
            },
            Delta::Arguments {
                index: 0,
                text: "2}".into(),
            },
        ];
        let usage = Usage {
            prompt: 3,
            cached: 0,
            completion: 4,
            reasoning: 0,
            ..Usage::default()
        };
        let finish = Finish {
            kind: FinishKind::ToolCalls,
            usage,
        };
        let times = [Duration::from_nanos(10), Duration::from_nanos(20)];
        let whole = Lines::new("m".into(), Shape::Chat).whole(&deltas, &finish, Duration::ZERO, times);
        assert_eq!(whole["message"]["content"], "a");
        assert_eq!(
            whole["message"]["tool_calls"][0]["function"]["arguments"],
            json!({"b": 2})
        );
        assert_eq!(
            (&whole["total_duration"], &whole["done"]),
            (&json!(30), &json!(true))
        );

        let mut lines = Lines::new("m".into(), Shape::Chat);
        let mut out = Vec::new();
        deltas
            .iter()
            .for_each(|delta| lines.delta(delta, Duration::ZERO, &mut out));
        lines.finish(&finish, Duration::ZERO, times, &mut out);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 3);
    }
}
