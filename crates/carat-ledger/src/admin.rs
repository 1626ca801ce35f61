//! Acts of whoever runs the gateway, beside it or through its admin API: a running gateway notices within a second.
//!
//! Every act that changes something is written to the audit log in the same step, with who did it. Texts of keys are
//! never part of it.

use serde::Serialize;

use crate::account::{Credit, check_name, key_scope};
use crate::budget::Budget;
use crate::db::{Db, Value, values};
use crate::key::{self, KeyInfo, NewKey, Secret};
use crate::ledger::now_ms;
use crate::row::Outcome;
use crate::store::{Store, Total, key_info};
use crate::{Account, Error, Kind, Limits, Micros, Place, Role};

/// Longest time for which a rotated key's old text stays good: 90 days, in milliseconds.
const MAX_OVERLAP_MS: u64 = 90 * 86_400_000;

/// Largest payment: a billion dollars. Thousands of them still have a sum that the database can hold; one that it cannot
/// would keep every gateway from reading its accounts.
const MAX_CREDIT: Micros = Micros(1_000_000_000_000_000);

/// The ledger's database, for acts. One gateway may be running on it.
#[derive(Debug)]
pub struct Admin {
    pub(crate) store: Store,
    actor: String,
    place: Place,
}

/// An act that was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Its number; later ones are larger.
    pub id: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who: `command`, `admin key`, `user NAME` or `gateway`.
    pub actor: String,
    /// What was done.
    pub act: String,
    /// To whom.
    pub subject: String,
    /// What else is worth knowing.
    pub detail: String,
}

fn audit(db: &mut Db, actor: &str, act: &str, subject: &str, detail: &str) -> Result<(), Error> {
    db.execute(
        "INSERT INTO audit (at_ms, actor, act, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
        values![now_ms(), actor, act, subject, detail],
    )?;
    // Gateways that run look at this number; it is changed in the same step, so that none sees it too early.
    db.execute("UPDATE changes SET n = n + 1", &[])?;
    Ok(())
}

/// What limits are, in a line of the audit log.
fn told(limits: &Limits) -> String {
    serde_json::to_string(limits).unwrap_or_default()
}

/// Columns of [`key_info`].
const KEY: &str =
    "SELECT id, start, revoked, created_ms, expires_ms, name, user_name, project, team, models, rpm, tpm,
    concurrency, budget, period, soft, soft_period, fallback, prepaid FROM keys";

impl Admin {
    /// Opens a ledger, or makes it.
    ///
    /// # Errors
    /// [`Error`], as for everything here: the database.
    pub fn open(place: impl Into<Place>) -> Result<Self, Error> {
        let place = place.into();
        Ok(Self {
            store: Store::open(&place)?,
            actor: "command".into(),
            place,
        })
    }

    /// Connects to the server again if an act before found the connection lost.
    ///
    /// # Errors
    /// The server's.
    pub fn renew(&mut self) -> Result<(), Error> {
        if self.store.db.is_lost() {
            self.store = Store::open(&self.place)?;
        }
        Ok(())
    }

    /// Says who acts from now on.
    pub fn set_actor(&mut self, actor: &str) {
        self.actor = actor.to_string();
    }

    /// Writes down an act that is none of the ledger's own.
    ///
    /// # Errors
    /// The database's.
    pub fn note(&mut self, act: &str, subject: &str, detail: &str) -> Result<(), Error> {
        audit(&mut self.store.db, &self.actor, act, subject, detail)
    }

    /// Makes a key. Its text cannot be had again. A user, a team or a project that it names and nobody has set begins
    /// without limits.
    ///
    /// # Errors
    /// [`Error::Refused`] if the name is taken or something makes no sense.
    pub fn add_key(&mut self, new: &NewKey, now_ms: u64) -> Result<Secret, Error> {
        check_name("a key's name", &new.name)?;
        new.limits.check()?;
        let secret = Secret::new()?;
        let actor = &self.actor;
        self.store.db.transaction(|db| {
            let taken = "SELECT id FROM keys WHERE name = ?1 AND revoked = 0";
            if db.first(taken, values![&new.name])?.is_some() {
                let message = format!("a key `{}` is there already; revoke or rotate it", new.name);
                return Err(Error::Refused(message));
            }
            let named = [
                (Kind::User, &new.user),
                (Kind::Project, &new.project),
                (Kind::Team, &new.team),
            ];
            for (kind, name) in named {
                if let Some(name) = name {
                    ensure(db, kind, name, now_ms)?;
                }
            }
            insert_key(db, new, &secret, now_ms)?;
            audit(db, actor, "add key", &new.name, &told(&new.limits))
        })?;
        Ok(secret)
    }

