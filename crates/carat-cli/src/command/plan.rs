//! `carat plan`: what a model would need, before it is fetched or loaded.

mod view;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carat_format::read_limited;
use carat_hub::{Entry, Hub, LocalModel, Resolution};
use carat_model::convert::Mix;
use carat_model::{Config, Family, KvDType, LoadOptions, MediaConfig, MediaSource};
use carat_plan::{CONTEXTS, Drafter, Fit, Grid, Machine, Page, Plan as Costs, Setup, Weights};
use clap::Args;

use crate::draft_args::drafter_here;
use crate::failure::Hinted;
use crate::model_source::ModelSource;
use crate::settings::Settings;
use crate::{memory, output, planning};

/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// What is planned for when nothing says otherwise.
const USUAL_MIX: Mix = Mix::Q4_K_M;

/// Say how much memory a model needs, what fits here or elsewhere, and how fast it can be
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat plan gemma3:12b                           this machine, every quantization by context\n  carat plan \
                        gemma3:12b --gpu \"RTX 4090\"          another memory\n  carat plan gemma3:27b --quant q4_0 --context 32K \
                        --ram 32GB\n  carat plan ./gemma-3-4b-it --kv-type q8_0 --parallel 4\n  carat plan ./config.json --html \
                        plan.html\n\nMODEL may also be the path of a config.json, or a size: 270M, 1B, 4B, 12B, 27B. Nothing is \
                        downloaded.\nSpeeds are upper bounds: published bandwidth over the bytes that a token reads."
)]
pub(crate) struct Plan {
    /// The model
    model: String,
    /// Tokens of each sequence, such as 8192 or 8K [default: the model's own]
    #[arg(long, value_name = "N", value_parser = parse_context)]
    context: Option<usize>,
    /// The mix of number formats [default: the model's; Q4_K_M for a configuration]
    #[arg(long, value_name = "TYPE", value_parser = parse_mix)]
    quant: Option<Mix>,
    /// Format of the KV cache: f16, bf16, q8_0, q4_0, f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv)]
    kv_type: KvDType,
    /// Sequences at the same time
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// Plan for a computer with this much memory, such as 16GB [default: what is free here]
    #[arg(long, value_name = "SIZE", conflicts_with = "gpu", value_parser = parse_bytes)]
    ram: Option<u64>,
    /// Plan for this graphics card
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// Leave out the drafter that guesses ahead for the model
    #[arg(long)]
    no_draft: bool,
    /// Threads to compute with [default: CARAT_THREADS, else the physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// List every machine that it fits on, not a few of each kind
    #[arg(long)]
    machines: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with the table as a heat map
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the heat map alone
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn parse_mix(name: &str) -> Result<Mix, String> {
    Mix::from_name(name).map_err(|error| error.to_string())
}

fn parse_kv(name: &str) -> Result<KvDType, String> {
    name.parse()
        .map_err(|error: carat_kernels::Error| error.to_string())
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    carat_plan::parse_bytes(text).map_err(|error| error.to_string())
}

/// `8192` or `8K`.
fn parse_context(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let tokens = digits.parse().ok().and_then(|n: usize| n.checked_mul(factor));
    tokens
        .filter(|n| (1..=1 << 30).contains(n))
        .ok_or_else(|| format!("`{text}` is no number of tokens; write it as 8192 or 8K"))
}

/// What is planned: a model's shape, and its weights where they are known.
struct Subject {
    name: String,
    /// Where the shape is from, for people.
    origin: &'static str,
    config: Config,
    /// The weights of the files.
    stored: Option<Weights>,
    /// The mix of the catalogue.
    mix: Option<Mix>,
    /// The settings of the towers, where there are files of them.
    media: Option<MediaConfig>,
    /// Its drafter, where one is known.
    drafter: Option<Guesser>,
}

/// The drafter of a model.
enum Guesser {
    Here(LocalModel),
    /// Only known by its size in bytes.
    InCatalogue(u64),
}

/// The memory that is planned for.
struct Target {
    /// For people: `this machine, free now`.
    name: String,
    /// Bytes that can be used of it.
    usable: u64,
    /// The graphics card, if it is one.
    gpu: Option<Machine>,
}

impl Target {
    fn needed(&self, plan: &Costs) -> u64 {
        self.gpu.as_ref().map_or(plan.peak(), |gpu| gpu.needed(plan))
    }
}

/// Everything that is shown.
struct Outcome {
    subject: Subject,
    target: Target,
    setup: Setup,
    /// The name of the number formats planned for.
    quant: String,
    plan: Costs,
    fit: Fit,
    vision: Option<u64>,
    grid: Grid,
    machines: Vec<Machine>,
}

impl Plan {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let outcome = self.outcome(settings)?;
        if let Some(path) = &self.svg {
            let picture = carat_plan::heat_map(&outcome.grid, &outcome.subject.name, &outcome.target_line());
            write(path, &picture)?;
        }
        if let Some(path) = &self.html {
            let (parts, machines) = (outcome.parts(), outcome.places());
            let sum = outcome.sum_line();
            write(
                path,
                &carat_plan::page(&Page {
                    title: &outcome.subject.name,
                    subtitle: &outcome.target_line(),
                    parts: &parts,
                    sum: (outcome.target.needed(&outcome.plan), &sum),
                    grid: &outcome.grid,
                    machines: &machines,
                }),
            )?;
        }
        if self.json {
            output::json(&outcome.json())
        } else {
            outcome.print(settings.color, self.machines)
        }
    }

