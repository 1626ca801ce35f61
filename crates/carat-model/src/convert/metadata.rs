//! The GGUF keys of a Gemma from a Hugging Face folder.
//!
//! Sizes come from the model's [`Config`]. Three things that every released Gemma 3 has alike are only written
//! where a model differs, since other programs take them for granted: the base of the local rope, the pattern
//! of global layers, and the scale of attention scores. What a Gemma 4 says is in `gemma4`.

mod gemma4;

use std::path::Path;

use carat_format::{Array, Value, read_limited};
use serde_json::Value as Json;

use super::ConvertError;
use super::vocabulary::{MergeOrder, Vocabulary};
use crate::checkpoint::Checkpoint;
use crate::{Config, Error, Family, Rope};

/// Largest `tokenizer_config.json` and chat template that are read, in bytes; Gemma's has 1.2 MB.
const MAX_SIDE_FILE_BYTES: u64 = 16 << 20;

/// What a folder says besides its tensors.
pub(super) struct Described {
    pub(super) metadata: Vec<(String, Value)>,
    /// Size of the vocabulary, if the folder has one.
    pub(super) n_tokens: Option<usize>,
}

/// Collects all keys. `n_rows` is the height of the embedding.
pub(super) fn of_folder(
    checkpoint: &Checkpoint,
    n_rows: usize,
    notes: &mut Vec<String>,
) -> Result<Described, ConvertError> {
    let folder = checkpoint.path();
    let family = checkpoint.config().family;
    let mut keys = Keys {
        architecture: match family {
            Family::Gemma3 => "gemma3",
            Family::Gemma4 => "gemma4",
        },
        list: Vec::new(),
    };
    keys.text("general.architecture", keys.architecture);
    keys.text("general.type", "model");
    if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
        keys.text("general.name", name);
    }
    let order = match family {
        Family::Gemma3 => {
            sizes(checkpoint.config(), &mut keys, notes);
            MergeOrder::Scores
        }
        Family::Gemma4 => {
            gemma4::sizes(checkpoint.config(), &mut keys, notes);
            MergeOrder::Rules
        }
    };
    let Some(vocabulary) = Vocabulary::open(folder, n_rows, order, notes)? else {
        notes.push("the folder has no tokenizer, so the file has none and only runs on token ids".to_owned());
        return Ok(Described {
            metadata: keys.list,
            n_tokens: None,
        });
    };
    if vocabulary.n_dropped() > 0 {
        notes.push(format!(
            "{} tokens without a row in the embedding were left out",
            vocabulary.n_dropped()
        ));
    }
    let n_tokens = vocabulary.pieces.len();
    if n_tokens < n_rows {
        notes.push(format!(
            "{} rows of the embedding without a token were left out",
            n_rows - n_tokens
        ));
    }
    match family {
        Family::Gemma3 => tokenizer(&vocabulary, folder, &mut keys)?,
        Family::Gemma4 => gemma4::tokenizer(&vocabulary, folder, &mut keys)?,
    }
    Ok(Described {
        metadata: keys.list,
        n_tokens: Some(n_tokens),
    })
}

/// Keys in the order they are added.
struct Keys {
    architecture: &'static str,
    list: Vec<(String, Value)>,
}

impl Keys {
    fn add(&mut self, key: &str, value: Value) {
        self.list.push((key.to_owned(), value));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.add(key, Value::from(text));
    }

    /// A size of the model; all are checked to be small when the configuration is read.
    fn count(&mut self, key: &str, n: usize) {
        self.add(
            &format!("{}.{key}", self.architecture),
            Value::U32(u32::try_from(n).unwrap_or(u32::MAX)),
        );
    }

    fn number(&mut self, key: &str, value: f32) {
        self.add(&format!("{}.{key}", self.architecture), Value::F32(value));
    }

    /// The rope of global layers: the only one that may be scaled.
    fn global_rope(&mut self, rope: Rope) {
        self.number("rope.freq_base", rope.theta);
        if rope.scaling != 1.0 {
            self.text(&format!("{}.rope.scaling.type", self.architecture), "linear");
            self.number("rope.scaling.factor", rope.scaling);
        }
    }
}

