//! Money under concurrency and under crashes.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use carat_ledger::{
    Admin, Asked, Budget, Hold, Ledger, Limits, Micros, NewKey, Outcome, Period, Place, Refusal,
};

use crate::common::{Ground, Now, place_of, row, until};

fn asked(cost: u64) -> Asked<'static> {
    crate::common::asked("chat", cost)
}

fn budget(limit: u64) -> Option<Budget> {
    Some(Budget {
        limit: Micros(limit),
        period: Period::Month,
    })
}

struct Rig<'a> {
    ground: &'a Ground,
    secret: String,
}

impl<'a> Rig<'a> {
    fn new(ground: &'a Ground, rights: NewKey) -> Self {
        let mut admin = Admin::open(&ground.place).unwrap();
        let name = "k".to_string();
        let secret = admin.add_key(&NewKey { name, ..rights }, 1).unwrap();
        Self {
            ground,
            secret: secret.text().to_string(),
        }
    }

    fn admin(&self) -> Admin {
        Admin::open(&self.ground.place).unwrap()
    }

    fn open(&self) -> Ledger {
        Ledger::open(&self.ground.place, None).unwrap()
    }

    fn total(&self) -> carat_ledger::Total {
        self.admin().keys().unwrap()[0].1
    }
}

#[test]
fn a_budget_for_fifty_lets_fifty_of_two_hundred_pass() {
    for ground in Ground::all() {
        // On a server two gateways share the budget.
        let places = [ground.place.clone(), ground.beside("journal2")];
        let n = if ground.is_shared() { 2 } else { 1 };
        fifty_of_two_hundred(&ground, &places[..n]);
    }
}

