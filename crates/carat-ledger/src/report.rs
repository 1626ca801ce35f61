//! What is read out of the ledger: sums by whom, by model or by day, and rows of requests, page by page.

use serde::Serialize;

use crate::Error;
use crate::admin::Admin;
use crate::db::{Record, Value, values};
use crate::money::Micros;
use crate::row::day_of;

/// Most lines of one answer.
const MAX_LINES: u32 = 1000;

/// By what spending is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A key's name.
    Key,
    /// A user's name.
    User,
    /// A team's name.
    Team,
    /// A project's name.
    Project,
    /// `provider/model`.
    Model,
    /// Days since 1970.
    Day,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Key,
        Self::User,
        Self::Team,
        Self::Project,
        Self::Model,
        Self::Day,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::User => "user",
            Self::Team => "team",
            Self::Project => "project",
            Self::Model => "model",
            Self::Day => "day",
        }
    }

    /// What it is called so.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.name() == name)
    }

    fn column(self) -> &'static str {
        match self {
            Self::Key => "coalesce(keys.name, '')",
            Self::User => "usage.user_name",
            Self::Team => "usage.team",
            Self::Project => "usage.project",
            Self::Model => "usage.target",
            Self::Day => "CAST(usage.day AS TEXT)",
        }
    }
}

/// A sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spend {
    /// Whose, or of which model or day; empty for what belongs to nobody.
    pub name: String,
    /// Requests that ended.
    pub requests: u64,
    /// What they cost, in millionths of a dollar.
    pub micros: Micros,
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
}

/// Which requests are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those before this one, the last of the page before.
    pub before: Option<[u8; 16]>,
    /// Only those of this key, by its name.
    pub key: Option<String>,
    /// Only those that ended so; `open` for those under way.
    pub outcome: Option<String>,
    /// How many, at most 1000.
    pub limit: u32,
}

/// A request, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRow {
    /// Its id, as `x-request-id` has it.
    pub id: String,
    /// The key's name.
    pub key: String,
    /// Who else pays for it.
    pub user: Option<String>,
    /// Likewise.
    pub team: Option<String>,
    /// Likewise.
    pub project: Option<String>,
    /// What was asked for.
    pub route: String,
    /// Who answered.
    pub target: Option<String>,
    /// Who was asked before.
    pub tried: Option<String>,
    /// `complete`, `cut`, `client_gone`, `failed`, `lost`, or nothing while it is under way.
    pub outcome: Option<String>,
    /// Tokens of the prompt.
    pub input: Option<u64>,
    /// Of these, read from a cache.
    pub cache_read: Option<u64>,
    /// Of these, written to one.
    pub cache_write: Option<u64>,
    /// Tokens of the answer.
    pub output: Option<u64>,
    /// Of these, thoughts.
    pub reasoning: Option<u64>,
    /// Whether the provider counted them.
    pub is_counted: Option<bool>,
    /// What was held, in millionths of a dollar.
    pub held_micros: Micros,
    /// What it cost.
    pub cost_micros: Option<u64>,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// How long it took.
    pub duration_ms: Option<u64>,
    /// How long its first words took.
    pub first_token_ms: Option<u64>,
}

impl Admin {
    /// What was spent on days from `from` to `to`, the most first; days in their order.
    ///
    /// # Errors
    /// The database's.
    pub fn spend(&mut self, by: By, from: i64, to: i64) -> Result<Vec<Spend>, Error> {
        let column = by.column();
        let order = if by == By::Day {
            "min(usage.day)"
        } else {
            "3 DESC, 1"
        };
        let rows = self.store.db.query(
            &format!(
                "SELECT {column}, CAST(sum(requests) AS BIGINT), CAST(sum(micros) AS BIGINT),
                 CAST(sum(input) AS BIGINT), CAST(sum(output) AS BIGINT)
                 FROM usage LEFT JOIN keys ON keys.id = usage.key WHERE usage.day >= ?1 AND usage.day <= ?2 GROUP BY 1 ORDER BY {order} LIMIT {MAX_LINES}"
            ),
            values![from, to],
        )?;
        rows.into_iter()
            .map(|mut row| {
                Ok(Spend {
                    name: row.text()?,
                    requests: row.count()?,
                    micros: Micros(row.count()?),
                    input: row.count()?,
                    output: row.count()?,
                })
            })
            .collect()
    }

    /// Rows of requests, the latest first.
    ///
    /// # Errors
    /// The database's.
    pub fn rows(&mut self, filter: &Filter) -> Result<Vec<RequestRow>, Error> {
        let mut sql = String::from(
            "SELECT r.id, coalesce((SELECT name FROM keys WHERE keys.id = r.key), ''), r.user_name, r.team, r.project,
             r.route, r.target, r.tried, r.outcome, r.input, r.cache_read, r.cache_write, r.output, r.reasoning,
             r.is_counted, r.held, r.cost, r.started_ms, r.duration_ms, r.first_token_ms FROM requests r WHERE r.id < ?1",
        );
        let before = filter.before.unwrap_or([0xff; 16]);
        let limit = i64::from(filter.limit.clamp(1, MAX_LINES));
        let mut given: Vec<Value<'_>> = vec![(&before).into(), limit.into()];
        if let Some(key) = &filter.key {
            given.push(key.into());
            sql.push_str(" AND r.key IN (SELECT id FROM keys WHERE name = ?3)");
        }
        match filter.outcome.as_deref() {
            None => {}
            Some("open") => sql.push_str(" AND r.is_open = 1"),
            Some(outcome) => {
                given.push(outcome.into());
                sql.push_str(&format!(" AND r.outcome = ?{}", given.len()));
            }
        }
        sql.push_str(" ORDER BY r.id DESC LIMIT ?2");
        let rows = self.store.db.query(&sql, &given)?;
        rows.into_iter().map(|mut row| request_row(&mut row)).collect()
    }
}

fn request_row(row: &mut Record) -> Result<RequestRow, Error> {
    Ok(RequestRow {
        id: format!("req-{:032x}", u128::from_be_bytes(row.bytes()?)),
        key: row.text()?,
        user: row.opt_text()?,
        team: row.opt_text()?,
        project: row.opt_text()?,
        route: row.text()?,
        target: row.opt_text()?,
        tried: row.opt_text()?,
        outcome: row.opt_text()?,
        input: row.opt_count()?,
        cache_read: row.opt_count()?,
        cache_write: row.opt_count()?,
        output: row.opt_count()?,
        reasoning: row.opt_count()?,
        is_counted: row.opt_int()?.map(|flag| flag != 0),
        held_micros: Micros(row.count()?),
        cost_micros: row.opt_count()?,
        started_ms: row.count()?,
        duration_ms: row.opt_count()?,
        first_token_ms: row.opt_count()?,
    })
}

/// The day of a moment in milliseconds since 1970, as sums by day count it.
pub fn day(ms: u64) -> i64 {
    day_of(ms)
}
