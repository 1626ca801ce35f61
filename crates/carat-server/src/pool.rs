//! The models that are loaded, and how others come and go.
//!
//! A request takes a [`Lease`] on the model that it names. A model that is not loaded is loaded by a task of its own,
//! one at a time; all requests for it wait, and a client that leaves does not stop the load. When memory has no room,
//! models that nobody uses go, the one used longest ago first; when all are in use, the load waits for one to become
//! free, and requests that come for that one meanwhile wait for their turn to have it loaded again. A model that does
//! not fit alone is refused with the figures. What nobody has used for its keep-alive is unloaded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use carat_api::{ApiError, ErrorKind, KeepAlive};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::metrics::{ModelFigures, Past, Totals};
use crate::model::{ModelDetails, ServedModel};
use crate::store::{ListedModel, LoadError, LoadedModel, ModelStore};

/// Names told to those who ask for a model that is not there.
const NAMES_TOLD: usize = 12;
/// A model that was loaded and not used yet stays so long at least.
const UNUSED_GRACE: Duration = Duration::from_secs(10);

/// Which names mean which model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    /// Models that are served, the default first; `None` for all that the store has.
    pub(crate) served: Option<Vec<String>>,
    /// Other names, and whose they are.
    pub(crate) aliases: Vec<(String, String)>,
    /// Whether the default does not answer to other names.
    pub(crate) is_strict: bool,
}

/// How the pool keeps models.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    /// How long a model stays that nobody uses; `None` for ever.
    pub(crate) keep_alive: Option<Duration>,
    /// Models that may be loaded at once, at least 1.
    pub(crate) n_loaded: usize,
}

/// The models. See the module's head.
pub(crate) struct ModelPool {
    /// `None` for one model that came loaded and stays.
    store: Option<Arc<dyn ModelStore>>,
    names: Names,
    keeping: Keeping,
    state: Mutex<State>,
    /// Held by the one load at work.
    turn: tokio::sync::Mutex<()>,
    /// Something was let go, or its keep-alive changed.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    slots: HashMap<String, Slot>,
    /// Engines that were let go, by model.
    past: HashMap<String, Past>,
    is_watched: bool,
}

enum Slot {
    Loading(watch::Receiver<Option<ApiError>>),
    Ready(Ready),
}

struct Ready {
    model: Arc<ServedModel>,
    claim_bytes: u64,
    n_users: usize,
    keep_alive: Option<Duration>,
    used: Instant,
    /// Somebody has used it; until then those who had it loaded are on their way.
    was_used: bool,
    /// It must go as soon as nobody uses it: another is waiting for its memory.
    is_leaving: bool,
}

impl Ready {
    /// When it goes, if that is known.
    fn expires(&self) -> Option<Instant> {
        let keep_alive = self.keep_alive.filter(|_| self.n_users == 0)?;
        let least = if self.was_used {
            Duration::ZERO
        } else {
            UNUSED_GRACE
        };
        self.used.checked_add(keep_alive.max(least))
    }
}

/// A model that is loaded, as it is told.
pub(crate) struct Running {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) claim_bytes: u64,
    /// From now on; `None` for never.
    pub(crate) expires_in: Option<Duration>,
}

/// A model in use: it stays loaded until this is dropped.
pub(crate) struct Lease {
    pool: Arc<ModelPool>,
    model: Arc<ServedModel>,
}

impl Lease {
    /// The model itself, for work that may outlast the lease by a moment.
    pub(crate) fn model(&self) -> Arc<ServedModel> {
        Arc::clone(&self.model)
    }
}

impl std::ops::Deref for Lease {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.model
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        // A model that broke down was replaced: its users are not those of the new one.
        if let Some(Slot::Ready(ready)) = state.slots.get_mut(&self.model.setup.id)
            && Arc::ptr_eq(&ready.model, &self.model)
        {
            ready.n_users = ready.n_users.saturating_sub(1);
            ready.used = Instant::now();
            if ready.n_users == 0 {
                self.pool.changed.notify_waiters();
            }
        }
    }
}

