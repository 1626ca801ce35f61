//! What is planned for: a model's shape and weights, found out without fetching it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use carat_format::read_limited;
use carat_hub::{Entry, Hub, LocalModel, Resolution, Tuning};
use carat_model::convert::Mix;
use carat_model::{Config, Family, MediaConfig, MediaSource};
use carat_plan::Weights;

use crate::draft_args::drafter_here;
use crate::failure::Hinted;
use crate::model_source::ModelSource;
use crate::planning;
use crate::settings::Settings;

/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// What is planned for when nothing says otherwise.
const USUAL_MIX: Mix = Mix::Q4_K_M;

/// A model's shape, and its weights where they are known.
pub(super) struct Subject {
    pub(super) name: String,
    /// Where the shape is from, for people.
    pub(super) origin: &'static str,
    pub(super) config: Config,
    /// The weights of the files.
    pub(super) stored: Option<Weights>,
    /// What the file calls its mix of formats.
    stored_mix: Option<&'static str>,
    /// The mix of the catalogue.
    mix: Option<Mix>,
    /// The size of the catalogue's file, where it is one file of the text model alone, in bytes.
    file_bytes: Option<u64>,
    /// The settings of the towers, where there are files of them.
    pub(super) media: Option<MediaConfig>,
    /// Its drafter, where one is known.
    pub(super) drafter: Option<Guesser>,
}

/// The drafter of a model.
pub(super) enum Guesser {
    Here(LocalModel),
    /// Only known by its size in bytes.
    InCatalogue(u64),
}

impl Subject {
    /// Finds out what `model` is.
    pub(super) fn find(model: &str, settings: &Settings) -> Result<Subject> {
        let path = Path::new(model);
        if let Some(path) = config_path(path) {
            let config = Config::from_config_json(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)?;
            return Ok(Subject::of_shape(model.to_owned(), "a configuration", config));
        }
        // What lies here under such a name is what every other command takes it for.
        if let Some(config) = Config::published(model).filter(|_| !path.exists()) {
            let name = published_name(model, config.family);
            return Ok(Subject::of_shape(name, "a published size", config));
        }
        let hub = Hub::new(settings.hub.clone())?;
        match hub.resolve(model).map_err(|error| with_sizes(error, model))? {
            Resolution::Local(local) => Subject::of_files(local, settings),
            Resolution::NeedsDownload(plan) => match plan.entry() {
                Some(entry) => Subject::of_entry(&hub, entry),
                None => Err(unknown_shape(model).into()),
            },
        }
    }

    /// A shape of which nothing else is known.
    fn of_shape(name: String, origin: &'static str, config: Config) -> Subject {
        Subject {
            name,
            origin,
            config,
            stored: None,
            stored_mix: None,
            mix: None,
            file_bytes: None,
            media: None,
            drafter: None,
        }
    }

    fn of_files(local: LocalModel, settings: &Settings) -> Result<Subject> {
        let source = ModelSource::of(local)?;
        let checkpoint = &source.checkpoint;
        let media = MediaSource::find(checkpoint).ok().flatten();
        let stored = planning::weights_of(checkpoint, source.local.size_bytes);
        let drafter = drafter_here(&source, settings)?.drafter.map(Guesser::Here);
        let config = checkpoint.config().clone();
        Ok(Subject {
            stored: Some(stored),
            stored_mix: source.file_type(),
            media: media.map(|media| media.config().clone()),
            drafter,
            ..Subject::of_shape(source.local.name, "on this machine", config)
        })
    }

    fn of_entry(hub: &Hub, entry: &Entry) -> Result<Subject> {
        if entry.tuning == Tuning::Drafter {
            return Err(lone_drafter(hub, entry).into());
        }
        let generation = entry.name.split(':').next().unwrap_or_default();
        let shape = format!("{generation}-{}", entry.params);
        let config = Config::published(&shape).ok_or_else(|| unknown_shape(&entry.name))?;
        Ok(Subject {
            mix: Mix::from_name(&entry.quant).ok(),
            file_bytes: entry.is_file().then(|| bytes_of(entry)),
            drafter: in_catalogue(hub, entry),
            ..Subject::of_shape(entry.name.clone(), "in the catalogue", config)
        })
    }

