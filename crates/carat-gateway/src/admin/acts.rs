//! What the admin API can do: a path and a method lead to one act.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use carat_ledger::{Account, By, Credit, Filter, Kind, Limits, Micros, NewKey, Role, Total, day};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::desk::Desk;
use super::{Refused, view};
use crate::Gateway;
use crate::endpoint::decoded;
use crate::server::Source;

/// Where every path begins.
const PREFIX: &str = "/admin/v1/";
/// Rows of a page, unless more or fewer are asked for.
const PAGE: u32 = 100;

/// What is asked.
pub(super) struct Call {
    verb: Verb,
    path: Vec<String>,
    query: HashMap<String, String>,
    body: Value,
    actor: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

impl Call {
    pub(super) fn new(
        method: &Method,
        path: &str,
        query: &str,
        body: &[u8],
        actor: String,
    ) -> Result<Self, Refused> {
        let verb = match method.as_str() {
            "GET" | "HEAD" => Verb::Get,
            "POST" => Verb::Post,
            "PUT" => Verb::Put,
            "DELETE" => Verb::Delete,
            _ => return Err(wrong("say GET, POST, PUT or DELETE")),
        };
        let parts = path.strip_prefix(PREFIX).ok_or_else(nothing)?;
        let path: Option<Vec<String>> = parts.split('/').map(decoded).collect();
        // No name has them, and not every database takes them.
        let is_plain = |text: &str| !text.chars().any(char::is_control);
        let path = path.filter(|path| path.iter().all(|part| is_plain(part)));
        let body = match body {
            [] => json!({}),
            body => serde_json::from_slice(body)
                .map_err(|error| wrong(format!("the body is no JSON: {error}")))?,
        };
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = pairs.filter_map(|(name, value)| Some((name.to_string(), decoded(value)?)));
        let query: HashMap<String, String> = query.collect();
        if !query.values().all(|value| is_plain(value)) {
            return Err(wrong("the query has characters that nothing is called by"));
        }
        Ok(Self {
            verb,
            path: path.ok_or_else(nothing)?,
            query,
            body,
            actor,
        })
    }

    fn read<T: for<'a> Deserialize<'a>>(&self) -> Result<T, Refused> {
        T::deserialize(&self.body).map_err(|error| wrong(format!("the body makes no sense: {error}")))
    }

    /// A number in the query.
    fn number(&self, name: &str) -> Result<Option<i64>, Refused> {
        let value = self.query.get(name).map(|text| text.parse());
        value
            .transpose()
            .map_err(|_| wrong(format!("`{name}` must be a number")))
    }

    fn limit(&self) -> Result<u32, Refused> {
        let limit = self.number("limit")?.unwrap_or(i64::from(PAGE));
        Ok(u32::try_from(limit.clamp(1, 1000)).unwrap_or(PAGE))
    }
}

fn wrong(message: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, message)
}

fn nothing() -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        "there is nothing at this path; docs/gateway.md lists what there is",
    )
}

pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyChange {
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    expires_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    #[serde(default)]
    overlap_s: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountText {
    #[serde(default)]
    team: Option<String>,
    #[serde(default)]
    role: Role,
    #[serde(default)]
    limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreditText {
    id: String,
    scope: String,
    micros: Micros,
    #[serde(default)]
    note: String,
}

/// Everything that acts need.
pub(super) struct Acts {
    pub(super) desk: Desk,
    pub(super) gateway: Arc<Gateway>,
    pub(super) source: Source,
}

impl Acts {
    pub(super) async fn answer(&self, call: Call) -> Result<Value, Refused> {
        let path: Vec<String> = call.path.clone();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match (call.verb, path.as_slice()) {
            (Verb::Get, ["status"]) => Ok(view::status(&self.gateway)),
            (Verb::Get, ["targets"]) => Ok(view::targets(&self.gateway)),
            (Verb::Post, ["reload"]) => self.reload(call).await,
            (_, ["keys", ..]) => self.keys(call).await,
            (Verb::Get | Verb::Post, ["credits"]) => self.credits(call).await,
            (Verb::Get, ["spend"]) => self.spend(call).await,
            (Verb::Get, ["requests"]) => self.requests(call).await,
            (Verb::Get, ["audit"]) => {
                let (before, limit) = (call.number("before")?, call.limit()?);
                let audit = self
                    .desk
                    .act(call.actor, move |admin| admin.audit(before, limit))
                    .await?;
                Ok(json!({"audit": audit}))
            }
            (_, [kind, ..]) => {
                let kind = kind
                    .strip_suffix('s')
                    .and_then(Kind::of_name)
                    .ok_or_else(nothing)?;
                self.accounts(kind, call).await
            }
            _ => Err(nothing()),
        }
    }

    async fn keys(&self, call: Call) -> Result<Value, Refused> {
        let desk = &self.desk;
        match (call.verb, &call.path[1..]) {
            (Verb::Get, []) => {
                let keys = desk.act(call.actor, |admin| admin.keys()).await?;
                let keys: Vec<Value> = keys
                    .iter()
                    .map(|(key, total)| with_total(json!(key), total))
                    .collect();
                Ok(json!({"keys": keys}))
            }
            (Verb::Post, []) => {
                let new: NewKey = call.read()?;
                let name = new.name.clone();
                let secret = desk
                    .act(call.actor, move |admin| admin.add_key(&new, now_ms()))
                    .await?;
                Ok(json!({"name": name, "key": secret.text()}))
            }
            (Verb::Get, [name]) => {
                let name = name.clone();
                let key = desk.act(call.actor, move |admin| admin.key(&name)).await?;
                let (key, total) =
                    key.ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, "there is no such key in force"))?;
                Ok(with_total(json!(key), &total))
            }
            (Verb::Put, [name]) => {
                let (name, change) = (name.clone(), call.read::<KeyChange>()?);
                let set = move |admin: &mut carat_ledger::Admin| {
                    admin.set_key(&name, &change.limits, change.expires_ms)
                };
                desk.act(call.actor, set).await?;
                Ok(done())
            }
            (Verb::Delete, [name]) => {
                let name = name.clone();
                desk.act(call.actor, move |admin| admin.revoke_key(&name)).await?;
                Ok(done())
            }
            (Verb::Post, [name, rotate]) if rotate == "rotate" => {
                let (name, overlap_s) = (name.clone(), call.read::<Rotation>()?.overlap_s);
                let overlap_ms = overlap_s.saturating_mul(1000);
                let rotate =
                    move |admin: &mut carat_ledger::Admin| admin.rotate_key(&name, overlap_ms, now_ms());
                let secret = desk.act(call.actor, rotate).await?;
                Ok(json!({"key": secret.text()}))
            }
            _ => Err(nothing()),
        }
    }

    async fn accounts(&self, kind: Kind, call: Call) -> Result<Value, Refused> {
        let desk = &self.desk;
        match (call.verb, &call.path[1..]) {
            (Verb::Get, []) => {
                let accounts = desk.act(call.actor, move |admin| admin.accounts(kind)).await?;
                let accounts: Vec<Value> = accounts
                    .iter()
                    .map(|(account, total)| with_total(json!(account), total))
                    .collect();
                Ok(json!({format!("{}s", kind.name()): accounts}))
            }
            (Verb::Get, [name]) => {
                let name = name.clone();
                let account = desk
                    .act(call.actor, move |admin| admin.account(kind, &name))
                    .await?;
                let (account, total) = account
                    .ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, "there is nobody of this name"))?;
                Ok(with_total(json!(account), &total))
            }
            (Verb::Put, [name]) => {
                let text: AccountText = call.read()?;
                let account = Account {
                    kind,
                    name: name.clone(),
                    team: text.team,
                    role: text.role,
                    limits: text.limits,
                };
                desk.act(call.actor, move |admin| admin.set_account(&account))
                    .await?;
                Ok(done())
            }
            (Verb::Delete, [name]) => {
                let name = name.clone();
                desk.act(call.actor, move |admin| admin.remove_account(kind, &name))
                    .await?;
                Ok(done())
            }
            _ => Err(nothing()),
        }
    }

    async fn credits(&self, call: Call) -> Result<Value, Refused> {
        if call.verb == Verb::Get {
            let credits = self.desk.act(call.actor, |admin| admin.credits()).await?;
            return Ok(json!({"credits": credits}));
        }
        let text: CreditText = call.read()?;
        let credit = Credit {
            id: text.id,
            scope: text.scope,
            amount: text.micros,
            note: text.note,
            at_ms: now_ms(),
        };
        let is_new = self
            .desk
            .act(call.actor, move |admin| admin.top_up(&credit))
            .await?;
        Ok(json!({"is_new": is_new}))
    }

    async fn spend(&self, call: Call) -> Result<Value, Refused> {
        let by = call.query.get("by").map_or("model", String::as_str);
        let by =
            By::of_name(by).ok_or_else(|| wrong("`by` must be key, user, team, project, model or day"))?;
        let today = day(now_ms());
        let (from, to) = (
            call.number("from")?.unwrap_or(today - 30),
            call.number("to")?.unwrap_or(today),
        );
        let spend = self
            .desk
            .act(call.actor, move |admin| admin.spend(by, from, to))
            .await?;
        Ok(json!({"by": by.name(), "from": from, "to": to, "spend": spend}))
    }

    async fn requests(&self, call: Call) -> Result<Value, Refused> {
        let before = call.query.get("before").map(|id| {
            let digits = id.strip_prefix("req-").unwrap_or(id);
            u128::from_str_radix(digits, 16).map_err(|_| wrong("`before` must be the id of a request"))
        });
        let filter = Filter {
            before: before.transpose()?.map(u128::to_be_bytes),
            key: call.query.get("key").cloned(),
            outcome: call.query.get("outcome").cloned(),
            limit: call.limit()?,
        };
        let rows = self
            .desk
            .act(call.actor, move |admin| admin.rows(&filter))
            .await?;
        let next = rows.last().map(|row| row.id.clone());
        Ok(json!({"requests": rows, "next": next}))
    }

    async fn reload(&self, call: Call) -> Result<Value, Refused> {
        let result = self.source.reload(&self.gateway);
        let told = match &result {
            Ok(()) => "taken".to_string(),
            Err(error) => error.to_string(),
        };
        self.desk
            .act(call.actor, move |admin| {
                admin.note("reload", "configuration", &told)
            })
            .await?;
        result.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
            wrong(format!("the configuration is refused: {error}{cause}"))
        })?;
        Ok(done())
    }
}

fn done() -> Value {
    json!({"done": true})
}

fn with_total(mut value: Value, total: &Total) -> Value {
    value["total"] = json!(total);
    value
}
