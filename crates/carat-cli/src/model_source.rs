//! From a MODEL argument to everything that a command needs of it.
//!
//! Joins the crates that know nothing of each other: the hub finds or fetches the file, the format crate opens
//! it, the text crate gets its vocabulary and template, the model crate its weights. What the file says
//! about sampling is read here too. Nothing is loaded that a command does not ask for.

use std::path::Path;

use anyhow::{Context, Result};
use carat_format::{Metadata, read_limited};
use carat_hub::{Hub, LocalModel, Resolution};
use carat_model::{Checkpoint, Container, Family};
use carat_text::{ChatTemplate, GgufVocabulary, Tokenizer};
use serde::Deserialize;

use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::pull_progress::PullProgress;
use crate::settings::Settings;

/// Largest configuration file that is read, in bytes; published ones have a few kB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest `tokenizer.json` or `tokenizer.model`, in bytes; Gemma's have 33 MB and 5 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Pieces that stand around and for images and sounds. None has a meaning in an answer, and Gemma 4 12B is known to
/// let some slip into text, so they are never generated, whatever the file says.
const MEDIA_TOKENS: [&str; 8] = [
    "<image_soft_token>",
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|audio>",
    "<|audio|>",
    "<audio|>",
    "<|video|>",
];

/// Tokens that a `generation_config.json` says are never to be generated.
#[derive(Deserialize)]
struct Suppressed {
    suppress_tokens: Option<Vec<u32>>,
}

/// An opened model: its container, no weights yet.
pub(crate) struct ModelSource {
    /// Where it lies.
    pub(crate) local: LocalModel,
    /// Its files, opened.
    pub(crate) checkpoint: Checkpoint,
}

/// Sampling settings that a model file recommends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct SamplingDefaults {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    /// `false` says greedy.
    pub(crate) do_sample: Option<bool>,
}

/// Finds `model`, pulling it first when it is only in the catalogue.
pub(crate) fn obtain(model: &str, settings: &Settings, interrupt: &Interrupt) -> Result<LocalModel> {
    let hub = Hub::new(settings.hub.clone())?;
    match hub.resolve(model)? {
        Resolution::Local(local) => Ok(local),
        Resolution::NeedsDownload(plan) => {
            let mut progress = PullProgress::new();
            Ok(hub.pull(&plan, &mut progress, interrupt.flag())?)
        }
    }
}

impl ModelSource {
    /// Finds and opens `model`.
    pub(crate) fn open(model: &str, settings: &Settings, interrupt: &Interrupt) -> Result<Self> {
        Self::of(obtain(model, settings, interrupt)?)
    }

    /// Opens `model`, which must be here: to be looked at is no reason to fetch gigabytes.
    pub(crate) fn open_here(model: &str, settings: &Settings) -> Result<Self> {
        match Hub::new(settings.hub.clone())?.resolve(model)? {
            Resolution::Local(local) => Self::of(local),
            Resolution::NeedsDownload(_) => Err(Hinted::new(
                format!("`{model}` is not on this machine"),
                format!("`carat pull {model}` fetches it; `carat plan {model}` says what it needs"),
            )
            .into()),
        }
    }

    /// Opens a model that was found.
    pub(crate) fn of(local: LocalModel) -> Result<Self> {
        let checkpoint = Checkpoint::open(&local.path)?;
        Ok(Self { local, checkpoint })
    }

    /// The keys of a GGUF file; `None` for folders.
    pub(crate) fn metadata(&self) -> Option<&Metadata> {
        match self.checkpoint.container() {
            Container::Gguf(gguf) => Some(gguf.metadata()),
            Container::HuggingFace(_) => None,
        }
    }