    /// Gives a key other limits and another end; who pays for it stays.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none of this name in force.
    pub fn set_key(&mut self, name: &str, limits: &Limits, expires_ms: Option<u64>) -> Result<(), Error> {
        limits.check()?;
        let actor = &self.actor;
        self.store.db.transaction(|db| {
            let models = limits.models.join("\n");
            let n = db.execute(
                "UPDATE keys SET expires_ms = ?2, models = ?3, rpm = ?4, tpm = ?5, concurrency = ?6, budget = ?7,
                 period = ?8, soft = ?9, soft_period = ?10, fallback = ?11, prepaid = ?12
                 WHERE name = ?1 AND revoked = 0",
                &[&values![name, expires_ms][..], &limit_values(limits, &models)[..]].concat(),
            )?;
            found(n, name)?;
            audit(db, actor, "set key", name, &told(limits))
        })
    }

    /// Takes a key back, with the texts that it had before.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none of this name in force.
    pub fn revoke_key(&mut self, name: &str) -> Result<(), Error> {
        let actor = &self.actor;
        self.store.db.transaction(|db| {
            let sql =
                "DELETE FROM old_secrets WHERE key IN (SELECT id FROM keys WHERE name = ?1 AND revoked = 0)";
            db.execute(sql, values![name])?;
            let sql = "UPDATE keys SET revoked = 1 WHERE name = ?1 AND revoked = 0";
            found(db.execute(sql, values![name])?, name)?;
            audit(db, actor, "revoke key", name, "")
        })
    }

    /// Gives a key another text. The one before stays good for `overlap_ms`, at most 90 days.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none of this name in force.
    pub fn rotate_key(&mut self, name: &str, overlap_ms: u64, now_ms: u64) -> Result<Secret, Error> {
        let secret = Secret::new()?;
        let actor = &self.actor;
        let until = now_ms.saturating_add(overlap_ms.min(MAX_OVERLAP_MS));
        self.store.db.transaction(|db| {
            db.execute("DELETE FROM old_secrets WHERE expires_ms <= ?1", values![now_ms])?;
            // A text that was to end later than the newer one ends with it.
            db.execute(
                "UPDATE old_secrets SET expires_ms = ?2 WHERE expires_ms > ?2
                 AND key IN (SELECT id FROM keys WHERE name = ?1 AND revoked = 0)",
                values![name, until],
            )?;
            db.execute(
                "INSERT INTO old_secrets (hash, key, expires_ms)
                 SELECT hash, id, CAST(?2 AS BIGINT) FROM keys WHERE name = ?1 AND revoked = 0",
                values![name, until],
            )?;
            let n = db.execute(
                "UPDATE keys SET hash = ?2, start = ?3 WHERE name = ?1 AND revoked = 0",
                values![name, &key::hash(secret.text()), secret.start()],
            )?;
            found(n, name)?;
            audit(
                db,
                actor,
                "rotate key",
                name,
                &format!("overlap {} s", overlap_ms / 1000),
            )
        })?;
        Ok(secret)
    }

    /// All keys, with what each has spent since it was made.
    ///
    /// # Errors
    /// The database's.
    pub fn keys(&mut self) -> Result<Vec<(KeyInfo, Total)>, Error> {
        let rows = self.store.db.query(&format!("{KEY} ORDER BY id"), &[])?;
        let keys: Vec<KeyInfo> = rows
            .into_iter()
            .map(|mut row| key_info(&mut row))
            .collect::<Result<_, _>>()?;
        keys.into_iter()
            .map(|key| {
                let total = self.store.spent(&key_scope(key.id), 0)?;
                Ok((key, total))
            })
            .collect()
    }

    /// A key in force.
    ///
    /// # Errors
    /// The database's.
    pub fn key(&mut self, name: &str) -> Result<Option<(KeyInfo, Total)>, Error> {
        let sql = format!("{KEY} WHERE name = ?1 AND revoked = 0");
        let Some(mut row) = self.store.db.first(&sql, values![name])? else {
            return Ok(None);
        };
        let key = key_info(&mut row)?;
        let total = self.store.spent(&key_scope(key.id), 0)?;
        Ok(Some((key, total)))
    }

    /// Sets a team's budget, or takes it away; its other limits stay.
    ///
    /// # Errors
    /// The database's.
    pub fn set_team(&mut self, name: &str, budget: Option<Budget>) -> Result<(), Error> {
        let mut account = self
            .account(Kind::Team, name)?
            .map_or_else(|| Account::new(Kind::Team, name), |(account, _)| account);
        account.limits.budget = budget;
        self.set_account(&account)
    }

