//! The front of the crate: resolve, list, remove. (Pulling is in `pull.rs`.)

use std::path::{Path, PathBuf};

use crate::catalogue::{self, Entry};
use crate::error::{Attempt, Error, Result};
use crate::local::{Identity, LocalModel, Place, foreign_stores, open_path};
use crate::name::{ModelName, has_quant, is_drafter};
use crate::plan::{Plan, Source};
use crate::settings::HubSettings;
use crate::store::{Origin, Store};

/// Finds, fetches, lists and removes models.
#[derive(Debug)]
pub struct Hub {
    pub(crate) settings: HubSettings,
    pub(crate) store: Store,
    catalogue: Vec<Entry>,
}

/// Where a model is.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// On this machine, ready to be opened.
    Local(LocalModel),
    /// Not on this machine; [`Hub::pull`] gets it.
    NeedsDownload(Plan),
}

impl Hub {
    /// Reads the catalogue; touches neither the stores nor the network.
    ///
    /// # Errors
    /// [`Error::Catalogue`] when the user's catalogue file is malformed.
    pub fn new(settings: HubSettings) -> Result<Self> {
        let catalogue = catalogue::load(settings.catalogue_file.as_deref())?;
        let store = Store::new(&settings.store_dir);
        Ok(Hub {
            settings,
            store,
            catalogue,
        })
    }

    /// The models known by name, in the order of the catalogue.
    pub fn catalogue(&self) -> &[Entry] {
        &self.catalogue
    }

    /// Says where the model is that `model` names. Looks at the disk only. Every name that [`Hub::list`] shows is one.
    ///
    /// # Errors
    /// [`Error::PathMissing`] and [`Error::NotAModel`] for paths, [`Error::BadName`] and
    /// [`Error::UnknownModel`] for names.
    pub fn resolve(&self, model: &str) -> Result<Resolution> {
        let written = self.resolve_written(model);
        // What other programs call their models may look like a path or a repository: `ada/gemma:1b` of Ollama.
        let Err(Error::BadName { .. } | Error::PathMissing(_) | Error::UnknownModel { .. }) = &written else {
            return written;
        };
        let (hits, _) = self.search(|local| local.is_shown_as(model.trim()));
        hits.into_iter()
            .next()
            .map_or(written, |found| Ok(Resolution::Local(found)))
    }

    fn resolve_written(&self, model: &str) -> Result<Resolution> {
        match ModelName::parse(model, |name| self.entry(name).is_some())? {
            ModelName::Path(path) => Ok(Resolution::Local(open_path(&path)?)),
            ModelName::Catalogue(name) => self.resolve_name(&name),
            ModelName::Hf { repo, file } => {
                let file = file.as_deref();
                let (mut hits, searched) = self.search(|m| m.is_hf(&repo, file));
                Ok(match choose(&mut hits, &repo, file)? {
                    Some(found) => Resolution::Local(found),
                    None => Resolution::NeedsDownload(Plan::of_repo(model, &repo, file, searched)),
                })
            }
        }
    }

    /// Where the drafter is that the catalogue has for a model; `None` where it has none.
    ///
    /// # Errors
    /// As [`Hub::resolve`], where a user's catalogue names one that is none.
    pub fn drafter_of(&self, model: &LocalModel) -> Result<Option<Resolution>> {
        let entry = self.catalogue.iter().find(|entry| model.is_entry(entry));
        let drafter = entry.and_then(|entry| entry.drafter.as_deref());
        drafter.map(|name| self.resolve(name)).transpose()
    }

    /// What is called a drafter on this machine, in whosever store. Of which model it is, only its files say.
    pub fn drafters(&self) -> Vec<LocalModel> {
        self.search(LocalModel::is_called_drafter).0
    }

    /// All models on this machine: carat's own, then those of other programs whose name holds `gemma`.
    pub fn list(&self) -> Vec<LocalModel> {
        let mut models = self.store.list();
        models.retain(|model| !model.is_towers());
        let mut foreign: Vec<LocalModel> = foreign_stores(&self.settings)
            .iter()
            .flat_map(|store| store.list())
            .collect();
        for model in &mut foreign {
            if let Some(entry) = self.catalogue.iter().find(|entry| model.is_entry(entry)) {
                model.name.clone_from(&entry.name);
            }
        }
        models.append(&mut foreign);
        models
    }

    /// Removes a model from carat's own store; returns the bytes freed.
    ///
    /// `model` is a catalogue name, an `hf:` name, or the path of the stored file. What an unfinished
    /// pull of it left is removed too, and the towers beside it with the last model of its repository.
    ///
    /// # Errors
    /// [`Error::NotOwned`] when only another program has it, [`Error::YourOwn`] for a path, [`Error::NotInStore`] when nobody has it.
    pub fn remove(&self, model: &str) -> Result<u64> {
        let asked = ModelName::parse(model, |name| self.entry(name).is_some());
        let is_asked = |local: &LocalModel| match &asked {
            Ok(ModelName::Catalogue(name)) => {
                local.name.eq_ignore_ascii_case(name) || self.entry(name).is_some_and(|e| local.is_entry(e))
            }
            Ok(ModelName::Hf { repo, file }) => match (&local.identity, file) {
                // Without a file only the folder is meant, not every file of the repository.
                (Identity::Hf { file: Some(_), .. }, None) => false,
                _ => local.is_hf(repo, file.as_deref()),
            },
            Ok(ModelName::Path(path)) => same_file(&local.path, path),
            Err(_) => false,
        };
        let is_it = |local: &LocalModel| local.is_shown_as(model.trim()) || is_asked(local);
        let half: u64 = self
            .unfinished(&asked)
            .iter()
            .map(|o| self.store.discard_partial(o))
            .sum();
        let before = self.store.list();
        match self.store.remove(is_it)? {
            Some(freed) => {
                let towers = self.remove_lone_towers(&before)?;
                return Ok(freed.saturating_add(half).saturating_add(towers));
            }
            None if half > 0 => return Ok(half),
            None => {}
        }
        let owner = foreign_stores(&self.settings)
            .iter()
            .flat_map(|s| s.scan())
            .find(is_it);
        Err(match owner {
            Some(found) => Error::NotOwned {
                name: model.to_owned(),
                owner: found.place.as_str(),
                path: found.path,
            },
            None => match &asked {
                Ok(ModelName::Path(path)) if path.exists() => Error::YourOwn(path.clone()),
                _ => Error::NotInStore(model.to_owned()),
            },
        })
    }

