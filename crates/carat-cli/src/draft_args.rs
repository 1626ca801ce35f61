//! The flags that say who guesses ahead, shared by `carat run` and `carat serve`.
//!
//! Answers are the same with and without; only their speed differs. Without a drafter guesses come from the text itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use carat_engine::Drafting;
use carat_hub::{Hub, LocalModel, Resolution};
use carat_model::{DrafterKind, Family, Model};
use carat_text::Tokenizer;
use clap::Args;

use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::media_args::pull_towers;
use crate::model_source::{ModelSource, obtain};
use crate::output;
use crate::pull_progress::PullProgress;
use crate::settings::Settings;

/// Who guesses ahead.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DraftArgs {
    /// Model that guesses tokens ahead, which this one then checks together: a drafter that was made for it, or a smaller
    /// model with the same tokenizer [default: a drafter beside the model or the catalogue's, and the text itself]
    #[arg(long, value_name = "MODEL", conflicts_with = "no_draft")]
    pub(crate) draft: Option<String>,
    /// Guess nothing ahead
    #[arg(long)]
    pub(crate) no_draft: bool,
}

/// A drafter on this machine.
pub(crate) struct FoundDrafter {
    pub(crate) local: LocalModel,
    /// Whether the user named it: then it is used or the run fails.
    is_asked: bool,
}

impl DraftArgs {
    /// Finds `model`, pulling it first when it is only in the catalogue; then its encoders and its drafter come with it.
    pub(crate) fn obtain(
        &self,
        model: &str,
        settings: &Settings,
        interrupt: &Interrupt,
    ) -> Result<LocalModel> {
        let hub = Hub::new(settings.hub.clone())?;
        let is_new = matches!(hub.resolve(model)?, Resolution::NeedsDownload(_));
        let local = obtain(model, settings, interrupt)?;
        if is_new {
            pull_towers(&hub, &local, interrupt)?;
        }
        if is_new && !self.no_draft && self.draft.is_none() {
            pull_drafter(&hub, &local, interrupt)?;
        }
        Ok(local)
    }

    /// The drafter for a model: what the user named, else one beside it, else the catalogue's if it is here.
    pub(crate) fn find(
        &self,
        source: &ModelSource,
        settings: &Settings,
        interrupt: &Interrupt,
    ) -> Result<Option<FoundDrafter>> {
        let found = |local| {
            Some(FoundDrafter {
                local,
                is_asked: self.draft.is_some(),
            })
        };
        if self.no_draft {
            return Ok(None);
        }
        if let Some(name) = &self.draft {
            return Ok(found(obtain(name, settings, interrupt)?));
        }
        let here = drafter_here(source, settings)?;
        if let Some(doubt) = &here.doubt {
            output::note(&output::printable(doubt));
        }
        Ok(here.drafter.and_then(found))
    }

    /// Gives `model` the drafter that was found, or gives up one that cannot be used and that nobody asked for.
    pub(crate) fn prepare(
        &self,
        model: &mut Model,
        drafter: &mut Option<FoundDrafter>,
        tokenizer: &Tokenizer,
    ) -> Result<Drafting> {
        if self.no_draft {
            return Ok(Drafting::Off);
        }
        let Some(FoundDrafter { local, is_asked }) = drafter else {
            return Ok(Drafting::Adaptive);
        };
        match model.add_drafter(&local.path) {
            Ok(DrafterKind::Model) => {
                let other = ModelSource::of(local.clone())?.tokenizer()?;
                if !are_alike(tokenizer, &other) {
                    return Err(Hinted::wrong_arguments(
                        format!("--draft `{}` has another tokenizer than the model", local.name),
                        "take a smaller model of the same generation: Gemma 3 for Gemma 3, Gemma 4 for Gemma 4",
                    )
                    .into());
                }
            }
            Ok(DrafterKind::Mtp) => {}
            Err(error) if *is_asked => {
                return Err(error).with_context(|| format!("--draft `{}` cannot be used", local.name));
            }
            // One that nobody asked for is no reason to fail.
            Err(error) => {
                output::note(&format!("the drafter `{}` cannot be used: {error}", local.name));
                *drafter = None;
            }
        }
        Ok(Drafting::Adaptive)
    }
}

