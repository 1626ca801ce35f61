//! The ledger of a running gateway: decisions in memory, lines in the journal, a thread that feeds the database.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::directory::{Directory, Holder};
use crate::hold::{Asked, Hold, Refusal, Warning};
use crate::journal::{Journal, Segment};
use crate::meter::{self, Meters, Moment};
use crate::row::{Entry, Open, Row, clip, day_of};
use crate::store::Store;
use crate::{Error, Role};

/// How long lines wait for others before the database gets them together.
const GROUP: Duration = Duration::from_millis(50);
/// How often the database is asked whether somebody changed keys.
const LOOK: Duration = Duration::from_millis(500);
/// How often old rows are looked for, where they are not kept for ever.
const PRUNE: Duration = Duration::from_secs(60);
/// Most segments that wait for a database that does not take them, before requests are refused.
const MAX_SEGMENTS: usize = 1000;
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
    meters: Mutex<Meters>,
    warnings: Mutex<Vec<(u64, Warning)>>,
    journal: Journal,
    /// The database is so far behind that no more may begin.
    is_behind: std::sync::atomic::AtomicBool,
    settled: Notify,
    began: Instant,
}

/// Keys, budgets and requests of a running gateway.
#[derive(Debug)]
pub struct Ledger {
    keeper: Arc<Keeper>,
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
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
}

impl Ledger {
    /// Opens a ledger, or makes it: takes what an earlier process left in the journal, and ends what it left open. Rows
    /// of requests are kept for `keep`, or for ever.
    ///
    /// # Errors
    /// [`Error::InUse`] if another gateway writes to it; the database's and the journal's.
    pub fn open(path: &Path, keep: Option<Duration>) -> Result<Self, Error> {
        let mut store = Store::open(path)?;
        let mut folder = PathBuf::from(path).into_os_string();
        folder.push(".journal");
        let (journal, left) = Journal::open(Path::new(&folder))?;
        for segment in left {
            store.apply(&segment.entries)?;
            segment.remove()?;
        }
        let n_lost = store.end_lost()?;
        let keeper = Arc::new(Keeper {
            directory: RwLock::new(Arc::new(Directory::load(&mut store)?)),
            meters: Mutex::new(store.meters(day_of(now_ms()))?),
            warnings: Mutex::default(),
            journal,
            is_behind: std::sync::atomic::AtomicBool::new(false),
            settled: Notify::new(),
            began: Instant::now(),
        });
        let (stop, stopped) = mpsc::channel();
        let feeding = Feeding {
            keeper: Arc::clone(&keeper),
            version: store.db.version()?,
            store,
            waiting: Vec::new(),
            looked: Instant::now(),
            keep,
            pruned: None,
        };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || feeding.run(&stopped))
            .map_err(|source| Error::File {
                path: path.to_path_buf(),
                source,
            })?;
        Ok(Self {
            keeper,
            stop: Some(stop),
            thread: Some(thread),
            n_lost,
        })
    }

    /// Requests that an earlier process left open.
    pub fn n_lost(&self) -> u64 {
        self.n_lost
    }

    /// Decides whether a request may be made with a key, and holds what it may cost.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, secret: &str, asked: &Asked<'_>) -> Result<Hold, Refusal> {
        let now = self.keeper.now();
        let directory = self.keeper.directory();
        let holder = directory.find(secret, now.wall_ms).ok_or(Refusal::Key)?;
        if self.keeper.is_behind.load(std::sync::atomic::Ordering::Relaxed) || self.keeper.journal.is_full() {
            return Err(Refusal::Broken);
        }
        let warnings = meter::admit(holder, &mut self.keeper.meters(), asked, now)?;
        let open = opened(holder, asked, now.wall_ms);
        // From here on whatever happens gives back what was taken.
        let hold = Hold {
            keeper: Arc::clone(&self.keeper),
            open: Some(open.clone()),
            warnings,
        };
        self.keeper.note(now.wall_ms, &hold.warnings);
        match self.keeper.journal.append(Entry::Open(open)) {
            Ok(()) => Ok(hold),
            Err(error) => {
                tracing::error!(%error, "the ledger's journal cannot be written");
                Err(Refusal::Broken)
            }
        }
    }

    /// Who a key in force belongs to.
    pub fn bearer(&self, secret: &str) -> Option<Bearer> {
        let directory = self.keeper.directory();
        let holder = directory.find(secret, now_ms())?;
        Some(Bearer {
            key: holder.name.clone(),
            user: holder.user.clone(),
            role: holder.role,
        })
    }

    /// Waits for the next request to settle; made before [`Ledger::admit`] it misses none.
    pub fn settled(&self) -> Notified<'_> {
        self.keeper.settled.notified()
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