fn fifty_of_two_hundred(ground: &Ground, places: &[Place]) {
    let rig = Rig::new(
        ground,
        NewKey {
            limits: Limits {
                budget: budget(50 * 20),
                ..Limits::default()
            },
            ..NewKey::default()
        },
    );
    let ledgers: Vec<Arc<Ledger>> = places
        .iter()
        .map(|place| Arc::new(Ledger::open(place, None).unwrap()))
        .collect();
    let start = Arc::new(std::sync::Barrier::new(200));
    let threads: Vec<_> = (0..200)
        .map(|i| {
            let ledger = Arc::clone(&ledgers[i % ledgers.len()]);
            let (start, secret) = (Arc::clone(&start), rig.secret.clone());
            std::thread::spawn(move || {
                start.wait();
                ledger.admit(&secret, &asked(20)).now()
            })
        })
        .collect();
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let (passed, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((passed.len(), refused.len()), (50, 150));
    assert!(refused.iter().all(|result| matches!(result, Err(Refusal::Held))));
    passed.into_iter().for_each(|hold| hold.unwrap().settle(row(20)));
    let spent = Refusal::Budget { whose: "key" };
    for ledger in &ledgers {
        until(|| ledger.admit(&rig.secret, &asked(1)).now().err() == Some(spent.clone()));
    }
    drop(ledgers);
    assert_eq!((rig.total().spent, rig.total().requests), (Micros(1000), 50));
}

#[test]
fn what_was_held_too_much_comes_back() {
    Ground::all()
        .iter()
        .for_each(what_was_held_too_much_comes_back_on);
}

fn what_was_held_too_much_comes_back_on(ground: &Ground) {
    let rig = Rig::new(
        ground,
        NewKey {
            limits: Limits {
                budget: budget(100),
                ..Limits::default()
            },
            team: Some("t".into()),
            ..NewKey::default()
        },
    );
    rig.admin().set_team("t", budget(60)).unwrap();
    let ledger = rig.open();
    let whose = |whose| Some(Refusal::Budget { whose });
    assert_eq!(ledger.admit(&rig.secret, &asked(70)).now().err(), whose("team"));
    assert_eq!(ledger.admit(&rig.secret, &asked(101)).now().err(), whose("key"));
    let hold = ledger.admit(&rig.secret, &asked(50)).now().unwrap();
    assert_eq!(
        ledger.admit(&rig.secret, &asked(50)).now().err(),
        Some(Refusal::Held)
    );
    hold.settle(row(1));
    drop(ledger.admit(&rig.secret, &asked(50)).now().unwrap());
    let unknown = Asked {
        cost: None,
        ..asked(0)
    };
    assert_eq!(
        ledger.admit(&rig.secret, &unknown).now().err(),
        Some(Refusal::Price)
    );
    ledger
        .admit(&rig.secret, &asked(59))
        .now()
        .unwrap()
        .settle(row(59));
    assert_eq!(ledger.admit(&rig.secret, &asked(1)).now().err(), whose("team"));
    drop(ledger);
    let ledger = rig.open();
    assert_eq!(
        ledger.admit(&rig.secret, &asked(1)).now().err(),
        whose("team"),
        "remembered over a restart"
    );
    drop(ledger);
    assert_eq!((rig.total().spent, rig.total().requests), (Micros(60), 3));
}

#[test]
fn limits_hold_and_keys_can_be_taken_back() {
    Ground::all()
        .iter()
        .for_each(limits_hold_and_keys_can_be_taken_back_on);
}

fn limits_hold_and_keys_can_be_taken_back_on(ground: &Ground) {
    let rig = Rig::new(
        ground,
        NewKey {
            limits: Limits {
                requests_per_minute: Some(3),
                tokens_per_minute: Some(25),
                concurrency: Some(1),
                models: vec!["chat".into()],
                ..Limits::default()
            },
            ..NewKey::default()
        },
    );
    let ledger = rig.open();
    let hold = ledger.admit(&rig.secret, &asked(1)).now().unwrap();
    assert_eq!(
        ledger.admit(&rig.secret, &asked(1)).now().err(),
        Some(Refusal::Concurrency { whose: "key" })
    );
    hold.settle(row(1));
    let other = Asked {
        route: "other",
        ..asked(1)
    };
    assert_eq!(
        ledger.admit(&rig.secret, &other).now().err(),
        Some(Refusal::Model)
    );
    ledger.admit(&rig.secret, &asked(1)).now().unwrap().settle(row(1));
    assert!(matches!(
        ledger.admit(&rig.secret, &asked(1)).now().err(),
        Some(Refusal::Tokens { .. })
    ));
    let little = Asked {
        tokens: 1,
        ..asked(1)
    };
    ledger.admit(&rig.secret, &little).now().unwrap().settle(row(1));
    assert!(matches!(
        ledger.admit(&rig.secret, &little).now().err(),
        Some(Refusal::Requests { .. })
    ));
    assert_eq!(
        ledger.admit("sk-carat-guess", &asked(1)).now().err(),
        Some(Refusal::Key)
    );
    let mut admin = rig.admin();
    let taken = admin.add_key(
        &NewKey {
            name: "k".into(),
            ..NewKey::default()
        },
        1,
    );
    assert!(taken.unwrap_err().to_string().contains("there already"));
    admin.revoke_key("k").unwrap();
    until(|| ledger.admit(&rig.secret, &asked(1)).now().err() == Some(Refusal::Key));
    assert!(admin.revoke_key("k").is_err());
    assert!(matches!(
        Ledger::open(&ground.place, None),
        Err(carat_ledger::Error::InUse { .. })
    ));
}

#[cfg(unix)]
#[test]
fn a_link_to_a_ledger_is_the_same_ledger() {
    let ground = Ground::sqlite();
    let link = ground.folder.path().join("link.db");
    std::os::unix::fs::symlink(ground.folder.path().join("l.db"), &link).unwrap();
    let _ledger = Ledger::open(&link, None).unwrap();
    let second = Ledger::open(&ground.place, None);
    assert!(matches!(second, Err(carat_ledger::Error::InUse { .. })));
}

#[cfg(unix)]
#[test]
fn a_ledger_with_two_hard_links_is_refused_by_either() {
    let ground = Ground::sqlite();
    let path = ground.folder.path().join("l.db");
    drop(Ledger::open(&path, None).unwrap());
    let other = ground.folder.path().join("other.db");
    std::fs::hard_link(&path, &other).unwrap();
    for path in [&path, &other] {
        let refused = Ledger::open(path, None).unwrap_err().to_string();
        assert!(refused.contains("has 2 names"), "{refused}");
        assert!(Admin::open(path).is_err());
    }
    assert!(!ground.folder.path().join("other.db.journal").exists());
    std::fs::remove_file(&other).unwrap();
    Ledger::open(&path, None).unwrap();
}

#[test]
fn a_limit_that_is_set_late_begins_when_it_is_set() {
    Ground::all()
        .iter()
        .for_each(a_limit_that_is_set_late_begins_when_it_is_set_on);
}

fn a_limit_that_is_set_late_begins_when_it_is_set_on(ground: &Ground) {
    let rig = Rig::new(ground, NewKey::default());
    let ledger = rig.open();
    for _ in 0..200 {
        ledger.admit(&rig.secret, &asked(1)).now().unwrap().settle(row(1));
    }
    let limits = Limits {
        requests_per_minute: Some(60),
        tokens_per_minute: Some(60),
        models: vec!["chat".into()],
        ..Limits::default()
    };
    rig.admin().set_key("k", &limits, None).unwrap();
    until(|| {
        ledger
            .bearer(&rig.secret)
            .is_some_and(|bearer| !bearer.may_ask("other"))
    });
    ledger.admit(&rig.secret, &asked(1)).now().unwrap().settle(row(1));
}

#[test]
fn a_connection_that_is_lost_is_made_anew() {
    let Some(ground) = Ground::postgres() else { return };
    let rig = Rig::new(&ground, NewKey::default());
    let (ledger, mut admin) = (rig.open(), rig.admin());
    ground.cut();
    assert!(admin.keys().is_err());
    admin.renew().unwrap();
    assert_eq!(admin.keys().unwrap().len(), 1);
    until(|| ledger.admit(&rig.secret, &asked(1)).now().is_ok());
}

#[test]
fn old_rows_go_and_sums_stay() {
    Ground::all().iter().for_each(old_rows_go_and_sums_stay_on);
}

fn old_rows_go_and_sums_stay_on(ground: &Ground) {
    let rig = Rig::new(ground, NewKey::default());
    let ledger = rig.open();
    for _ in 0..3 {
        ledger.admit(&rig.secret, &asked(1)).now().unwrap().settle(row(1));
    }
    drop(ledger);
    assert_eq!(rig.admin().requests(Some(Outcome::Complete)).unwrap().requests, 3);
    let _ledger = Ledger::open(rig.ground.beside("journal3"), Some(Duration::ZERO)).unwrap();
    until(|| rig.admin().requests(Some(Outcome::Complete)).unwrap().requests == 0);
    assert_eq!((rig.total().spent, rig.total().requests), (Micros(3), 3));
}

/// Not a test of its own: what `killed_at_any_moment` runs and kills. Several threads settle requests for ever and say so.
#[test]
fn victim() {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let (place, secret) = (variable("LEDGER_PLACE"), variable("LEDGER_SECRET"));
    if place.is_empty() {
        return;
    }
    let ledger = Ledger::open(place_of(&place, &variable("LEDGER_JOURNAL")), None).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..VICTIM_THREADS {
            scope.spawn(|| {
                let mut open: Vec<Hold> = Vec::new();
                loop {
                    open.push(ledger.admit(&secret, &asked(9)).now().unwrap());
                    if open.len() > 3 {
                        open.remove(0).settle(row(7));
                        println!("settled");
                    }
                }
            });
        }
    });
}