    /// Its weights in the mix that was asked for, else as they are stored or published; and what to call that.
    pub(super) fn weights(&self, asked: Option<Mix>) -> (Weights, String) {
        if let (None, Some(stored)) = (asked, self.stored) {
            let mix = self.stored_mix.map_or_else(String::new, |mix| format!("{mix} "));
            return (stored, format!("{mix}as stored"));
        }
        let mix = asked.or(self.mix).unwrap_or(USUAL_MIX);
        let weights = self.weights_in(mix, asked.is_none());
        if weights == Weights::of_mix(&self.config, mix) {
            (weights, mix.to_string())
        } else {
            (weights, format!("{mix} as published"))
        }
    }

    /// Its weights in a mix: those of the published file, where it has that mix and is meant, else those that carat would
    /// write.
    pub(super) fn weights_in(&self, mix: Mix, is_published_meant: bool) -> Weights {
        let weights = Weights::of_mix(&self.config, mix);
        let published = self
            .file_bytes
            .filter(|_| is_published_meant && self.mix == Some(mix));
        published.map_or(weights, |bytes| weights.published_in(bytes, &self.config))
    }
}

/// A name that nobody knows may have been meant as a size.
fn with_sizes(error: carat_hub::Error, model: &str) -> anyhow::Error {
    match error {
        carat_hub::Error::UnknownModel { .. } if !model.contains([':', '/']) => {
            let sizes: Vec<String> = Config::published_sizes().collect();
            let hint = format!("the published sizes are {}", sizes.join(", "));
            Hinted::new(error.to_string(), hint).into()
        }
        other => other.into(),
    }
}

fn unknown_shape(model: &str) -> Hinted {
    Hinted::new(
        format!("`{model}` is not on this machine, and its shape is not known"),
        "pull it first, or give the path of its config.json",
    )
}

/// A drafter has no figures of its own: what it takes depends on the model that it guesses for.
fn lone_drafter(hub: &Hub, entry: &Entry) -> Hinted {
    let is_target = |other: &&Entry| other.drafter.as_ref() == Some(&entry.name);
    let hint = match hub.catalogue().iter().find(is_target) {
        Some(target) => format!(
            "plan the model that it guesses for, `{}`: it is counted there",
            target.name
        ),
        None => "plan the model that it guesses for".to_owned(),
    };
    Hinted::new(
        format!("`{}` is a drafter, which runs beside a model", entry.name),
        hint,
    )
}

/// The drafter of an entry of the catalogue.
fn in_catalogue(hub: &Hub, entry: &Entry) -> Option<Guesser> {
    let name = entry.drafter.as_ref()?;
    let drafter = hub.catalogue().iter().find(|other| other.name == *name)?;
    Some(Guesser::InCatalogue(bytes_of(drafter)))
}

/// The size of an entry: rounded for display, and no more than some gigabytes.
fn bytes_of(entry: &Entry) -> u64 {
    (entry.size_gb * 1e9) as u64
}

/// What to call a published size.
fn published_name(model: &str, family: Family) -> String {
    let size = model.rsplit_once("gemma4-").or(model.rsplit_once("gemma3-"));
    let size = size.map_or(model, |(_, size)| size).to_uppercase();
    format!("{family} {size}")
}

/// The configuration to read where a path holds one and no weights.
fn config_path(path: &Path) -> Option<PathBuf> {
    if path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
        return Some(path.to_owned());
    }
    let config = path.join("config.json");
    let has_weights = fs::read_dir(path)
        .ok()?
        .flatten()
        .any(|file| is_weight(&file.path()));
    (config.is_file() && !has_weights).then_some(config)
}

/// Whether a file of this name holds a model's weights. Towers alone are none.
fn is_weight(path: &Path) -> bool {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    name.ends_with(".safetensors") || (name.ends_with(".gguf") && !name.contains("mmproj"))
}
