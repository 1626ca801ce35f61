//! Inputs beside text: what a caller attaches, and what is kept of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carat_media::{EncoderInput, MediaKind, Prepared, PromptPiece};
use carat_text::Part;

/// An image, a sound or a video that goes with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF.
    Image(Source),
    /// WAV, MP3, FLAC, OGG or M4A, up to 30 seconds.
    Audio(Source),
    /// What ffmpeg reads, an animated GIF or WebP, or a folder of frames.
    Video(Source),
}

/// Where the bytes of an input are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a file; for a video also a folder.
    File(PathBuf),
    /// In memory, as a file would hold them, from somebody who is not to be trusted.
    Bytes {
        /// What errors call it.
        name: String,
        /// A whole file.
        bytes: Arc<[u8]>,
    },
}

impl Source {
    /// What errors call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Bytes { name, .. } => name.clone(),
        }
    }
}

impl Attachment {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Attachment::Image(_) => Kind::Image,
            Attachment::Audio(_) => Kind::Audio,
            Attachment::Video(_) => Kind::Video,
        }
    }

    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Attachment::Image(source) | Attachment::Audio(source) | Attachment::Video(source) => {
                source.name()
            }
        }
    }
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture.
    Image,
    /// A sound.
    Audio,
    /// Frames.
    Video,
}

impl Kind {
    /// With its article: `an image`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Image => "an image",
            Kind::Audio => "a sound",
            Kind::Video => "a video",
        }
    }

    /// Its place in a message.
    #[must_use]
    pub fn part(self) -> Part {
        match self {
            Kind::Image => Part::Image,
            Kind::Audio => Part::Audio,
            Kind::Video => Part::Video,
        }
    }

    /// The kind of a message's part; `None` for text.
    pub(crate) fn of(part: &Part) -> Option<Kind> {
        match part {
            Part::Text(_) => None,
            Part::Image => Some(Kind::Image),
            Part::Audio => Some(Kind::Audio),
            Part::Video => Some(Kind::Video),
        }
    }
}

/// An input that is ready for prompts: decoded, and encoded once a prompt has needed it.
#[derive(Debug)]
pub struct Attached {
    kind: Kind,
    name: String,
    pieces: Vec<PromptPiece>,
    stage: Mutex<Stage>,
}

/// What is kept of an input.
#[derive(Debug)]
pub(crate) enum Stage {
    /// What the encoder takes: one for each run of placeholders.
    Prepared(Vec<EncoderInput>),
    /// Nothing: it was let go, and is to be prepared again.
    Source(Attachment),
    /// What it gave.
    Encoded(Vec<Encoded>),
}

/// The rows of one run of placeholders.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) rows: Arc<[f32]>,
    pub(crate) content: u64,
}

impl Attached {
    pub(crate) fn new(kind: Kind, name: String, prepared: Prepared) -> Attached {
        Attached {
            kind,
            name,
            pieces: prepared.pieces,
            stage: Mutex::new(Stage::Prepared(prepared.inputs)),
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The file, or what the caller called the bytes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows that it takes in a prompt, of all its parts together; markers and text around them come on top.
    #[must_use]
    pub fn n_soft_tokens(&self) -> usize {
        let soft = |piece: &PromptPiece| match piece {
            PromptPiece::Media { n_soft_tokens, .. } => *n_soft_tokens,
            PromptPiece::Text(_) => 0,
        };
        self.pieces.iter().map(soft).sum()
    }

    /// Frames of a video, crops of an image with the image itself; 1 for most.
    #[must_use]
    pub fn n_parts(&self) -> usize {
        let is_media = |piece: &&PromptPiece| matches!(piece, PromptPiece::Media { .. });
        self.pieces.iter().filter(is_media).count()
    }

    /// Bytes that it holds until it is encoded.
    pub(crate) fn prepared_bytes(&self) -> usize {
        match &*self.stage() {
            Stage::Prepared(inputs) => inputs.iter().map(|input| size_of_val(&*input.values)).sum(),
            Stage::Source(_) | Stage::Encoded(_) => 0,
        }
    }

    /// Lets go what was prepared of `attachment`.
    pub(crate) fn release(&self, attachment: &Attachment) {
        *self.stage() = Stage::Source(attachment.clone());
    }

    pub(crate) fn pieces(&self) -> &[PromptPiece] {
        &self.pieces
    }

    /// The lock is held while it is encoded, so that two prompts with it run the tower once.
    pub(crate) fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The markers around a run of placeholders and the placeholder itself, in Gemma 3 or in Gemma 4.
pub(crate) fn markers(kind: MediaKind, is_gemma4: bool) -> [&'static str; 3] {
    match (kind, is_gemma4) {
        (_, false) => ["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
        (MediaKind::Image, true) => ["<|image>", "<|image|>", "<image|>"],
        (MediaKind::VideoFrame, true) => ["<|image>", "<|video|>", "<image|>"],
        (MediaKind::Audio, true) => ["<|audio>", "<|audio|>", "<audio|>"],
    }
}
