//! Why a prompt with images, sounds or videos cannot be made, one sentence each.

use crate::limits;

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model lacks the sense for an input.
    #[error("`{file}` is {what}, but `{model}` takes {takes}; {advice}")]
    NoSense {
        /// The file.
        file: String,
        /// With its article: `an image`.
        what: &'static str,
        /// The model.
        model: String,
        /// `text only`, `text and images`.
        takes: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// More inputs than one prompt may have.
    #[error(
        "the prompt has {found} images, sounds and videos; at most {} are taken: leave some out",
        limits::MAX_ATTACHMENTS
    )]
    TooMany {
        /// Inputs that were given.
        found: usize,
    },
    /// The messages and what is attached to them do not agree.
    #[error("the messages have {expected} places for images, sounds and videos, but {found} are attached")]
    Places {
        /// Places in the messages.
        expected: usize,
        /// Inputs that were given.
        found: usize,
    },
    /// The template dropped or repeated a placeholder.
    #[error(
        "the model's chat template wrote {found} places for {what} where the messages have {expected}; use a \
         template that knows images and sounds, or none"
    )]
    Template {
        /// `images`, `sounds`, `videos`.
        what: &'static str,
        /// Places in the messages.
        expected: usize,
        /// Places in the rendered prompt.
        found: usize,
    },
    /// The vocabulary has no token for what stands around an input's rows.
    #[error(
        "the model's vocabulary lacks `{0}`, which stands around images or sounds; check that the file is whole"
    )]
    NoMarker(&'static str),
    /// The prompt leaves no room in the context; no tower has run.
    #[error(
        "the prompt has {n_prompt} tokens{of_media}, but the context holds {n_max} and at least one must be left for \
         the answer; send less, or choose a larger context",
        of_media = of_media(*n_media)
    )]
    TooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Of these, soft tokens.
        n_media: usize,
        /// Tokens of the context.
        n_max: usize,
    },
    /// An encoder gave another number of rows than the prompt has places.
    #[error("{found} rows came from an encoder where the prompt has {expected} places for them")]
    Rows {
        /// Places.
        expected: usize,
        /// Rows.
        found: usize,
    },
    /// A file was another one when its turn came.
    #[error("`{0}` has changed since the prompt was begun; send it again")]
    Changed(String),
    /// The caller said to stop.
    #[error("cancelled")]
    Cancelled,
    /// The file cannot be used.
    #[error(transparent)]
    Media(#[from] carat_media::Error),
    /// The towers cannot be loaded, or refuse an input.
    #[error(transparent)]
    Model(#[from] carat_model::Error),
    /// The conversation cannot be written.
    #[error("the model's chat template cannot write this conversation")]
    Text(#[from] carat_text::Error),
}

/// What of a prompt's tokens are for media, where there are any.
fn of_media(n_media: usize) -> String {
    match n_media {
        0 => String::new(),
        n => format!(", {n} of them for images, sounds and videos"),
    }
}