    /// What a GGUF file calls its mix of number formats.
    pub(crate) fn file_type(&self) -> Option<&'static str> {
        let number = self.metadata()?.u32("general.file_type").ok().flatten()?;
        FILE_TYPES
            .iter()
            .find(|(id, _)| *id == number)
            .map(|(_, name)| *name)
    }

    /// The model's tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        match self.metadata() {
            Some(metadata) => gguf_tokenizer(metadata)
                .with_context(|| format!("cannot use the vocabulary of `{}`", self.local.path.display())),
            None => folder_tokenizer(&self.local.path),
        }
    }

    /// How the model wants conversations written; `None` for base models.
    pub(crate) fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        match self.template_text()? {
            Some(source) => {
                let piece = |id: Option<u32>| id.and_then(|id| tokenizer.token_piece(id)).unwrap_or_default();
                let template =
                    ChatTemplate::from_jinja(&source, &piece(tokenizer.bos()), &piece(tokenizer.eos()))?;
                Ok(Some(template))
            }
            None if self.is_named_instruct() => Ok(Some(self.family_template())),
            None => Ok(None),
        }
    }

    /// The format of the model's family, for files without a template.
    pub(crate) fn family_template(&self) -> ChatTemplate {
        let config = self.checkpoint.config();
        match config.family {
            Family::Gemma3 => ChatTemplate::gemma3(),
            // E2B and E4B, which have inputs per layer, answer at once without being told to.
            Family::Gemma4 => ChatTemplate::gemma4(config.per_layer_width == 0),
        }
    }

    /// The template inside the model, as text.
    pub(crate) fn template_text(&self) -> Result<Option<String>> {
        if let Some(metadata) = self.metadata() {
            return Ok(metadata.str("tokenizer.chat_template")?.map(ToString::to_string));
        }
        let folder = &self.local.path;
        if let Some(bytes) = read_optional(&folder.join("chat_template.jinja"))? {
            return Ok(Some(
                String::from_utf8(bytes).context("chat_template.jinja is not UTF-8")?,
            ));
        }
        let config: Option<serde_json::Value> = read_json(&folder.join("tokenizer_config.json"))?;
        Ok(config.and_then(|config| default_template(config.get("chat_template")?)))
    }

    /// What the model recommends for sampling.
    pub(crate) fn sampling_defaults(&self) -> Result<SamplingDefaults> {
        let Some(metadata) = self.metadata() else {
            let path = self.local.path.join("generation_config.json");
            return Ok(read_json::<SamplingDefaults>(&path)?
                .unwrap_or_default()
                .resolved());
        };
        Ok(SamplingDefaults {
            temperature: metadata.f32("general.sampling.temp")?,
            top_k: metadata.u32("general.sampling.top_k")?.map(|k| k as usize),
            top_p: metadata.f32("general.sampling.top_p")?,
            min_p: metadata.f32("general.sampling.min_p")?,
            ..SamplingDefaults::default()
        })
    }

    /// Tokens that are never to be generated: placeholders of images and what the file names.
    pub(crate) fn suppressed(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = MEDIA_TOKENS
            .iter()
            .filter_map(|piece| tokenizer.id_of(piece))
            .collect();
        if let Some(metadata) = self.metadata() {
            let named = metadata
                .i32s("tokenizer.ggml.suppress_tokens")?
                .unwrap_or_default();
            ids.extend(named.into_iter().filter_map(|id| u32::try_from(id).ok()));
        } else {
            let path = self.local.path.join("generation_config.json");
            ids.extend(
                read_json::<Suppressed>(&path)?
                    .and_then(|read| read.suppress_tokens)
                    .unwrap_or_default(),
            );
        }
        // What is no row of the vocabulary cannot be generated anyway.
        ids.retain(|id| (*id as usize) < tokenizer.len());
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// A file without a template still says by its name whether it was trained to chat.
    fn is_named_instruct(&self) -> bool {
        let text = |key: &str| {
            self.metadata()
                .and_then(|metadata| metadata.str(key).ok().flatten())
                .unwrap_or_default()
        };
        if text("general.finetune").eq_ignore_ascii_case("it") {
            return true;
        }
        let name = text("general.name").to_string();
        let file = self
            .local
            .path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        [name, self.local.name.clone(), file.unwrap_or_default()]
            .iter()
            .any(|name| is_instruct_name(name))
    }
}

impl SamplingDefaults {
    /// `do_sample: false` means the likeliest token always.
    fn resolved(self) -> Self {
        if self.do_sample == Some(false) {
            Self {
                temperature: Some(0.0),
                ..self
            }
        } else {
            self
        }
    }
}

/// Whether a name holds the word `it` or `instruct`, as in `gemma-3-1b-it-Q4_K_M.gguf`.
fn is_instruct_name(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word.eq_ignore_ascii_case("it") || word.eq_ignore_ascii_case("instruct"))
}

