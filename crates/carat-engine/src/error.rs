//! What can go wrong in a generation, said so that the reader knows what to change.

/// Why a request was refused or stopped half-way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A sampling setting is outside its range.
    #[error("sampling setting `{field}` is {value}, which is not {expected}")]
    Setting {
        /// Name of the setting.
        field: &'static str,
        /// The value given.
        value: f32,
        /// The allowed range, in words.
        expected: &'static str,
    },
    /// A token id in the request is not in the vocabulary.
    #[error("`{field}` names token {id}, but the vocabulary has {vocab_size} tokens")]
    UnknownToken {
        /// Where the id was given.
        field: &'static str,
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// A stop string is empty and would end every answer at once.
    #[error("a stop string is empty; remove it")]
    EmptyStopString,
    /// No token was allowed.
    #[error("`max_tokens` is 0; allow at least one token")]
    NoTokensAllowed,
    /// Images or sounds that are not within the prompt.
    #[error(
        "media are said to take the tokens {start}..{end} of a prompt of {n_prompt}, which lie outside it, over \
         other media, or are not as many as there are rows"
    )]
    MediaPlace {
        /// First token.
        start: usize,
        /// After the last token.
        end: usize,
        /// Tokens of the prompt.
        n_prompt: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens; give at least one (models begin with their `<bos>` token)")]
    EmptyPrompt,
    /// The prompt leaves no room in the context.
    #[error(
        "the prompt has {n_prompt} tokens, but the context holds {n_max} and at least one must be left for the \
         answer; shorten the prompt or choose a larger context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens that the sequence's cache holds.
        n_max: usize,
    },
    /// Every token was masked or had no finite logit.
    #[error("no token can be chosen: the model gave no finite logit among the {n_allowed} allowed tokens")]
    NoCandidate {
        /// Tokens that were neither padding nor suppressed.
        n_allowed: usize,
    },
    /// The model's logits have another shape than it announced.
    #[error("the model gave {found} logits where {expected} were asked for")]
    LogitsShape {
        /// Numbers expected.
        expected: usize,
        /// Numbers found.
        found: usize,
    },
    /// A cache does not hold what the sequence recorded.
    #[error("the cache holds {found} tokens where {expected} were expected")]
    CacheLength {
        /// Tokens expected.
        expected: usize,
        /// Tokens held.
        found: usize,
    },
    /// Windows for scoring make no sense.
    #[error("a scoring window of {window} tokens with a stride of {stride} cannot be used; {expected}")]
    Window {
        /// Window, in tokens.
        window: usize,
        /// Stride, in tokens.
        stride: usize,
        /// What would be right.
        expected: &'static str,
    },
    /// The text is too short to be scored.
    #[error(
        "the text has {found} token{}, but scoring needs at least {needed}; give a longer text or a smaller window",
        if *found == 1 { "" } else { "s" }
    )]
    TooFewTokens {
        /// Tokens of the text.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// A grammar cannot be used.
    #[error("the grammar cannot be used: {reason}")]
    Grammar {
        /// What is wrong with it.
        reason: String,
    },
    /// A forward pass failed.
    #[error("the model could not go on: {reason}")]
    Pass {
        /// What the model said.
        reason: String,
    },
    /// There are not enough free places, running or waiting, for all that was asked for together.
    #[error("there is no room: at most {limit} answers may be under way or waiting; try again later")]
    QueueFull {
        /// Places of both kinds.
        limit: usize,
    },
    /// More was asked for together than there are places, be they all free.
    #[error(
        "{n_wanted} answers are asked for together, but at most {limit} may be under way or waiting; ask for fewer at a time"
    )]
    TooManyTogether {
        /// Places that were wanted.
        n_wanted: usize,
        /// Places that there are.
        limit: usize,
    },
    /// The engine has stopped, by order or by a mistake of its own.
    #[error("the engine has stopped; start the program again")]
    Stopped,
    /// The model's last hidden states were asked for, but it does not show them.
    #[error("this model gives no embeddings")]
    NoEmbeddings,
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The model refused or failed.
    #[error("the model could not run")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps a model's own error.
    pub(crate) fn model(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Model(Box::new(error))
    }
}
