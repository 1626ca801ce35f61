//! What can be wrong with a checkpoint or a call of a model.

use std::path::PathBuf;

use crate::Family;

/// The errors of loading and running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file itself is damaged or cannot be read.
    #[error(transparent)]
    Format(#[from] carat_format::Error),
    /// A kernel refused a shape or a setting.
    #[error(transparent)]
    Kernel(#[from] carat_kernels::Error),
    /// A file that is to be a drafter and is something else.
    #[error(
        "`{}` holds a model of architecture `{architecture}`, which is no drafter of Gemma 4; give one of \
         architecture gemma4-assistant, or a smaller model with the same tokenizer", path.display()
    )]
    NoDrafter {
        /// The file.
        path: PathBuf,
        /// As the file names it.
        architecture: String,
    },
    /// A file that holds no cache of this model.
    #[error("the saved cache cannot be used: {reason}")]
    SavedCache {
        /// What is wrong with it.
        reason: String,
    },
    /// A file with a cache that could not be read.
    #[error("the saved cache cannot be read: {source}")]
    SavedCacheUnread {
        /// What the system says.
        source: std::io::Error,
    },
    /// A drafter that was made for another model.
    #[error("`{}` drafts for {reason}; use the drafter that was made for this model", path.display())]
    ForeignDrafter {
        /// The drafter's file.
        path: PathBuf,
        /// What it is for.
        reason: String,
    },
    /// The order of a drafter's tokens by clusters is none.
    #[error("`{name}` of `{}` must name every token of the vocabulary once", path.display())]
    TokenOrder {
        /// The drafter's file.
        path: PathBuf,
        /// Name in the file.
        name: String,
    },
    /// Neither a GGUF file nor a Hugging Face folder.
    #[error("`{}` is neither a GGUF file nor a folder with a config.json and safetensors", path.display())]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
    },
    /// Another kind of model.
    #[error("`{}` holds a model of architecture `{architecture}`, but carat runs gemma3 and gemma4 text models", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// As the file names it.
        architecture: String,
    },
    /// A JSON file that is no JSON, or not of the expected form.
    #[error("`{}` cannot be understood: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A setting that is missing.
    #[error("`{}` does not say `{field}`, without which the model cannot be run", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// Key or JSON field.
        field: &'static str,
    },
    /// A setting with a value that cannot be.
    #[error("`{}` says {field} = {value}, but it must be {expected}", path.display())]
    BadField {
        /// The file.
        path: PathBuf,
        /// Key or JSON field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
    /// A number outside what can be computed with.
    #[error("`{}` says {field} = {value}, but it must be between {least} and {most}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// What the number is.
        field: &'static str,
        /// What it says.
        value: usize,
        /// Least allowed.
        least: usize,
        /// Most allowed.
        most: usize,
    },
    /// Factors of rotary frequencies of another kind than Gemma's.
    #[error(
        "`rope_freqs.weight` of `{}` holds other factors than ones followed by numbers too large to turn by, \
         which is all that Gemma 4 has",
        path.display()
    )]
    RopeFactors {
        /// The file.
        path: PathBuf,
    },
    /// Tensors that the model needs and the file lacks.
    #[error("`{}` lacks {} of the model's tensors, among them {}", path.display(), names.len(), first_few(names))]
    MissingTensors {
        /// The file.
        path: PathBuf,
        /// Their names in this kind of file.
        names: Vec<String>,
    },
    /// Tensors that the file has and the model has no place for.
    #[error("`{}` holds {} tensors that no text model of its kind has, among them {}", path.display(), names.len(), first_few(names))]
    UnknownTensors {
        /// The file.
        path: PathBuf,
        /// Their names in this kind of file.
        names: Vec<String>,
    },
    /// A tensor whose shape is not what the settings say.
    #[error("tensor `{name}` of `{}` has shape {found:?}, but the model's settings say {expected:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// Name in the file.
        name: String,
        /// Outermost first.
        expected: Vec<usize>,
        /// Outermost first.
        found: Vec<usize>,
    },
    /// Numbers of a tensor that cannot be turned to f32.
    #[error("tensor `{name}` cannot be read: {source}")]
    Tensor {
        /// Name in the file.
        name: String,
        /// Why.
        source: carat_kernels::QuantError,
    },
    /// A token id that the model has no embedding for.
    #[error("token id {id} is not below the model's vocabulary size {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A segment without tokens.
    #[error("a forward pass was asked for without tokens")]
    EmptySegment,
    /// Media rows that are not whole rows of the segment, or lie over others.
    #[error(
        "media rows at token {start} of a segment of {n_tokens} tokens are not one or more rows of {d_model} \
         numbers within it, after those before them; give each image or sound as many placeholder tokens as it \
         has rows"
    )]
    MediaRows {
        /// Index of the first row's token.
        start: usize,
        /// Tokens of the segment.
        n_tokens: usize,
        /// Width of a row.
        d_model: usize,
    },
    /// A bidirectional span that is too long to be computed at once.
    #[error(
        "an image of {n_rows} rows is more than the {limit} that are computed in one pass; make it smaller"
    )]
    SpanTooLong {
        /// Rows of the span.
        n_rows: usize,
        /// Most rows of a span.
        limit: usize,
    },
    /// More tokens than one pass takes.
    #[error("{n_tokens} tokens in one pass are more than the {limit} that buffers are sized for")]
    BatchTooLarge {
        /// Tokens asked for.
        n_tokens: usize,
        /// See `LanguageModel::max_batch_tokens`.
        limit: usize,
    },
    /// A sequence that outgrows its cache.
    #[error("{n_tokens} tokens do not fit the {max_tokens} that the sequence's cache was made for")]
    CacheFull {
        /// Tokens that would be held.
        n_tokens: usize,
        /// Tokens that can be held.
        max_tokens: usize,
    },
    /// A cache longer than the model's context.
    #[error("a context of {max_tokens} tokens is more than the {context_len} that the model was made for")]
    ContextTooLong {
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens that the model takes.
        context_len: usize,
    },
    /// A cache of another model.
    #[error("the cache was made by another model")]
    ForeignCache,
    /// No memory for a cache to grow.
    #[error(
        "no memory for the KV cache to grow to {n_tokens} tokens, not even a page of {bytes} bytes; end other \
             programs, or take a shorter context or a smaller type of cache"
    )]
    CacheMemory {
        /// Tokens that would be held.
        n_tokens: usize,
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// An input that the model has no tower for.
    #[error(
        "the model takes no {what}; its files have no encoder for them (GGUF: a file with mmproj in its name)"
    )]
    NoModality {
        /// `images` or `audio`.
        what: &'static str,
    },
    /// Numbers of an image or a sound that are not as the encoder takes them.
    #[error("{found} {what} do not fit the model's encoder, which takes {expected}")]
    MediaShape {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// What there may be.
        expected: String,
    },
    /// A patch where the model has no place for one, or patches that are no whole rectangle.
    #[error("the image's patch at column {x}, row {y} is {problem}")]
    MediaPosition {
        /// Column.
        x: i32,
        /// Row.
        y: i32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Encoders of another generation.
    #[error(
        "`{}` has encoders for {found}, but the model is a {expected}; use those that were made for it", path.display()
    )]
    ForeignTowers {
        /// The file, or the folder.
        path: PathBuf,
        /// Whose encoders they are.
        found: Family,
        /// What the text model is.
        expected: Family,
    },
    /// Encoders of another model.
    #[error(
        "`{}` has encoders for a model of width {found}, but this one is {expected} wide; use the mmproj file \
         that was made for it", path.display()
    )]
    ForeignMmproj {
        /// The file.
        path: PathBuf,
        /// Width that its rows have.
        found: usize,
        /// Width of the text model.
        expected: usize,
    },
}

/// The first names of a list, for a message.
fn first_few(names: &[String]) -> String {
    let few: Vec<String> = names.iter().take(4).map(|name| format!("`{name}`")).collect();
    few.join(", ")
}