/// What a request found.
enum Found {
    Lease(Lease),
    Loading(watch::Receiver<Option<ApiError>>),
    Leaving,
}

impl ModelPool {
    /// A pool of one model that stays.
    pub(crate) fn of_one(loaded: LoadedModel, names: Names) -> Arc<Self> {
        let keeping = Keeping {
            keep_alive: None,
            n_loaded: 1,
        };
        let pool = Self::new(None, names, keeping);
        pool.put(loaded);
        pool
    }

    /// A pool that loads from `store`.
    pub(crate) fn of_store(store: Arc<dyn ModelStore>, names: Names, keeping: Keeping) -> Arc<Self> {
        Self::new(Some(store), names, keeping)
    }

    fn new(store: Option<Arc<dyn ModelStore>>, names: Names, keeping: Keeping) -> Arc<Self> {
        Arc::new(Self {
            store,
            names,
            keeping,
            state: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            changed: Arc::new(Notify::new()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, loaded: LoadedModel) {
        let LoadedModel {
            setup,
            engine,
            claim_bytes,
        } = loaded;
        let id = setup.id.clone();
        let ready = Ready {
            model: Arc::new(ServedModel::new(setup, engine)),
            claim_bytes,
            n_users: 0,
            keep_alive: self.keeping.keep_alive,
            used: Instant::now(),
            was_used: false,
            is_leaving: false,
        };
        self.lock().slots.insert(id, Slot::Ready(ready));
    }

    /// The model that `name` means, loaded first if need be.
    ///
    /// # Errors
    /// When there is no such model, it does not fit, or it cannot be loaded.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        name: &str,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, ApiError> {
        let id = self.id_of(name).await?;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.find(&id, keep_alive)? {
                Found::Lease(lease) => return Ok(lease),
                Found::Loading(mut outcome) => {
                    let told = outcome.wait_for(Option::is_some).await;
                    // Without an error the sender is gone: it is loaded, or it must be tried again.
                    if let Ok(Some(error)) = told.as_deref() {
                        return Err(error.clone());
                    }
                }
                Found::Leaving => changed.await,
            }
        }
    }

    /// What there is of model `id` now; nothing starts a load.
    fn find(self: &Arc<Self>, id: &str, keep_alive: Option<KeepAlive>) -> Result<Found, ApiError> {
        let mut state = self.lock();
        if let Some(Slot::Ready(ready)) = state.slots.get(id)
            && ready.model.engine.has_stopped()
            && self.store.is_some()
        {
            // Its thread broke down and told its jobs so; a new one takes its place.
            tracing::error!(model = id, "the engine had stopped; the model is loaded again");
            let broken = state.take(id);
            drop(state);
            drop(broken);
            state = self.lock();
        }
        match state.slots.get_mut(id) {
            Some(Slot::Ready(ready)) if ready.is_leaving => Ok(Found::Leaving),
            Some(Slot::Ready(ready)) => {
                ready.n_users += 1;
                ready.was_used = true;
                ready.used = Instant::now();
                match keep_alive {
                    Some(KeepAlive::For(time)) if self.store.is_some() => ready.keep_alive = Some(time),
                    Some(KeepAlive::Forever) => ready.keep_alive = None,
                    _ => {}
                }
                Ok(Found::Lease(Lease {
                    pool: Arc::clone(self),
                    model: Arc::clone(&ready.model),
                }))
            }
            Some(Slot::Loading(outcome)) => Ok(Found::Loading(outcome.clone())),
            None => {
                let store = self.store.clone().ok_or_else(|| not_found(id, &[]))?;
                let (sender, outcome) = watch::channel(None);
                state.slots.insert(id.to_string(), Slot::Loading(outcome.clone()));
                let (pool, id) = (Arc::clone(self), id.to_string());
                if !std::mem::replace(&mut state.is_watched, true) {
                    tokio::spawn(watch_over(Arc::downgrade(self), Arc::clone(&self.changed)));
                }
                // Not tied to the request that asks: others wait for it too.
                tokio::spawn(async move {
                    if let Err(error) = pool.load(store, &id).await {
                        tracing::warn!(model = id, %error, "a model could not be loaded");
                        pool.lock().slots.remove(&id);
                        // Nobody listens when all who waited have left.
                        let _told = sender.send(Some(error));
                    }
                });
                Ok(Found::Loading(outcome))
            }
        }
    }

    /// Loads a model, after those that were asked for before it.
    async fn load(&self, store: Arc<dyn ModelStore>, id: &str) -> Result<(), ApiError> {
        let _turn = self.turn.lock().await;
        let started = Instant::now();
        let result = self.load_in_turn(store, id).await;
        for slot in self.lock().slots.values_mut() {
            if let Slot::Ready(ready) = slot {
                ready.is_leaving = false;
            }
        }
        // Those that were to go for it stay, and answer again.
        self.changed.notify_waiters();
        let loaded = result?;
        tracing::info!(
            model = id,
            claim_bytes = loaded.claim_bytes,
            ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "loaded"
        );
        self.put(loaded);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn load_in_turn(&self, store: Arc<dyn ModelStore>, id: &str) -> Result<LoadedModel, ApiError> {
        if self.running().len() >= self.keeping.n_loaded.max(1) {
            // Nobody is sent away for a model that cannot come.
            let (store, wanted) = (Arc::clone(&store), id.to_string());
            let checked = blocking(move || store.check(&wanted)).await?;
            checked.map_err(|error| not_loaded(id, error))?;
        }
        while self.running().len() >= self.keeping.n_loaded.max(1) {
            self.make_room().await;
        }
        loop {
            let claimed: u64 = self.running().iter().map(|running| running.claim_bytes).sum();
            let (store, wanted) = (Arc::clone(&store), id.to_string());
            match blocking(move || store.load(&wanted, claimed)).await? {
                Ok(loaded) => return Ok(loaded),
                Err(LoadError::NoRoom(_)) if self.make_room().await => {}
                Err(error) => return Err(not_loaded(id, error)),
            }
        }
    }

    /// Unloads the model that was used longest ago, as soon as one is free; `false` when none is loaded.
    async fn make_room(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let victim = {
                let mut state = self.lock();
                let Some((id, is_free)) = state.used_longest_ago() else {
                    return false;
                };
                if is_free {
                    state.take(&id)
                } else {
                    if let Some(Slot::Ready(ready)) = state.slots.get_mut(&id) {
                        ready.is_leaving = true;
                    }
                    None
                }
            };
            match victim {
                Some(victim) => {
                    unload(victim, "another one needs its memory").await;
                    return true;
                }
                None => changed.await,
            }
        }
    }

    /// Unloads a model at once if nobody uses it, else when its users are done.
    pub(crate) async fn let_go(self: &Arc<Self>, name: &str) -> Result<String, ApiError> {
        let id = self.id_of(name).await?;
        if let Some(Slot::Ready(ready)) = self.lock().slots.get_mut(&id)
            && self.store.is_some()
        {
            ready.keep_alive = Some(Duration::ZERO);
        }
        self.changed.notify_waiters();
        Ok(id)
    }

    /// Unloads what nobody has used for long enough, and says when to look again.
    async fn unload_expired(&self) -> Option<Instant> {
        let (expired, next) = self.lock().expired(Instant::now());
        if expired.is_empty() {
            return next;
        }
        // No load begins before their memory is free and their caches are saved.
        let turn = self.turn.lock().await;
        let (gone, next) = {
            let mut state = self.lock();
            let (expired, next) = state.expired(Instant::now());
            let gone: Vec<Ready> = expired.iter().filter_map(|id| state.take(id)).collect();
            (gone, next)
        };
        for ready in gone {
            unload(ready, "nobody used it").await;
        }
        drop(turn);
        self.changed.notify_waiters();
        next
    }

    /// The models that are loaded.
    pub(crate) fn running(&self) -> Vec<Running> {
        let state = self.lock();
        let ready = state.slots.values().filter_map(|slot| match slot {
            Slot::Ready(ready) => Some(ready),
            Slot::Loading(_) => None,
        });
        let now = Instant::now();
        let mut running: Vec<Running> = ready
            .map(|ready| Running {
                model: Arc::clone(&ready.model),
                claim_bytes: ready.claim_bytes,
                expires_in: match ready.expires() {
                    Some(expires) => Some(expires.saturating_duration_since(now)),
                    None => ready.keep_alive,
                },
            })
            .collect();
        running.sort_by(|a, b| a.model.setup.id.cmp(&b.model.setup.id));
        running
    }

    /// Whether no engine has broken down that the next request does not replace.
    pub(crate) fn is_sound(&self) -> bool {
        self.store.is_some()
            || self
                .running()
                .iter()
                .all(|running| !running.model.engine.has_stopped())
    }

    /// What every model's engines have done.
    pub(crate) fn figures(&self) -> Vec<ModelFigures> {
        let mut state = self.lock();
        let State { past, slots, .. } = &mut *state;
        let mut figures: HashMap<&str, ModelFigures> = HashMap::new();
        for (id, past) in past {
            figures.insert(id, ModelFigures::of_past(id, past.totals()));
        }
        for (id, slot) in &*slots {
            if let Slot::Ready(ready) = slot {
                figures
                    .entry(id)
                    .or_insert_with(|| ModelFigures::of_past(id, Totals::default()))
                    .add(ready.model.engine.counters());
            }
        }
        let mut figures: Vec<ModelFigures> = figures.into_values().collect();
        figures.sort_by(|a, b| a.id.cmp(&b.id));
        figures
    }

    /// All models that may be asked for.
    pub(crate) async fn list(&self) -> Result<Vec<ListedModel>, ApiError> {
        let Some(store) = self.store.clone() else {
            return Ok(self.running().iter().map(|one| one.model.listed()).collect());
        };
        let mut all = blocking(move || store.list()).await?.map_err(|error| {
            let message = format!("the models cannot be listed: {error}");
            ApiError::new(ErrorKind::Internal, message)
        })?;
        if let Some(served) = &self.names.served {
            all.retain(|model| served.contains(&model.id));
        }
        Ok(all)
    }

    /// Names that mean model `id` beside its own.
    pub(crate) fn aliases(&self) -> &[(String, String)] {
        &self.names.aliases
    }

    /// What is told about model `id`, loaded or not.
    pub(crate) async fn details(&self, id: &str) -> Result<ModelDetails, ApiError> {
        let running = self.running();
        if let Some(one) = running.iter().find(|one| one.model.setup.id == id) {
            return Ok(one.model.setup.details.clone());
        }
        let store = self.store.clone().ok_or_else(|| not_found(id, &[]))?;
        let wanted = id.to_string();
        blocking(move || store.details(&wanted)).await?.map_err(|error| {
            let message = format!("the files of model `{id}` cannot be read: {error}");
            ApiError::new(ErrorKind::Internal, message)
        })
    }

    /// The model that a name means.
    ///
    /// # Errors
    /// When it means none; the error names some that there are.
    pub(crate) async fn id_of(&self, name: &str) -> Result<String, ApiError> {
        let name = name.strip_suffix(":latest").unwrap_or(name);
        if let Some((_, id)) = self.names.aliases.iter().find(|(alias, _)| alias == name) {
            return Ok(id.clone());
        }
        if self.lock().slots.contains_key(name) {
            return Ok(name.to_string());
        }
        if let Some(served) = &self.names.served {
            let default = served
                .first()
                .filter(|_| !self.names.is_strict || name.is_empty());
            let found = served.iter().find(|id| *id == name).or(default);
            return found.cloned().ok_or_else(|| not_found(name, served));
        }
        let ids: Vec<String> = self.list().await?.into_iter().map(|model| model.id).collect();
        let only = ids.first().filter(|_| name.is_empty() && ids.len() == 1);
        let found = ids.iter().find(|id| *id == name).or(only);
        found.cloned().ok_or_else(|| not_found(name, &ids))
    }

    /// The same without the default's indulgence: whether there is a model of this very name.
    pub(crate) async fn exact_id_of(&self, name: &str) -> Result<String, ApiError> {
        let id = self.id_of(name).await?;
        let is_exact = name.strip_suffix(":latest").unwrap_or(name) == id
            || self.names.aliases.iter().any(|(alias, _)| alias == name);
        if is_exact {
            return Ok(id);
        }
        Err(not_found(name, &[id]))
    }
}

impl State {
    /// Takes a model that is ready out.
    fn take(&mut self, id: &str) -> Option<Ready> {
        if !matches!(self.slots.get(id), Some(Slot::Ready(_))) {
            return None;
        }
        let Some(Slot::Ready(ready)) = self.slots.remove(id) else {
            return None;
        };
        let past = self.past.entry(id.to_string()).or_default();
        past.let_go(ready.model.engine.counters());
        Some(ready)
    }

