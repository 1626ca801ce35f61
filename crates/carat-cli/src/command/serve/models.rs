//! The models that `carat serve` serves: those it was told, or all on this machine; and how one is loaded beside others.
//!
//! A model is loaded only if the planner says that its weights, its buffers and one whole context fit beside what the
//! others may come to hold. Mapped weights count in full, though the system could do without them for a while: a model
//! that is read from the disk for every token serves nobody.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use carat_engine::{Drafting, Engine, Limits, PrefixStore, SamplingParams};
use carat_hub::{Hub, LocalModel, Tuning};
use carat_model::{CacheFiles, Checkpoint, KvCache, LoadOptions, MediaSource, Model};
use carat_plan::{Choice, Wish};
use carat_prompt::{Senses, SensesOptions};
use carat_server::{ListedModel, LoadError, LoadedModel, ModelDetails, ModelSetup, ModelStore};

use super::prefix_folder::PrefixFolder;
use crate::compute_args::{Arithmetic, ComputeArgs};
use crate::draft_args::{DraftArgs, FoundDrafter, with_room};
use crate::interrupt::Interrupt;
use crate::media_args::video_tools;
use crate::memory;
use crate::model_source::ModelSource;
use crate::planning;
use crate::serve_settings::ServeSettings;
use crate::settings::Settings;

/// Cache memory where the system does not say how much there is, in bytes.
const UNKNOWN_MEMORY: u64 = 2 << 30;
/// Bytes of `--cache-dir` at most, if nobody says how many.
const CACHE_DISK: u64 = 20_000_000_000;

/// What has been read of models' files, with when these were written.
type DetailsOf = HashMap<PathBuf, (Option<SystemTime>, ModelDetails)>;

/// Models on this machine, and how to load them.
pub(super) struct LocalModels {
    pub(super) settings: Settings,
    pub(super) serving: ServeSettings,
    pub(super) compute: ComputeArgs,
    pub(super) draft: DraftArgs,
    pub(super) interrupt: Interrupt,
    /// Run models even if memory has no room for them.
    pub(super) is_forced: bool,
    /// Those that were named, by the name that clients see; empty for all on this machine.
    pub(super) named: Vec<(String, LocalModel)>,
    pub(super) details: Mutex<DetailsOf>,
}

impl LocalModels {
    /// All models that may be asked for, the first of a name winning.
    fn all(&self) -> Result<Vec<(String, LocalModel)>> {
        if !self.named.is_empty() {
            return Ok(self.named.clone());
        }
        let mut all: Vec<(String, LocalModel)> = Vec::new();
        let hub = Hub::new(self.settings.hub.clone())?;
        let is_drafter = |id: &str| {
            let mut drafters = hub
                .catalogue()
                .iter()
                .filter(|entry| entry.tuning == Tuning::Drafter);
            drafters.any(|entry| entry.is_named(id))
        };
        for local in hub.list() {
            let id = id_of(&local);
            if is_drafter(&id) {
                continue;
            }
            if all.iter().all(|(other, _)| *other != id) {
                all.push((id, local));
            }
        }
        Ok(all)
    }

    fn open(&self, id: &str) -> Result<ModelSource> {
        let found = self.all()?.into_iter().find(|(other, _)| other == id);
        let (_, local) = found.with_context(|| format!("`{id}` is no longer on this machine"))?;
        let checkpoint = Checkpoint::open(&local.path)?;
        Ok(ModelSource { local, checkpoint })
    }