    fn resolve_name(&self, name: &str) -> Result<Resolution> {
        if let Some(entry) = self.entry(name) {
            let (hits, searched) = self.search(|m| m.is_entry(entry));
            return Ok(match hits.into_iter().next() {
                Some(found) => Resolution::Local(found),
                None => Resolution::NeedsDownload(Plan::of_entry(name, entry, searched)),
            });
        }
        Err(Error::UnknownModel {
            name: name.to_owned(),
            hint: self.hint(name),
        })
    }

    /// Where an unfinished pull of this name would lie.
    fn unfinished(&self, asked: &Result<ModelName>) -> Vec<Origin> {
        let plan = match asked {
            Ok(ModelName::Catalogue(name)) => self
                .entry(name)
                .map(|entry| Plan::of_entry(name, entry, Vec::new())),
            Ok(ModelName::Hf { repo, file }) => Some(Plan::of_repo(repo, repo, file.as_deref(), Vec::new())),
            _ => None,
        };
        plan.iter()
            .flat_map(|plan| &plan.sources)
            .map(Source::origin)
            .collect()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.catalogue.iter().find(|entry| entry.is_named(name))
    }

    /// Looks through every store; the places without a hit are told with where they were.
    pub(crate) fn search(&self, is_it: impl Fn(&LocalModel) -> bool) -> (Vec<LocalModel>, Vec<Attempt>) {
        let mut hits: Vec<LocalModel> = self.store.list().into_iter().filter(&is_it).collect();
        let mut searched = vec![in_vain(Place::Store, self.store.root())];
        for store in foreign_stores(&self.settings) {
            hits.extend(store.scan().into_iter().filter(&is_it));
            searched.push(in_vain(store.place, &store.dir));
        }
        (hits, searched)
    }

    /// Names that begin like the unknown one, or how names look.
    fn hint(&self, name: &str) -> String {
        let family = name.split(':').next().unwrap_or(name).to_ascii_lowercase();
        let tag = name.split(':').nth(1).unwrap_or_default().to_ascii_lowercase();
        let params = tag.split('-').next().unwrap_or_default();
        let mut near: Vec<&str> = self
            .catalogue
            .iter()
            .map(|entry| entry.name.as_str())
            .filter(|n| n.starts_with(&format!("{family}:{params}")))
            .collect();
        near.truncate(8);
        match near.is_empty() {
            true => {
                "give a name of the catalogue (gemma3:4b), hf:owner/repo, or the path of a model".to_owned()
            }
            false => format!("there are {}", near.join(", ")),
        }
    }
}

fn in_vain(place: Place, dir: &Path) -> Attempt {
    let reason = if dir.is_dir() {
        "it is not among the models in"
    } else {
        "there is no folder"
    };
    Attempt {
        source: place.as_str().to_owned(),
        reason: format!("{reason} {}", dir.display()),
    }
}

/// One of several models of a repository: the folder, else the only file, else the Q4_K_M one; a drafter only where
/// there is nothing else, or where one is asked for.
fn choose(hits: &mut Vec<LocalModel>, repo: &str, file: Option<&str>) -> Result<Option<LocalModel>> {
    let file_of = |model: &LocalModel| match &model.identity {
        Identity::Hf { file, .. } => file.clone().unwrap_or_default(),
        _ => String::new(),
    };
    let is_beside = |model: &LocalModel| is_drafter(&file_of(model));
    if !file.is_some_and(is_drafter) && !hits.iter().all(is_beside) {
        hits.retain(|model| !is_beside(model));
    }
    if file.is_none() && hits.len() > 1 {
        let best = hits.iter().position(|m| file_of(m).is_empty());
        let best = best.or_else(|| hits.iter().position(|m| has_quant(&file_of(m), "Q4_K_M")));
        let first = file_of(&hits[0]);
        if best.is_none() && hits.iter().any(|m| file_of(m) != first) {
            let files: Vec<String> = hits.iter().map(file_of).collect();
            return Err(Error::ChooseFile {
                repo: repo.to_owned(),
                files,
            });
        }
        return Ok(Some(hits.swap_remove(best.unwrap_or(0))));
    }
    Ok((!hits.is_empty()).then(|| hits.swap_remove(0)))
}

fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| -> Option<PathBuf> { path.canonicalize().ok() };
    a == b || real(a).is_some_and(|a| Some(a) == real(b))
}