/// A request that begins.
fn opened(holder: &Holder, asked: &Asked<'_>, started_ms: u64) -> Open {
    let mut route = asked.route.to_string();
    clip(&mut route);
    Open {
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn meters(&self) -> MutexGuard<'_, Meters> {
        locked(&self.meters)
    }

    fn now(&self) -> Moment {
        Moment {
            wall_ms: now_ms(),
            // A clock that nobody sets.
            rate_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Has a soft limit's passing written down when it is news.
    fn note(&self, now_ms: u64, warnings: &[Warning]) {
        for warning in warnings.iter().filter(|warning| warning.is_first) {
            tracing::warn!(scope = &*warning.scope, "{warning}: a soft limit is passed");
            let mut waiting = locked(&self.warnings);
            if waiting.len() < MAX_WARNINGS {
                waiting.push((now_ms, warning.clone()));
            }
        }
    }

    pub(crate) fn settle(&self, open: Open, row: Row) {
        meter::settle(&mut self.meters(), &open, &row, true);
        if let Err(error) = self.journal.append(Entry::Settle(open, row)) {
            tracing::error!(%error, "the ledger's journal cannot be written; the row waits in memory");
        }
        self.settled.notify_waiters();
    }
}

/// The thread that feeds the database.
struct Feeding {
    keeper: Arc<Keeper>,
    store: Store,
    version: i64,
    /// Segments that the database has not taken yet.
    waiting: Vec<Segment>,
    looked: Instant,
    keep: Option<Duration>,
    pruned: Option<Instant>,
}

impl Feeding {
    fn run(mut self, stopped: &mpsc::Receiver<()>) {
        loop {
            let is_last = !matches!(stopped.recv_timeout(GROUP), Err(RecvTimeoutError::Timeout));
            if let Err(error) = self.feed() {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "the ledger's database did not take a group; it is tried again");
            }
            let is_behind = self.waiting.len() >= MAX_SEGMENTS;
            let flag = &self.keeper.is_behind;
            flag.store(is_behind, std::sync::atomic::Ordering::Relaxed);
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
        // What waits already is bounded before more is taken up: the journal refuses when it is full.
        if self.waiting.len() < MAX_SEGMENTS {
            self.waiting.extend(self.keeper.journal.rotate()?);
        }
        while let Some(segment) = self.waiting.first() {
            self.store.apply(&segment.entries)?;
            segment.remove()?;
            self.waiting.remove(0);
        }
        let warnings = std::mem::take(&mut *locked(&self.keeper.warnings));
        self.store.note_warnings(&warnings)
    }

    fn look(&mut self) -> Result<(), Error> {
        let version = self.store.db.version()?;
        if version != self.version {
            let directory = Arc::new(Directory::load(&mut self.store)?);
            *self
                .keeper
                .directory
                .write()
                .unwrap_or_else(PoisonError::into_inner) = directory;
            self.version = version;
        }
        if let Some(keep) = self.keep
            && self.pruned.is_none_or(|at| at.elapsed() >= PRUNE)
        {
            let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
            // A part each time, so that nothing waits long; the next part at once if there is one.
            if self.store.prune(now_ms().saturating_sub(keep_ms))? == 0 {
                self.pruned = Some(Instant::now());
            }
        }
        Ok(())
    }
}
