//! The database: keys, budgets, requests, and what was spent on each day.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use crate::budget::{Budget, Period};
use crate::key::{self, KeyInfo, NewKey, Secret};
use crate::row::{Entry, Open, Outcome, Row};
use crate::{Error, Micros};

/// Changes of the schema, each once and in order.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, start TEXT NOT NULL, name TEXT NOT NULL, team TEXT,
        models TEXT NOT NULL, rpm INTEGER, tpm INTEGER, concurrency INTEGER, budget INTEGER, period TEXT,
        expires_ms INTEGER, created_ms INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
    );
    CREATE UNIQUE INDEX keys_in_force ON keys (name) WHERE revoked = 0;
    CREATE TABLE teams (name TEXT PRIMARY KEY, budget INTEGER, period TEXT) WITHOUT ROWID;
    CREATE TABLE requests (
        id BLOB PRIMARY KEY, key INTEGER NOT NULL, team TEXT, route TEXT NOT NULL, held INTEGER NOT NULL,
        started_ms INTEGER NOT NULL, is_open INTEGER NOT NULL, outcome TEXT, target TEXT, tried TEXT, input INTEGER,
        cache_read INTEGER, cache_write INTEGER, output INTEGER, reasoning INTEGER, is_counted INTEGER, cost INTEGER,
        duration_ms INTEGER, first_token_ms INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE spent (scope TEXT NOT NULL, day INTEGER NOT NULL, micros INTEGER NOT NULL, requests INTEGER NOT NULL,
        PRIMARY KEY (scope, day)) WITHOUT ROWID;
"];

const DAY_MS: u64 = 86_400_000;

/// A connection.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Connection,
}

