//! `carat show`: what a model is.

use std::collections::BTreeMap;

use anyhow::Result;
use carat_format::TensorInfo;
use carat_media::TokenBudget;
use carat_model::{Config, MediaSource, VisionConfig};
use clap::Args;
use serde_json::json;

use crate::model_source::ModelSource;
use crate::output;
use crate::settings::Settings;

/// Show a model's architecture, number formats, licence and template
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat show gemma3:1b\n  carat show ./gemma-3-1b-it-Q4_K_M.gguf --json\n  carat show \
                        gemma3:1b --template"
)]
pub(crate) struct Show {
    /// The model
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print only the chat template that is in the model
    #[arg(long, conflicts_with = "json")]
    template: bool,
}

/// What is counted over the tensors.
#[derive(Default)]
struct Weights {
    n_parameters: u64,
    n_bytes: u64,
    /// Tensors and bytes by number format.
    formats: BTreeMap<String, (usize, u64)>,
}

impl Weights {
    fn count<'a>(infos: impl Iterator<Item = TensorInfo<'a>>) -> Self {
        let mut weights = Self::default();
        for info in infos {
            let n_bytes = info.n_bytes as u64;
            // The file was checked: a shape's product fits its size.
            weights.n_parameters += info.shape.iter().map(|&n| n as u64).product::<u64>();
            weights.n_bytes += n_bytes;
            let format = weights.formats.entry(info.type_name.to_string()).or_default();
            format.0 += 1;
            format.1 += n_bytes;
        }
        weights
    }
}

impl Show {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let source = ModelSource::open_here(&self.model, settings)?;
        let template = source.template_text()?;
        if self.template {
            if template.is_none() {
                output::note("the model has no chat template of its own");
            }
            return Ok(output::write(&template.unwrap_or_default())?);
        }
        let weights = Weights::count(source.checkpoint.infos().into_iter());
        let config = source.checkpoint.config();
        let media = MediaSource::find(&source.checkpoint)?;
        let card = Card {
            source: &source,
            config,
            media: media.as_ref(),
            weights: &weights,
            has_template: template.is_some(),
        };
        if self.json {
            output::json(&card.json())
        } else {
            card.print()
        }
    }
}

struct Card<'a> {
    source: &'a ModelSource,
    config: &'a Config,
    media: Option<&'a MediaSource<'a>>,
    weights: &'a Weights,
    has_template: bool,
}

