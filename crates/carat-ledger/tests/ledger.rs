//! Money under concurrency and under crashes.

#![expect(clippy::unwrap_used, reason = "what goes wrong in the rig is a failed test")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carat_ledger::{
    Admin, Asked, Budget, Hold, Ledger, Limits, Micros, NewKey, Outcome, Period, Refusal, Row,
};

static NEXT: AtomicU64 = AtomicU64::new(1);

fn asked(cost: u64) -> Asked<'static> {
    let n = u128::from(NEXT.fetch_add(1, Ordering::Relaxed)) | (u128::from(std::process::id()) << 64);
    Asked {
        id: n.to_be_bytes(),
        route: "chat",
        tokens: 10,
        cost: Some(Micros(cost)),
        is_downgraded: false,
    }
}

fn row(cost: u64) -> Row {
    Row {
        target: "p/m".into(),
        tried: String::new(),
        outcome: Outcome::Complete,
        input: 7,
        cache_read: 0,
        cache_write: 0,
        output: 3,
        reasoning: 0,
        is_counted: true,
        cost: Some(Micros(cost)),
        duration_ms: 5,
        first_token_ms: Some(1),
    }
}

fn budget(limit: u64) -> Option<Budget> {
    Some(Budget {
        limit: Micros(limit),
        period: Period::Month,
    })
}

struct Rig {
    folder: tempfile::TempDir,
    secret: String,
}

impl Rig {
    fn new(rights: NewKey) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut admin = Admin::open(&folder.path().join("l.db")).unwrap();
        let name = "k".to_string();
        let secret = admin
            .add_key(&NewKey { name, ..rights }, 1)
            .unwrap()
            .text()
            .to_string();
        Self { folder, secret }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("l.db")
    }

    fn total(&self) -> carat_ledger::Total {
        Admin::open(&self.path()).unwrap().keys().unwrap()[0].1
    }
}