const VICTIM_THREADS: u64 = 4;

/// How often it is killed: 5 times, or as `CARAT_KILLS` says.
fn kills() -> u64 {
    let kills = std::env::var("CARAT_KILLS").ok().and_then(|n| n.parse().ok());
    kills.unwrap_or(5)
}

#[test]
fn killed_at_any_moment_nothing_is_lost_or_billed_twice() {
    for ground in Ground::all() {
        let rights = NewKey {
            limits: Limits {
                budget: budget(u64::from(u32::MAX)),
                ..Limits::default()
            },
            ..NewKey::default()
        };
        let rig = Rig::new(&ground, rights);
        let mut settled = 0;
        for round in 0..kills() {
            settled += kill_once(&rig, round);
            is_consistent(&rig, settled, round);
        }
        assert!(settled > 0);
        println!("{:?}: killed {} times, {settled} settled", ground.place, kills());
    }
}

/// Gives how many requests the victim said it has settled.
fn kill_once(rig: &Rig<'_>, round: u64) -> u64 {
    let (place, journal) = match &rig.ground.place {
        Place::Sqlite(path) => (path.display().to_string(), String::new()),
        Place::Postgres { url, journal } => (url.clone(), journal.display().to_string()),
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["money::victim", "--exact", "--nocapture"])
        .env("LEDGER_PLACE", place)
        .env("LEDGER_JOURNAL", journal)
        .env("LEDGER_SECRET", &rig.secret)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reading = std::thread::spawn(move || {
        let lines = lines.map_while(Result::ok);
        lines.filter(|line| line.contains("settled")).count()
    });
    std::thread::sleep(Duration::from_millis(150 + 37 * (round % 12)));
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap() as u64
}

fn is_consistent(rig: &Rig<'_>, settled: u64, round: u64) {
    let ledger = rig.open();
    let most_open = VICTIM_THREADS * 4;
    assert!(
        ledger.n_lost() <= most_open,
        "only requests under way were open: {}",
        ledger.n_lost()
    );
    // Nothing is held for the dead: all that is left may be asked for.
    let left = u64::from(u32::MAX) - rig.total().spent.0;
    ledger
        .admit(&rig.secret, &asked(left))
        .now()
        .unwrap()
        .settle(row(0));
    drop(ledger);
    let total = rig.total();
    // Each round has a request of ours, and each thread may have settled one that it could not tell of.
    let told = settled + round + 1;
    let untold = (round + 1) * VICTIM_THREADS;
    assert!(
        (told..=told + untold).contains(&total.requests),
        "{settled} said, {total:?}"
    );
    assert_eq!(total.spent.0, (total.requests - round - 1) * 7);
    let mut admin = rig.admin();
    assert_eq!(admin.requests(Some(Outcome::Complete)).unwrap(), total);
    assert_eq!(admin.requests(None).unwrap().requests, 0, "nothing stays open");
}
