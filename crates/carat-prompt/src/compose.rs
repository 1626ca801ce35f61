//! Messages and what is attached to them become token ids with places for rows.
//!
//! As the reference's processors do, placeholders are expanded in the rendered text, before it is tokenized: newlines
//! of Gemma 3's pieces and of the text around them become one token. Runs of placeholders lie between markers,
//! which are tokens of their own, so text may be tokenized from one marker to the next.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use carat_engine::Media;
use carat_media::{MediaKind, PromptPiece};
use carat_model::SpanAttention;
use carat_text::{ChatTemplate, Message, Part, PromptText, RenderOptions, Special, Tokenizer};

use crate::attachment::{Attached, Kind, markers};
use crate::error::{Error, Result};
use crate::senses::Senses;

/// What templates write for the kinds of inputs, in Gemma 4.
const PLACEHOLDERS: [(Kind, &str); 3] = [
    (Kind::Image, "<|image|>"),
    (Kind::Audio, "<|audio|>"),
    (Kind::Video, "<|video|>"),
];
/// What templates write for an image in Gemma 3.
const IMAGE_OF_GEMMA3: (Kind, &str) = (Kind::Image, "<start_of_image>");

/// How a prompt is to be made.
#[derive(Clone, Copy, Debug)]
pub struct PromptOptions<'a> {
    /// How the conversation is rendered.
    pub render: RenderOptions<'a>,
    /// Tokens of the context. The prompt must leave one of them.
    pub n_max: usize,
}

/// What goes into a [`carat_engine::Request`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Its `prompt`.
    pub ids: Vec<u32>,
    /// Its `media`.
    pub media: Vec<Media>,
}

/// A prompt whose media are not encoded yet.
#[derive(Debug, Default)]
pub struct Composed<'a> {
    ids: Vec<u32>,
    /// Runs of placeholders in order, with the input that each belongs to and which of its parts it is.
    places: Vec<Place<'a>>,
}

#[derive(Debug)]
struct Place<'a> {
    tokens: Range<usize>,
    kind: MediaKind,
    attached: &'a Arc<Attached>,
    part: usize,
}

/// Writes a conversation with what is attached to it: one of `attached` for each part that is no text, in order.
/// Without a template the last message's text is taken as it stands, behind its inputs.
///
/// # Errors
/// [`Error::Places`], [`Error::Template`], [`Error::Text`], [`Error::NoMarker`] and [`Error::TooLong`].
pub fn compose<'a>(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    messages: &[Message],
    attached: &'a [Arc<Attached>],
    options: PromptOptions<'_>,
) -> Result<Composed<'a>> {
    let n_places = messages
        .iter()
        .flat_map(|message| &message.content)
        .filter_map(Kind::of)
        .count();
    if n_places != attached.len() {
        return Err(Error::Places {
            expected: n_places,
            found: attached.len(),
        });
    }
    let mut writer = Writer {
        tokenizer,
        is_gemma4: tokenizer
            .id_of("<|image>")
            .is_some_and(|id| tokenizer.is_special(id)),
        text: PromptText::default(),
        composed: Composed::default(),
    };
    match template {
        Some(template) => writer.conversation(template, messages, attached, options.render)?,
        None => writer.raw(messages, attached)?,
    }
    let composed = writer.finish();
    if composed.ids.len() >= options.n_max {
        return Err(Error::TooLong {
            n_prompt: composed.ids.len(),
            n_media: composed.n_soft_tokens(),
            n_max: options.n_max,
        });
    }
    Ok(composed)
}

impl Composed<'_> {
    /// The prompt's ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Of these, how many take rows.
    #[must_use]
    pub fn n_soft_tokens(&self) -> usize {
        self.places.iter().map(|place| place.tokens.len()).sum()
    }

    /// Encodes what is not encoded yet. Takes its time; `go_on` is asked before each run of a tower.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `go_on` says no, and what the towers refuse.
    pub fn encode(self, senses: &Senses, go_on: &mut dyn FnMut() -> bool) -> Result<Prompt> {
        let mut media = Vec::with_capacity(self.places.len());
        for place in self.places {
            let rows = senses.rows(place.attached, go_on)?;
            let encoded = rows.get(place.part).ok_or(Error::Rows {
                expected: place.part + 1,
                found: rows.len(),
            })?;
            media.push(Media {
                tokens: place.tokens,
                rows: Arc::clone(&encoded.rows),
                attention: match place.kind {
                    MediaKind::Image | MediaKind::VideoFrame => SpanAttention::Bidirectional,
                    MediaKind::Audio => SpanAttention::Causal,
                },
                content: encoded.content,
            });
        }
        Ok(Prompt { ids: self.ids, media })
    }
}