#[test]
fn a_budget_for_fifty_lets_fifty_of_two_hundred_pass() {
    let rig = Rig::new(NewKey {
        limits: Limits {
            budget: budget(50 * 20),
            ..Limits::default()
        },
        ..NewKey::default()
    });
    let ledger = Arc::new(Ledger::open(&rig.path(), None).unwrap());
    let start = Arc::new(std::sync::Barrier::new(200));
    let threads: Vec<_> = (0..200)
        .map(|_| {
            let (ledger, start, secret) = (Arc::clone(&ledger), Arc::clone(&start), rig.secret.clone());
            std::thread::spawn(move || {
                start.wait();
                ledger.admit(&secret, &asked(20))
            })
        })
        .collect();
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let (passed, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((passed.len(), refused.len()), (50, 150));
    assert!(refused.iter().all(|result| matches!(result, Err(Refusal::Held))));
    passed.into_iter().for_each(|hold| hold.unwrap().settle(row(20)));
    let spent = Refusal::Budget { whose: "key" };
    assert_eq!(ledger.admit(&rig.secret, &asked(1)).unwrap_err(), spent);
    drop(ledger);
    assert_eq!((rig.total().spent, rig.total().requests), (Micros(1000), 50));
}

#[test]
fn what_was_held_too_much_comes_back() {
    let rig = Rig::new(NewKey {
        limits: Limits {
            budget: budget(100),
            ..Limits::default()
        },
        team: Some("t".into()),
        ..NewKey::default()
    });
    Admin::open(&rig.path())
        .unwrap()
        .set_team("t", budget(60))
        .unwrap();
    let ledger = Ledger::open(&rig.path(), None).unwrap();
    let whose = |whose| Some(Refusal::Budget { whose });
    assert_eq!(ledger.admit(&rig.secret, &asked(70)).err(), whose("team"));
    assert_eq!(ledger.admit(&rig.secret, &asked(101)).err(), whose("key"));
    let hold = ledger.admit(&rig.secret, &asked(50)).unwrap();
    assert_eq!(ledger.admit(&rig.secret, &asked(50)).err(), Some(Refusal::Held));
    hold.settle(row(1));
    drop(ledger.admit(&rig.secret, &asked(50)).unwrap());
    let unknown = Asked {
        cost: None,
        ..asked(0)
    };
    assert_eq!(ledger.admit(&rig.secret, &unknown).err(), Some(Refusal::Price));
    ledger.admit(&rig.secret, &asked(59)).unwrap().settle(row(59));
    assert_eq!(ledger.admit(&rig.secret, &asked(1)).err(), whose("team"));
    drop(ledger);
    let ledger = Ledger::open(&rig.path(), None).unwrap();
    assert_eq!(
        ledger.admit(&rig.secret, &asked(1)).err(),
        whose("team"),
        "remembered over a restart"
    );
    drop(ledger);
    assert_eq!((rig.total().spent, rig.total().requests), (Micros(60), 3));
}

#[test]
fn limits_hold_and_keys_can_be_taken_back() {
    let rig = Rig::new(NewKey {
        limits: Limits {
            requests_per_minute: Some(3),
            tokens_per_minute: Some(25),
            concurrency: Some(1),
            models: vec!["chat".into()],
            ..Limits::default()
        },
        ..NewKey::default()
    });
    let ledger = Ledger::open(&rig.path(), None).unwrap();
    let hold = ledger.admit(&rig.secret, &asked(1)).unwrap();
    assert_eq!(
        ledger.admit(&rig.secret, &asked(1)).err(),
        Some(Refusal::Concurrency { whose: "key" })
    );
    hold.settle(row(1));
    let other = Asked {
        route: "other",
        ..asked(1)
    };
    assert_eq!(ledger.admit(&rig.secret, &other).err(), Some(Refusal::Model));
    ledger.admit(&rig.secret, &asked(1)).unwrap().settle(row(1));
    assert!(matches!(
        ledger.admit(&rig.secret, &asked(1)).err(),
        Some(Refusal::Tokens { .. })
    ));
    let little = Asked {
        tokens: 1,
        ..asked(1)
    };
    ledger.admit(&rig.secret, &little).unwrap().settle(row(1));
    assert!(matches!(
        ledger.admit(&rig.secret, &little).err(),
        Some(Refusal::Requests { .. })
    ));
    assert_eq!(
        ledger.admit("sk-carat-guess", &asked(1)).err(),
        Some(Refusal::Key)
    );
    let mut admin = Admin::open(&rig.path()).unwrap();
    let taken = admin.add_key(
        &NewKey {
            name: "k".into(),
            ..NewKey::default()
        },
        1,
    );
    assert!(taken.unwrap_err().to_string().contains("there already"));
    admin.revoke_key("k").unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while ledger.admit(&rig.secret, &asked(1)).err() != Some(Refusal::Key) {
        assert!(Instant::now() < until, "the running ledger notices");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(admin.revoke_key("k").is_err());
    assert!(matches!(
        Ledger::open(&rig.path(), None),
        Err(carat_ledger::Error::InUse { .. })
    ));
}

/// Not a test of its own: what `killed_at_any_moment` runs and kills. It settles requests for ever and says so.
#[test]
fn victim() {
    let (Ok(path), Ok(secret)) = (std::env::var("LEDGER_PATH"), std::env::var("LEDGER_SECRET")) else {
        return;
    };
    let ledger = Ledger::open(std::path::Path::new(&path), None).unwrap();
    let mut open: Vec<Hold> = Vec::new();
    for n in 1u64.. {
        open.push(ledger.admit(&secret, &asked(9)).unwrap());
        if open.len() > 3 {
            open.remove(0).settle(row(7));
            println!("settled {n}");
        }
    }
}

#[test]
fn killed_at_any_moment_nothing_is_lost_or_billed_twice() {
    let rig = Rig::new(NewKey::default());
    let mut settled = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["victim", "--exact", "--nocapture"])
            .env("LEDGER_PATH", rig.path())
            .env("LEDGER_SECRET", &rig.secret)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reading = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter(|line| line.contains("settled "))
                .count()
        });
        std::thread::sleep(Duration::from_millis(60 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        settled += reading.join().unwrap() as u64;
        let ledger = Ledger::open(&rig.path(), None).unwrap();
        assert!(
            ledger.n_lost() <= 4,
            "only requests under way were open: {}",
            ledger.n_lost()
        );
        drop(ledger);
        let total = rig.total();
        // A request may be settled and killed before it was said.
        assert!(
            (settled..=settled + round + 1).contains(&total.requests),
            "{settled} said, {total:?}"
        );
        assert_eq!(total.spent.0, total.requests * 7);
        let mut admin = Admin::open(&rig.path()).unwrap();
        assert_eq!(admin.requests(Some(Outcome::Complete)).unwrap(), total);
        assert_eq!(admin.requests(None).unwrap().requests, 0, "nothing stays open");
    }
    assert!(settled > 0);
}
