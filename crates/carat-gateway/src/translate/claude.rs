//! What Claude models take, told from their names: each generation thinks, and chooses its tokens, by other parameters.

use serde_json::{Value, json};

use super::{Choice, Piece, Question, Role, Thinking, Turn};

/// Tokens of an answer beside its thoughts, where the client states none: the API wants a number.
const ANSWER_TOKENS: u64 = 4096;
/// Least tokens of thoughts that the API takes.
const MIN_BUDGET: u64 = 1024;
/// Tokens that every model can answer with that takes a budget of thoughts.
const MOST_TOKENS: u64 = 32_000;

/// A generation, such as 4 and 5.
type Version = (u8, u8);

/// Models that think whatever they are told.
const ALWAYS: [&str; 2] = ["fable", "mythos"];

/// How a model is told to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thinks {
    Never,
    /// So many tokens.
    ByBudget,
    /// As it finds right, with more or less effort.
    ByEffort,
}

/// How a model is told not to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Off {
    /// It does not think unless it is told to.
    Unsaid,
    Said,
    /// It refuses to be told so.
    Never,
}

/// Which of temperature, top-p and top-k a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Samplers {
    All,
    /// A temperature or a top-p, not both.
    One,
    None,
}

/// What a model takes.
#[derive(Debug, PartialEq, Eq)]
struct Traits {
    thinks: Thinks,
    /// It thinks where nobody says anything of it.
    thinks_unasked: bool,
    off: Off,
    samplers: Samplers,
    /// It knows efforts beyond `high`.
    knows_xhigh: bool,
}

impl Traits {
    /// By the model's name, at Anthropic or at a cloud. A name that says no generation may stand for any.
    fn of(model: &str) -> Self {
        let model = model.to_ascii_lowercase();
        let is_always = is_always(&model);
        let Some(version) = generation(&model) else {
            return Self {
                thinks: Thinks::ByEffort,
                thinks_unasked: false,
                off: Off::Said,
                samplers: Samplers::One,
                knows_xhigh: true,
            };
        };
        Self {
            thinks: if version < (3, 7) {
                Thinks::Never
            } else if version < (4, 6) {
                Thinks::ByBudget
            } else {
                Thinks::ByEffort
            },
            thinks_unasked: version >= (5, 0),
            off: if version < (5, 0) {
                Off::Unsaid
            } else if version < (5, 5) && !is_always {
                Off::Said
            } else {
                Off::Never
            },
            samplers: if version < (4, 1) {
                Samplers::All
            } else if version < (4, 7) {
                Samplers::One
            } else {
                Samplers::None
            },
            knows_xhigh: version >= (4, 7),
        }
    }
}

/// Whether models of this name think whatever they are told.
fn is_always(model: &str) -> bool {
    ALWAYS.iter().any(|family| model.contains(family))
}

/// The generation of a model; of families that are younger than their names say, the first that had them.
fn generation(model: &str) -> Option<Version> {
    version(model).or(is_always(model).then_some((5, 0)))
}

/// For how long Bedrock keeps a prompt for a model at a client's wish, if it does: for minutes, or also for an hour.
pub(super) fn keeps_prompts(model: &str) -> Option<bool> {
    let model = model.to_ascii_lowercase();
    // The first of its two releases does not have it yet.
    let is_first = model.contains("claude-3-5-sonnet-20240620");
    let version = generation(&model).filter(|version| *version >= (3, 5) && !is_first)?;
    Some(version >= (4, 5))
}

/// The generation in names such as `claude-3-5-haiku-20241022`, `claude-sonnet-4@20250514`, `claude-opus-4.8-fast` and
/// `us.anthropic.claude-opus-4-5-20251101-v1:0`.
fn version(model: &str) -> Option<Version> {
    let (_, rest) = model.split_once("claude")?;
    let mut words = rest.split(|c: char| !c.is_ascii_alphanumeric());
    // Longer numbers are dates.
    let number = |word: &str| word.parse::<u8>().ok().filter(|_| word.len() <= 2);
    let major = words.find_map(number)?;
    Some((major, words.next().and_then(number).unwrap_or(0)))
}