impl Card<'_> {
    fn text_of(&self, key: &str) -> Option<String> {
        self.source
            .metadata()?
            .str(key)
            .ok()
            .flatten()
            .map(ToString::to_string)
    }

    /// Layers with a window, their window, and layers without.
    fn attention(&self) -> (usize, Option<usize>, usize) {
        let windows: Vec<usize> = self
            .config
            .layers
            .iter()
            .filter_map(|layer| layer.window)
            .collect();
        (
            windows.len(),
            windows.first().copied(),
            self.config.layers.len() - windows.len(),
        )
    }

    /// The shapes of heads, each kind once.
    fn heads(&self) -> String {
        let mut kinds = Vec::new();
        for layer in &self.config.layers {
            let place = if layer.window.is_some() { "local" } else { "global" };
            let shape = (layer.n_heads, layer.n_kv_heads, layer.head_dim);
            if !kinds.iter().any(|(other, _)| *other == shape) {
                kinds.push((shape, place));
            }
        }
        let is_one = kinds.len() == 1;
        let texts = kinds.into_iter().map(|((heads, kv_heads, width), place)| {
            let of = if is_one {
                String::new()
            } else {
                format!("{place}: ")
            };
            format!("{of}{heads} query, {kv_heads} key/value, width {width}")
        });
        texts.collect::<Vec<_>>().join("; ")
    }

    /// The widths of MLPs, each once.
    fn mlp_widths(&self) -> String {
        let mut widths: Vec<usize> = self.config.layers.iter().map(|layer| layer.d_ff).collect();
        widths.dedup();
        widths.sort_unstable();
        widths.dedup();
        let texts: Vec<String> = widths.iter().map(ToString::to_string).collect();
        texts.join(" and ")
    }

    /// What only some models have.
    fn extras(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        if let Some(experts) = self.config.layers.first().and_then(|layer| layer.experts) {
            let active = self.config.n_active_parameters() / 1_000_000;
            rows.push((
                "experts",
                format!(
                    "{} of {} for a token, width {} ({active} M parameters active)",
                    experts.n_used, experts.n, experts.d_ff
                ),
            ));
        }
        if self.config.per_layer_width > 0 {
            let active = self.config.n_active_parameters() / 1_000_000;
            rows.push((
                "per layer",
                format!(
                    "{} inputs a token ({active} M parameters beside their table)",
                    self.config.per_layer_width
                ),
            ));
        }
        let n_shared = self.config.layers.iter().filter(|layer| !layer.owns_kv()).count();
        if n_shared > 0 {
            rows.push((
                "shared cache",
                format!(
                    "the last {} of {} use the keys and values of earlier ones",
                    n_shared,
                    output::counted(self.config.layers.len(), "layer")
                ),
            ));
        }
        rows
    }

    /// What goes in beside text: its name, what the model takes, and the soft tokens that it becomes.
    fn modalities(&self) -> Vec<(&'static str, String, serde_json::Value)> {
        let mut modalities = Vec::new();
        let config = self.media.map(MediaSource::config);
        match config.and_then(|config| config.vision.as_ref()) {
            Some(vision @ VisionConfig::Siglip(siglip)) => modalities.push((
                "images",
                format!(
                    "{} soft tokens each, from {1} x {1} pixels",
                    vision.soft_tokens(),
                    siglip.image_size
                ),
                json!({"soft_tokens": vision.soft_tokens(), "image_size": siglip.image_size}),
            )),
            Some(vision) => modalities.push((
                "images",
                format!(
                    "up to {} soft tokens each (or 70, 140, 560, 1120)",
                    vision.soft_tokens()
                ),
                json!({"soft_tokens": vision.soft_tokens(), "budgets": [70, 140, 280, 560, 1120]}),
            )),
            None => {}
        }
        if let Some(vision) = config.and_then(|config| config.vision.as_ref()) {
            let frame = match vision {
                VisionConfig::Siglip(siglip) => siglip.soft_tokens,
                VisionConfig::Gemma4(_) | VisionConfig::Unified(_) => TokenBudget::VIDEO_FRAME.tokens(),
            };
            let n_frames = carat_media::limits::DEFAULT_VIDEO_FRAMES;
            modalities.push((
                "video",
                format!(
                    "{n_frames} frames of up to {frame} soft tokens, {} in all",
                    n_frames * frame
                ),
                json!({"soft_tokens": n_frames * frame, "frames": n_frames}),
            ));
        }
        if config.is_some_and(|config| config.audio.is_some()) {
            modalities.push((
                "audio",
                "25 soft tokens a second, 30 seconds at most".to_string(),
                json!({"soft_tokens_per_second": 25, "max_seconds": 30}),
            ));
        }
        modalities
    }

    fn json(&self) -> serde_json::Value {
        let (n_local, window, n_global) = self.attention();
        let layer = self.config.layers.first();
        let formats: BTreeMap<_, _> = self
            .weights
            .formats
            .iter()
            .map(|(name, (n, bytes))| (name, json!({"tensors": n, "bytes": bytes})))
            .collect();
        let modalities: serde_json::Map<_, _> = std::iter::once(("text", json!({})))
            .chain(self.modalities().into_iter().map(|(name, _, json)| (name, json)))
            .map(|(name, json)| (name.to_string(), json))
            .collect();
        json!({
            "name": self.source.local.name,
            "modalities": modalities,
            "encoders": self.media.map(MediaSource::path),
            "title": self.text_of("general.name"),
            "path": self.source.local.path.display().to_string(),
            "place": self.source.local.place.as_str(),
            "size_bytes": self.source.local.size_bytes,
            "family": format!("{:?}", self.config.family).to_lowercase(),
            "parameters": self.weights.n_parameters,
            "active_parameters": self.config.n_active_parameters(),
            "n_experts": layer.and_then(|layer| layer.experts).map(|experts| experts.n),
            "per_layer_width": self.config.per_layer_width,
            "n_shared_kv_layers": self.config.layers.iter().filter(|layer| !layer.owns_kv()).count(),
            "n_layers": self.config.layers.len(),
            "n_local_layers": n_local,
            "n_global_layers": n_global,
            "window": window,
            "context_len": self.config.context_len,
            "d_model": self.config.d_model,
            "d_ff": layer.map(|layer| layer.d_ff),
            "n_heads": layer.map(|layer| layer.n_heads),
            "n_kv_heads": layer.map(|layer| layer.n_kv_heads),
            "head_dim": layer.map(|layer| layer.head_dim),
            "vocab_size": self.config.vocab_size,
            "file_type": self.source.file_type(),
            "formats": formats,
            "licence": self.text_of("general.license"),
            "has_template": self.has_template,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
    fn print(&self) -> Result<()> {
        let (n_local, window, n_global) = self.attention();
        let mut text = String::new();
        let mut row =
            |name: &str, value: String| text += &format!("{name:<14}{}\n", output::printable(&value));
        row("name", self.source.local.name.clone());
        if let Some(title) = self.text_of("general.name") {
            row("title", title);
        }
        row(
            "path",
            format!(
                "{} ({})",
                self.source.local.path.display(),
                self.source.local.place.as_str()
            ),
        );
        row("size", output::size(self.source.local.size_bytes));
        row("family", format!("{:?}", self.config.family));
        row(
            "parameters",
            match self.weights.n_parameters as f64 {
                n if n < 1e9 => format!("{:.1} M", n / 1e6),
                n => format!("{:.2} B", n / 1e9),
            },
        );
        let window = window.map_or_else(String::new, |window| format!(" of window {window}"));
        row(
            "layers",
            format!(
                "{} ({n_local} local{window}, {n_global} global)",
                self.config.layers.len()
            ),
        );
        row("heads", self.heads());
        row(
            "width",
            format!("{} (feed-forward {})", self.config.d_model, self.mlp_widths()),
        );
        for (name, value) in self.extras() {
            row(name, value);
        }
        for (name, what, _) in self.modalities() {
            row(name, what);
        }
        if let Some(media) = self.media.filter(|media| media.path() != self.source.local.path) {
            row("encoders", media.path().display().to_string());
        }
        row("context", output::counted(self.config.context_len, "token"));
        row("vocabulary", output::counted(self.config.vocab_size, "token"));
        let formats: Vec<String> = self
            .weights
            .formats
            .iter()
            .map(|(name, (n, bytes))| {
                format!(
                    "{name} ({}, {})",
                    output::counted(*n, "tensor"),
                    output::size(*bytes)
                )
            })
            .collect();
        row(
            "quantization",
            self.source
                .file_type()
                .unwrap_or("as the tensors say")
                .to_string(),
        );
        row("formats", formats.join(", "));
        row(
            "licence",
            self.text_of("general.license")
                .unwrap_or_else(|| "not stated in the file".to_string()),
        );
        row(
            "template",
            if self.has_template {
                "in the model"
            } else {
                "none in the model"
            }
            .to_string(),
        );
        Ok(output::write(&text)?)
    }
}