    /// The models whose time is over, and when the next one's will be.
    fn expired(&self, now: Instant) -> (Vec<String>, Option<Instant>) {
        let times = self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Ready(ready) => Some((id, ready.expires()?)),
            Slot::Loading(_) => None,
        });
        let (over, later): (Vec<_>, Vec<_>) = times.partition(|(_, expires)| *expires <= now);
        let over = over.into_iter().map(|(id, _)| id.clone()).collect();
        (over, later.into_iter().map(|(_, expires)| expires).min())
    }

    /// The model to go next, and whether nobody uses it. Free ones go first.
    fn used_longest_ago(&self) -> Option<(String, bool)> {
        let ready = self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Ready(ready) => Some((ready.n_users > 0, ready.used, id)),
            Slot::Loading(_) => None,
        });
        ready.min().map(|(is_used, _, id)| (id.clone(), !is_used))
    }
}

/// Lets a model's memory go. Its engine ends after its present step, so it is waited for elsewhere.
async fn unload(ready: Ready, reason: &'static str) {
    tracing::info!(model = ready.model.setup.id, reason, "unloaded");
    if blocking(move || drop(ready)).await.is_err() {
        tracing::error!("a model could not be unloaded in order");
    }
}

/// Unloads models when their time has come, for as long as there is a pool.
async fn watch_over(pool: Weak<ModelPool>, changed: Arc<Notify>) {
    loop {
        let news = changed.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        let Some(held) = pool.upgrade() else { return };
        let next = held.unload_expired().await;
        drop(held);
        match next {
            Some(next) => tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = news => {}
            },
            None => news.await,
        }
    }
}

