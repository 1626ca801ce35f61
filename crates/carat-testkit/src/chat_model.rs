//! Tiny models that one can talk to: a fixture's weights with a vocabulary and a template made for its prompt.
//!
//! The fixtures with images and sounds hold ids and no text. Here each id of theirs gets a character, so that their prompt
//! can be typed, and the reference's greedy ids be read: what a command answers can be compared with the
//! reference's answer to the same images and sounds.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Golden, fixture, sentencepiece};

/// Pieces of all these models.
const N_PIECES: u32 = 512;
/// Types of pieces in SentencePiece files.
const NORMAL: u8 = 1;
const CONTROL: u8 = 3;
const USER_DEFINED: u8 = 4;
const BYTE: u8 = 6;

/// A folder with a model that sees or hears, and what the reference answers there.
#[derive(Debug)]
pub struct ChatModel {
    /// The folder.
    pub folder: PathBuf,
    /// Images of the prompt, in order.
    pub images: Vec<PathBuf>,
    /// The sound of the prompt, for models that hear.
    pub audio: Option<PathBuf>,
    /// What the user says.
    pub text: String,
    /// The whole prompt.
    pub ids: Vec<u32>,
    /// The reference's greedy continuation, 32 tokens.
    pub answer_ids: Vec<u32>,
    /// The same as text.
    pub answer: String,
}

impl ChatModel {
    /// Makes a folder `folder` from the fixture `name`, one of `gemma3-vision`, `gemma4-unified` and `gemma4-edge`.
    /// Images of Gemma 4 are to be processed with 70 soft tokens.
    ///
    /// # Panics
    /// When the fixture or the folder cannot be used.
    #[must_use]
    pub fn new(name: &str, folder: &Path) -> ChatModel {
        let golden = Golden::open(&fixture(format!("{name}/multimodal.safetensors")));
        let ids = small(&golden.i64s("input_ids").data);
        let answer_ids = small(&golden.i64s("greedy_ids").data);
        let is_gemma3 = name.starts_with("gemma3");
        let markers: &[(u32, &str)] = if is_gemma3 {
            &[
                (509, "<start_of_image>"),
                (510, "<end_of_image>"),
                (511, "<image_soft_token>"),
            ]
        } else {
            &[
                (505, "<|video|>"),
                (506, "<image|>"),
                (507, "<audio|>"),
                (508, "<|image>"),
                (509, "<|audio>"),
                (510, "<|audio|>"),
                (511, "<|image|>"),
            ]
        };
        let soft: Vec<u32> = markers.iter().map(|(id, _)| *id).collect();
        // The texts before, between and after what is not text.
        let texts: Vec<&[u32]> = ids[1..]
            .split(|id| soft.contains(id))
            .filter(|text| !text.is_empty())
            .collect();
        let newlines = if is_gemma3 { newlines(&texts) } else { Vec::new() };
        let piece = |id: u32| -> String {
            let given = markers.iter().copied().find(|(of, _)| *of == id);
            let newline = newlines.iter().find(|(of, _)| *of == id);
            match (given, newline) {
                (Some((_, marker)), _) => marker.to_owned(),
                (None, Some((_, n))) => "\n".repeat(*n),
                (None, None) => char::from_u32(0x4e00 + id).into_iter().collect(),
            }
        };
        let text_of = |ids: &[u32]| ids.iter().map(|id| piece(*id)).collect::<String>();

        write(
            &folder.join("tokenizer.model"),
            &vocabulary(&ids, &answer_ids, &soft, &newlines, &piece),
        );
        let template = if is_gemma3 {
            gemma3_template(&texts, &text_of)
        } else {
            gemma4_template(&texts, &text_of)
        };
        write(&folder.join("chat_template.jinja"), template.as_bytes());
        for file in ["config.json", "model.safetensors"] {
            let copied = fs::copy(fixture(format!("{name}/{file}")), folder.join(file));
            assert!(copied.is_ok(), "cannot copy {file} of {name}: {copied:?}");
        }
        let last = texts.last().copied().unwrap_or_default();
        ChatModel {
            folder: folder.to_owned(),
            images: vec![
                fixture(format!("{name}/image0.png")),
                fixture(format!("{name}/image1.png")),
            ],
            audio: (!is_gemma3).then(|| fixture(format!("{name}/audio.wav"))),
            text: text_of(if is_gemma3 { &last[1..] } else { last }),
            answer: text_of(&answer_ids),
            ids,
            answer_ids,
        }
    }
}

