//! The ledger of a running gateway: who may ask is known in memory; what is decided where depends on the place.
//!
//! Alone on its database (`local.rs`) a gateway decides in memory, and a thread feeds the database from the journal.
//! Where several share one (`shared.rs`) each decision is a transaction there, made for all who wait together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::directory::{Directory, Holder};
use crate::hold::{Asked, Hold, Refusal, Warning};
use crate::journal::Journal;
use crate::local::Local;
use crate::row::{Entry, Open, Row, clip};
use crate::shared::Shared;
use crate::store::{PRUNED_AT_ONCE, Store};
use crate::{Error, Limits, Place, Role};

/// Most warnings that wait to be written down.
const MAX_WARNINGS: usize = 1000;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What holds and the ledger share.
#[derive(Debug)]
pub(crate) struct Keeper {
    directory: RwLock<Arc<Directory>>,
    warnings: Mutex<Vec<(u64, Warning)>>,
    pub(crate) journal: Journal,
    /// The database is so far behind, or away, that no more may begin.
    pub(crate) is_behind: AtomicBool,
    pub(crate) is_stopping: AtomicBool,
    pub(crate) settled: Notify,
    pub(crate) way: Way,
}

/// Where decisions are made.
#[derive(Debug)]
pub(crate) enum Way {
    Local(Local),
    Shared(Shared),
}

/// Keys, budgets and requests of a running gateway.
#[derive(Debug)]
pub struct Ledger {
    keeper: Arc<Keeper>,
    thread: Option<JoinHandle<()>>,
    n_lost: u64,
}

/// Who a key belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The key's name.
    pub key: String,
    /// Its user's.
    pub user: Option<String>,
    /// What the user may do.
    pub role: Role,
    /// Of each who pays and may not ask for everything, what may be asked for.
    allowed: Vec<Limits>,
}

impl Bearer {
    /// Whether a route or a model may be asked for with this key.
    pub fn may_ask(&self, name: &str) -> bool {
        self.allowed.iter().all(|limits| limits.allows(name))
    }
}

impl Ledger {
    /// Opens a ledger, or makes it: takes what an earlier process left in the journal, and ends what it left open. Rows
    /// of requests are kept for `keep`, or for ever.
    ///
    /// # Errors
    /// [`Error::InUse`] if another gateway uses its file or its journal; the database's and the journal's.
    pub fn open(place: impl Into<Place>, keep: Option<Duration>) -> Result<Self, Error> {
        let place = place.into();
        let folder = place.journal()?;
        let (journal, left) = Journal::open(&folder)?;
        let way = match &place {
            Place::Sqlite(_) => Way::Local(Local::new()),
            Place::Postgres { .. } => Way::Shared(Shared::new(&folder)?),
        };
        let keeper = Arc::new(Keeper::new(journal, way));
        // The thread opens the database itself: a server's client must live on one.
        let (opened, is_open) = std::sync::mpsc::channel();
        let shared = Arc::clone(&keeper);
        let run = move || match &shared.way {
            Way::Local(_) => crate::local::run(&shared, &place, left, keep, &opened),
            Way::Shared(_) => crate::shared::run(&shared, &place, left, keep, &opened),
        };
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(run);
        let thread = thread.map_err(|source| Error::File { path: folder, source })?;
        match is_open.recv() {
            Ok(Ok(n_lost)) => Ok(Self {
                keeper,
                thread: Some(thread),
                n_lost,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Shape("its thread ended before it was open".into())),
        }
    }

    /// Requests that an earlier process left open.
    pub fn n_lost(&self) -> u64 {
        self.n_lost
    }

    /// Decides whether a request may be made with a key, and holds what it may cost.
    ///
    /// # Errors
    /// Why not.
    pub async fn admit(&self, secret: &str, asked: &Asked<'_>) -> Result<Hold, Refusal> {
        let directory = self.keeper.directory();
        let holder = directory.find(secret, now_ms()).ok_or(Refusal::Key)?;
        if self.keeper.is_behind.load(Ordering::Relaxed) || self.keeper.journal.is_full() {
            return Err(Refusal::Broken);
        }
        match &self.keeper.way {
            Way::Local(local) => local.admit(&self.keeper, holder, asked),
            Way::Shared(shared) => shared.admit(&self.keeper, Arc::clone(holder), asked).await,
        }
    }

    /// Who a key in force belongs to.
    pub fn bearer(&self, secret: &str) -> Option<Bearer> {
        let directory = self.keeper.directory();
        let holder = directory.find(secret, now_ms())?;
        let restricted = holder
            .payers
            .iter()
            .filter(|payer| !payer.limits.models.is_empty());
        Some(Bearer {
            key: holder.name.clone(),
            user: holder.user.clone(),
            role: holder.role,
            allowed: restricted.map(|payer| payer.limits.clone()).collect(),
        })
    }

    /// Waits for the next request to settle here; made before [`Ledger::admit`] it misses none.
    pub fn settled(&self) -> Notified<'_> {
        self.keeper.settled.notified()
    }

