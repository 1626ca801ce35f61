//! A ledger of one gateway: meters in memory, and a thread that moves lines of the journal into SQLite in groups.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::directory::Holder;
use crate::hold::{Asked, Hold, Refusal};
use crate::journal::Segment;
use crate::ledger::{Chores, Keeper, Way, locked, now_ms};
use crate::meter::{self, Meters, Moment};
use crate::row::{Entry, Open, Row, day_of};
use crate::store::Store;
use crate::{Error, Place};

/// How long lines wait for others before the database gets them together.
const GROUP: Duration = Duration::from_millis(50);
/// Most segments that wait for a database that does not take them, before requests are refused.
const MAX_SEGMENTS: usize = 1000;

/// What is decided with.
#[derive(Debug)]
pub(crate) struct Local {
    meters: Mutex<Meters>,
    began: Instant,
}

impl Local {
    pub(crate) fn new() -> Self {
        Self {
            meters: Mutex::default(),
            began: Instant::now(),
        }
    }

    fn meters(&self) -> MutexGuard<'_, Meters> {
        locked(&self.meters)
    }

    pub(crate) fn admit(
        &self,
        keeper: &Arc<Keeper>,
        holder: &Holder,
        asked: &Asked<'_>,
    ) -> Result<Hold, Refusal> {
        let now = Moment {
            wall_ms: now_ms(),
            // A clock that nobody sets.
            rate_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let warnings = meter::admit(holder, &mut self.meters(), asked, now)?;
        let open = Open::new(holder, asked, now.wall_ms);
        // From here on whatever happens gives back what was taken.
        let hold = Hold {
            keeper: Arc::clone(keeper),
            open: Some(open.clone()),
            warnings,
        };
        keeper.note(now.wall_ms, &hold.warnings);
        match keeper.journal.append(Entry::Open(open)) {
            Ok(()) => Ok(hold),
            Err(error) => {
                tracing::error!(%error, "the ledger's journal cannot be written");
                Err(Refusal::Broken)
            }
        }
    }

    pub(crate) fn settle(&self, open: &Open, row: &Row) {
        meter::settle(&mut self.meters(), open, row, true);
    }
}

/// The thread: opens the database, says how many requests were lost, and feeds it until the ledger is dropped.
pub(crate) fn run(
    keeper: &Keeper,
    place: &Place,
    left: Vec<Segment>,
    keep: Option<Duration>,
    opened: &Sender<Result<u64, Error>>,
) {
    match begin(keeper, place, left, keep) {
        Ok((feeding, n_lost)) => {
            let _heard = opened.send(Ok(n_lost));
            feeding.run();
        }
        Err(error) => {
            let _heard = opened.send(Err(error));
        }
    }
}

fn begin<'a>(
    keeper: &'a Keeper,
    place: &Place,
    left: Vec<Segment>,
    keep: Option<Duration>,
) -> Result<(Feeding<'a>, u64), Error> {
    let mut store = Store::open(place)?;
    for segment in left {
        store.apply(&segment.entries)?;
        segment.retire()?;
    }
    let n_lost = store.end_lost()?;
    if let Way::Local(local) = &keeper.way {
        *local.meters() = store.meters(day_of(now_ms()))?;
    }
    let chores = Chores::begin(keeper, &mut store, keep)?;
    let feeding = Feeding {
        keeper,
        store,
        waiting: Vec::new(),
        chores,
    };
    Ok((feeding, n_lost))
}

/// What feeds the database.
struct Feeding<'a> {
    keeper: &'a Keeper,
    store: Store,
    /// Segments that the database has not taken yet.
    waiting: Vec<Segment>,
    chores: Chores,
}

impl Feeding<'_> {
    fn run(mut self) {
        loop {
            if !self.keeper.is_stopping.load(Ordering::SeqCst) {
                std::thread::park_timeout(GROUP);
            }
            let is_last = self.keeper.is_stopping.load(Ordering::SeqCst);
            if let Err(error) = self.feed() {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "the ledger's database did not take a group; it is tried again");
            }
            let is_behind = self.waiting.len() >= MAX_SEGMENTS;
            self.keeper.is_behind.store(is_behind, Ordering::Relaxed);
            if is_last {
                return;
            }
            if let Err(error) = self.chores.run(self.keeper, &mut self.store) {
                tracing::error!(%error, "the ledger's keys cannot be read");
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
            segment.retire()?;
            self.waiting.remove(0);
        }
        self.store.note_warnings(&self.keeper.take_warnings())
    }
}
