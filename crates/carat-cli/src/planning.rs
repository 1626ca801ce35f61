//! From an opened model and this machine to what `carat-plan` asks, and from its answer to a run.

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

/// The towers of an opened model and what they compute in; 0 for a model of text alone.
fn towers_of(checkpoint: &Checkpoint, weights: &Weights) -> u64 {
    if weights.vision == 0 {
        return 0;
    }
    let source = MediaSource::find(checkpoint).ok().flatten();
    let media = source.as_ref().map(MediaSource::config);
    weights
        .vision
        .saturating_add(tower_buffers(checkpoint.config(), media))
}

/// Chooses context and cache format for a run on this machine, or refuses with what would fit. `None` where the
/// system does not say how much memory there is. Towers count if the run may see or hear.
pub(crate) fn choose(
    source: &ModelSource,
    options: &LoadOptions,
    wish: Wish,
    uses_towers: bool,
    drafter: Option<&FoundDrafter>,
) -> Result<Option<Choice>> {
    let Some(usable) = memory::usable_bytes() else {
        return Ok(None);
    };
    choose_of(source, options, wish, usable, (uses_towers, drafter))
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
    choose_of(source, options, wish, usable, (true, drafter))
}

fn choose_of(
    source: &ModelSource,
    options: &LoadOptions,
    wish: Wish,
    usable: u64,
    (uses_towers, found): (bool, Option<&FoundDrafter>),
) -> Result<Choice, Box<Refusal>> {
    let config = source.checkpoint.config();
    let weights = weights_of(&source.checkpoint, source.local.size_bytes);
    let plain = setup(config, options, config.context_len);
    let setup = Setup {
        tower_bytes: if uses_towers {
            towers_of(&source.checkpoint, &weights)
        } else {
            0
        },
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