/// What was spent in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Money.
    pub spent: Micros,
    /// Requests that ended.
    pub requests: u64,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&mut connection)?;
        Ok(Self { connection })
    }

    /// Changes when another connection has written.
    pub(crate) fn version(&self) -> Result<i64, Error> {
        Ok(self
            .connection
            .pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// Takes lines of the journal, all or none. Lines that it has already change nothing.
    pub(crate) fn apply(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let settled: std::collections::HashSet<[u8; 16]> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Settle(open, _) => Some(open.id),
                Entry::Open(_) => None,
            })
            .collect();
        let transaction = self.connection.transaction()?;
        let mut spent: HashMap<(String, i64), Total> = HashMap::new();
        for entry in entries {
            match entry {
                Entry::Open(open) if !settled.contains(&open.id) => insert_open(&transaction, open)?,
                Entry::Open(_) => {}
                Entry::Settle(open, row) if settle(&transaction, open, row)? => add(&mut spent, open, row),
                Entry::Settle(..) => {}
            }
        }
        for ((scope, day), total) in spent {
            let mut upsert = transaction.prepare_cached(
                "INSERT INTO spent VALUES (?1, ?2, ?3, ?4) ON CONFLICT (scope, day)
                 DO UPDATE SET micros = micros + excluded.micros, requests = requests + excluded.requests",
            )?;
            upsert.execute(params![scope, day, signed(total.spent.0), signed(total.requests)])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Ends requests that an earlier process left open; gives how many.
    pub(crate) fn end_lost(&mut self) -> Result<usize, Error> {
        let outcome = Outcome::Lost.name();
        let sql = "UPDATE requests SET is_open = 0, outcome = ?1, cost = 0 WHERE is_open = 1";
        Ok(self.connection.execute(sql, [outcome])?)
    }

    /// All keys with their hashes.
    pub(crate) fn keys(&self) -> Result<Vec<([u8; 32], KeyInfo)>, Error> {
        let mut query = self.connection.prepare_cached(
            "SELECT hash, id, start, name, team, models, rpm, tpm, concurrency, budget, period, expires_ms, revoked,
             created_ms FROM keys ORDER BY id",
        )?;
        let rows = query.query_map([], |row| Ok((row.get("hash")?, key_info(row)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All teams with their budgets.
    pub(crate) fn teams(&self) -> Result<Vec<(String, Option<Budget>)>, Error> {
        let mut query = self
            .connection
            .prepare_cached("SELECT name, budget, period FROM teams")?;
        let rows = query.query_map([], |row| Ok((row.get("name")?, budget(row)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What a scope spent since a day.
    pub(crate) fn spent(&self, scope: &str, since: i64) -> Result<Total, Error> {
        let mut query = self.connection.prepare_cached(
            "SELECT coalesce(sum(micros), 0), coalesce(sum(requests), 0) FROM spent WHERE scope = ?1 AND day >= ?2",
        )?;
        Ok(query.query_row(params![scope, since], |row| {
            Ok(Total {
                spent: Micros(unsigned(row.get(0)?)),
                requests: unsigned(row.get(1)?),
            })
        })?)
    }
}

fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(Error::Newer { found, known });
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

fn insert_open(connection: &Connection, open: &Open) -> Result<(), Error> {
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO requests (id, key, team, route, held, started_ms, is_open) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1)",
    )?;
    let (held, started) = (signed(open.held.0), signed(open.started_ms));
    insert.execute(params![open.id, open.key, open.team, open.route, held, started])?;
    Ok(())
}

/// Whether the request was not settled before.
fn settle(connection: &Connection, open: &Open, row: &Row) -> Result<bool, Error> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO requests VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
         ON CONFLICT (id) DO UPDATE SET is_open = 0, outcome = excluded.outcome, target = excluded.target,
         tried = excluded.tried, input = excluded.input, cache_read = excluded.cache_read,
         cache_write = excluded.cache_write, output = excluded.output, reasoning = excluded.reasoning,
         is_counted = excluded.is_counted, cost = excluded.cost, duration_ms = excluded.duration_ms,
         first_token_ms = excluded.first_token_ms WHERE is_open = 1",
    )?;
    let n_changed = insert.execute(params![
        open.id,
        open.key,
        open.team,
        open.route,
        signed(open.held.0),
        signed(open.started_ms),
        row.outcome.name(),
        row.target,
        row.tried,
        signed(row.input),
        signed(row.cache_read),
        signed(row.cache_write),
        signed(row.output),
        signed(row.reasoning),
        row.is_counted,
        row.cost.map(|cost| signed(cost.0)),
        signed(row.duration_ms),
        row.first_token_ms.map(signed),
    ])?;
    Ok(n_changed == 1)
}

fn add(spent: &mut HashMap<(String, i64), Total>, open: &Open, row: &Row) {
    let ended_ms = open.started_ms.saturating_add(row.duration_ms);
    let day = signed(ended_ms / DAY_MS);
    let scopes = [Some(key_scope(open.key)), open.team.as_deref().map(team_scope)];
    for scope in scopes.into_iter().flatten() {
        let total = spent.entry((scope, day)).or_default();
        total.spent = total.spent.plus(row.cost.unwrap_or_default());
        total.requests += 1;
    }
}

/// What a key's spending is counted under.
pub(crate) fn key_scope(id: i64) -> String {
    format!("key:{id}")
}

/// What a team's spending is counted under.
pub(crate) fn team_scope(team: &str) -> String {
    format!("team:{team}")
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn budget(row: &SqlRow<'_>) -> rusqlite::Result<Option<Budget>> {
    let (limit, period): (Option<i64>, Option<String>) = (row.get("budget")?, row.get("period")?);
    let period = period.as_deref().and_then(Period::of_name);
    Ok(limit.zip(period).map(|(limit, period)| Budget {
        limit: Micros(unsigned(limit)),
        period,
    }))
}

fn key_info(row: &SqlRow<'_>) -> rusqlite::Result<KeyInfo> {
    let number = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(name)?.map(unsigned));
    let models: String = row.get("models")?;
    Ok(KeyInfo {
        id: row.get("id")?,
        start: row.get("start")?,
        is_revoked: row.get("revoked")?,
        created_ms: unsigned(row.get("created_ms")?),
        rights: NewKey {
            name: row.get("name")?,
            team: row.get("team")?,
            models: models
                .split('\n')
                .filter(|model| !model.is_empty())
                .map(ToString::to_string)
                .collect(),
            requests_per_minute: number("rpm")?,
            tokens_per_minute: number("tpm")?,
            concurrency: number("concurrency")?,
            budget: budget(row)?,
            expires_ms: number("expires_ms")?,
        },
    })
}

/// Acts of whoever runs the gateway, beside it: it notices within a second.
#[derive(Debug)]
pub struct Admin {
    store: Store,
}

impl Admin {
    /// Opens a ledger, or makes it.
    ///
    /// # Errors
    /// [`Error`], as for everything here: the database.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            store: Store::open(path)?,
        })
    }

    /// Makes a key. Its text cannot be had again.
    ///
    /// # Errors
    /// [`Error::Key`] if the name is taken.
    pub fn add_key(&self, new: &NewKey, now_ms: u64) -> Result<Secret, Error> {
        if new.name.is_empty() || new.name.len() > 200 {
            return Err(Error::Key("a key needs a name of at most 200 bytes".into()));
        }
        let taken = "SELECT 1 FROM keys WHERE name = ?1 AND revoked = 0";
        if self
            .store
            .connection
            .query_row(taken, [&new.name], |_| Ok(()))
            .optional()?
            .is_some()
        {
            return Err(Error::Key(format!(
                "a key `{}` is there already; revoke it first",
                new.name
            )));
        }
        let secret = Secret::new()?;
        self.store.connection.execute(
            "INSERT INTO keys (hash, start, name, team, models, rpm, tpm, concurrency, budget, period, expires_ms, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                key::hash(secret.text()),
                secret.start(),
                new.name,
                new.team,
                new.models.join("\n"),
                new.requests_per_minute.map(signed),
                new.tokens_per_minute.map(signed),
                new.concurrency.map(signed),
                new.budget.map(|budget| signed(budget.limit.0)),
                new.budget.map(|budget| budget.period.name()),
                new.expires_ms.map(signed),
                signed(now_ms),
            ],
        )?;
        Ok(secret)
    }

    /// Takes a key back.
    ///
    /// # Errors
    /// [`Error::Key`] if there is none of this name.
    pub fn revoke_key(&self, name: &str) -> Result<(), Error> {
        let sql = "UPDATE keys SET revoked = 1 WHERE name = ?1 AND revoked = 0";
        match self.store.connection.execute(sql, [name])? {
            0 => Err(Error::Key(format!("there is no key `{name}` in force"))),
            _ => Ok(()),
        }
    }

    /// All keys, with what each has spent since it was made.
    ///
    /// # Errors
    /// The database's.
    pub fn keys(&self) -> Result<Vec<(KeyInfo, Total)>, Error> {
        let keys = self.store.keys()?.into_iter();
        keys.map(|(_, key)| {
            let total = self.store.spent(&key_scope(key.id), 0)?;
            Ok((key, total))
        })
        .collect()
    }

    /// Sets a team's budget, or takes it away.
    ///
    /// # Errors
    /// The database's.
    pub fn set_team(&self, name: &str, budget: Option<Budget>) -> Result<(), Error> {
        self.store.connection.execute(
            "INSERT INTO teams VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET budget = excluded.budget,
             period = excluded.period",
            params![
                name,
                budget.map(|budget| signed(budget.limit.0)),
                budget.map(|budget| budget.period.name())
            ],
        )?;
        Ok(())
    }

    /// Requests of an outcome, `None` for those under way: how many, and what they cost.
    ///
    /// # Errors
    /// The database's.
    pub fn requests(&self, outcome: Option<Outcome>) -> Result<Total, Error> {
        let sql = "SELECT count(*), coalesce(sum(cost), 0) FROM requests WHERE outcome IS ?1";
        let outcome = outcome.map(Outcome::name);
        Ok(self.store.connection.query_row(sql, [outcome], |row| {
            Ok(Total {
                requests: unsigned(row.get(0)?),
                spent: Micros(unsigned(row.get(1)?)),
            })
        })?)
    }
}
