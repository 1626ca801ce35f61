//! The ledger of a running gateway: decisions in memory, lines in the journal, a thread that feeds the database.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::budget::{Purse, Short};
use crate::hold::{Asked, Hold, Refusal};
use crate::journal::{Journal, Segment};
use crate::key::{self, KeyInfo};
use crate::rate::Bucket;
use crate::row::{Entry, Open, Row};
use crate::store::{Store, key_scope, team_scope};
use crate::{Budget, Error};

/// How long lines wait for others before the database gets them together.
const GROUP: Duration = Duration::from_millis(50);
/// How often the database is asked whether somebody changed keys.
const LOOK: Duration = Duration::from_millis(500);

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn day_of(ms: u64) -> i64 {
    i64::try_from(ms / 86_400_000).unwrap_or(i64::MAX)
}

/// A key in memory.
#[derive(Debug)]
struct KeyState {
    info: KeyInfo,
    purse: Purse,
    requests: Bucket,
    tokens: Bucket,
    n_open: u64,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<[u8; 32], KeyState>,
    teams: HashMap<String, Purse>,
}

/// What holds and the ledger share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    journal: Journal,
    settled: Notify,
}

/// Keys, budgets and requests of a running gateway.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    n_lost: usize,
}

impl Ledger {
    /// Opens a ledger, or makes it: takes what an earlier process left in the journal, and ends what it left open.
    ///
    /// # Errors
    /// [`Error::InUse`] if another gateway writes to it; the database's and the journal's.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut store = Store::open(path)?;
        let mut folder = PathBuf::from(path).into_os_string();
        folder.push(".journal");
        let (journal, left) = Journal::open(Path::new(&folder))?;
        for segment in left {
            store.apply(&segment.entries)?;
            segment.remove()?;
        }
        let n_lost = store.end_lost()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            journal,
            settled: Notify::new(),
        });
        shared.load(&store)?;
        let (stop, stopped) = mpsc::channel();
        let feeding = Feeding {
            shared: Arc::clone(&shared),
            version: store.version()?,
            store,
            waiting: Vec::new(),
            looked: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || feeding.run(&stopped))
            .map_err(|source| Error::File {
                path: path.to_path_buf(),
                source,
            })?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
            n_lost,
        })
    }

    /// Requests that an earlier process left open.
    pub fn n_lost(&self) -> usize {
        self.n_lost
    }

    /// Decides whether a request may be made with a key, and holds what it may cost.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, secret: &str, asked: &Asked<'_>) -> Result<Hold, Refusal> {
        let hash = key::hash(secret);
        let started_ms = now_ms();
        let mut state = self.shared.state();
        let State { keys, teams } = &mut *state;
        let key = keys.get_mut(&hash).ok_or(Refusal::Key)?;
        let team = key.info.rights.team.as_ref().and_then(|team| teams.get_mut(team));
        key.check(team.as_deref(), asked, started_ms)?;
        let now = Instant::now();
        key.check_rates(asked.tokens, now)?;
        let held = asked.cost.unwrap_or_default();
        let mut purses = [Some(("key", &mut key.purse)), team.map(|team| ("team", team))];
        for (whose, purse) in purses.iter_mut().flatten() {
            purse
                .check(held, day_of(started_ms))
                .map_err(|short| match short {
                    Short::Held => Refusal::Held,
                    Short::Spent => Refusal::Budget { whose },
                })?;
        }
        // Everything allows it: now it is taken everywhere.
        purses
            .into_iter()
            .flatten()
            .for_each(|(_, purse)| purse.hold(held));
        key.requests.take(1);
        key.tokens.take(asked.tokens);
        key.n_open += 1;
        let open = Open {
            id: asked.id,
            key: key.info.id,
            team: key.info.rights.team.clone(),
            route: asked.route.to_string(),
            held,
            started_ms,
        };
        drop(state);
        let hold = Hold {
            shared: Arc::clone(&self.shared),
            hash,
            tokens: asked.tokens,
            open: Some(open.clone()),
        };
        match self.shared.journal.append(Entry::Open(open)) {
            Ok(()) => Ok(hold),
            Err(error) => {
                tracing::error!(%error, "the ledger's journal cannot be written");
                Err(Refusal::Broken)
            }
        }
    }

    /// Whether a key is in force.
    pub fn knows(&self, secret: &str) -> bool {
        let state = self.shared.state();
        state
            .keys
            .get(&key::hash(secret))
            .is_some_and(|key| key.is_in_force(now_ms()))
    }

    /// Waits for the next request to settle; made before [`Ledger::admit`] it misses none.
    pub fn settled(&self) -> Notified<'_> {
        self.shared.settled.notified()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it was told where it happened.
            let _ended = thread.join();
        }
    }
}

impl KeyState {
    fn is_in_force(&self, now_ms: u64) -> bool {
        !self.info.is_revoked && self.info.rights.expires_ms.is_none_or(|end| end > now_ms)
    }