fn sizes(config: &Config, keys: &mut Keys, notes: &mut Vec<String>) {
    let n_layers = config.layers.len();
    keys.count("context_length", config.context_len);
    keys.count("embedding_length", config.d_model);
    keys.count("block_count", n_layers);
    keys.number("attention.layer_norm_rms_epsilon", config.norm_eps);
    let Some(first) = config.layers.first() else {
        return;
    };
    keys.count("feed_forward_length", first.d_ff);
    keys.count("attention.head_count", first.n_heads);
    keys.count("attention.head_count_kv", first.n_kv_heads);
    keys.count("attention.key_length", first.head_dim);
    keys.count("attention.value_length", first.head_dim);
    let window = config.layers.iter().find_map(|layer| layer.window);
    keys.count("attention.sliding_window", window.unwrap_or(config.context_len));
    let local = config.layers.iter().find(|layer| layer.window.is_some());
    let global = config.layers.iter().find(|layer| layer.window.is_none());
    let rope =
        |layer: Option<&crate::LayerConfig>| layer.and_then(|layer| config.ropes.get(layer.rope)).copied();
    if let Some(rope) = rope(global) {
        keys.global_rope(rope);
    }
    if let Some(rope) = rope(local).filter(|rope| rope.theta != 1e4) {
        keys.number("rope.freq_base_swa", rope.theta);
    }
    let is_local: Vec<bool> = config.layers.iter().map(|layer| layer.window.is_some()).collect();
    if is_local
        .iter()
        .enumerate()
        .any(|(i, is_local)| *is_local == ((i + 1) % 6 == 0))
    {
        keys.add(
            "gemma3.attention.sliding_window_pattern",
            Value::Array(Array::from_bools(&is_local)),
        );
        notes
            .push("global layers are not every sixth, which programs other than carat may ignore".to_owned());
    }
    // The 27B, known by its depth, is the one release that does not scale by the head's width.
    let implied = if n_layers == 62 {
        168.0
    } else {
        first.head_dim as f32
    };
    if config.score_scale != 1.0 / implied.sqrt() {
        keys.number("attention.scale", config.score_scale);
        notes.push(
            "attention scores have a scale of their own, which programs other than carat may ignore"
                .to_owned(),
        );
    }
}

fn tokenizer(vocabulary: &Vocabulary, folder: &Path, keys: &mut Keys) -> Result<(), ConvertError> {
    keys.text("tokenizer.ggml.model", "llama");
    keys.text("tokenizer.ggml.pre", "default");
    pieces(vocabulary, keys)?;
    keys.add(
        "tokenizer.ggml.scores",
        Value::Array(Array::from_f32s(&vocabulary.scores)),
    );
    specials(vocabulary, "<end_of_turn>", folder, keys)
}

fn pieces(vocabulary: &Vocabulary, keys: &mut Keys) -> Result<(), ConvertError> {
    let tokens = Array::from_strings(&vocabulary.pieces)
        .ok_or_else(|| vocabulary.bad("its pieces are too long for a GGUF file"))?;
    keys.add("tokenizer.ggml.tokens", Value::Array(tokens));
    keys.add(
        "tokenizer.ggml.token_type",
        Value::Array(Array::from_i32s(&vocabulary.kinds)),
    );
    Ok(())
}

/// The ids of special pieces, what is put before a text, and the chat template.
fn specials(
    vocabulary: &Vocabulary,
    end_of_turn: &str,
    folder: &Path,
    keys: &mut Keys,
) -> Result<(), ConvertError> {
    let template = chat_template(folder)?;
    let mut specials = vec![
        ("tokenizer.ggml.bos_token_id", "<bos>"),
        ("tokenizer.ggml.eos_token_id", "<eos>"),
        ("tokenizer.ggml.unknown_token_id", "<unk>"),
        ("tokenizer.ggml.padding_token_id", "<pad>"),
    ];
    if template.is_some() {
        specials.push(("tokenizer.ggml.eot_token_id", end_of_turn));
    }
    for (key, piece) in specials {
        if let Some(id) = vocabulary.id_of(piece) {
            keys.add(key, Value::U32(id));
        }
    }
    keys.add("tokenizer.ggml.add_bos_token", Value::Bool(true));
    keys.add("tokenizer.ggml.add_eos_token", Value::Bool(false));
    keys.add("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    if let Some(template) = template {
        keys.text("tokenizer.chat_template", &template);
    }
    Ok(())
}

/// The chat template: a file of its own, or a field of `tokenizer_config.json`, there a text or a list of named
/// ones.
fn chat_template(folder: &Path) -> Result<Option<String>, ConvertError> {
    let own_file = folder.join("chat_template.jinja");
    if own_file.is_file() {
        let bytes = read_limited(&own_file, MAX_SIDE_FILE_BYTES)?;
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_limited(&path, MAX_SIDE_FILE_BYTES)?;
    let config: Json = serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
    let field = &config["chat_template"];
    let named = || {
        let all = field.as_array()?;
        all.iter().find(|one| one["name"] == "default").or(all.first())?["template"].as_str()
    };
    Ok(field.as_str().or_else(named).map(str::to_owned))
}
