//! The tables, and how they became what they are: changes are only ever added, and each runs once, in order.

use crate::Error;
use crate::db::{Db, values};

/// Changes of the schema.
pub(crate) const MIGRATIONS: [&str; 2] = [
    // 1: keys, teams, requests, and what was spent on each day.
    "
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
    ",
    // 2: users, projects, soft limits, credits, rotation; sums by day and model; the log of acts. What a team of
    // version 1 was, is an account now, and so is a team that keys named and nobody had set.
    "
    CREATE TABLE accounts (
        kind TEXT NOT NULL, name TEXT NOT NULL, team TEXT, role TEXT NOT NULL, models TEXT NOT NULL, rpm INTEGER,
        tpm INTEGER, concurrency INTEGER, budget INTEGER, period TEXT, soft INTEGER, soft_period TEXT, fallback TEXT,
        prepaid INTEGER NOT NULL DEFAULT 0, created_ms INTEGER NOT NULL, PRIMARY KEY (kind, name)
    );
    INSERT INTO accounts (kind, name, role, models, budget, period, created_ms)
        SELECT 'team', name, 'member', '', budget, period, 0 FROM teams;
    INSERT INTO accounts (kind, name, role, models, created_ms)
        SELECT DISTINCT 'team', team, 'member', '', 0 FROM keys
        WHERE team IS NOT NULL AND team NOT IN (SELECT name FROM teams);
    DROP TABLE teams;
    ALTER TABLE keys ADD COLUMN user_name TEXT;
    ALTER TABLE keys ADD COLUMN project TEXT;
    ALTER TABLE keys ADD COLUMN soft INTEGER;
    ALTER TABLE keys ADD COLUMN soft_period TEXT;
    ALTER TABLE keys ADD COLUMN fallback TEXT;
    ALTER TABLE keys ADD COLUMN prepaid INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE old_secrets (hash BLOB PRIMARY KEY, key INTEGER NOT NULL, expires_ms INTEGER NOT NULL);
    CREATE TABLE credits (id TEXT PRIMARY KEY, scope TEXT NOT NULL, micros INTEGER NOT NULL, note TEXT NOT NULL,
        at_ms INTEGER NOT NULL);
    CREATE INDEX credits_of ON credits (scope);
    ALTER TABLE requests ADD COLUMN user_name TEXT;
    ALTER TABLE requests ADD COLUMN project TEXT;
    CREATE INDEX requests_open ON requests (id) WHERE is_open = 1;
    CREATE TABLE usage (day INTEGER NOT NULL, key INTEGER NOT NULL, team TEXT NOT NULL, user_name TEXT NOT NULL,
        project TEXT NOT NULL, target TEXT NOT NULL, requests INTEGER NOT NULL, micros INTEGER NOT NULL,
        input INTEGER NOT NULL, output INTEGER NOT NULL, PRIMARY KEY (day, key, team, user_name, project, target));
    INSERT INTO usage
        SELECT (started_ms + coalesce(duration_ms, 0)) / 86400000 AS day, key, coalesce(team, ''), '', '',
        coalesce(target, ''), count(*), CAST(coalesce(sum(cost), 0) AS INTEGER),
        CAST(coalesce(sum(input), 0) AS INTEGER), CAST(coalesce(sum(output), 0) AS INTEGER)
        FROM requests WHERE is_open = 0 GROUP BY 1, 2, 3, 6;
    CREATE TABLE audit (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, actor TEXT NOT NULL, act TEXT NOT NULL,
        subject TEXT NOT NULL, detail TEXT NOT NULL);
    ",
];

/// Brings a database to the newest schema. One of several that do so at once does it.
pub(crate) fn migrate(db: &mut Db) -> Result<(), Error> {
    let known = MIGRATIONS.len() as i64;
    db.transaction(|db| {
        let found = db.schema_version()?;
        if found > known {
            return Err(Error::Newer { found, known });
        }
        for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            db.batch(migration)?;
        }
        if found < known {
            db.set_schema_version(known)?;
        }
        Ok(())
    })
}

impl Db {
    fn schema_version(&mut self) -> Result<i64, Error> {
        self.one("PRAGMA user_version", values![])?.int()
    }

    fn set_schema_version(&mut self, version: i64) -> Result<(), Error> {
        self.batch(&format!("PRAGMA user_version = {version}"))
    }
}
