//! A ledger of several gateways: every decision is a transaction on the server, made for all requests that wait together.
//!
//! The rows of `meters` that a group of requests pays from are locked in the order of their names, so that gateways wait
//! for each other and never in a circle; what was spent is read under these locks. A request that is let in has its row
//! before it is made. How it ended is written to this gateway's journal first, and reaches the server from there, however
//! long that is away. A gateway that has not been seen for half a minute is believed dead, and its open requests lost;
//! should one of them be settled after all, it is billed then.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::budget::first_day;
use crate::db::{Db, values};
use crate::directory::Holder;
use crate::hold::{Asked, Hold, Refusal, Warning};
use crate::journal::Segment;
use crate::ledger::{Chores, Keeper, Way, locked, now_ms};
use crate::meter::{self, Meter, Meters, Moment};
use crate::rate::Bucket;
use crate::row::{Entry, Open, Outcome, Row, day_of};
use crate::store::{Settled, Store, Sums, insert_open, settle};
use crate::{Error, Micros, Place};

/// Most requests that are decided about in one transaction.
const GROUP: usize = 128;
/// Most requests that wait for a decision.
const MAX_WAITING: usize = 10_000;
/// How long settled requests wait for others.
const GATHER: Duration = Duration::from_millis(5);
/// How long the thread sleeps when nothing is to be done.
const IDLE: Duration = Duration::from_millis(250);
/// How often a gateway says that it lives, and looks for others that do not.
const BEAT: Duration = Duration::from_secs(5);
/// How long a gateway may be silent before its requests are believed lost, in milliseconds.
const SILENCE_MS: u64 = 30_000;
/// How long the name of a gateway is remembered, in milliseconds.
const FORGOTTEN_MS: i64 = 86_400_000;
/// How long a decision is waited for: longer than the server waits for somebody else's lock.
const DECISION: Duration = Duration::from_secs(15);
/// How long to wait before connecting again.
const AGAIN: Duration = Duration::from_secs(1);

/// A request that waits for a decision.
#[derive(Debug)]
struct Order {
    holder: Arc<Holder>,
    id: [u8; 16],
    route: String,
    tokens: u64,
    cost: Option<Micros>,
    is_downgraded: bool,
    answer: oneshot::Sender<Result<Hold, Refusal>>,
}

/// What is asked of the thread.
#[derive(Debug)]
pub(crate) struct Shared {
    orders: Mutex<VecDeque<Order>>,
    wake: Condvar,
    has_settled: AtomicBool,
    instance: [u8; 16],
    /// Where the name is remembered for the next process.
    remembered: PathBuf,
}

impl Shared {
    /// `folder`: this gateway's own.
    pub(crate) fn new(folder: &Path) -> Result<Self, Error> {
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(|_| Error::Random)?;
        Ok(Self {
            orders: Mutex::default(),
            wake: Condvar::new(),
            has_settled: AtomicBool::new(false),
            instance,
            remembered: folder.join("instance"),
        })
    }