/// Runs what may take long on a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "work on a model failed");
        ApiError::new(
            ErrorKind::Internal,
            "the server made a mistake; its log says more",
        )
    })
}

/// What is told of a model that was not loaded.
fn not_loaded(id: &str, error: LoadError) -> ApiError {
    match error {
        LoadError::NoRoom(figures) | LoadError::TooLarge(figures) => {
            let message = format!("the model `{id}` does not fit into this machine's memory: {figures}");
            ApiError::field("model", message).with_code("model_does_not_fit")
        }
        LoadError::Failed(reason) => {
            let message = format!("the model `{id}` could not be loaded: {reason}");
            ApiError::new(ErrorKind::Internal, message).with_code("model_not_loaded")
        }
    }
}

fn not_found(name: &str, ids: &[String]) -> ApiError {
    let mut message = match name {
        "" => "`model` must name a model".to_string(),
        name => format!("the model `{name}` is not served here"),
    };
    if ids.is_empty() {
        message.push_str("; there is none yet, `carat pull` fetches one");
    } else {
        let told: Vec<String> = ids.iter().take(NAMES_TOLD).map(|id| format!("`{id}`")).collect();
        let more = if ids.len() > NAMES_TOLD { " and others" } else { "" };
        message.push_str(&format!("; use {}{more}", told.join(", ")));
    }
    let error = ApiError::new(ErrorKind::NotFound, message).with_code("model_not_found");
    ApiError {
        param: Some("model".into()),
        ..error
    }
}