    /// What is told about a model, read once as long as its files stay the same.
    fn read_details(&self, id: &str) -> Result<ModelDetails> {
        let found = self.all()?.into_iter().find(|(other, _)| other == id);
        let (_, local) = found.with_context(|| format!("`{id}` is no longer on this machine"))?;
        let known = self.details.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((modified, details)) = known.get(&local.path)
            && *modified == local.modified
        {
            return Ok(details.clone());
        }
        drop(known);
        let source = ModelSource {
            checkpoint: Checkpoint::open(&local.path)?,
            local,
        };
        let details = details(&source)?;
        let mut known = self.details.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, modified) = (source.local.path.clone(), source.local.modified);
        known.insert(path, (modified, details.clone()));
        Ok(details)
    }

    /// Opens, plans and loads. A plan that does not fit is told apart, inside.
    fn load_beside(&self, id: &str, claimed: u64) -> Result<Result<LoadedModel, LoadError>> {
        let source = self.open(id)?;
        let mut drafter = self.draft.find(&source, &self.settings, &self.interrupt)?;
        let (load, limits, claim_bytes) = match self.fitting(&source, &mut drafter, claimed)? {
            Ok(fitting) => fitting,
            Err(figures) if claimed == 0 => return Ok(Err(LoadError::TooLarge(figures))),
            Err(beside) => {
                let alone = self.fitting(&source, &mut drafter, 0)?.err();
                return Ok(Err(alone.map_or(LoadError::NoRoom(beside), LoadError::TooLarge)));
            }
        };
        let mut model = Model::from_checkpoint(&source.checkpoint, load)?;
        let options = SensesOptions {
            video_tools: video_tools(&self.settings),
            ..SensesOptions::default()
        };
        let senses = Senses::of_model(id, &model, &source.checkpoint, options)?;
        let mut setup = setup(id, &source, senses)?;
        setup.drafting = self.draft.prepare(&mut model, &mut drafter, &setup.tokenizer)?;
        let store = self.prefix_store(&source, &model, limits.n_max)?;
        let engine = Engine::start_with(model, Arc::clone(&setup.tokenizer), limits, store)?;
        Ok(Ok(LoadedModel {
            setup,
            engine,
            claim_bytes,
        }))
    }

    /// The folder for beginnings that memory has no room for, if there is to be one.
    fn prefix_store(
        &self,
        source: &ModelSource,
        model: &Model,
        n_max: usize,
    ) -> Result<Option<Box<dyn PrefixStore<KvCache>>>> {
        let Some(folder) = &self.serving.cache_dir else {
            return Ok(None);
        };
        let max_bytes = match &self.serving.cache_disk {
            Some(text) => carat_plan::parse_bytes(text)
                .with_context(|| format!("--cache-disk `{text}` cannot be used"))?,
            None => CACHE_DISK,
        };
        let files = CacheFiles::new(&source.checkpoint, model);
        let store = PrefixFolder::open(folder, files, n_max, max_bytes)?;
        Ok(Some(Box::new(store)))
    }

    /// How to load the model, what requests may take, and what memory that may need: what the user said, else the best
    /// that fits; or the figures why nothing does.
    fn fitting(
        &self,
        source: &ModelSource,
        drafter: &mut Option<FoundDrafter>,
        claimed: u64,
    ) -> Result<Result<(LoadOptions, Limits, u64), String>> {
        let options = self.compute.options(&self.settings)?;
        let asked = self.serving.ctx.map(|n| n as usize);
        let is_reference = self.compute.dtype == Arithmetic::F32;
        let wish = Wish {
            context: asked,
            kv_dtype: self.compute.kv_type.or(is_reference.then_some(options.kv_dtype)),
        };
        // What this process holds already is part of what the others claimed.
        let usable = memory::usable_bytes()
            .map(|free| free.saturating_add(memory::own_bytes()).saturating_sub(claimed));
        let chosen = usable.map(|usable| {
            with_room(drafter, |drafter| {
                planning::choose_within(source, &options, wish, usable, drafter)
            })
        });
        let chosen = match chosen {
            None => None,
            Some(Ok(choice)) => Some(choice),
            Some(Err(_)) if self.is_forced => None,
            Some(Err(refusal)) => return Ok(Err(planning::in_one_sentence(&refusal))),
        };
        let config = source.checkpoint.config();
        let cache_bytes = match &self.serving.cache_memory {
            Some(text) => carat_plan::parse_bytes(text)
                .with_context(|| format!("--cache-memory `{text}` cannot be used"))?,
            None => spare_memory(chosen.as_ref(), usable, self.serving.max_loaded.unwrap_or(1)),
        };
        let n_max = match (&chosen, asked) {
            (Some(choice), _) => choice.context,
            (None, Some(asked)) => asked,
            (None, None) => config.context_len,
        };
        planning::check_context(n_max, config)?;
        let limits = Limits {
            n_max,
            n_running: self.serving.parallel.unwrap_or(1) as usize,
            n_waiting: self.serving.queue.unwrap_or(1) as usize,
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
        };
        let kv_dtype = chosen.as_ref().map_or(options.kv_dtype, |choice| choice.kv_dtype);
        let beside_cache = chosen.map_or(source.local.size_bytes, |choice| {
            choice.plan.peak().saturating_sub(choice.plan.kv.total())
        });
        let claim_bytes = beside_cache.saturating_add(cache_bytes);
        Ok(Ok((LoadOptions { kv_dtype, ..options }, limits, claim_bytes)))
    }
}