    /// Waits for a decision, but not long: the server may have fallen silent.
    pub(crate) async fn admit(
        &self,
        keeper: &Keeper,
        holder: Arc<Holder>,
        asked: &Asked<'_>,
    ) -> Result<Hold, Refusal> {
        let (answer, decided) = oneshot::channel();
        {
            let mut orders = locked(&self.orders);
            if orders.len() >= MAX_WAITING {
                return Err(Refusal::Broken);
            }
            orders.push_back(Order {
                holder,
                id: asked.id,
                route: asked.route.to_string(),
                tokens: asked.tokens,
                cost: asked.cost,
                is_downgraded: asked.is_downgraded,
                answer,
            });
        }
        self.wake.notify_one();
        match tokio::time::timeout(DECISION, decided).await {
            Ok(decision) => decision.unwrap_or(Err(Refusal::Broken)),
            Err(_) => {
                // Until the thread says otherwise: the next need not wait to be told the same.
                if !keeper.is_behind.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        "the ledger's server does not answer; requests are refused until it does"
                    );
                }
                Err(Refusal::Broken)
            }
        }
    }

    /// Something waits in the journal.
    pub(crate) fn wake(&self) {
        self.has_settled.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Waits until there is something to do, and gives who is to be decided about.
    fn next(&self) -> Vec<Order> {
        let mut orders = locked(&self.orders);
        if orders.is_empty() {
            let is_settling = self.has_settled.swap(false, Ordering::AcqRel);
            let time = if is_settling { GATHER } else { IDLE };
            let waited = self.wake.wait_timeout_while(orders, time, |orders| {
                orders.is_empty() && (is_settling || !self.has_settled.load(Ordering::Acquire))
            });
            orders = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        let n = orders.len().min(GROUP);
        // Some may have waited too long.
        let waiting = |order: &Order| !order.answer.is_closed();
        orders.drain(..n).filter(waiting).collect()
    }
}

/// The name that the process before this one had. Each has its own: what the server still does for one that was killed
/// must not be taken for the work of the next.
fn instance_before(path: &Path) -> Option<[u8; 16]> {
    fs::read(path).ok()?.try_into().ok()
}

/// The thread: opens the database, says how many requests were lost, and decides until the ledger is dropped.
pub(crate) fn run(
    keeper: &Arc<Keeper>,
    place: &Place,
    left: Vec<Segment>,
    keep: Option<Duration>,
    opened: &Sender<Result<u64, Error>>,
) {
    let Way::Shared(shared) = &keeper.way else { return };
    match Deciding::begin(keeper, shared, place, left, keep) {
        Ok((mut deciding, n_lost)) => {
            let _heard = opened.send(Ok(n_lost));
            deciding.run(place);
        }
        Err(error) => {
            let _heard = opened.send(Err(error));
        }
    }
}

/// What decides.
struct Deciding<'a> {
    keeper: &'a Arc<Keeper>,
    shared: &'a Shared,
    /// None while the server is away.
    store: Option<Store>,
    lost_since: Instant,
    /// Segments that the server has not taken yet.
    waiting: Vec<Segment>,
    chores: Chores,
    beaten: Option<Instant>,
    /// The server's clock less this machine's, in milliseconds.
    ahead_ms: i64,
}

/// What became of an order within a transaction.
type Decision = Result<(Open, Vec<Warning>), Refusal>;

impl<'a> Deciding<'a> {
    fn begin(
        keeper: &'a Arc<Keeper>,
        shared: &'a Shared,
        place: &Place,
        left: Vec<Segment>,
        keep: Option<Duration>,
    ) -> Result<(Self, u64), Error> {
        let mut store = Store::open(place)?;
        let chores = Chores::begin(keeper, &mut store, keep)?;
        let mut deciding = Self {
            keeper,
            shared,
            store: Some(store),
            lost_since: Instant::now(),
            waiting: left,
            chores,
            beaten: None,
            ahead_ms: 0,
        };
        deciding.work(&[])?;
        deciding.beat()?;
        let n_lost = match instance_before(&shared.remembered) {
            Some(before) => deciding.end_lost("instance = ?1 AND started_ms < ?2", before, u64::MAX)?,
            None => 0,
        };
        let failed = |source| Error::File {
            path: shared.remembered.clone(),
            source,
        };
        fs::write(&shared.remembered, shared.instance).map_err(failed)?;
        Ok((deciding, n_lost))
    }

    fn run(&mut self, place: &Place) {
        loop {
            let orders = self.shared.next();
            let is_last = self.keeper.is_stopping.load(Ordering::SeqCst);
            if self.store.is_none() && !self.connect(place) {
                refuse(orders);
                if is_last {
                    return;
                }
                continue;
            }
            match self.round(orders) {
                Ok(()) => self.keeper.is_behind.store(false, Ordering::Relaxed),
                Err(error) => {
                    tracing::error!(%error, source = ?std::error::Error::source(&error), "the ledger's server did not take a group; it is tried again");
                    self.store = None;
                    self.lost_since = Instant::now();
                    // Connecting takes its time, which nobody need wait for.
                    self.keeper.is_behind.store(true, Ordering::Relaxed);
                }
            }
            if is_last {
                return;
            }
        }
    }

