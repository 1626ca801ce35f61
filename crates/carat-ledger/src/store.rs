//! What the ledger's thread does with the database: rows of requests, sums of what was spent, and what is read at the
//! start.

use std::collections::HashMap;

use serde::Serialize;

use crate::account::MAX_NAME;
use crate::budget::{Budget, Period, first_day};
use crate::db::{Db, Record, values};
use crate::hold::Warning;
use crate::key::{KeyInfo, NewKey};
use crate::meter::Meters;
use crate::row::{Entry, Open, Outcome, Row};
use crate::schema::migrate;
use crate::{Account, Error, Kind, Limits, Micros, Place, Role};

/// Most rows that are removed in one step.
pub(crate) const PRUNED_AT_ONCE: u64 = 2000;

/// Ids begin with the time at which they were made, in milliseconds. So the oldest rows lie together, and what is not
/// old is not looked at however much of it there is.
const PRUNE: &str = "DELETE FROM requests WHERE id IN (SELECT id FROM requests
    WHERE id < ?2 AND started_ms < ?1 AND is_open = 0 ORDER BY id LIMIT ?3) AND started_ms < ?1";

/// A database with the schema.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) db: Db,
}

/// What was spent in all, and what was paid in for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Money.
    #[serde(rename = "spent_micros")]
    pub spent: Micros,
    /// Requests that ended.
    pub requests: u64,
    /// Money of payments, for whoever may spend only that.
    #[serde(rename = "paid_in_micros")]
    pub paid_in: Micros,
}

/// What settling a request changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The request was not known.
    New,
    /// It was open.
    Open,
    /// It was believed to be lost.
    Lost,
    /// Nothing: it was settled before.
    Already,
}

/// Sums of a group of requests.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    spent: HashMap<(String, i64), Total>,
    usage: HashMap<Drawer, Used>,
}

/// By what use is summed up.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Drawer {
    day: i64,
    key: i64,
    team: String,
    user: String,
    project: String,
    target: String,
}

#[derive(Debug, Default)]
struct Used {
    total: Total,
    input: u64,
    output: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, open: &Open, row: &Row) {
        let (day, cost) = (open.ended_day(row), row.cost.unwrap_or_default());
        for scope in open.scopes() {
            let total = self.spent.entry((scope, day)).or_default();
            total.spent = total.spent.plus(cost);
            total.requests += 1;
        }
        let text = |name: &Option<String>| name.clone().unwrap_or_default();
        let drawer = Drawer {
            day,
            key: open.key,
            team: text(&open.team),
            user: text(&open.user),
            project: text(&open.project),
            target: row.target.clone(),
        };
        let used = self.usage.entry(drawer).or_default();
        used.total.spent = used.total.spent.plus(cost);
        used.total.requests += 1;
        used.input += row.input;
        used.output += row.output;
    }

    pub(crate) fn write(self, db: &mut Db) -> Result<(), Error> {
        for ((scope, day), total) in self.spent {
            db.execute(
                "INSERT INTO spent (scope, day, micros, requests) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (scope, day)
                 DO UPDATE SET micros = spent.micros + excluded.micros, requests = spent.requests + excluded.requests",
                values![&scope, day, total.spent, total.requests],
            )?;
        }
        for (drawer, used) in self.usage {
            db.execute(
                "INSERT INTO usage (day, key, team, user_name, project, target, requests, micros, input, output)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (day, key, team, user_name, project, target)
                 DO UPDATE SET requests = usage.requests + excluded.requests, micros = usage.micros + excluded.micros,
                 input = usage.input + excluded.input, output = usage.output + excluded.output",
                values![
                    drawer.day,
                    drawer.key,
                    &drawer.team,
                    &drawer.user,
                    &drawer.project,
                    &drawer.target,
                    used.total.requests,
                    used.total.spent,
                    used.input,
                    used.output,
                ],
            )?;
        }
        Ok(())
    }
}

impl Store {
    pub(crate) fn open(place: &Place) -> Result<Self, Error> {
        let mut db = Db::open(place)?;
        migrate(&mut db)?;
        Ok(Self { db })
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
        self.db.transaction(|db| {
            let mut sums = Sums::default();
            for entry in entries {
                match entry {
                    Entry::Open(open) if !settled.contains(&open.id) => insert_open(db, open, None)?,
                    Entry::Open(_) => {}
                    Entry::Settle(open, row) => {
                        if settle(db, open, row)? != Settled::Already {
                            sums.add(open, row);
                        }
                    }
                }
            }
            sums.write(db)
        })
    }

    /// Writes down that soft limits were passed.
    pub(crate) fn note_warnings(&mut self, warnings: &[(u64, Warning)]) -> Result<(), Error> {
        for (at_ms, warning) in warnings {
            self.db.execute(
                "INSERT INTO audit (at_ms, actor, act, subject, detail) VALUES (?1, 'gateway', 'soft limit passed', ?2, ?3)",
                values![*at_ms, &*warning.scope, &warning.to_string()],
            )?;
        }
        Ok(())
    }

