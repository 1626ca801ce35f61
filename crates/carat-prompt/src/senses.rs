//! One model's way of seeing and hearing: files to rows.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carat_media::{
    EncoderInput, MediaOptions, MediaProcessor, Prepared, VideoTools, decode_audio, decode_image, read_audio,
    read_image,
};
use carat_model::{
    Checkpoint, Container, EncoderPrecision, ImageInput, MediaCache, MediaEncoder, MediaSource, Model,
};

use crate::attachment::{Attached, Attachment, Encoded, Kind, Source, Stage};
use crate::error::{Error, Result};
use crate::limits::{DEFAULT_CACHE_BYTES, DEFAULT_PREPARED_BYTES, MAX_ATTACHMENTS};
use crate::processor::processor;

/// How a model is to see and hear.
#[derive(Clone, Debug)]
pub struct SensesOptions {
    /// How images, sounds and videos are processed.
    pub media: MediaOptions,
    /// Arithmetic of the towers.
    pub precision: EncoderPrecision,
    /// A GGUF model's towers; `None` looks for a file with `mmproj` in its name beside the model.
    pub mmproj: Option<PathBuf>,
    /// ffmpeg, if the machine has it.
    pub video_tools: Option<VideoTools>,
    /// Bytes of encoded rows that are kept.
    pub cache_bytes: usize,
    /// Bytes of one prompt's inputs that wait decoded for their tower. The rest is decoded again when its turn comes.
    pub prepared_bytes: usize,
}

impl Default for SensesOptions {
    /// The reference's processing, bf16 towers, no ffmpeg, 256 MiB of rows and as much for a prompt's inputs.
    fn default() -> SensesOptions {
        SensesOptions {
            media: MediaOptions::default(),
            precision: EncoderPrecision::Half,
            mmproj: None,
            video_tools: None,
            cache_bytes: DEFAULT_CACHE_BYTES,
            prepared_bytes: DEFAULT_PREPARED_BYTES,
        }
    }
}

/// See the module's head. Shared between threads.
pub struct Senses {
    /// How errors call the model.
    model: String,
    towers: Option<Towers>,
    is_gguf: bool,
    video_tools: Option<VideoTools>,
    prepared_bytes: usize,
}

struct Towers {
    processor: MediaProcessor,
    encoder: Mutex<MediaEncoder>,
    encoder_id: u64,
    cache: Mutex<MediaCache>,
    n_runs: AtomicU64,
}

impl Senses {
    /// The senses of `model`, called `name`, whose files are `checkpoint`. A model of text alone has none: it
    /// refuses whatever is attached, by name.
    ///
    /// # Errors
    /// Towers that cannot be loaded, and an `mmproj` file that cannot be read or is for another model.
    pub fn of_model(
        name: &str,
        model: &Model,
        checkpoint: &Checkpoint,
        options: SensesOptions,
    ) -> Result<Senses> {
        let source = match &options.mmproj {
            Some(path) => Some(MediaSource::open(checkpoint, path)?),
            None => MediaSource::find(checkpoint)?,
        };
        let towers = match source {
            Some(source) => {
                let encoder = model.media_encoder(&source, options.precision)?;
                Some(Towers {
                    processor: processor(source.config(), options.media)?,
                    encoder_id: encoder.id(),
                    encoder: Mutex::new(encoder),
                    cache: Mutex::new(MediaCache::new(options.cache_bytes)),
                    n_runs: AtomicU64::new(0),
                })
            }
            None => None,
        };
        Ok(Senses {
            model: name.to_owned(),
            towers,
            is_gguf: matches!(checkpoint.container(), Container::Gguf(_)),
            video_tools: options.video_tools,
            prepared_bytes: options.prepared_bytes,
        })
    }

    /// The senses of a model of text alone, called `name`.
    #[must_use]
    pub fn none(name: &str) -> Senses {
        Senses {
            model: name.to_owned(),
            towers: None,
            is_gguf: false,
            video_tools: None,
            prepared_bytes: 0,
        }
    }

    /// Whether images and videos are taken.
    #[must_use]
    pub fn sees(&self) -> bool {
        self.towers.as_ref().is_some_and(|towers| towers.processor.sees())
    }