    fn connect(&mut self, place: &Place) -> bool {
        if self.lost_since.elapsed() < AGAIN {
            return false;
        }
        self.lost_since = Instant::now();
        match Store::open(place) {
            Ok(store) => {
                tracing::info!("the ledger's server is back");
                self.store = Some(store);
                self.beaten = None;
                true
            }
            Err(error) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "the ledger's server is away");
                false
            }
        }
    }

    fn round(&mut self, orders: Vec<Order>) -> Result<(), Error> {
        if let Some(segment) = self.keeper.journal.rotate()? {
            self.waiting.push(segment);
        }
        let decisions = self.work(&orders);
        match decisions {
            Ok(decisions) => self.answer(orders, decisions),
            Err(error) => {
                // Whether the server took them nobody knows: they end, if they began.
                for order in &orders {
                    let asked = order.asked();
                    let open = Open::new(&order.holder, &asked, now_ms());
                    let row = Row {
                        outcome: Outcome::Failed,
                        ..Row::nothing(0)
                    };
                    self.keeper.append(Entry::Settle(open, row));
                }
                refuse(orders);
                return Err(error);
            }
        }
        if self.beaten.is_none_or(|at| at.elapsed() >= BEAT) {
            self.beat()?;
            let silent = "instance IN (SELECT id FROM instances WHERE id <> ?1 AND seen_ms < ?2)";
            let before = self.now().saturating_sub(SILENCE_MS);
            let n = self.end_lost(silent, self.shared.instance, before)?;
            if n > 0 {
                tracing::warn!(n, "requests of gateways that are silent are believed lost");
            }
        }
        match &mut self.store {
            Some(store) => self.chores.run(self.keeper, store),
            None => Ok(()),
        }
    }

    fn now(&self) -> u64 {
        now_ms().saturating_add_signed(self.ahead_ms)
    }

    fn store(&mut self) -> Result<&mut Store, Error> {
        self.store
            .as_mut()
            .ok_or_else(|| Error::Shape("the server is away".into()))
    }

    /// Settles what waits and decides about orders, in one transaction.
    fn work(&mut self, orders: &[Order]) -> Result<Vec<Decision>, Error> {
        let entries: Vec<&Entry> = self.waiting.iter().flat_map(|segment| &segment.entries).collect();
        let warnings = self.keeper.take_warnings();
        if entries.is_empty() && orders.is_empty() && warnings.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now();
        let now = Moment {
            wall_ms: now,
            rate_ms: now,
        };
        let instance = self.shared.instance;
        let has_settled = !entries.is_empty();
        let Some(store) = &mut self.store else {
            return Err(Error::Shape("the server is away".into()));
        };
        store.note_warnings(&warnings)?;
        let decisions = store.db.transaction(|db| {
            let mut meters = locked_meters(db, &entries, orders)?;
            settle_all(db, &mut meters, &entries)?;
            let decisions = decide_all(db, &mut meters, orders, now, &instance)?;
            write_meters(db, &meters)?;
            Ok(decisions)
        })?;
        for segment in self.waiting.drain(..) {
            segment.retire()?;
        }
        if has_settled {
            self.keeper.settled.notify_waiters();
        }
        Ok(decisions)
    }

    fn answer(&self, orders: Vec<Order>, decisions: Vec<Decision>) {
        for (order, decision) in orders.into_iter().zip(decisions) {
            let answer = decision.map(|(open, warnings)| {
                self.keeper.note(open.started_ms, &warnings);
                Hold {
                    keeper: Arc::clone(self.keeper),
                    open: Some(open),
                    warnings,
                }
            });
            // A hold that nobody waits for any more is dropped here, and so given back.
            let _heard = order.answer.send(answer);
        }
    }

    /// Says that this gateway lives, and looks at the server's clock.
    fn beat(&mut self) -> Result<(), Error> {
        let instance = self.shared.instance;
        let store = self.store()?;
        let sql = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)";
        // Right around the question: what else there is to write takes time too.
        let before = now_ms();
        let there = store.db.one(sql, &[])?.int()?;
        let here = before + now_ms().saturating_sub(before) / 2;
        store.db.execute(
            "INSERT INTO instances (id, seen_ms) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET seen_ms = excluded.seen_ms",
            values![&instance, there],
        )?;
        // Names of processes that are long gone.
        store.db.execute(
            "DELETE FROM instances WHERE seen_ms < ?1
             AND id NOT IN (SELECT instance FROM requests WHERE is_open = 1 AND instance IS NOT NULL)",
            values![there.saturating_sub(FORGOTTEN_MS)],
        )?;
        self.ahead_ms = there.saturating_sub_unsigned(here);
        self.beaten = Some(Instant::now());
        Ok(())
    }

    /// Ends open requests of some gateways; gives how many.
    fn end_lost(&mut self, whose: &str, instance: [u8; 16], before: u64) -> Result<u64, Error> {
        let store = self.store()?;
        let sql = format!(
            "SELECT id, key, team, user_name, project, held, started_ms FROM requests
             WHERE is_open = 1 AND {whose} ORDER BY id LIMIT 1000"
        );
        let mut n_lost = 0;
        loop {
            let rows = store.db.query(&sql, values![&instance, before])?;
            let lost: Vec<Entry> = rows.into_iter().map(lost).collect::<Result<_, _>>()?;
            if lost.is_empty() {
                return Ok(n_lost);
            }
            let entries: Vec<&Entry> = lost.iter().collect();
            store.db.transaction(|db| {
                let mut meters = locked_meters(db, &entries, &[])?;
                settle_all(db, &mut meters, &entries)?;
                write_meters(db, &meters)
            })?;
            n_lost += lost.len() as u64;
        }
    }
}