/// The template of a `tokenizer_config.json`: a text, or a list of named ones.
fn default_template(value: &serde_json::Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_string());
    }
    let named = value
        .as_array()?
        .iter()
        .find(|entry| entry["name"] == "default")?;
    named["template"].as_str().map(ToString::to_string)
}

fn gguf_tokenizer(metadata: &Metadata) -> Result<Tokenizer> {
    let missing = || {
        Hinted::new(
            "the file has no `tokenizer.ggml.tokens`",
            "it may be a projector or a drafter; give the language model's own file",
        )
    };
    let tokens = metadata.strings("tokenizer.ggml.tokens")?.ok_or_else(missing)?;
    let scores = metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default();
    let token_types = metadata.i32s("tokenizer.ggml.token_type")?.unwrap_or_default();
    let merges = metadata.strings("tokenizer.ggml.merges")?;
    let id = |name: &str| metadata.u32(&format!("tokenizer.ggml.{name}_token_id"));
    let flag = |name: &str| metadata.bool(&format!("tokenizer.ggml.{name}"));
    Ok(Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(tokens.iter()),
        scores: &scores,
        token_types: &token_types,
        merges: merges.map(|merges| Box::new(merges.iter()) as Box<dyn Iterator<Item = &[u8]>>),
        bos: id("bos")?,
        eos: id("eos")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        eot: id("eot")?,
        add_bos: flag("add_bos_token")?.unwrap_or(true),
        add_space_prefix: flag("add_space_prefix")?.unwrap_or(false),
    })?)
}

fn folder_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let json = folder.join("tokenizer.json");
    if json.exists() {
        let bytes = read_limited(&json, MAX_TOKENIZER_BYTES)?;
        return Tokenizer::from_tokenizer_json(&bytes)
            .with_context(|| format!("cannot use `{}`", json.display()));
    }
    let model = folder.join("tokenizer.model");
    if model.exists() {
        let bytes = read_limited(&model, MAX_TOKENIZER_BYTES)?;
        return Tokenizer::from_sentencepiece(&bytes)
            .with_context(|| format!("cannot use `{}`", model.display()));
    }
    Err(Hinted::new(
        format!(
            "`{}` has neither tokenizer.json nor tokenizer.model",
            folder.display()
        ),
        "download the missing file from where the model came from into the same folder",
    )
    .into())
}

/// A small file's bytes; `None` when there is no such file.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.exists() {
        Ok(Some(read_limited(path, MAX_CONFIG_BYTES)?))
    } else {
        Ok(None)
    }
}

/// A small JSON file; `None` when there is no such file.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    let value =
        serde_json::from_slice(&bytes).with_context(|| format!("cannot understand `{}`", path.display()))?;
    Ok(Some(value))
}

/// Names of `general.file_type`. A label only: mixed files are the rule.
const FILE_TYPES: [(u32, &str); 19] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (25, "IQ4_NL"),
    (30, "IQ4_XS"),
    (32, "BF16"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruct_models_are_known_by_their_names() {
        for name in [
            "gemma-3-1b-it-Q4_K_M.gguf",
            "gemma3:12b-it-qat",
            "Gemma 3 4b It",
            "gemma_instruct",
        ] {
            assert!(is_instruct_name(name), "{name}");
        }
        for name in ["gemma3-270m", "gemma-3-1b-pt", "italian-gemma", "unit-test.gguf"] {
            assert!(!is_instruct_name(name), "{name}");
        }
    }

    #[test]
    fn a_template_may_be_a_text_or_one_of_a_list() {
        let list =
            serde_json::json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(default_template(&list).as_deref(), Some("d"));
        assert_eq!(default_template(&serde_json::json!("x")).as_deref(), Some("x"));
        assert_eq!(default_template(&serde_json::json!(3)), None);
    }

    #[test]
    fn generation_config_without_sampling_means_greedy() {
        let read = |text: &str| serde_json::from_str::<SamplingDefaults>(text).unwrap().resolved();
        assert_eq!(
            read(r#"{"do_sample": false, "top_k": 64}"#).temperature,
            Some(0.0)
        );
        assert_eq!(
            read(r#"{"do_sample": true, "top_k": 64, "eos_token_id": [1, 106]}"#).top_k,
            Some(64)
        );
        assert_eq!(read("{}"), SamplingDefaults::default());
    }
}
