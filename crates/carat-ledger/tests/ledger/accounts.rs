//! Users, teams and projects, soft limits, credits, rotation, and databases of earlier versions.

use std::time::{SystemTime, UNIX_EPOCH};

use carat_ledger::{
    Account, Admin, Asked, Budget, Credit, Kind, Ledger, Limits, Micros, NewKey, Period, Refusal, Role,
};

use crate::common::{Ground, Now, asked, row, until};

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn budget(limit: u64, period: Period) -> Option<Budget> {
    Some(Budget {
        limit: Micros(limit),
        period,
    })
}

fn key(name: &str) -> NewKey {
    NewKey {
        name: name.into(),
        ..NewKey::default()
    }
}

#[test]
fn all_who_pay_must_allow_it() {
    Ground::all().iter().for_each(all_who_pay_must_allow_it_on);
}

fn all_who_pay_must_allow_it_on(ground: &Ground) {
    let mut admin = Admin::open(&ground.place).unwrap();
    let limited = |kind, name: &str, team: Option<&str>, limits| Account {
        team: team.map(ToString::to_string),
        limits,
        ..Account::new(kind, name)
    };
    let models = |model: &str| Limits {
        models: vec![model.into()],
        ..Limits::default()
    };
    let spend = |limit| Limits {
        budget: budget(limit, Period::Total),
        ..Limits::default()
    };
    admin
        .set_account(&limited(Kind::Team, "t", None, spend(100)))
        .unwrap();
    admin
        .set_account(&limited(Kind::User, "u", None, models("chat*")))
        .unwrap();
    admin
        .set_account(&limited(Kind::Project, "p", Some("t"), spend(60)))
        .unwrap();
    let new = NewKey {
        user: Some("u".into()),
        project: Some("p".into()),
        ..key("k")
    };
    let secret = admin.add_key(&new, 1).unwrap();
    let other = NewKey {
        team: Some("t".into()),
        ..key("other")
    };
    let other = admin.add_key(&other, 1).unwrap();
    let ledger = Ledger::open(&ground.place, None).unwrap();
    let refused = |secret: &str, route, cost| ledger.admit(secret, &asked(route, cost)).now().err();
    assert_eq!(
        refused(secret.text(), "slow", 1),
        Some(Refusal::Model),
        "the user may not"
    );
    assert_eq!(
        refused(secret.text(), "chat", 61),
        Some(Refusal::Budget { whose: "project" })
    );
    ledger
        .admit(secret.text(), &asked("chat2", 50))
        .now()
        .unwrap()
        .settle(row(50));
    // The project's team has paid for it too.
    assert_eq!(
        refused(other.text(), "slow", 51),
        Some(Refusal::Budget { whose: "team" })
    );
    ledger
        .admit(other.text(), &asked("slow", 50))
        .now()
        .unwrap()
        .settle(row(50));
    assert_eq!(
        refused(secret.text(), "chat", 1),
        Some(Refusal::Budget { whose: "team" })
    );
    let bearer = ledger.bearer(secret.text()).unwrap();
    assert_eq!((bearer.user.as_deref(), bearer.role), (Some("u"), Role::Member));

    admin
        .set_account(&Account {
            role: Role::Viewer,
            ..Account::new(Kind::User, "u")
        })
        .unwrap();
    until(|| refused(secret.text(), "chat", 0) == Some(Refusal::Role));
    let error = admin.remove_account(Kind::Team, "t").unwrap_err().to_string();
    assert!(error.contains("2 keys or accounts belong to team `t`"), "{error}");
    drop(ledger);
    let teams = admin.accounts(Kind::Team).unwrap();
    assert_eq!((teams[0].1.spent, teams[0].1.requests), (Micros(100), 2));
    assert!(
        admin
            .set_account(&Account {
                role: Role::Admin,
                ..Account::new(Kind::Team, "t")
            })
            .is_err()
    );
}

#[test]
fn a_budget_that_is_raised_forgets_nothing_that_was_spent() {
    Ground::all()
        .iter()
        .for_each(a_budget_that_is_raised_forgets_nothing_that_was_spent_on);
}

