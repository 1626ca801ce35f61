//! What can go wrong while a vocabulary is read or a conversation is rendered.
//!
//! Encoding and decoding themselves cannot fail: every text has ids (bytes are the last resort) and every list
//! of ids has a text.

/// Why a tokenizer could not be built or a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The vocabulary is empty or larger than any Gemma vocabulary could be.
    #[error("the vocabulary has {found} pieces, expected 1 to {limit}: check that the file is a Gemma model")]
    PieceCount {
        /// Pieces found.
        found: usize,
        /// The largest number accepted.
        limit: usize,
    },
    /// A piece is longer than the matcher accepts.
    #[error("vocabulary piece {id} has {bytes} bytes, at most {limit} are allowed: the file is damaged")]
    PieceTooLong {
        /// Token id.
        id: usize,
        /// Its length in bytes.
        bytes: usize,
        /// The largest length accepted, in bytes.
        limit: usize,
    },
    /// A piece is not UTF-8.
    #[error("vocabulary piece {id} is not valid UTF-8: the file is damaged")]
    PieceNotText {
        /// Token id.
        id: usize,
    },
    /// Two ids have the same piece.
    #[error("vocabulary pieces {first} and {second} are both `{piece}`: the file is damaged")]
    DuplicatePiece {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// The piece.
        piece: String,
    },
    /// A byte piece is missing, so that some text would have no ids.
    #[error("the vocabulary lacks the byte piece `<0x{byte:02X}>`: it is not a Gemma vocabulary")]
    MissingBytePiece {
        /// The byte without a piece.
        byte: u8,
    },
    /// The pieces defeat the hash index, which honest vocabularies never do.
    #[error("the vocabulary's pieces collide too often to be indexed: the file is damaged")]
    IndexOverfull,
    /// Two arrays that belong together differ in length.
    #[error("`{field}` has {found} entries, the vocabulary has {expected} pieces: the file is damaged")]
    LengthMismatch {
        /// Name of the array.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The number of pieces.
        expected: usize,
    },
    /// A score is not a number.
    #[error("the score of vocabulary piece {id} is not a number: the file is damaged")]
    ScoreNotNumber {
        /// Token id.
        id: usize,
    },
    /// A piece type outside 1 to 6.
    #[error(
        "vocabulary piece {id} has the unknown type {found}, expected 1 to 6: the file is damaged or newer"
    )]
    PieceType {
        /// Token id.
        id: usize,
        /// The number found.
        found: i64,
    },
    /// The source has neither scores nor merges.
    #[error("the vocabulary has neither scores nor merges, so text cannot be tokenized: use a complete file")]
    NoMergeOrder,
    /// A named special id points outside the vocabulary.
    #[error("the {name} token id {id} is outside the vocabulary of {pieces} pieces: the file is damaged")]
    SpecialId {
        /// Which special token (`bos`, `eos`...).
        name: &'static str,
        /// The id found.
        id: u32,
        /// Number of pieces.
        pieces: usize,
    },
    /// A merge rule names a piece that does not exist or has no two sides.
    #[error("merge rule {index} (`{rule}`) does not join two pieces of the vocabulary: the file is damaged")]
    MergeRule {
        /// Position in the list of merges.
        index: usize,
        /// The rule as written.
        rule: String,
    },
    /// Ids of a `tokenizer.json` leave too many holes.
    #[error(
        "tokenizer.json gives id {id} among {pieces} pieces: ids must be contiguous, so the file is damaged"
    )]
    SparseIds {
        /// The offending id.
        id: u32,
        /// Number of pieces in the file.
        pieces: usize,
    },
    /// One id is given to two pieces.
    #[error("tokenizer.json gives id {id} to both `{first}` and `{second}`: the file is damaged")]
    IdTwice {
        /// The id.
        id: u32,
        /// One piece.
        first: String,
        /// The other piece.
        second: String,
    },
    /// A `tokenizer.json` that is not JSON or not of the expected shape.
    #[error("tokenizer.json cannot be read, download it again")]
    Json(#[source] serde_json::Error),
    /// A `tokenizer.model` that is not a SentencePiece file.
    #[error("tokenizer.model is damaged at byte {offset} ({what}): download it again")]
    Protobuf {
        /// Offset in bytes from the start of the file.
        offset: usize,
        /// What was wrong there.
        what: &'static str,
    },
    /// A tokenizer that asks for something Gemma's never do.
    #[error("the tokenizer asks for {what}, which Gemma tokenizers do not use: carat cannot run it exactly")]
    Unsupported {
        /// The setting, in words.
        what: String,
    },
    /// A chat template that does not parse.
    #[error("the model's chat template is not valid Jinja: repair it or use the built-in one")]
    TemplateSyntax(#[source] Box<minijinja::Error>),
    /// A chat template that refused the conversation by itself.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRefusal {
        /// What the template says.
        message: String,
    },
    /// A chat template that failed while it ran.
    #[error("the model's chat template failed on this conversation: repair it or use the built-in one")]
    TemplateRun(#[source] Box<minijinja::Error>),
    /// A chat template, or what it makes, larger than the limit.
    #[error("the {what} exceeds the limit of {limit} bytes: shorten it")]
    TemplateTooLarge {
        /// `chat template` or `rendered conversation`.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// A conversation whose turns the model's format cannot express.
    #[error("message {index} has the role {found}, expected {expected}: user and assistant must alternate")]
    RoleOrder {
        /// Position of the message, from 0.
        index: usize,
        /// Its role.
        found: &'static str,
        /// The role that must stand there.
        expected: &'static str,
    },
    /// The template rewrites message text in a way that hides which characters came from a message.
    #[error(
        "the chat template rewrites messages that hold control strings such as `<...>`, so they cannot be kept \
         apart from its own: remove those strings from the messages"
    )]
    UntraceableText,
}

/// Result of this crate's functions.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