    /// How long to wait for that before asking again, since requests may settle elsewhere.
    pub fn nap(&self) -> Duration {
        match &self.keeper.way {
            Way::Local(_) => Duration::from_secs(60),
            Way::Shared(_) => Duration::from_millis(100),
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.keeper.is_stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in it was told where it happened.
            let _ended = thread.join();
        }
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    fn new(journal: Journal, way: Way) -> Self {
        Self {
            directory: RwLock::default(),
            warnings: Mutex::default(),
            journal,
            is_behind: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            settled: Notify::new(),
            way,
        }
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_directory(&self, directory: Directory) {
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
    }

    /// Has a soft limit's passing written down when it is news.
    pub(crate) fn note(&self, now_ms: u64, warnings: &[Warning]) {
        for warning in warnings.iter().filter(|warning| warning.is_first) {
            tracing::warn!(scope = &*warning.scope, "{warning}: a soft limit is passed");
            let mut waiting = locked(&self.warnings);
            if waiting.len() < MAX_WARNINGS {
                waiting.push((now_ms, warning.clone()));
            }
        }
    }

    pub(crate) fn take_warnings(&self) -> Vec<(u64, Warning)> {
        std::mem::take(&mut *locked(&self.warnings))
    }

    /// Writes a line; one that cannot be written waits in memory.
    pub(crate) fn append(&self, entry: Entry) {
        if let Err(error) = self.journal.append(entry) {
            tracing::error!(%error, "the ledger's journal cannot be written; the row waits in memory");
        }
    }

    pub(crate) fn settle(&self, open: Open, row: Row) {
        match &self.way {
            Way::Local(local) => {
                local.settle(&open, &row);
                self.append(Entry::Settle(open, row));
                self.settled.notify_waiters();
            }
            // Others are told when the database has it.
            Way::Shared(shared) => {
                self.append(Entry::Settle(open, row));
                shared.wake();
            }
        }
    }
}

impl Open {
    /// A request that begins.
    pub(crate) fn new(holder: &Holder, asked: &Asked<'_>, started_ms: u64) -> Self {
        let mut route = asked.route.to_string();
        clip(&mut route);
        Self {
            id: asked.id,
            key: holder.id,
            team: holder.team.clone(),
            user: holder.user.clone(),
            project: holder.project.clone(),
            route,
            held: asked.cost.unwrap_or_default(),
            tokens: asked.tokens,
            started_ms,
        }
    }
}

/// How often the database is asked whether somebody changed keys.
const LOOK: Duration = Duration::from_millis(500);
/// How often old rows are looked for, where they are not kept for ever.
const PRUNE: Duration = Duration::from_secs(60);

/// What a ledger's thread does now and then.
#[derive(Debug)]
pub(crate) struct Chores {
    version: i64,
    looked: Instant,
    keep: Option<Duration>,
    pruned: Option<Instant>,
}

impl Chores {
    /// Begins with the directory as it is.
    pub(crate) fn begin(keeper: &Keeper, store: &mut Store, keep: Option<Duration>) -> Result<Self, Error> {
        let version = store.db.version()?;
        keeper.set_directory(Directory::load(store)?);
        Ok(Self {
            version,
            looked: Instant::now(),
            keep,
            pruned: None,
        })
    }

    /// Takes up what somebody changed, and removes what is no longer to be kept.
    pub(crate) fn run(&mut self, keeper: &Keeper, store: &mut Store) -> Result<(), Error> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let version = store.db.version()?;
        if version != self.version {
            keeper.set_directory(Directory::load(store)?);
            self.version = version;
        }
        if let Some(keep) = self.keep
            && self.pruned.is_none_or(|at| at.elapsed() >= PRUNE)
        {
            self.prune(store, keep);
        }
        Ok(())
    }

    fn prune(&mut self, store: &mut Store, keep: Duration) {
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        match store.prune(now_ms().saturating_sub(keep_ms)) {
            // A part each time, so that nothing waits long; the next part soon, since there may be one.
            Ok(n) if n >= PRUNED_AT_ONCE => {}
            Ok(_) => self.pruned = Some(Instant::now()),
            // Rows that stay longer are no reason to refuse requests.
            Err(error) => {
                tracing::warn!(%error, source = ?std::error::Error::source(&error), "old rows of the ledger cannot be removed; it is tried again in a minute");
                self.pruned = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Admin, NewKey};

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let mut admin = Admin::open(&folder.path().join("l.db")).unwrap();
        let name = "k".to_string();
        let secret = admin
            .add_key(
                &NewKey {
                    name,
                    ..NewKey::default()
                },
                1,
            )
            .unwrap();
        let (journal, _) = Journal::open(&folder.path().join("journal")).unwrap();
        let keeper = Keeper::new(journal, Way::Shared(Shared::new(folder.path()).unwrap()));
        keeper.set_directory(Directory::load(&mut admin.store).unwrap());
        // The thread hangs: there is none.
        let ledger = Ledger {
            keeper: Arc::new(keeper),
            thread: None,
            n_lost: 0,
        };
        let asked = Asked {
            id: [1; 16],
            route: "chat",
            tokens: 1,
            cost: None,
            is_downgraded: false,
        };
        let began = tokio::time::Instant::now();
        let refused = async || ledger.admit(secret.text(), &asked).await.err();
        assert_eq!(refused().await, Some(Refusal::Broken));
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(20), "{waited:?}");
        assert_eq!(refused().await, Some(Refusal::Broken));
        assert_eq!(began.elapsed(), waited, "the next is not kept waiting");
    }

    #[test]
    fn pruning_rests_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&Place::from(&folder.path().join("l.db"))).unwrap();
        let mut chores = Chores {
            version: 0,
            looked: Instant::now(),
            keep: None,
            pruned: None,
        };
        chores.prune(&mut store, Duration::from_secs(60));
        assert!(chores.pruned.take().is_some(), "until more can have become old");
        store.db.batch("DROP TABLE requests").unwrap();
        chores.prune(&mut store, Duration::from_secs(60));
        assert!(chores.pruned.is_some());
    }
}