fn a_budget_that_is_raised_forgets_nothing_that_was_spent_on(ground: &Ground) {
    let mut admin = Admin::open(&ground.place).unwrap();
    let limits = |limit, period| Limits {
        budget: budget(limit, period),
        ..Limits::default()
    };
    let new = NewKey {
        limits: limits(100, Period::Day),
        ..key("k")
    };
    let secret = admin.add_key(&new, 1).unwrap();
    let ledger = Ledger::open(&ground.place, None).unwrap();
    let refused = |cost| ledger.admit(secret.text(), &asked("chat", cost)).now().err();
    ledger
        .admit(secret.text(), &asked("chat", 90))
        .now()
        .unwrap()
        .settle(row(90));
    let hold = ledger.admit(secret.text(), &asked("chat", 10)).now().unwrap();
    // At once, while the database has not heard of the ninety.
    admin.set_key("k", &limits(150, Period::Month), None).unwrap();
    until(|| refused(40).is_none());
    assert_eq!(refused(51), Some(Refusal::Held), "10 are held");
    assert_eq!(
        refused(61),
        Some(Refusal::Budget { whose: "key" }),
        "90 are spent"
    );
    hold.settle(row(10));
    assert_eq!(refused(51), Some(Refusal::Budget { whose: "key" }));
    admin.set_key("k", &limits(1, Period::Total), None).unwrap();
    until(|| refused(0) == Some(Refusal::Budget { whose: "key" }));
}

#[test]
fn soft_limits_are_told_written_down_and_send_elsewhere() {
    Ground::all()
        .iter()
        .for_each(soft_limits_are_told_written_down_and_send_elsewhere_on);
}

fn soft_limits_are_told_written_down_and_send_elsewhere_on(ground: &Ground) {
    let mut admin = Admin::open(&ground.place).unwrap();
    let limits = Limits {
        soft: budget(50, Period::Month),
        fallback: Some("small".into()),
        models: vec!["chat".into()],
        ..Limits::default()
    };
    let secret = admin.add_key(&NewKey { limits, ..key("k") }, 1).unwrap();
    let ledger = Ledger::open(&ground.place, None).unwrap();
    ledger
        .admit(secret.text(), &asked("chat", 50))
        .now()
        .unwrap()
        .settle(row(50));
    let refusal = ledger.admit(secret.text(), &asked("chat", 1)).now().unwrap_err();
    assert_eq!(refusal, Refusal::Downgrade { to: "small".into() });
    let instead = Asked {
        is_downgraded: true,
        ..asked("small", 1)
    };
    let hold = ledger.admit(secret.text(), &instead).now().unwrap();
    assert_eq!(
        hold.warnings()[0].to_string(),
        "key spent $0.000050 of $0.000050 a month"
    );
    hold.settle(row(1));
    drop(ledger);
    let told = admin.audit(None, 10).unwrap();
    assert_eq!(
        (told[0].actor.as_str(), told[0].act.as_str()),
        ("gateway", "soft limit passed")
    );
    assert_eq!(told[1].act, "add key");
}

#[test]
fn credits_are_paid_in_once_and_used_up() {
    Ground::all()
        .iter()
        .for_each(credits_are_paid_in_once_and_used_up_on);
}

fn credits_are_paid_in_once_and_used_up_on(ground: &Ground) {
    let mut admin = Admin::open(&ground.place).unwrap();
    let limits = Limits {
        is_prepaid: true,
        ..Limits::default()
    };
    let secret = admin.add_key(&NewKey { limits, ..key("k") }, 1).unwrap();
    let ledger = Ledger::open(&ground.place, None).unwrap();
    let refused = |cost| ledger.admit(secret.text(), &asked("chat", cost)).now().err();
    assert_eq!(refused(0), Some(Refusal::Budget { whose: "key" }));
    let credit = |id: &str| Credit {
        id: id.into(),
        scope: "key:k".into(),
        amount: Micros(100),
        note: "invoice 7".into(),
        at_ms: 1,
    };
    assert!(admin.top_up(&credit("a")).unwrap() && !admin.top_up(&credit("a")).unwrap());
    until(|| refused(100).is_none());
    ledger
        .admit(secret.text(), &asked("chat", 80))
        .now()
        .unwrap()
        .settle(row(80));
    assert_eq!(refused(21), Some(Refusal::Budget { whose: "key" }));
    assert!(admin.top_up(&credit("b")).unwrap());
    until(|| refused(120).is_none());
    let nobody = Credit {
        scope: "team:x".into(),
        ..credit("c")
    };
    assert!(admin.top_up(&nobody).is_err());
    let endless = Credit {
        amount: Micros(u64::MAX),
        ..credit("d")
    };
    assert!(
        admin.top_up(&endless).is_err(),
        "sums of such could not be read again"
    );
    assert_eq!(admin.credits().unwrap().len(), 2);
    drop(ledger);
    let ledger = Ledger::open(&ground.place, None).unwrap();
    let left = ledger.admit(secret.text(), &asked("chat", 121)).now().err();
    assert_eq!(
        left,
        Some(Refusal::Budget { whose: "key" }),
        "remembered over a restart"
    );
}

