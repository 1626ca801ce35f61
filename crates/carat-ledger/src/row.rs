//! What is written down about a request.

use serde::{Deserialize, Serialize};

use crate::Micros;

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
    pub(crate) fn name(self) -> &'static str {
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
    pub(crate) route: String,
    pub(crate) held: Micros,
    pub(crate) started_ms: u64,
}