/// A request that is believed lost.
fn lost(mut row: crate::db::Record) -> Result<Entry, Error> {
    let open = Open {
        id: row.bytes()?,
        key: row.int()?,
        team: row.opt_text()?,
        user: row.opt_text()?,
        project: row.opt_text()?,
        route: String::new(),
        held: Micros(row.count()?),
        tokens: 0,
        started_ms: row.count()?,
    };
    let row = Row {
        outcome: Outcome::Lost,
        ..Row::nothing(0)
    };
    Ok(Entry::Settle(open, row))
}

fn refuse(orders: Vec<Order>) {
    for order in orders {
        let _heard = order.answer.send(Err(Refusal::Broken));
    }
}

impl Order {
    fn asked(&self) -> Asked<'_> {
        Asked {
            id: self.id,
            route: &self.route,
            tokens: self.tokens,
            cost: self.cost,
            is_downgraded: self.is_downgraded,
        }
    }
}

/// Locks all whose limits are concerned, in the order of their names, and reads what is held for them.
fn locked_meters(db: &mut Db, entries: &[&Entry], orders: &[Order]) -> Result<Meters, Error> {
    let mut scopes = BTreeSet::new();
    for entry in entries {
        let (Entry::Open(open) | Entry::Settle(open, _)) = entry;
        scopes.extend(open.scopes());
    }
    for order in orders {
        scopes.extend(order.holder.payers.iter().map(|payer| payer.scope.to_string()));
    }
    let mut meters = Meters::new();
    for scope in scopes {
        let meter = match locked_meter(db, &scope)? {
            Some(meter) => meter,
            None => {
                let sql = "INSERT INTO meters (scope, held, n_open, requests_missing, tokens_missing)
                           VALUES (?1, 0, 0, 0, 0) ON CONFLICT (scope) DO NOTHING";
                db.execute(sql, values![&scope])?;
                locked_meter(db, &scope)?.unwrap_or_default()
            }
        };
        meters.insert(scope.into(), meter);
    }
    Ok(meters)
}