    /// Ends requests that an earlier process left open; gives how many.
    pub(crate) fn end_lost(&mut self) -> Result<u64, Error> {
        let sql = "UPDATE requests SET is_open = 0, outcome = ?1, cost = 0 WHERE is_open = 1";
        self.db.execute(sql, values![Outcome::Lost.name()])
    }

    /// Removes rows of requests that began before a moment, a part of them; gives how many. Sums stay.
    pub(crate) fn prune(&mut self, before_ms: u64) -> Result<u64, Error> {
        let first_kept = first_id(before_ms);
        let values = values![before_ms, &first_kept, PRUNED_AT_ONCE];
        self.db.execute(PRUNE, values)
    }

    /// All keys with their hashes.
    pub(crate) fn keys(&mut self) -> Result<Vec<([u8; 32], KeyInfo)>, Error> {
        let rows = self.db.query(
            "SELECT hash, id, start, revoked, created_ms, expires_ms, name, user_name, project, team, models, rpm, tpm,
             concurrency, budget, period, soft, soft_period, fallback, prepaid FROM keys ORDER BY id",
            &[],
        )?;
        rows.into_iter()
            .map(|mut row| Ok((row.bytes()?, key_info(&mut row)?)))
            .collect()
    }

    /// Hashes of keys that were rotated, until when they are good.
    pub(crate) fn old_secrets(&mut self) -> Result<Vec<([u8; 32], i64, u64)>, Error> {
        let rows = self
            .db
            .query("SELECT hash, key, expires_ms FROM old_secrets", &[])?;
        rows.into_iter()
            .map(|mut row| Ok((row.bytes()?, row.int()?, row.count()?)))
            .collect()
    }

    /// All users, teams and projects.
    pub(crate) fn accounts(&mut self) -> Result<Vec<Account>, Error> {
        let rows = self.db.query(
            "SELECT kind, name, team, role, models, rpm, tpm, concurrency, budget, period, soft, soft_period, fallback,
             prepaid FROM accounts ORDER BY kind, name",
            &[],
        )?;
        rows.into_iter().map(|mut row| account(&mut row)).collect()
    }

    /// What was paid in, by scope.
    pub(crate) fn granted(&mut self) -> Result<HashMap<String, Micros>, Error> {
        let sql = "SELECT scope, CAST(sum(micros) AS BIGINT) FROM credits GROUP BY scope";
        let rows = self.db.query(sql, &[])?;
        rows.into_iter()
            .map(|mut row| Ok((row.text()?, Micros(row.count()?))))
            .collect()
    }

    /// What all have spent, as far as the database knows.
    pub(crate) fn meters(&mut self, today: i64) -> Result<Meters, Error> {
        let mut meters = Meters::new();
        let sql = "SELECT scope, CAST(sum(micros) AS BIGINT) FROM spent GROUP BY scope";
        for mut row in self.db.query(sql, &[])? {
            let meter = meters.entry(row.text()?.into()).or_default();
            meter.spending.load(Micros(row.count()?));
        }
        let sql = "SELECT scope, day, micros FROM spent WHERE day >= ?1";
        for mut row in self.db.query(sql, values![first_day(today)])? {
            let meter = meters.entry(row.text()?.into()).or_default();
            meter.spending.load_day(row.int()?, Micros(row.count()?));
        }
        Ok(meters)
    }

    /// What a scope spent since a day.
    pub(crate) fn spent(&mut self, scope: &str, since: i64) -> Result<Total, Error> {
        let mut row = self.db.one(
            "SELECT CAST(coalesce(sum(micros), 0) AS BIGINT), CAST(coalesce(sum(requests), 0) AS BIGINT),
             (SELECT CAST(coalesce(sum(micros), 0) AS BIGINT) FROM credits WHERE credits.scope = ?1)
             FROM spent WHERE spent.scope = ?1 AND day >= ?2",
            values![scope, since],
        )?;
        Ok(Total {
            spent: Micros(row.count()?),
            requests: row.count()?,
            paid_in: Micros(row.count()?),
        })
    }
}

/// The least id of a moment.
fn first_id(ms: u64) -> [u8; 16] {
    // They have 48 bits for it.
    (u128::from(ms.min((1 << 48) - 1)) << 80).to_be_bytes()
}

/// Writes that a request has begun, at one of several gateways if there may be others.
pub(crate) fn insert_open(db: &mut Db, open: &Open, instance: Option<&[u8; 16]>) -> Result<(), Error> {
    db.execute(
        "INSERT INTO requests (id, key, team, user_name, project, route, held, started_ms, instance, is_open)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1) ON CONFLICT (id) DO NOTHING",
        values![
            &open.id,
            open.key,
            open.team.as_ref(),
            open.user.as_ref(),
            open.project.as_ref(),
            &open.route,
            open.held,
            open.started_ms,
            instance,
        ],
    )?;
    Ok(())
}