    fn outcome(&self, settings: &Settings) -> Result<Outcome> {
        let subject = subject(&self.model, settings)?;
        let target = self.target()?;
        let options = LoadOptions::default();
        let n_threads = self.threads.map(usize::from).or(settings.threads);
        let setup = Setup {
            n_sequences: usize::from(self.parallel),
            kv_dtype: self.kv_type,
            n_threads: n_threads.unwrap_or(options.n_threads),
            ..planning::setup(
                &subject.config,
                &options,
                self.context.unwrap_or(subject.config.context_len),
            )
        };
        let (weights, quant) = match (self.quant, subject.stored) {
            (None, Some(stored)) => (stored, "as stored".to_owned()),
            (asked, _) => {
                let mix = asked.or(subject.mix).unwrap_or(USUAL_MIX);
                (Weights::of_mix(&subject.config, mix), mix.to_string())
            }
        };
        // A mix is of the text model: its towers stay as they are stored.
        let stored = subject.stored.map(|weights| weights.vision);
        let vision = stored
            .filter(|&bytes| bytes > 0)
            .or_else(|| carat_plan::vision_bytes(&subject.config));
        // Of a file without towers beside it, they are only told about.
        let has_towers = stored != Some(0);
        let towers = vision.filter(|_| has_towers).map(|bytes| {
            bytes.saturating_add(carat_plan::tower_buffers(&subject.config, subject.media.as_ref()))
        });
        let drafter = subject.drafter.as_ref().filter(|_| !self.no_draft);
        let setup = Setup {
            tower_bytes: towers.unwrap_or(0),
            drafter: drafter.map(|drafter| match drafter {
                Guesser::Here(local) => planning::drafter(local, &subject.config, &setup),
                Guesser::InCatalogue(bytes) => Drafter::made_for(&subject.config, *bytes, &setup),
            }),
            ..setup
        };
        let plan = Costs::new(&subject.config, &weights, &setup);
        let fit = if plan.is_beyond_context {
            Fit::BeyondContext
        } else {
            Fit::of(target.needed(&plan), target.usable)
        };
        let grid = Grid::new(
            &subject.config,
            &setup,
            Mix::all().filter(|mix| self.quant.is_none_or(|asked| asked == *mix)),
            &self.contexts(),
            target.usable,
            |plan| target.needed(plan),
        );
        Ok(Outcome {
            subject,
            target,
            setup,
            quant,
            plan,
            fit,
            vision,
            grid,
            machines: Machine::all()?,
        })
    }

