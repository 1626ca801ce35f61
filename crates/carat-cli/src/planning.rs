//! From an opened model and this machine to what `carat-plan` asks, and from its answer to a run.

use std::path::Path;

use anyhow::Result;
use carat_hub::LocalModel;
use carat_kernels::DType;
use carat_model::{Checkpoint, Config, Container, LoadOptions, MediaSource};
use carat_plan::{Choice, Drafter, Refusal, Setup, Weights, Wish, tower_buffers};

use crate::draft_args::FoundDrafter;
use crate::failure::Hinted;
use crate::memory;
use crate::model_source::ModelSource;

/// The weights of an opened model: its tensors, for GGUF what else the file holds, and the towers beside it.
pub(crate) fn weights_of(checkpoint: &Checkpoint, size_bytes: u64) -> Weights {
    let infos = checkpoint.infos();
    let tensors = infos.iter().map(|info| {
        let dtype = DType::from_name(info.type_name);
        (info.name, dtype, info.n_bytes as u64)
    });
    let all: u64 = infos.iter().map(|info| info.n_bytes as u64).sum();
    let rest = match checkpoint.container() {
        Container::Gguf(_) => size_bytes.saturating_sub(all),
        // Lists of tensors and the vocabulary are read and let go.
        Container::HuggingFace(_) => 0,
    };
    let mut weights = Weights::of_tensors(tensors, rest);
    if let (Container::Gguf(_), Ok(Some(towers))) = (checkpoint.container(), MediaSource::find(checkpoint)) {
        // A file that cannot be read now will say so when it is loaded.
        weights.vision = std::fs::metadata(towers.path()).map_or(0, |file| file.len());
    }
    weights
}

/// One sequence of `context` tokens with these options.
pub(crate) fn setup(config: &Config, options: &LoadOptions, context: usize) -> Setup {
    Setup {
        context,
        n_sequences: 1,
        kv_dtype: options.kv_dtype,
        n_threads: options.n_threads,
        has_tiles: options.isa.has_tiles(),
        max_batch_tokens: options.max_batch_tokens,
        precision: options.precision_for(config),
        tower_bytes: 0,
        drafter: None,
    }
}

/// What a drafter takes beside a model of this shape.
pub(crate) fn drafter(local: &LocalModel, target: &Config, setup: &Setup) -> Drafter {
    // Only a model by itself can be opened without its target.
    match Checkpoint::open(&local.path) {
        Ok(own) => {
            let weights = weights_of(&own, local.size_bytes).total();
            Drafter::smaller_model(own.config(), weights, setup)
        }
        Err(_) => Drafter::made_for(target, local.size_bytes, setup),
    }
}

/// The towers that a run may use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Towers<'a> {
    /// None: it reads text alone.
    None,
    /// Those that belong to the model.
    Own,
    /// Those of this `mmproj` file.
    OfFile(&'a Path),
}

impl Towers<'_> {
    /// Their bytes and what they compute in; 0 for a model of text alone.
    fn bytes(self, checkpoint: &Checkpoint, weights: &Weights) -> u64 {
        let (source, stored) = match self {
            Towers::None => return 0,
            Towers::Own => (MediaSource::find(checkpoint).ok().flatten(), weights.vision),
            // A file that cannot be read now will say so when it is loaded.
            Towers::OfFile(path) => (
                MediaSource::open(checkpoint, path).ok(),
                std::fs::metadata(path).map_or(0, |file| file.len()),
            ),
        };
        if stored == 0 {
            return 0;
        }
        let media = source.as_ref().map(MediaSource::config);
        stored.saturating_add(tower_buffers(checkpoint.config(), media))
    }
}

/// Refuses a context that the model was not made for.
pub(crate) fn check_context(n_max: usize, config: &Config) -> Result<()> {
    if n_max > config.context_len {
        return Err(Hinted::wrong_arguments(
            format!(
                "--ctx {n_max} is more than the {} tokens of this model",
                config.context_len
            ),
            "give a smaller one, or leave it out",
        )
        .into());
    }
    Ok(())
}