#[test]
fn a_rotated_key_has_two_texts_for_a_while() {
    Ground::all()
        .iter()
        .for_each(a_rotated_key_has_two_texts_for_a_while_on);
}

fn a_rotated_key_has_two_texts_for_a_while_on(ground: &Ground) {
    let mut admin = Admin::open(&ground.place).unwrap();
    let first = admin.add_key(&key("k"), now_ms()).unwrap();
    let ledger = Ledger::open(&ground.place, None).unwrap();
    let second = admin.rotate_key("k", 60_000, now_ms()).unwrap();
    until(|| ledger.bearer(second.text()).is_some());
    assert!(ledger.bearer(first.text()).is_some(), "both are good");
    let third = admin.rotate_key("k", 0, now_ms()).unwrap();
    until(|| ledger.bearer(third.text()).is_some());
    assert!(ledger.bearer(first.text()).is_none() && ledger.bearer(second.text()).is_none());
    admin.rotate_key("k", 60_000, now_ms()).unwrap();
    admin.revoke_key("k").unwrap();
    until(|| ledger.bearer(third.text()).is_none());
    assert!(admin.rotate_key("k", 0, now_ms()).is_err());
    let expired = NewKey {
        expires_ms: Some(now_ms() - 1),
        ..key("old")
    };
    let expired = admin.add_key(&expired, 1).unwrap();
    let lives = admin.add_key(&key("lives"), 1).unwrap();
    until(|| ledger.bearer(lives.text()).is_some());
    assert!(ledger.bearer(expired.text()).is_none());
}

/// The first version, as it made its tables, with a key, a team, and requests.
const VERSION_1: &str = include_str!("version_1.sql");

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date() {
    let ground = Ground::sqlite();
    let path = ground.folder.path().join("l.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(VERSION_1).unwrap();
    // The key's text was `sk-carat-old`; another key names a team that was never set.
    drop(old);
    let mut admin = Admin::open(&path).unwrap();
    let keys = admin.keys().unwrap();
    assert_eq!(keys.len(), 2);
    let (key, total) = &keys[0];
    assert_eq!(
        (key.rights.name.as_str(), key.rights.team.as_deref()),
        ("alice", Some("research"))
    );
    assert_eq!(key.rights.limits.models, ["chat", "openai/*"]);
    assert_eq!((total.spent, total.requests), (Micros(70), 2));
    let teams = admin.accounts(Kind::Team).unwrap();
    let names: Vec<&str> = teams.iter().map(|(team, _)| team.name.as_str()).collect();
    assert_eq!(names, ["named", "research"]);
    assert_eq!(teams[1].0.limits.budget, budget(100, Period::Total));
    let ledger = Ledger::open(&path, None).unwrap();
    assert_eq!(ledger.n_lost(), 1);
    let refused = |cost| ledger.admit("sk-carat-old", &asked("chat", cost)).now().err();
    assert_eq!(
        refused(31),
        Some(Refusal::Budget { whose: "team" }),
        "70 of 100 are spent"
    );
    assert_eq!(refused(30), None);
    drop(ledger);
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    let error = Admin::open(&path).unwrap_err().to_string();
    assert!(error.contains("99"), "{error}");
}