/// Ids so far, and the text since the last marker.
struct Writer<'a, 't> {
    tokenizer: &'t Tokenizer,
    is_gemma4: bool,
    text: PromptText,
    composed: Composed<'a>,
}

impl<'a> Writer<'a, '_> {
    fn conversation(
        &mut self,
        template: &ChatTemplate,
        messages: &[Message],
        attached: &'a [Arc<Attached>],
        options: RenderOptions<'_>,
    ) -> Result<()> {
        if attached.is_empty() {
            self.text = template.compose(self.tokenizer, messages, options)?;
            return Ok(());
        }
        let messages: Vec<Message> = messages.iter().map(|message| self.placed(message)).collect();
        let kinds = if self.is_gemma4 {
            &PLACEHOLDERS[..]
        } else {
            &[IMAGE_OF_GEMMA3]
        };
        // Templates may move inputs of one kind past those of another, as behind a tool's result.
        let mut waiting: Vec<VecDeque<&'a Arc<Attached>>> = vec![VecDeque::new(); kinds.len()];
        let parts = messages
            .iter()
            .flat_map(|message| &message.content)
            .filter_map(Kind::of);
        for (kind, one) in parts.zip(attached) {
            if let Some(i) = kinds.iter().position(|(of, _)| *of == kind) {
                waiting[i].push_back(one);
            }
        }
        let expected: Vec<usize> = waiting.iter().map(VecDeque::len).collect();
        let names: Vec<&str> = kinds.iter().map(|(_, name)| *name).collect();
        let text = template.compose(self.tokenizer, &messages, options)?;
        let mut found = vec![0; kinds.len()];
        for (piece, name) in text.cut_at(&names) {
            self.text.append(&piece);
            let Some(i) = name else { continue };
            found[i] += 1;
            if let Some(one) = waiting[i].pop_front() {
                self.media(one)?;
            }
        }
        match (0..kinds.len()).find(|&i| found[i] != expected[i]) {
            Some(i) => Err(Error::Template {
                what: match kinds[i].0 {
                    Kind::Image => "images",
                    Kind::Audio => "sounds",
                    Kind::Video => "videos",
                },
                expected: expected[i],
                found: found[i],
            }),
            None => Ok(()),
        }
    }

    /// Gemma 3 has no videos: their frames take the place of an image.
    fn placed(&self, message: &Message) -> Message {
        let mut message = message.clone();
        if !self.is_gemma4 {
            for part in &mut message.content {
                if *part == Part::Video {
                    *part = Part::Image;
                }
            }
        }
        message
    }

    fn raw(&mut self, messages: &[Message], attached: &'a [Arc<Attached>]) -> Result<()> {
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        self.composed.ids.extend(bos);
        for one in attached {
            self.media(one)?;
        }
        self.flush();
        let parts = messages.last().into_iter().flat_map(|message| &message.content);
        let mut text = String::new();
        for part in parts {
            if let Part::Text(more) = part {
                text.push_str(more);
            }
        }
        self.tokenizer
            .encode_into(&text, Special::AsText, &mut self.composed.ids);
        Ok(())
    }

    /// All that stands for one input.
    fn media(&mut self, attached: &'a Arc<Attached>) -> Result<()> {
        let mut part = 0;
        for piece in attached.pieces() {
            match piece {
                PromptPiece::Text(text) => self.text.push_str(text),
                PromptPiece::Media { kind, n_soft_tokens } => {
                    self.run(*kind, *n_soft_tokens, attached, part)?;
                    part += 1;
                }
            }
        }
        Ok(())
    }

    /// Begin marker, placeholders, end marker.
    fn run(&mut self, kind: MediaKind, n: usize, attached: &'a Arc<Attached>, part: usize) -> Result<()> {
        self.flush();
        let [begin, soft, end] = markers(kind, self.is_gemma4);
        let id = |name: &'static str| self.tokenizer.id_of(name).ok_or(Error::NoMarker(name));
        let (begin, end) = (id(begin)?, id(end)?);
        // Gemma 3's lies outside the vocabulary of files for text alone; what stands under rows has no meaning.
        let soft = self.tokenizer.id_of(soft).unwrap_or(begin);
        let ids = &mut self.composed.ids;
        ids.push(begin);
        let first = ids.len();
        ids.resize(first + n, soft);
        self.composed.places.push(Place {
            tokens: first..ids.len(),
            kind,
            attached,
            part,
        });
        self.composed.ids.push(end);
        Ok(())
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        self.composed.ids.extend(text.encode(self.tokenizer));
    }

    fn finish(mut self) -> Composed<'a> {
        self.flush();
        self.composed
    }
}