/// Ids that must be runs of newlines, and how many: those beside the images, where the processor puts two. The template
/// writes none, one, two and three more there, so that all four become different tokens.
fn newlines(texts: &[&[u32]]) -> Vec<(u32, usize)> {
    let [lead, between, last] = texts else {
        panic!("a prompt with two images has three texts, not {}", texts.len());
    };
    let ends = [lead.last(), between.first(), between.last(), last.first()];
    ends.into_iter().flatten().copied().zip(2..).collect()
}

/// The user's text follows the images.
fn gemma3_template(texts: &[&[u32]], text_of: &dyn Fn(&[u32]) -> String) -> String {
    let lead = text_of(&texts[0][..texts[0].len() - 1]);
    let between = text_of(&texts[1][1..texts[1].len() - 1]);
    format!(
        "{{{{ bos_token }}}}{lead}{{% for m in messages if m.content is not string %}}\
         {{% for part in m.content if part.type == 'image' %}}\
         {{{{ '<start_of_image>' ~ ('\\n{between}\\n\\n' if loop.first else '\\n\\n\\n') }}}}\
         {{% endfor %}}{{% endfor %}}{USER_TEXTS}"
    )
}

/// Images with a text behind each, then sounds, then the user's text.
fn gemma4_template(texts: &[&[u32]], text_of: &dyn Fn(&[u32]) -> String) -> String {
    let (lead, first, second) = (text_of(texts[0]), text_of(texts[1]), text_of(texts[2]));
    format!(
        "{{{{ bos_token }}}}{lead}{{% for m in messages if m.content is not string %}}\
         {{% for part in m.content if part.type == 'image' %}}\
         {{{{ '<|image|>' ~ ('{first}' if loop.first else '{second}') }}}}\
         {{% endfor %}}\
         {{% for part in m.content if part.type == 'audio' %}}{{{{ '<|audio|>' }}}}{{% endfor %}}\
         {{% for part in m.content if part.type == 'video' %}}{{{{ '<|video|>' }}}}{{% endfor %}}\
         {{% endfor %}}{USER_TEXTS}"
    )
}

/// All that was said, without marks of turns.
const USER_TEXTS: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                          {% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}\
                          {% endif %}{% endfor %}";

/// A piece for each id: a character of its own where the prompt or the answer needs it, else a byte or another
/// character.
fn vocabulary(
    ids: &[u32],
    answer_ids: &[u32],
    soft: &[u32],
    newlines: &[(u32, usize)],
    piece: &dyn Fn(u32) -> String,
) -> Vec<u8> {
    let is_needed = |id: &u32| ids.contains(id) || answer_ids.contains(id) || soft.contains(id);
    let mut bytes = 0..=255u8;
    let mut pieces = Vec::new();
    for id in 0..N_PIECES {
        pieces.push(match id {
            0 => ("<pad>".to_owned(), CONTROL),
            1 => ("<eos>".to_owned(), CONTROL),
            2 => ("<bos>".to_owned(), CONTROL),
            3 => ("<unk>".to_owned(), 2),
            _ if soft.contains(&id) => (piece(id), CONTROL),
            _ if newlines.iter().any(|(of, _)| *of == id) => (piece(id), USER_DEFINED),
            _ if is_needed(&id) => (piece(id), NORMAL),
            _ => match bytes.next() {
                Some(byte) => (format!("<0x{byte:02X}>"), BYTE),
                None => (piece(id), NORMAL),
            },
        });
    }
    assert!(bytes.next().is_none(), "there is no room for all bytes");
    sentencepiece(pieces.iter().map(|(piece, kind)| (piece.as_str(), 0.0, *kind)))
}

fn small(ids: &[i64]) -> Vec<u32> {
    ids.iter().map(|id| u32::try_from(*id).unwrap_or(0)).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    let written = fs::write(path, bytes);
    assert!(written.is_ok(), "cannot write {}: {written:?}", path.display());
}