    /// What does not change from one moment to the next.
    fn check(&self, team: Option<&Purse>, asked: &Asked<'_>, now_ms: u64) -> Result<(), Refusal> {
        let rights = &self.info.rights;
        if !self.is_in_force(now_ms) {
            return Err(Refusal::Key);
        }
        if !self.info.allows(asked.route) {
            return Err(Refusal::Model);
        }
        let has_budget = rights.budget.is_some() || team.is_some_and(|team| team.budget.is_some());
        if has_budget && asked.cost.is_none() {
            return Err(Refusal::Price);
        }
        if rights.concurrency.is_some_and(|most| self.n_open >= most) {
            return Err(Refusal::Concurrency);
        }
        Ok(())
    }

    fn check_rates(&mut self, tokens: u64, now: Instant) -> Result<(), Refusal> {
        if let Some(limit) = self.info.rights.requests_per_minute {
            self.requests
                .check(limit, 1, now)
                .map_err(|wait| Refusal::Requests { wait })?;
        }
        if let Some(limit) = self.info.rights.tokens_per_minute {
            self.tokens
                .check(limit, tokens, now)
                .map_err(|wait| Refusal::Tokens { wait })?;
        }
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn settle(&self, hash: &[u8; 32], tokens: u64, open: Open, row: Row) {
        let cost = row.cost.unwrap_or_default();
        let day = day_of(now_ms());
        let mut state = self.state();
        let team = open.team.as_ref().and_then(|team| state.teams.get_mut(team));
        if let Some(team) = team {
            team.settle(open.held, cost, day);
        }
        if let Some(key) = state.keys.get_mut(hash) {
            key.purse.settle(open.held, cost, day);
            key.tokens.correct(tokens, row.input.saturating_add(row.output));
            key.n_open = key.n_open.saturating_sub(1);
        }
        drop(state);
        if let Err(error) = self.journal.append(Entry::Settle(open, row)) {
            tracing::error!(%error, "the ledger's journal cannot be written; the row waits in memory");
        }
        self.settled.notify_waiters();
    }

    /// Reads keys and teams. What is known of them in memory stays, since the database is behind it.
    fn load(&self, store: &Store) -> Result<(), Error> {
        let today = day_of(now_ms());
        let keys = store.keys()?;
        let teams = store.teams()?;
        let mut state = self.state();
        for (hash, info) in keys {
            let (budget, scope) = (info.rights.budget, key_scope(info.id));
            match state.keys.get_mut(&hash) {
                Some(key) => {
                    renew(&mut key.purse, budget, store, &scope, today)?;
                    key.info = info;
                }
                None => {
                    let key = KeyState {
                        purse: purse(budget, store, &scope, today)?,
                        info,
                        requests: Bucket::default(),
                        tokens: Bucket::default(),
                        n_open: 0,
                    };
                    state.keys.insert(hash, key);
                }
            }
        }
        for (name, budget) in teams {
            let scope = team_scope(&name);
            match state.teams.get_mut(&name) {
                Some(team) => renew(team, budget, store, &scope, today)?,
                None => {
                    state.teams.insert(name, purse(budget, store, &scope, today)?);
                }
            }
        }
        Ok(())
    }
}

/// A purse with what the database knows.
fn purse(budget: Option<Budget>, store: &Store, scope: &str, today: i64) -> Result<Purse, Error> {
    let since = budget.map_or(today, |budget| budget.period.start(today));
    Ok(Purse::new(budget, store.spent(scope, since)?.spent, today))
}

/// Gives a purse another budget, which may count from another day. Holds stay.
fn renew(
    purse_now: &mut Purse,
    budget: Option<Budget>,
    store: &Store,
    scope: &str,
    today: i64,
) -> Result<(), Error> {
    if purse_now.budget != budget {
        let held = purse_now.held;
        *purse_now = purse(budget, store, scope, today)?;
        purse_now.held = held;
    }
    Ok(())
}

/// The thread that feeds the database.
struct Feeding {
    shared: Arc<Shared>,
    store: Store,
    version: i64,
    /// Segments that the database has not taken yet.
    waiting: Vec<Segment>,
    looked: Instant,
}

impl Feeding {
    fn run(mut self, stopped: &mpsc::Receiver<()>) {
        loop {
            let is_last = !matches!(stopped.recv_timeout(GROUP), Err(RecvTimeoutError::Timeout));
            if let Err(error) = self.feed() {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "the ledger's database did not take a group; it is tried again");
            }
            if is_last {
                return;
            }
            if self.looked.elapsed() >= LOOK {
                self.looked = Instant::now();
                if let Err(error) = self.look() {
                    tracing::error!(%error, "the ledger's keys cannot be read");
                }
            }
        }
    }

    fn feed(&mut self) -> Result<(), Error> {
        self.waiting.extend(self.shared.journal.rotate()?);
        while let Some(segment) = self.waiting.first() {
            self.store.apply(&segment.entries)?;
            segment.remove()?;
            self.waiting.remove(0);
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), Error> {
        let version = self.store.version()?;
        if version != self.version {
            self.shared.load(&self.store)?;
            self.version = version;
        }
        Ok(())
    }
}