    /// Sets an account, or makes it.
    ///
    /// # Errors
    /// [`Error::Refused`] if something makes no sense.
    pub fn set_account(&mut self, account: &Account) -> Result<(), Error> {
        check_name("a name", &account.name)?;
        account.limits.check()?;
        if account.kind == Kind::Team && account.team.is_some() {
            return Err(Error::Refused("a team belongs to no other team".into()));
        }
        if account.kind != Kind::User && account.role != Role::Member {
            return Err(Error::Refused("only users have roles".into()));
        }
        let (kind, limits, actor) = (account.kind.name(), &account.limits, &self.actor);
        self.store.db.transaction(|db| {
            if let Some(team) = &account.team {
                ensure(db, Kind::Team, team, now_ms())?;
            }
            ensure(db, account.kind, &account.name, now_ms())?;
            let models = limits.models.join("\n");
            db.execute(
                "UPDATE accounts SET team = ?3, role = ?4, models = ?5, rpm = ?6, tpm = ?7, concurrency = ?8,
                 budget = ?9, period = ?10, soft = ?11, soft_period = ?12, fallback = ?13, prepaid = ?14
                 WHERE kind = ?1 AND name = ?2",
                &[
                    &values![kind, &account.name, account.team.as_ref(), account.role.name()][..],
                    &limit_values(limits, &models)[..],
                ]
                .concat(),
            )?;
            let detail = format!("role {}, {}", account.role.name(), told(limits));
            audit(db, actor, &format!("set {kind}"), &account.name, &detail)
        })
    }

    /// Removes an account that no key in force and no other account belongs to. What it spent stays known.
    ///
    /// # Errors
    /// [`Error::Refused`] if something belongs to it, or it is not there.
    pub fn remove_account(&mut self, kind: Kind, name: &str) -> Result<(), Error> {
        let column = match kind {
            Kind::User => "user_name",
            Kind::Team => "team",
            Kind::Project => "project",
        };
        let actor = &self.actor;
        self.store.db.transaction(|db| {
            let sql = format!("SELECT count(*) FROM keys WHERE {column} = ?1 AND revoked = 0");
            let mut n = db.one(&sql, values![name])?.int()?;
            if kind == Kind::Team {
                n += db
                    .one("SELECT count(*) FROM accounts WHERE team = ?1", values![name])?
                    .int()?;
            }
            if n > 0 {
                let message = format!(
                    "{n} keys or accounts belong to {} `{name}`; revoke or move them first",
                    kind.name()
                );
                return Err(Error::Refused(message));
            }
            let sql = "DELETE FROM accounts WHERE kind = ?1 AND name = ?2";
            if db.execute(sql, values![kind.name(), name])? == 0 {
                return Err(Error::Refused(format!("there is no {} `{name}`", kind.name())));
            }
            audit(db, actor, &format!("remove {}", kind.name()), name, "")
        })
    }

    /// All accounts of a kind, with what each has ever spent.
    ///
    /// # Errors
    /// The database's.
    pub fn accounts(&mut self, kind: Kind) -> Result<Vec<(Account, Total)>, Error> {
        let accounts = self.store.accounts()?.into_iter();
        accounts
            .filter(|account| account.kind == kind)
            .map(|account| {
                let total = self.store.spent(&kind.scope(&account.name), 0)?;
                Ok((account, total))
            })
            .collect()
    }

    /// An account, with what it has ever spent.
    ///
    /// # Errors
    /// The database's.
    pub fn account(&mut self, kind: Kind, name: &str) -> Result<Option<(Account, Total)>, Error> {
        Ok(self
            .accounts(kind)?
            .into_iter()
            .find(|(account, _)| account.name == name))
    }

    /// Pays in for whoever may only spend what was paid in. The same id again changes nothing; gives whether it was new.
    ///
    /// # Errors
    /// [`Error::Refused`] if nobody has this scope.
    pub fn top_up(&mut self, credit: &Credit) -> Result<bool, Error> {
        check_name("a credit's id", &credit.id)?;
        if credit.amount > MAX_CREDIT || credit.note.contains('\0') {
            let message = format!("a payment is at most {MAX_CREDIT}, and its note has no NUL");
            return Err(Error::Refused(message));
        }
        let scope = self.scope(&credit.scope)?;
        let actor = &self.actor;
        self.store.db.transaction(|db| {
            let n = db.execute(
                "INSERT INTO credits (id, scope, micros, note, at_ms) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING",
                values![&credit.id, &scope, credit.amount, &credit.note, credit.at_ms],
            )?;
            if n == 1 {
                let detail = format!("{} ({})", credit.amount, credit.id);
                audit(db, actor, "top up", &credit.scope, &detail)?;
            }
            Ok(n == 1)
        })
    }