/// Writes how a request ended. One that was believed to be lost is billed after all; one that was settled stays.
pub(crate) fn settle(db: &mut Db, open: &Open, row: &Row) -> Result<Settled, Error> {
    let sql = "SELECT is_open, outcome FROM requests WHERE id = ?1";
    let before = match db.first(sql, values![&open.id])? {
        None => Settled::New,
        Some(mut found) => match (found.int()?, found.opt_text()?) {
            (1, _) => Settled::Open,
            (_, Some(outcome)) if outcome == Outcome::Lost.name() => Settled::Lost,
            _ => return Ok(Settled::Already),
        },
    };
    if before == Settled::New {
        insert_open(db, open, None)?;
    }
    db.execute(
        "UPDATE requests SET is_open = 0, outcome = ?2, target = ?3, tried = ?4, input = ?5, cache_read = ?6,
         cache_write = ?7, output = ?8, reasoning = ?9, is_counted = ?10, cost = ?11, duration_ms = ?12,
         first_token_ms = ?13 WHERE id = ?1",
        values![
            &open.id,
            row.outcome.name(),
            &row.target,
            &row.tried,
            row.input,
            row.cache_read,
            row.cache_write,
            row.output,
            row.reasoning,
            row.is_counted,
            row.cost,
            row.duration_ms,
            row.first_token_ms,
        ],
    )?;
    Ok(before)
}

/// The columns `models` to `prepaid`.
fn limits(row: &mut Record) -> Result<Limits, Error> {
    let models = row.text()?;
    Ok(Limits {
        models: models
            .split('\n')
            .filter(|model| !model.is_empty())
            .map(ToString::to_string)
            .collect(),
        requests_per_minute: row.opt_count()?,
        tokens_per_minute: row.opt_count()?,
        concurrency: row.opt_count()?,
        budget: budget(row)?,
        soft: budget(row)?,
        fallback: row.opt_text()?,
        is_prepaid: row.int()? != 0,
    })
}

fn budget(row: &mut Record) -> Result<Option<Budget>, Error> {
    let (limit, period) = (row.opt_count()?, row.opt_text()?);
    let period = period.as_deref().and_then(Period::of_name);
    Ok(limit.zip(period).map(|(limit, period)| Budget {
        limit: Micros(limit),
        period,
    }))
}

/// The columns `id` to `prepaid`.
pub(crate) fn key_info(row: &mut Record) -> Result<KeyInfo, Error> {
    let id = row.int()?;
    let start = row.text()?;
    let is_revoked = row.int()? != 0;
    let created_ms = row.count()?;
    let expires_ms = row.opt_count()?;
    Ok(KeyInfo {
        id,
        start,
        is_revoked,
        created_ms,
        rights: NewKey {
            name: row.text()?,
            user: row.opt_text()?,
            project: row.opt_text()?,
            team: row.opt_text()?,
            limits: limits(row)?,
            expires_ms,
        },
    })
}

fn account(row: &mut Record) -> Result<Account, Error> {
    let kind = row.text()?;
    let kind = Kind::of_name(&kind).ok_or_else(|| Error::Shape(format!("`{kind}` is no kind of account")))?;
    let name: String = row.text()?.chars().take(MAX_NAME).collect();
    let team = row.opt_text()?;
    let role = row.text()?;
    Ok(Account {
        kind,
        name,
        team,
        role: Role::of_name(&role).ok_or_else(|| Error::Shape(format!("`{role}` is no role")))?,
        limits: limits(row)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn open(id: [u8; 16], started_ms: u64) -> Open {
        Open {
            id,
            key: 1,
            team: None,
            user: None,
            project: None,
            route: "chat".into(),
            held: Micros(1),
            tokens: 1,
            started_ms,
        }
    }

    #[test]
    fn old_rows_go_without_a_look_at_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&Place::from(&folder.path().join("l.db"))).unwrap();
        let at = |ms: u64| open((u128::from_be_bytes(first_id(ms)) | 77).to_be_bytes(), ms);
        let ended = |ms| Entry::Settle(at(ms), Row::nothing(0));
        let entries = [
            ended(DAY_MS),
            ended(DAY_MS + 1),
            Entry::Open(at(DAY_MS + 2)),
            ended(2 * DAY_MS),
            ended(3 * DAY_MS),
        ];
        store.apply(&entries).unwrap();
        assert_eq!(store.prune(2 * DAY_MS).unwrap(), 2);
        assert_eq!(store.prune(2 * DAY_MS).unwrap(), 0, "who is under way stays");
        let plan = format!("EXPLAIN QUERY PLAN {PRUNE}");
        let rows = store
            .db
            .query(&plan, values![DAY_MS, &first_id(DAY_MS), PRUNED_AT_ONCE]);
        let steps = rows.unwrap().into_iter().map(|mut row| {
            // Before the words stand three numbers.
            (0..3).for_each(|_| assert!(row.int().is_ok()));
            row.text().unwrap()
        });
        let steps: Vec<String> = steps.collect();
        assert!(steps.iter().any(|step| step.contains("(id<?)")), "{steps:?}");
        assert!(!steps.iter().any(|step| step.starts_with("SCAN")), "{steps:?}");
    }
}