/// What a question comes to for a model, in the words of Anthropic's API.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Settings {
    /// Tokens of thoughts and answer together: as stated, else as many as they are likely to take.
    pub(super) max_tokens: u64,
    pub(super) thinking: Option<Value>,
    pub(super) effort: Option<String>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<u64>,
    /// White space alone is no word to it.
    pub(super) stop: Vec<String>,
}

impl Settings {
    /// For a model of this name; what it cannot be told is named.
    pub(super) fn of(question: &Question, model: &str, dropped: &mut Vec<String>) -> Self {
        let traits = Traits::of(model);
        let mut settings = Self::default();
        settings.think(question, &traits, dropped);
        settings.sample(question, &traits, dropped);
        let words = question.stop.iter().filter(|word| !word.trim().is_empty());
        settings.stop = words.cloned().collect();
        if settings.stop.len() < question.stop.len() {
            dropped.push("stop".into());
        }
        settings
    }

    /// Whether it is told how many tokens to think.
    pub(super) fn has_budget(&self) -> bool {
        self.thinking
            .as_ref()
            .is_some_and(|thinking| thinking["type"] == "enabled")
    }

    fn think(&mut self, question: &Question, traits: &Traits, dropped: &mut Vec<String>) {
        let stated = question.max_tokens;
        self.max_tokens = stated.unwrap_or(ANSWER_TOKENS);
        let Some(wish) = &question.thinking else {
            if traits.thinks_unasked {
                self.max_tokens = stated.unwrap_or(ANSWER_TOKENS + tokens(&Thinking::Adaptive));
            }
            return;
        };
        if *wish == Thinking::Off {
            match traits.off {
                Off::Unsaid => {}
                Off::Said => self.thinking = Some(json!({"type": "disabled"})),
                Off::Never => {
                    self.max_tokens = stated.unwrap_or(ANSWER_TOKENS + MIN_BUDGET);
                    self.effort = Some("low".into());
                    dropped.push("reasoning_effort".into());
                }
            }
            return;
        }
        // With thoughts the model itself must choose whether to call.
        let is_forced =
            matches!(question.choice, Choice::Required | Choice::Named(_)) && !question.tools.is_empty();
        let can = match traits.thinks {
            Thinks::Never => false,
            Thinks::ByBudget => {
                !calls_without_thoughts(question) && stated.is_none_or(|most| most > MIN_BUDGET)
            }
            Thinks::ByEffort => true,
        };
        if is_forced || !can {
            dropped.push("reasoning_effort".into());
        } else if traits.thinks == Thinks::ByEffort {
            self.max_tokens = stated.unwrap_or(ANSWER_TOKENS + tokens(wish).min(MOST_TOKENS));
            self.thinking = Some(json!({"type": "adaptive"}));
            if let Thinking::Effort(effort) = wish {
                self.effort = Some(match effort.as_str() {
                    "minimal" => "low".into(),
                    "xhigh" if !traits.knows_xhigh => "high".into(),
                    effort => effort.into(),
                });
            }
        } else {
            let budget = match (stated, wish) {
                (None, wish) => tokens(wish).min(MOST_TOKENS - ANSWER_TOKENS),
                (Some(most), Thinking::Budget(budget)) => (*budget).min(most - 1),
                // Who asks for effort and not for so many tokens of thoughts wants an answer too.
                (Some(most), wish) => tokens(wish).min(most / 2),
            };
            let budget = budget.max(MIN_BUDGET);
            self.max_tokens = stated.unwrap_or(budget.saturating_add(ANSWER_TOKENS));
            self.thinking = Some(json!({"type": "enabled", "budget_tokens": budget}));
        }
    }

    fn sample(&mut self, question: &Question, traits: &Traits, dropped: &mut Vec<String>) {
        let thinks = self
            .thinking
            .as_ref()
            .is_some_and(|thinking| thinking["type"] != "disabled");
        // With thoughts no sampler may be set.
        if thinks || traits.samplers == Samplers::None {
            let samplers = [("temperature", question.temperature), ("top_p", question.top_p)];
            let changed = samplers
                .iter()
                .filter(|(_, value)| value.is_some_and(|value| value != 1.0));
            dropped.extend(changed.map(|(name, _)| (*name).to_string()));
            question.drop_set(&["top_k"], dropped);
            return;
        }
        self.temperature = question.temperature.map(|temperature| temperature.min(1.0));
        self.top_k = question.top_k;
        if traits.samplers == Samplers::All || question.temperature.is_none() {
            self.top_p = question.top_p;
        } else if question.top_p.is_some_and(|top_p| top_p < 1.0) {
            dropped.push("top_p".into());
        }
    }
}

