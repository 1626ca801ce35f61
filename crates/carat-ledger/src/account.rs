//! Who pays: keys, users, teams and projects, with the limits that each of them may have.
//!
//! A request pays from its key, and from the user, the project and the team that the key belongs to: all must allow it.
//! A user or a project may belong to a team; then the team pays for its keys too.

use serde::{Deserialize, Serialize};

use crate::{Budget, Error, Micros};

/// Longest name of anything, in bytes.
pub(crate) const MAX_NAME: usize = 200;
/// Most models that one list of allowed ones may have.
const MAX_MODELS: usize = 1000;

/// What may be asked and spent. Nothing set is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Routes and models that may be asked for; one that ends in `*` means all that begin so.
    pub models: Vec<String>,
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
    /// Requests at the same time.
    pub concurrency: Option<u64>,
    /// What may be spent: more is refused.
    pub budget: Option<Budget>,
    /// What is told when it is spent, and may send requests to `fallback`.
    pub soft: Option<Budget>,
    /// The route or model that answers in place of the one asked for once the soft limit is passed.
    pub fallback: Option<String>,
    /// Only what was paid in may be spent ([`crate::Admin::top_up`]).
    pub is_prepaid: bool,
}

impl Limits {
    /// Whether a model may be asked for.
    pub(crate) fn allows(&self, model: &str) -> bool {
        self.models.is_empty()
            || self.models.iter().any(|allowed| match allowed.strip_suffix('*') {
                Some(start) => model.starts_with(start),
                None => allowed == model,
            })
    }

    /// Whether money is counted.
    pub(crate) fn has_budget(&self) -> bool {
        self.budget.is_some() || self.is_prepaid
    }

    /// # Errors
    /// [`Error::Refused`] says what makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.models.len() > MAX_MODELS {
            return Err(Error::Refused(format!(
                "at most {MAX_MODELS} models can be listed"
            )));
        }
        for model in self.models.iter().chain(&self.fallback) {
            check_name("a model's name", model)?;
        }
        if [self.requests_per_minute, self.tokens_per_minute, self.concurrency].contains(&Some(0)) {
            return Err(Error::Refused(
                "a limit of 0 would refuse everything; revoke the key instead".into(),
            ));
        }
        Ok(())
    }
}

/// # Errors
/// [`Error::Refused`] if it is empty, long, or holds what cannot be printed.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let message = format!("{what} has 1 to {MAX_NAME} bytes and no control characters");
        return Err(Error::Refused(message));
    }
    Ok(())
}

/// What kind of account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A person, or a program.
    User,
    /// People with a common budget.
    Team,
    /// What requests are made for.
    Project,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::User, Self::Team, Self::Project];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Team => "team",
            Self::Project => "project",
        }
    }

    /// The kind of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What its spending is counted under.
    pub(crate) fn scope(self, name: &str) -> String {
        format!("{}:{name}", self.name())
    }
}

/// What a key's spending is counted under.
pub(crate) fn key_scope(id: i64) -> String {
    format!("key:{id}")
}

/// What a user may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ask models, and administer the gateway.
    Admin,
    /// Ask models.
    #[default]
    Member,
    /// Look at keys, spending and requests; ask nothing.
    Viewer,
}

impl Role {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
            Self::Viewer => "viewer",
        }
    }

    /// The role of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Admin, Self::Member, Self::Viewer]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

/// A user, a team or a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    /// What it is.
    pub kind: Kind,
    /// Unique within its kind.
    pub name: String,
    /// The team that it belongs to and that pays for it too; a team belongs to none.
    pub team: Option<String>,
    /// What a user may do; without meaning for others.
    pub role: Role,
    /// What its keys may do together.
    pub limits: Limits,
}

impl Account {
    /// One without limits.
    pub fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_string(),
            team: None,
            role: Role::default(),
            limits: Limits::default(),
        }
    }
}

/// Money that was paid in for whoever may spend only that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Credit {
    /// Given by whoever paid in: the same one again changes nothing.
    pub id: String,
    /// Whose it is: `key:NUMBER`, `user:NAME`, `team:NAME` or `project:NAME`.
    pub scope: String,
    /// How much.
    #[serde(rename = "micros")]
    pub amount: Micros,
    /// What people want to remember of it.
    pub note: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_allowed_by_name_or_beginning() {
        let limits = |models: &[&str]| Limits {
            models: models.iter().map(ToString::to_string).collect(),
            ..Limits::default()
        };
        assert!(limits(&[]).allows("x"));
        let some = limits(&["chat", "openai/*"]);
        assert!(some.allows("chat") && some.allows("openai/gpt"));
        assert!(!some.allows("chat2") && !some.allows("groq/x"));
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let wrong = [
            Limits {
                models: vec![String::new()],
                ..Limits::default()
            },
            Limits {
                models: vec!["a\nb".into()],
                ..Limits::default()
            },
            Limits {
                fallback: Some("x".repeat(201)),
                ..Limits::default()
            },
            Limits {
                concurrency: Some(0),
                ..Limits::default()
            },
        ];
        for limits in wrong {
            assert!(limits.check().is_err(), "{limits:?}");
        }
        assert!(Limits::default().check().is_ok());
    }
}
