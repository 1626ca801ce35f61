//! What is written down about a request.

use serde::{Deserialize, Serialize};

use crate::Micros;
use crate::account::{Kind, key_scope};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With a whole answer.
    Complete,
    /// In the middle of an answer, by the provider's fault.
    Cut,
    /// Because its client left.
    ClientGone,
    /// Without an answer.
    Failed,
    /// Nobody knows: the gateway was killed.
    Lost,
}

impl Outcome {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cut => "cut",
            Self::ClientGone => "client_gone",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Who answered, as `provider/model`; empty if nobody did.
    pub target: String,
    /// Who was asked before.
    pub tried: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens of the prompt, cached ones included.
    pub input: u64,
    /// Of these, read from a cache.
    pub cache_read: u64,
    /// Of these, written to one.
    pub cache_write: u64,
    /// Tokens of the answer, thoughts included.
    pub output: u64,
    /// Of these, thoughts.
    pub reasoning: u64,
    /// Whether the provider counted them; else they are an estimate.
    pub is_counted: bool,
    /// What it cost; nothing if no price is known.
    pub cost: Option<Micros>,
    /// From its arrival to its end.
    pub duration_ms: u64,
    /// From its arrival to the first words.
    pub first_token_ms: Option<u64>,
}

/// A line of the journal. Each says all that the database needs, so that lines may be applied again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// A request has begun.
    Open(Open),
    /// It has ended.
    Settle(Open, Row),
}

/// A request under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) id: [u8; 16],
    pub(crate) key: i64,
    pub(crate) team: Option<String>,
    #[serde(default)]
    pub(crate) user: Option<String>,
    #[serde(default)]
    pub(crate) project: Option<String>,
    pub(crate) route: String,
    pub(crate) held: Micros,
    /// Tokens taken from the limits a minute.
    #[serde(default)]
    pub(crate) tokens: u64,
    pub(crate) started_ms: u64,
}

impl Open {
    /// All whose spending it is counted under.
    pub(crate) fn scopes(&self) -> impl Iterator<Item = String> {
        let accounts = [
            (Kind::User, &self.user),
            (Kind::Project, &self.project),
            (Kind::Team, &self.team),
        ];
        let accounts = accounts.map(|(kind, name)| name.as_ref().map(|name| kind.scope(name)));
        [Some(key_scope(self.key))].into_iter().chain(accounts).flatten()
    }

    /// The day that a request's cost belongs to: the one on which it ended, by a duration that no clock can step in.
    pub(crate) fn ended_day(&self, row: &Row) -> i64 {
        day_of(self.started_ms.saturating_add(row.duration_ms))
    }
}

/// The day of a moment, counted from 1970.
pub(crate) fn day_of(ms: u64) -> i64 {
    i64::try_from(ms / 86_400_000).unwrap_or(i64::MAX)
}

/// Most that one request is believed to have cost or taken: a million dollars, and as many millionths of tokens. What a
/// provider says beyond it is nonsense, and sums of it would not fit the database's numbers.
const MAX: u64 = 1_000_000_000_000;
/// Longest text of a row, in bytes: names of models come from clients.
const MAX_TEXT: usize = 1024;

impl Row {
    /// Within what the database can keep.
    pub(crate) fn bounded(mut self) -> Self {
        for n in [
            &mut self.input,
            &mut self.cache_read,
            &mut self.cache_write,
            &mut self.output,
            &mut self.reasoning,
            &mut self.duration_ms,
        ] {
            *n = (*n).min(MAX);
        }
        self.cost = self.cost.map(|cost| cost.min(Micros(MAX)));
        clip(&mut self.target);
        clip(&mut self.tried);
        self
    }
}

/// Cuts a text to what a row may hold, and takes out what not every database keeps.
pub(crate) fn clip(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
    }
    if text.contains('\0') {
        *text = text.replace('\0', "\u{fffd}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_providers_and_clients_say_is_bounded() {
        let row = Row {
            target: "ü".repeat(2000),
            tried: "a\0b".into(),
            outcome: Outcome::Complete,
            input: u64::MAX,
            cache_read: 1,
            cache_write: 0,
            output: u64::MAX,
            reasoning: 0,
            is_counted: true,
            cost: Some(Micros(u64::MAX)),
            duration_ms: 5,
            first_token_ms: None,
        };
        let row = row.bounded();
        assert_eq!((row.input, row.cost), (MAX, Some(Micros(MAX))));
        assert_eq!((row.target.len(), row.tried.as_str()), (1024, "a\u{fffd}b"));
    }

    #[test]
    fn lines_of_the_first_version_are_read() {
        let line = r#"{"id":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1],"key":3,"team":"t","route":"r","held":9,"started_ms":86400000}"#;
        let open: Open = serde_json::from_str(line).unwrap();
        assert_eq!(open.scopes().collect::<Vec<_>>(), ["key:3", "team:t"]);
    }
}
