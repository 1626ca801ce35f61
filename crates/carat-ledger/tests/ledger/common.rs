//! What tests of the ledger share: places to keep one, requests, and what they took.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carat_ledger::{Asked, Hold, Micros, Outcome, Place, Refusal, Row};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Somewhere to keep a ledger, removed when dropped.
pub(crate) struct Ground {
    pub(crate) place: Place,
    pub(crate) folder: tempfile::TempDir,
    server: Option<(String, String)>,
}

impl Ground {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            place: Place::from(&folder.path().join("l.db")),
            folder,
            server: None,
        }
    }

    /// A database of its own on the server that `CARAT_TEST_POSTGRES` names (`bash .ci/postgres COMMAND` starts one).
    pub(crate) fn postgres() -> Option<Self> {
        let Ok(server) = std::env::var("CARAT_TEST_POSTGRES") else {
            println!(
                "skipped on PostgreSQL: CARAT_TEST_POSTGRES is not set; run the tests by `bash .ci/postgres`"
            );
            return None;
        };
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&server, &format!("CREATE DATABASE {name}"));
        let folder = tempfile::tempdir().unwrap();
        Some(Self {
            place: Place::Postgres {
                url: format!("{server} dbname={name}"),
                journal: folder.path().join("journal"),
            },
            folder,
            server: Some((server, name)),
        })
    }

    pub(crate) fn all() -> Vec<Self> {
        [Some(Self::sqlite()), Self::postgres()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The same ledger for another gateway; only a server has one.
    pub(crate) fn beside(&self, journal: &str) -> Place {
        match &self.place {
            Place::Sqlite(path) => Place::Sqlite(path.clone()),
            Place::Postgres { url, .. } => Place::Postgres {
                url: url.clone(),
                journal: self.folder.path().join(journal),
            },
        }
    }

    /// Ends all connections to the server's database.
    pub(crate) fn cut(&self) {
        if let Some((server, name)) = &self.server {
            run(
                server,
                &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
            );
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.server.is_some()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some((server, name)) = &self.server {
            run(server, &format!("DROP DATABASE {name} WITH (FORCE)"));
        }
    }
}

fn run(server: &str, sql: &str) {
    let mut client =
        postgres::Client::connect(&format!("{server} dbname=postgres"), postgres::NoTls).unwrap();
    client.batch_execute(sql).unwrap();
}

/// As a process gets it told by variables.
pub(crate) fn place_of(text: &str, journal: &str) -> Place {
    if journal.is_empty() {
        return Place::Sqlite(PathBuf::from(text));
    }
    Place::Postgres {
        url: text.into(),
        journal: journal.into(),
    }
}

/// Waits for a decision.
pub(crate) trait Now {
    fn now(self) -> Result<Hold, Refusal>;
}

impl<F: Future<Output = Result<Hold, Refusal>>> Now for F {
    fn now(self) -> Result<Hold, Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(self)
    }
}

pub(crate) fn asked(route: &str, cost: u64) -> Asked<'_> {
    let n = u128::from(NEXT.fetch_add(1, Ordering::Relaxed)) | (u128::from(std::process::id()) << 64);
    Asked {
        id: n.to_be_bytes(),
        route,
        tokens: 10,
        cost: Some(Micros(cost)),
        is_downgraded: false,
    }
}

pub(crate) fn row(cost: u64) -> Row {
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

/// Waits until the running ledger has noticed.
pub(crate) fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "the running ledger notices");
        std::thread::sleep(Duration::from_millis(20));
    }
}