    /// What was paid in, the latest first, at most 1000.
    ///
    /// # Errors
    /// The database's.
    pub fn credits(&mut self) -> Result<Vec<Credit>, Error> {
        let sql = "SELECT id, scope, micros, note, at_ms FROM credits ORDER BY at_ms DESC, id LIMIT 1000";
        let rows = self.store.db.query(sql, &[])?;
        rows.into_iter()
            .map(|mut row| {
                Ok(Credit {
                    id: row.text()?,
                    scope: row.text()?,
                    amount: Micros(row.count()?),
                    note: row.text()?,
                    at_ms: row.count()?,
                })
            })
            .collect()
    }

    /// What `KIND:NAME` is counted under. Keys may be named by their names.
    fn scope(&mut self, text: &str) -> Result<String, Error> {
        let nobody = || {
            Error::Refused(format!(
                "nobody is `{text}`; say key:NAME, user:NAME, team:NAME or project:NAME"
            ))
        };
        let (kind, name) = text.split_once(':').ok_or_else(nobody)?;
        if kind == "key" {
            let (key, _) = self.key(name)?.ok_or_else(nobody)?;
            return Ok(key_scope(key.id));
        }
        let kind = Kind::of_name(kind).ok_or_else(nobody)?;
        self.account(kind, name)?.ok_or_else(nobody)?;
        Ok(text.to_string())
    }

    /// Acts, the latest first, of numbers below `before`.
    ///
    /// # Errors
    /// The database's.
    pub fn audit(&mut self, before: Option<i64>, limit: u32) -> Result<Vec<Audit>, Error> {
        let rows = self.store.db.query(
            "SELECT id, at_ms, actor, act, subject, detail FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            values![before.unwrap_or(i64::MAX), i64::from(limit)],
        )?;
        rows.into_iter()
            .map(|mut row| {
                Ok(Audit {
                    id: row.int()?,
                    at_ms: row.count()?,
                    actor: row.text()?,
                    act: row.text()?,
                    subject: row.text()?,
                    detail: row.text()?,
                })
            })
            .collect()
    }

    /// Requests of an outcome, `None` for those under way: how many, and what they cost.
    ///
    /// # Errors
    /// The database's.
    pub fn requests(&mut self, outcome: Option<Outcome>) -> Result<Total, Error> {
        let mut row = self.store.db.one(
            "SELECT count(*), CAST(coalesce(sum(cost), 0) AS BIGINT) FROM requests WHERE coalesce(outcome, '') = ?1",
            values![outcome.map_or("", Outcome::name)],
        )?;
        Ok(Total {
            requests: row.count()?,
            spent: Micros(row.count()?),
            ..Total::default()
        })
    }
}

fn found(n: u64, name: &str) -> Result<(), Error> {
    match n {
        0 => Err(Error::Refused(format!("there is no key `{name}` in force"))),
        _ => Ok(()),
    }
}

/// Makes an account without limits if it is not there.
fn ensure(db: &mut Db, kind: Kind, name: &str, now_ms: u64) -> Result<(), Error> {
    check_name("a name", name)?;
    db.execute(
        "INSERT INTO accounts (kind, name, role, models, created_ms) VALUES (?1, ?2, 'member', '', ?3)
         ON CONFLICT (kind, name) DO NOTHING",
        values![kind.name(), name, now_ms],
    )?;
    Ok(())
}

/// What a row has of its limits, in the order of its columns from `models` to `prepaid`.
fn limit_values<'a>(limits: &'a Limits, models: &'a str) -> [Value<'a>; 10] {
    [
        models.into(),
        limits.requests_per_minute.into(),
        limits.tokens_per_minute.into(),
        limits.concurrency.into(),
        limits.budget.map(|budget| budget.limit).into(),
        limits.budget.map(|budget| budget.period.name()).into(),
        limits.soft.map(|budget| budget.limit).into(),
        limits.soft.map(|budget| budget.period.name()).into(),
        limits.fallback.as_ref().into(),
        limits.is_prepaid.into(),
    ]
}

fn insert_key(db: &mut Db, new: &NewKey, secret: &Secret, now_ms: u64) -> Result<(), Error> {
    let limits = &new.limits;
    let models = limits.models.join("\n");
    db.execute(
        "INSERT INTO keys (hash, start, name, user_name, project, team, models, rpm, tpm, concurrency, budget, period,
         soft, soft_period, fallback, prepaid, expires_ms, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        &[
            &values![
                &key::hash(secret.text()),
                secret.start(),
                &new.name,
                new.user.as_ref(),
                new.project.as_ref(),
                new.team.as_ref(),
            ][..],
            &limit_values(limits, &models)[..],
            &values![new.expires_ms, now_ms][..],
        ]
        .concat(),
    )?;
    Ok(())
}