/// Chooses context and cache format for a run on this machine, or refuses with what would fit. `None` where the
/// system does not say how much memory there is.
pub(crate) fn choose(
    source: &ModelSource,
    options: &LoadOptions,
    wish: Wish,
    towers: Towers<'_>,
    drafter: Option<&FoundDrafter>,
) -> Result<Option<Choice>> {
    let Some(usable) = memory::usable_bytes() else {
        return Ok(None);
    };
    choose_of(source, options, wish, usable, (towers, drafter))
        .map(Some)
        .map_err(|refusal| refused(&refusal).into())
}

/// The same for a run that may take `usable` bytes, with its towers.
pub(crate) fn choose_within(
    source: &ModelSource,
    options: &LoadOptions,
    wish: Wish,
    usable: u64,
    drafter: Option<&FoundDrafter>,
) -> Result<Choice, Box<Refusal>> {
    choose_of(source, options, wish, usable, (Towers::Own, drafter))
}

fn choose_of(
    source: &ModelSource,
    options: &LoadOptions,
    wish: Wish,
    usable: u64,
    (towers, found): (Towers<'_>, Option<&FoundDrafter>),
) -> Result<Choice, Box<Refusal>> {
    let config = source.checkpoint.config();
    let weights = weights_of(&source.checkpoint, source.local.size_bytes);
    let plain = setup(config, options, config.context_len);
    let setup = Setup {
        tower_bytes: towers.bytes(&source.checkpoint, &weights),
        drafter: found.map(|found| drafter(&found.local, config, &plain)),
        ..plain
    };
    carat_plan::choose(config, &weights, &setup, wish, usable)
}

/// A refusal with what would fit, for those who cannot be given a hint beside it.
pub(crate) fn in_one_sentence(refusal: &Refusal) -> String {
    match refusal.remedies.first() {
        Some(remedy) => format!("{refusal}; this would fit: {remedy}"),
        None => refusal.to_string(),
    }
}

fn refused(refusal: &Refusal) -> Hinted {
    let force = "--force runs it all the same, at the speed of the disk once memory is full";
    let remedies: Vec<String> = refusal.remedies.iter().map(ToString::to_string).collect();
    let hint = if remedies.is_empty() {
        format!("nothing that `carat plan` knows would fit; {force}")
    } else {
        format!(
            "these would fit: {}; see `carat plan`; {force}",
            remedies.join(", or ")
        )
    };
    Hinted::new(refusal.to_string(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_model::convert::Mix;

    #[test]
    fn towers_in_another_file_count_where_the_model_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("towers.gguf");
        std::fs::write(&path, vec![0; 1000]).unwrap();
        let checkpoint = Checkpoint::open(&carat_testkit::fixture("gemma3-text")).unwrap();
        let weights = weights_of(&checkpoint, 0);
        let bytes = |towers: Towers<'_>| towers.bytes(&checkpoint, &weights);
        assert_eq!((bytes(Towers::None), bytes(Towers::Own)), (0, 0));
        assert!(bytes(Towers::OfFile(&path)) >= 1000);
        assert_eq!(bytes(Towers::OfFile(&folder.path().join("gone.gguf"))), 0);
    }

    #[test]
    fn a_refusal_names_the_figures_and_what_would_fit() {
        let config = Config::published("12B").unwrap();
        let weights = Weights::of_mix(&config, Mix::Q8_0);
        let setup = setup(&config, &LoadOptions::default(), config.context_len);
        let refusal = carat_plan::choose(&config, &weights, &setup, Wish::default(), 10_000_000_000);
        let hinted = refused(&refusal.unwrap_err());
        let told = format!("{hinted} {hinted:?}");
        for part in [
            "12.5 GB",
            "10.0 GB can be used",
            "these would fit: the model in Q",
            "--force",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