    /// Whether sounds are taken.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.towers
            .as_ref()
            .is_some_and(|towers| towers.processor.hears())
    }

    /// Whether inputs of a kind are taken; an error calls this one `file`. For those who want to know it before they have
    /// the input.
    ///
    /// # Errors
    /// [`Error::NoSense`].
    pub fn check(&self, kind: Kind, file: &str) -> Result<()> {
        self.towers_for(kind, &|| file.to_owned()).map(|_| ())
    }

    /// How often a tower or embedder has run so far.
    #[must_use]
    pub fn n_runs(&self) -> u64 {
        self.towers
            .as_ref()
            .map_or(0, |towers| towers.n_runs.load(Ordering::Relaxed))
    }

    /// Decodes an input and makes it what the model takes. No tower runs.
    ///
    /// # Errors
    /// [`Error::NoSense`], and whatever is wrong with the file.
    pub fn attach(&self, attachment: &Attachment) -> Result<Attached> {
        let prepared = self.prepare(attachment)?;
        Ok(Attached::new(attachment.kind(), attachment.name(), prepared))
    }

    fn prepare(&self, attachment: &Attachment) -> Result<Prepared> {
        let processor = &self
            .towers_for(attachment.kind(), &|| attachment.name())?
            .processor;
        Ok(match attachment {
            Attachment::Image(Source::File(path)) => processor.image(&read_image(path)?)?,
            Attachment::Image(Source::Bytes { name, bytes }) => {
                processor.image(&decode_image(bytes, name)?)?
            }
            Attachment::Audio(Source::File(path)) => processor.audio(&read_audio(path)?)?,
            Attachment::Audio(Source::Bytes { name, bytes }) => {
                processor.audio(&decode_audio(bytes, name)?)?
            }
            Attachment::Video(Source::File(path)) => processor.video(path, self.video_tools.as_ref())?,
            Attachment::Video(Source::Bytes { name, bytes }) => {
                processor.video_bytes(bytes, name, self.video_tools.as_ref())?
            }
        })
    }

    /// [`Senses::attach`] for all inputs of a prompt, in order, as long as they fit into `n_max` tokens.
    ///
    /// # Errors
    /// As [`Senses::attach`]; [`Error::TooMany`] before anything is decoded, [`Error::TooLong`] as soon as it is clear,
    /// [`Error::Cancelled`] when `go_on`, asked before each, says no.
    pub fn attach_all(
        &self,
        attachments: &[Attachment],
        n_max: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Arc<Attached>>> {
        if attachments.len() > MAX_ATTACHMENTS {
            return Err(Error::TooMany {
                found: attachments.len(),
            });
        }
        let mut all = Vec::with_capacity(attachments.len());
        let (mut n_media, mut prepared_bytes) = (0, 0);
        for attachment in attachments {
            if !go_on() {
                return Err(Error::Cancelled);
            }
            let attached = self.attach(attachment)?;
            n_media += attached.n_soft_tokens();
            if n_media >= n_max {
                return Err(Error::TooLong {
                    n_prompt: n_media,
                    n_media,
                    n_max,
                });
            }
            prepared_bytes += attached.prepared_bytes();
            if prepared_bytes > self.prepared_bytes {
                attached.release(attachment);
            }
            all.push(Arc::new(attached));
        }
        Ok(all)
    }

    /// The rows of an input, from where they are kept or by running the towers; `go_on` is asked before each run.
    pub(crate) fn rows(&self, attached: &Attached, go_on: &mut dyn FnMut() -> bool) -> Result<Vec<Encoded>> {
        let towers = self.towers_for(attached.kind(), &|| attached.name().to_owned())?;
        let mut stage = attached.stage();
        let again;
        let inputs = match &*stage {
            Stage::Encoded(encoded) => return Ok(encoded.clone()),
            Stage::Prepared(inputs) => inputs,
            Stage::Source(_) if !go_on() => return Err(Error::Cancelled),
            Stage::Source(attachment) => {
                again = self.prepare(attachment)?;
                if again.pieces != attached.pieces() {
                    return Err(Error::Changed(attached.name().to_owned()));
                }
                &again.inputs
            }
        };
        let mut all = Vec::with_capacity(inputs.len());
        for input in inputs {
            // Not in the match, which would hold the lock while a tower runs.
            let kept = lock(&towers.cache).get(input.content_hash.as_bytes());
            let rows = match kept {
                Some(rows) => rows,
                None if !go_on() => return Err(Error::Cancelled),
                None => towers.encode(attached.kind(), input)?,
            };
            all.push(Encoded {
                rows,
                content: towers.content_of(input),
            });
        }
        *stage = Stage::Encoded(all.clone());
        Ok(all)
    }

    fn towers_for(&self, kind: Kind, file: &dyn Fn() -> String) -> Result<&Towers> {
        let (sees, hears) = (self.sees(), self.hears());
        let has_sense = match kind {
            Kind::Image | Kind::Video => sees,
            Kind::Audio => hears,
        };
        if let (Some(towers), true) = (&self.towers, has_sense) {
            return Ok(towers);
        }
        Err(Error::NoSense {
            file: file(),
            what: kind.name(),
            model: self.model.clone(),
            takes: match (sees, hears) {
                (false, false) => "text only",
                (true, _) => "text and images",
                (false, true) => "text and sounds",
            },
            advice: if self.is_gguf && self.towers.is_none() {
                "put the model's mmproj file beside it if there is one, or choose a model that takes it"
            } else {
                "choose a model that takes it, or leave it out"
            },
        })
    }
}

impl Towers {
    fn encode(&self, kind: Kind, input: &EncoderInput) -> Result<Arc<[f32]>> {
        let mut encoder = lock(&self.encoder);
        // Another thread may have encoded the same meanwhile.
        if let Some(rows) = lock(&self.cache).get(input.content_hash.as_bytes()) {
            return Ok(rows);
        }
        let mut rows = Vec::new();
        match kind {
            Kind::Image | Kind::Video => {
                let image = ImageInput {
                    pixel_values: &input.values,
                    positions: &input.positions,
                };
                encoder.encode_image(&image, &mut rows)?;
            }
            Kind::Audio => encoder.encode_audio(&input.values, &mut rows)?,
        }
        self.n_runs.fetch_add(1, Ordering::Relaxed);
        let (expected, found) = (input.n_soft_tokens, rows.len() / encoder.d_model().max(1));
        if expected != found {
            return Err(Error::Rows { expected, found });
        }
        let rows: Arc<[f32]> = rows.into();
        lock(&self.cache).insert(*input.content_hash.as_bytes(), Arc::clone(&rows));
        Ok(rows)
    }

    /// What the engine tells media apart by: the first bytes of the input's hash, and which towers see it. Caches in files
    /// outlive the process, and other towers make other rows of the same input.
    fn content_of(&self, input: &EncoderInput) -> u64 {
        let first = input.content_hash.as_bytes().first_chunk::<8>();
        first.map_or(0, |bytes| u64::from_le_bytes(*bytes)) ^ self.encoder_id
    }
}

/// A panic of another thread leaves caches and towers usable: each call begins anew.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