fn locked_meter(db: &mut Db, scope: &str) -> Result<Option<Meter>, Error> {
    let sql =
        "SELECT held, n_open, requests_missing, requests_at, tokens_missing, tokens_at, warned FROM meters
               WHERE scope = ?1 FOR UPDATE";
    let Some(mut row) = db.first(sql, values![scope])? else {
        return Ok(None);
    };
    Ok(Some(Meter {
        held: Micros(row.count()?),
        n_open: row.count()?,
        requests: Bucket::of_parts(row.count()?, row.opt_count()?),
        tokens: Bucket::of_parts(row.count()?, row.opt_count()?),
        warned: row.opt_int()?,
        ..Meter::default()
    }))
}

fn write_meters(db: &mut Db, meters: &Meters) -> Result<(), Error> {
    for (scope, meter) in meters {
        let ((requests, requests_at), (tokens, tokens_at)) = (meter.requests.parts(), meter.tokens.parts());
        db.execute(
            "UPDATE meters SET held = ?2, n_open = ?3, requests_missing = ?4, requests_at = ?5, tokens_missing = ?6,
             tokens_at = ?7, warned = ?8 WHERE scope = ?1",
            values![
                &**scope,
                meter.held,
                meter.n_open,
                requests,
                requests_at,
                tokens,
                tokens_at,
                meter.warned
            ],
        )?;
    }
    Ok(())
}

fn settle_all(db: &mut Db, meters: &mut Meters, entries: &[&Entry]) -> Result<(), Error> {
    let mut sums = Sums::default();
    for entry in entries {
        let Entry::Settle(open, row) = entry else { continue };
        let before = settle(db, open, row)?;
        if before == Settled::Already {
            continue;
        }
        meter::settle(meters, open, row, before == Settled::Open);
        // What is lost costs nothing, and is not counted among those that ended.
        if row.outcome != Outcome::Lost {
            sums.add(open, row);
        }
    }
    sums.write(db)
}

fn decide_all(
    db: &mut Db,
    meters: &mut Meters,
    orders: &[Order],
    now: Moment,
    instance: &[u8; 16],
) -> Result<Vec<Decision>, Error> {
    read_spending(db, meters, orders, day_of(now.wall_ms))?;
    let mut decisions = Vec::with_capacity(orders.len());
    for order in orders {
        let asked = order.asked();
        let decision = match meter::admit(&order.holder, meters, &asked, now) {
            Ok(warnings) => {
                let open = Open::new(&order.holder, &asked, now.wall_ms);
                insert_open(db, &open, Some(instance))?;
                Ok((open, warnings))
            }
            Err(refusal) => Err(refusal),
        };
        decisions.push(decision);
    }
    Ok(decisions)
}

/// Reads what those have spent whose spending has a limit.
fn read_spending(db: &mut Db, meters: &mut Meters, orders: &[Order], today: i64) -> Result<(), Error> {
    let payers = orders.iter().flat_map(|order| &order.holder.payers);
    let limited = payers.filter(|payer| payer.limits.has_budget() || payer.limits.soft.is_some());
    let scopes: BTreeSet<&str> = limited.map(|payer| &*payer.scope).collect();
    for scope in scopes {
        let Some(meter) = meters.get_mut(scope) else {
            continue;
        };
        let sql = "SELECT CAST(coalesce(sum(micros), 0) AS BIGINT) FROM spent WHERE scope = ?1";
        let ever = db.one(sql, values![scope])?.count()?;
        meter.spending = crate::budget::Spending::default();
        meter.spending.load(Micros(ever));
        let sql = "SELECT day, micros FROM spent WHERE scope = ?1 AND day >= ?2";
        for mut row in db.query(sql, values![scope, first_day(today)])? {
            meter.spending.load_day(row.int()?, Micros(row.count()?));
        }
    }
    Ok(())
}
