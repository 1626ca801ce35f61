//! The towers of a GGUF model, its encoders for images and sounds: an `mmproj` file of the same repository.
//!
//! It is fetched after the model, which works without, and put beside it, where it is looked for. All models of the
//! repository share it: it is no model of its own, and goes with the last of them.

use std::sync::atomic::AtomicBool;

use crate::error::Result;
use crate::hf;
use crate::http::Http;
use crate::hub::Hub;
use crate::local::{Identity, LocalModel, Place};
use crate::plan::Plan;
use crate::progress::{Progress, Watch};

impl Hub {
    /// Fetches the towers of a model that carat has pulled. `None` where there are none to be had, or they are here, and
    /// for a model that lies in a folder inside its repository, beside which there is no place for them.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn pull_towers(
        &self,
        model: &LocalModel,
        progress: &mut dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Option<LocalModel>> {
        let Identity::Hf {
            repo,
            file: Some(file),
        } = &model.identity
        else {
            return Ok(None);
        };
        let is_ours = model.place == Place::Store && !file.contains('/') && !model.is_towers();
        let is_here = |other: &LocalModel| other.is_towers() && other.is_of_repo(repo);
        if !is_ours || self.settings.offline || self.store.list().iter().any(is_here) {
            return Ok(None);
        }
        let http = Http::new(&self.settings)?;
        let Some(towers) = hf::towers_in(&http, repo, &mut Watch { progress, cancel })? else {
            return Ok(None);
        };
        let plan = Plan::of_repo(&format!("hf:{repo}:{towers}"), repo, Some(&towers), Vec::new());
        self.pull(&plan, progress, cancel).map(Some)
    }

    /// Removes towers whose last model is gone since `before`; returns the bytes freed.
    pub(crate) fn remove_lone_towers(&self, before: &[LocalModel]) -> Result<u64> {
        let after = self.store.list();
        let mut freed = 0u64;
        for towers in after.iter().filter(|model| model.is_towers()) {
            let serves = |model: &&LocalModel| !model.is_towers() && towers.is_beside(model);
            if before.iter().any(|model| serves(&model)) && !after.iter().any(|model| serves(&model)) {
                let removed = self.store.remove(|model| model.identity == towers.identity)?;
                freed = freed.saturating_add(removed.unwrap_or(0));
            }
        }
        Ok(freed)
    }
}

impl LocalModel {
    /// Whether it is a repository's towers, which are no model.
    pub(crate) fn is_towers(&self) -> bool {
        match &self.identity {
            Identity::Hf { file: Some(file), .. } => crate::name::is_projector(file),
            _ => false,
        }
    }

    fn is_of_repo(&self, wanted: &str) -> bool {
        matches!(&self.identity, Identity::Hf { repo, .. } if repo == wanted)
    }

    /// Whether both are of one repository.
    fn is_beside(&self, other: &LocalModel) -> bool {
        matches!(&self.identity, Identity::Hf { repo, .. } if other.is_of_repo(repo))
    }
}