    /// The columns: the usual ones and what was asked for.
    fn contexts(&self) -> Vec<usize> {
        let mut contexts = CONTEXTS.to_vec();
        contexts.extend(self.context);
        contexts.sort_unstable();
        contexts.dedup();
        contexts
    }

    fn target(&self) -> Result<Target> {
        if let Some(name) = &self.gpu {
            let machine = Machine::find(name)?;
            let memory = machine.memory_gib.last().copied().unwrap_or(0.0);
            return Ok(Target {
                name: format!("{}, {memory} GiB", machine.name),
                usable: machine.usable(memory),
                gpu: Some(machine),
            });
        }
        if let Some(ram) = self.ram {
            return Ok(Target {
                name: format!("a computer with {}", carat_plan::size(ram)),
                usable: carat_plan::usable_ram(ram),
                gpu: None,
            });
        }
        let usable = memory::usable_bytes().ok_or_else(|| {
            Hinted::new(
                "this system does not say how much memory is free",
                "say what to plan for with --ram or --gpu",
            )
        })?;
        Ok(Target {
            name: "this machine, as it is now".to_owned(),
            usable,
            gpu: None,
        })
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Finds out what `model` is without fetching it.
fn subject(model: &str, settings: &Settings) -> Result<Subject> {
    if let Some(path) = config_path(Path::new(model)) {
        return Ok(Subject {
            name: model.to_owned(),
            origin: "a configuration",
            config: Config::from_config_json(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)?,
            stored: None,
            mix: None,
            media: None,
            drafter: None,
        });
    }
    if let Some(config) = Config::published(model) {
        return Ok(Subject {
            name: published_name(model, config.family),
            origin: "a published size",
            config,
            stored: None,
            mix: None,
            media: None,
            drafter: None,
        });
    }
    let hub = Hub::new(settings.hub.clone())?;
    match hub.resolve(model)? {
        Resolution::Local(local) => {
            let source = ModelSource::of(local)?;
            let checkpoint = &source.checkpoint;
            let media = MediaSource::find(checkpoint).ok().flatten();
            Ok(Subject {
                stored: Some(planning::weights_of(checkpoint, source.local.size_bytes)),
                config: checkpoint.config().clone(),
                origin: "on this machine",
                mix: None,
                media: media.map(|media| media.config().clone()),
                drafter: drafter_here(&source, settings)?.map(Guesser::Here),
                name: source.local.name,
            })
        }
        Resolution::NeedsDownload(plan) => {
            let entry = plan.entry();
            let found = entry.and_then(|entry| {
                let generation = entry.name.split(':').next().unwrap_or_default();
                let name = format!("{generation}-{}", entry.params);
                Some((entry, Config::published(&name)?))
            });
            let (entry, config) = found.ok_or_else(|| {
                Hinted::new(
                    format!("`{model}` is not on this machine, and its shape is not known"),
                    "pull it first, or give the path of its config.json",
                )
            })?;
            Ok(Subject {
                name: plan.name().to_owned(),
                origin: "in the catalogue",
                config,
                stored: None,
                mix: Mix::from_name(&entry.quant).ok(),
                media: None,
                drafter: in_catalogue(&hub, entry),
            })
        }
    }
}

/// The drafter of an entry of the catalogue.
fn in_catalogue(hub: &Hub, entry: &Entry) -> Option<Guesser> {
    let name = entry.drafter.as_ref()?;
    let drafter = hub.catalogue().iter().find(|other| other.name == *name)?;
    // Rounded for display, and no more than some gigabytes.
    Some(Guesser::InCatalogue((drafter.size_gb * 1e9) as u64))
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
    let is_weight = |entry: fs::DirEntry| entry.path().extension().is_some_and(|e| e == "safetensors");
    let has_weights = fs::read_dir(path).ok()?.flatten().any(is_weight);
    (config.is_file() && !has_weights).then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_numbers_or_thousands() {
        assert_eq!(parse_context("8192"), Ok(8192));
        assert_eq!(parse_context("128k"), Ok(131_072));
        for text in ["", "K", "0", "-1", "8M", "99999999999999999999", "9999999999K"] {
            assert!(parse_context(text).is_err(), "{text}");
        }
    }
}