/// What there is on this machine to guess ahead for a model.
pub(crate) struct DrafterHere {
    pub(crate) drafter: Option<LocalModel>,
    /// What its user may want to know: that others would do as well, or why none beside the model will.
    doubt: Option<String>,
}

/// The drafter beside a model, or the catalogue's if it is on this machine, or another one that is here and fits. One
/// that cannot be had is none: nobody asked for it.
pub(crate) fn drafter_here(source: &ModelSource, settings: &Settings) -> Result<DrafterHere> {
    let hub = Hub::new(settings.hub.clone())?;
    let beside = source.checkpoint.drafters_beside();
    if let Some(best) = beside.fitting.first() {
        return Ok(DrafterHere {
            drafter: best.to_str().and_then(|path| local(hub.resolve(path))),
            doubt: several(&beside.fitting),
        });
    }
    let of_catalogue = hub.drafter_of(&source.local).ok().flatten();
    let drafter = of_catalogue
        .and_then(|found| local(Ok(found)))
        .or_else(|| elsewhere(&hub, source));
    Ok(DrafterHere {
        doubt: beside.unfit.first().filter(|_| drafter.is_none()).map(|why| {
            let model = &source.local.name;
            format!("no drafter beside `{model}` can guess ahead for it: {why}")
        }),
        drafter,
    })
}

fn local(found: Result<Resolution, carat_hub::Error>) -> Option<LocalModel> {
    match found {
        Ok(Resolution::Local(local)) => Some(local),
        Ok(Resolution::NeedsDownload(_)) | Err(_) => None,
    }
}

/// A drafter in any store whose files say that it is for this model. Gemma 3 has none.
fn elsewhere(hub: &Hub, source: &ModelSource) -> Option<LocalModel> {
    if source.checkpoint.config().family != Family::Gemma4 {
        return None;
    }
    let mut all = hub.drafters();
    let paths = all.iter().map(|found| found.path.clone());
    let fitting = source.checkpoint.drafters_among(paths).fitting;
    let best = fitting.first()?;
    let at = all.iter().position(|found| found.path == *best)?;
    Some(all.swap_remove(at))
}

/// That several drafters fit, and which is taken.
fn several(fitting: &[PathBuf]) -> Option<String> {
    let [taken, others @ ..] = fitting else {
        return None;
    };
    let name = |path: &PathBuf| format!("`{}`", path.file_name().unwrap_or_default().display());
    let others: Vec<String> = others.iter().map(name).collect();
    (!others.is_empty()).then(|| {
        format!(
            "several drafters fit this model, and {} is taken; to take another, name it: {}",
            name(taken),
            others.join(", ")
        )
    })
}

/// Pulls the catalogue's drafter for a model. A model can do without: only being stopped is an error.
pub(crate) fn pull_drafter(hub: &Hub, model: &LocalModel, interrupt: &Interrupt) -> Result<()> {
    let Some(Resolution::NeedsDownload(plan)) = hub.drafter_of(model)? else {
        return Ok(());
    };
    output::note(&format!("{}, which makes its answers quicker", plan.name()));
    match hub.pull(&plan, &mut PullProgress::new(), interrupt.flag()) {
        Ok(_) => Ok(()),
        Err(error @ carat_hub::Error::Cancelled) => Err(error.into()),
        Err(error) => {
            output::note(&format!(
                "the drafter cannot be had, and answers are the same without: {error}"
            ));
            Ok(())
        }
    }
}

/// What `choose` says with the drafter that was found, or, where there is no room for one that nobody asked for,
/// without: it is then given up.
pub(crate) fn with_room<T, E>(
    drafter: &mut Option<FoundDrafter>,
    choose: impl Fn(Option<&FoundDrafter>) -> Result<T, E>,
) -> Result<T, E> {
    match choose(drafter.as_ref()) {
        Err(_) if drafter.as_ref().is_some_and(|drafter| !drafter.is_asked) => {
            *drafter = None;
            choose(None)
        }
        result => result,
    }
}

/// Whether two vocabularies agree on every token that both have: files may lack placeholders of media.
fn are_alike(a: &Tokenizer, b: &Tokenizer) -> bool {
    let n = a.len().min(b.len());
    let ids = 0..u32::try_from(n).unwrap_or(u32::MAX);
    n > 0 && ids.into_iter().all(|id| a.token_piece(id) == b.token_piece(id))
}