impl ModelStore for LocalModels {
    fn list(&self) -> Result<Vec<ListedModel>, LoadError> {
        let listed = |(id, local): (String, LocalModel)| ListedModel {
            id,
            size_bytes: local.size_bytes,
            modified: local
                .modified
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok()),
        };
        Ok(self.all().map_err(failed)?.into_iter().map(listed).collect())
    }

    fn details(&self, id: &str) -> Result<ModelDetails, LoadError> {
        self.read_details(id).map_err(failed)
    }

    fn check(&self, id: &str) -> Result<(), LoadError> {
        let source = self.open(id).map_err(failed)?;
        let fitting = self.fitting(&source, &mut None, 0).map_err(failed)?;
        fitting.map(|_| ()).map_err(LoadError::TooLarge)
    }

    fn load(&self, id: &str, claimed_bytes: u64) -> Result<LoadedModel, LoadError> {
        self.load_beside(id, claimed_bytes).map_err(failed)?
    }
}

fn failed(error: anyhow::Error) -> LoadError {
    LoadError::Failed(format!("{error:#}"))
}

/// A model's name as clients see it: of a path, only what its last part says.
pub(super) fn id_of(local: &LocalModel) -> String {
    let name = &local.name;
    let is_path = name.contains(['/', '\\']) && !name.starts_with("hf:");
    let stem = Path::new(name).file_stem().filter(|_| is_path);
    stem.map_or_else(|| name.clone(), |stem| stem.to_string_lossy().into_owned())
}

/// This model's share of half of what is left beside it, and room for one full context at least.
fn spare_memory(choice: Option<&Choice>, usable: Option<u64>, n_models: u32) -> u64 {
    let (Some(choice), Some(usable)) = (choice, usable) else {
        return UNKNOWN_MEMORY;
    };
    let one = choice.plan.kv.total();
    let without = choice.plan.peak().saturating_sub(one);
    (usable.saturating_sub(without) / 2 / u64::from(n_models.max(1))).max(one)
}

/// What the server needs of the model's files.
fn setup(id: &str, source: &ModelSource, senses: Senses) -> Result<ModelSetup> {
    let tokenizer = Arc::new(source.tokenizer()?);
    let template = source
        .chat_template(&tokenizer)?
        .unwrap_or_else(|| source.family_template());
    let recommended = source.sampling_defaults()?;
    let gemma = SamplingParams::default();
    let mut suppressed = source.suppressed(&tokenizer)?;
    suppressed.retain(|&id| (id as usize) < source.checkpoint.config().vocab_size);
    Ok(ModelSetup {
        drafting: Drafting::Off,
        id: id.to_string(),
        template,
        sampling: SamplingParams {
            temperature: recommended.temperature.unwrap_or(gemma.temperature),
            top_k: recommended.top_k.unwrap_or(gemma.top_k),
            top_p: recommended.top_p.unwrap_or(gemma.top_p),
            min_p: recommended.min_p.unwrap_or(gemma.min_p),
            repetition_penalty: recommended.repetition_penalty.unwrap_or(gemma.repetition_penalty),
            ..gemma
        },
        suppressed,
        details: ModelDetails {
            sees: senses.sees(),
            hears: senses.hears(),
            ..details(source)?
        },
        senses,
        tokenizer,
    })
}

fn details(source: &ModelSource) -> Result<ModelDetails> {
    let config = source.checkpoint.config();
    let formats = source.checkpoint.infos();
    let largest = formats.iter().max_by_key(|info| info.n_bytes);
    let modified = source.local.modified;
    let media = MediaSource::find(&source.checkpoint)?.map(|media| media.config().clone());
    Ok(ModelDetails {
        family: format!("{:?}", config.family).to_lowercase(),
        parameters: format!("{}M", config.n_parameters() / 1_000_000),
        // The largest tensor is often the embedding, which mixes leave at more bits than the rest.
        quantization: source
            .file_type()
            .or(largest.map(|info| info.type_name))
            .unwrap_or_default()
            .to_string(),
        size_bytes: source.local.size_bytes,
        context_len: config.context_len,
        embedding_len: config.d_model,
        template: source.template_text()?.unwrap_or_default(),
        modified: modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()),
        sees: media.as_ref().is_some_and(|media| media.vision.is_some()),
        hears: media.as_ref().is_some_and(|media| media.audio.is_some()),
    })
}