/// Tokens of thoughts that a wish stands for.
pub(super) fn tokens(wish: &Thinking) -> u64 {
    match wish {
        Thinking::Off => 0,
        Thinking::Adaptive => 8192,
        Thinking::Budget(budget) => *budget,
        Thinking::Effort(effort) => match effort.as_str() {
            "minimal" | "low" => MIN_BUDGET,
            "medium" => 4096,
            "xhigh" | "max" => 24_576,
            _ => 16_384,
        },
    }
}

/// Whether results are brought for calls whose thoughts did not come back: older models then refuse to think. Those
/// thoughts stand before the first call since the user last spoke.
fn calls_without_thoughts(question: &Question) -> bool {
    let is_users = |turn: &Turn| {
        let has_result = turn
            .pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Result { .. }));
        turn.role == Role::User && !has_result
    };
    let turns = &question.turns;
    let from = turns.iter().rposition(is_users).map_or(0, |at| at + 1);
    let Some(first) = turns[from..].iter().find(|turn| turn.role == Role::Assistant) else {
        return false;
    };
    let has_call = first
        .pieces
        .iter()
        .any(|piece| matches!(piece, Piece::Call { .. }));
    let is_told = |piece: &&Piece| match piece {
        Piece::Text { text, .. } => !text.trim().is_empty(),
        Piece::Thinking { signature, .. } => signature.is_some(),
        _ => true,
    };
    let begins = first.pieces.iter().find(is_told);
    has_call && !matches!(begins, Some(Piece::Thinking { .. } | Piece::Redacted(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Dialect, Endpoint};

    #[test]
    fn generations_are_told_from_names() {
        for (model, expected) in [
            ("claude-2.1", Some((2, 1))),
            ("claude-3-opus-20240229", Some((3, 0))),
            ("claude-3-5-haiku-20241022", Some((3, 5))),
            ("claude-3-7-sonnet@20250219", Some((3, 7))),
            ("claude-sonnet-4@20250514", Some((4, 0))),
            ("claude-opus-4-20250514", Some((4, 0))),
            ("claude-opus-4-1-20250805", Some((4, 1))),
            ("claude-4-5-haiku", Some((4, 5))),
            ("us.anthropic.claude-opus-4-5-20251101-v1:0", Some((4, 5))),
            (
                "arn:aws:bedrock:us-east-1:123:inference-profile/eu.anthropic.claude-sonnet-4-6",
                Some((4, 6)),
            ),
            ("claude-sonnet-4-5[1m]", Some((4, 5))),
            ("claude-opus-4.8-fast", Some((4, 8))),
            ("claude-opus-5-latest", Some((5, 0))),
            ("anthropic.claude-opus-5-5-v1", Some((5, 5))),
            ("claude-mythos-preview", None),
            ("my-deployment-3", None),
        ] {
            assert_eq!(version(model), expected, "{model}");
        }
    }

    fn sent(dialect: Dialect, model: &str, more: Value) -> (Value, Vec<String>) {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let question = Question::read(Endpoint::Chat, &body).unwrap();
        question.write(dialect, model).unwrap()
    }

    #[test]
    fn every_generation_is_told_to_think_in_its_own_way_and_has_room_to_answer() {
        let asked = |model: &str, more: Value| sent(Dialect::Anthropic, model, more).0;
        let high = || json!({"reasoning_effort": "high"});
        for model in [
            "claude-opus-4-5",
            "claude-sonnet-4@20250514",
            "claude-opus-4@20250514",
            "claude-haiku-4-5",
        ] {
            let told = asked(model, high());
            let expected = json!({"type": "enabled", "budget_tokens": 16_384});
            assert_eq!(
                (&told["thinking"], &told["max_tokens"]),
                (&expected, &json!(20_480)),
                "{model}"
            );
        }
        for model in [
            "claude-opus-4-6",
            "claude-sonnet-4-6",
            "claude-opus-4-7",
            "claude-opus-5",
            "claude-opus-5-5",
        ] {
            let told = asked(model, high());
            assert_eq!(told["thinking"], json!({"type": "adaptive"}), "{model}");
            assert_eq!(told["output_config"], json!({"effort": "high"}), "{model}");
            assert_eq!(told["max_tokens"], 20_480, "{model}");
        }
        let told = asked(
            "claude-sonnet-4-5",
            json!({"reasoning_effort": "high", "max_tokens": 4000}),
        );
        assert_eq!(
            (&told["thinking"]["budget_tokens"], &told["max_tokens"]),
            (&json!(2000), &json!(4000)),
            "thoughts leave room for the answer"
        );
        assert_eq!(asked("claude-sonnet-4-5", json!({}))["max_tokens"], 4096);
        assert_eq!(
            asked("claude-sonnet-5", json!({}))["max_tokens"],
            4096 + 8192,
            "it thinks unasked"
        );
        assert_eq!(
            asked("claude-opus-4-6", json!({"reasoning_effort": "xhigh"}))["output_config"]["effort"],
            "high"
        );
        let (old, dropped) = sent(Dialect::Anthropic, "claude-3-5-haiku-latest", high());
        assert_eq!(
            (&old["thinking"], dropped.as_slice()),
            (&Value::Null, &["reasoning_effort".to_string()][..])
        );
    }

    #[test]
    fn who_cannot_be_told_not_to_think_is_told_to_think_little() {
        let off = || json!({"reasoning_effort": "none"});
        for (model, thinking, effort) in [
            ("claude-sonnet-4-5", Value::Null, Value::Null),
            ("claude-opus-4-8", Value::Null, Value::Null),
            ("claude-opus-5", json!({"type": "disabled"}), Value::Null),
            ("claude-fable-5", Value::Null, json!("low")),
            ("claude-opus-5-5", Value::Null, json!("low")),
        ] {
            let (told, dropped) = sent(Dialect::Anthropic, model, off());
            assert_eq!(
                (&told["thinking"], &told["output_config"]["effort"]),
                (&thinking, &effort),
                "{model}"
            );
            assert_eq!(dropped.is_empty(), effort.is_null(), "{model}");
        }
    }

    #[test]
    fn samplers_go_only_to_models_that_take_them() {
        let both = || json!({"temperature": 0.5, "top_p": 0.9});
        for (version, temperature, top_p) in [
            ("3-5-sonnet-20241022", true, true),
            ("opus-4-1", true, false),
            ("sonnet-4-6", true, false),
            ("opus-4-7", false, false),
            ("sonnet-5", false, false),
        ] {
            let (direct, dropped) = sent(Dialect::Anthropic, &format!("claude-{version}"), both());
            assert_eq!(direct["temperature"].is_number(), temperature, "{version}");
            assert_eq!(direct["top_p"].is_number(), top_p, "{version}");
            let n_told = usize::from(temperature) + usize::from(top_p);
            assert_eq!(dropped.len() + n_told, 2, "{version}: {dropped:?}");
            let (there, also) = sent(
                Dialect::Bedrock,
                &format!("anthropic.claude-{version}-v1:0"),
                both(),
            );
            let config = &there["inferenceConfig"];
            assert_eq!(config["temperature"].is_number(), temperature, "{version}");
            assert_eq!(config["topP"].is_number(), top_p, "{version}");
            assert_eq!(dropped, also, "{version}");
        }
        let (other, _) = sent(Dialect::Bedrock, "amazon.nova-pro-v1:0", both());
        assert_eq!(other["inferenceConfig"], json!({"temperature": 0.5, "topP": 0.9}));
    }

    #[test]
    fn a_budget_at_bedrock_has_room_too() {
        let (told, _) = sent(
            Dialect::Bedrock,
            "anthropic.claude-haiku-4-5-20251001-v1:0",
            json!({"reasoning_effort": "medium"}),
        );
        assert_eq!(told["inferenceConfig"]["maxTokens"], 8192);
        let thinking = &told["additionalModelRequestFields"]["thinking"];
        assert_eq!(thinking["budget_tokens"], 4096);
    }
}
