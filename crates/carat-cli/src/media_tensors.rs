//! Images and sounds from safetensors files, as the reference's processors give them, ready for the towers.
//!
//! Names are the processors': `pixel_values` (or `pixel_values_u8`, 255 for 1), `image_position_ids`,
//! `input_features`, `input_features_mask`, and `mm_token_type_ids` or `token_type_ids`, which say what each token of
//! the prompt is: 0 text, 1 an image, 2 a frame of a video, 3 a sound. The i-th run of 1 or 2 is the i-th image.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use carat_format::{RawTensor, SafeDType, Safetensors};
use carat_model::{ImageInput, MediaEncoder, MediaSpan, SpanAttention};

use crate::failure::Hinted;

/// The opened files; a tensor is looked for in all of them.
pub(crate) struct MediaTensors {
    files: Vec<(PathBuf, Safetensors)>,
}

/// Rows that take the place of some tokens.
pub(crate) struct EncodedSpan {
    /// The tokens.
    at: Range<usize>,
    rows: Vec<f32>,
    attention: SpanAttention,
}

impl EncodedSpan {
    /// The part of it that is in the tokens `pass`, if any.
    pub(crate) fn within(&self, pass: &Range<usize>) -> Option<MediaSpan<'_>> {
        let (start, end) = (self.at.start.max(pass.start), self.at.end.min(pass.end));
        if start >= end {
            return None;
        }
        let d_model = self.rows.len() / self.at.len();
        Some(MediaSpan {
            start: start - pass.start,
            rows: &self.rows[(start - self.at.start) * d_model..(end - self.at.start) * d_model],
            attention: self.attention,
        })
    }
}

/// A tensor's numbers with its shape.
struct Numbers {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Numbers {
    /// Item `i` of the outermost axis, of which there are `n`.
    fn item(&self, i: usize) -> &[f64] {
        let len = self.values.len() / self.n().max(1);
        &self.values[i * len..(i + 1) * len]
    }

    fn n(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }
}

impl MediaTensors {
    pub(crate) fn open(paths: &[PathBuf]) -> Result<MediaTensors> {
        let open = |path: &PathBuf| Ok((path.clone(), Safetensors::open(path)?));
        let files = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(MediaTensors { files })
    }

    /// Encodes everything and puts it in its places among `n_tokens` tokens.
    pub(crate) fn encode(&self, encoder: &mut MediaEncoder, n_tokens: usize) -> Result<Vec<EncodedSpan>> {
        let kinds = self.kinds(n_tokens)?;
        let mut images = self.images(encoder)?.into_iter();
        let mut sounds = self.sounds(encoder)?.into_iter();
        let mut spans = Vec::new();
        let mut start = 0;
        for run in kinds.chunk_by(|a, b| a == b) {
            let (what, next, attention) = match run[0] {
                0 => {
                    start += run.len();
                    continue;
                }
                1 | 2 => ("image", images.next(), SpanAttention::Bidirectional),
                3 => ("sound", sounds.next(), SpanAttention::Causal),
                other => {
                    return Err(mismatch(format!(
                        "a token is of kind {other}, which is none of 0 to 3"
                    )));
                }
            };
            let rows = next.ok_or_else(|| {
                mismatch(format!(
                    "the prompt has more places for a {what} than the files have"
                ))
            })?;
            if rows.len() != run.len() * encoder.d_model() {
                return Err(mismatch(format!(
                    "the {what} at token {start} became {} rows, but the prompt has {} places for it",
                    rows.len() / encoder.d_model(),
                    run.len()
                )));
            }
            spans.push(EncodedSpan {
                at: start..start + run.len(),
                rows,
                attention,
            });
            start += run.len();
        }
        match (images.next(), sounds.next()) {
            (None, None) => Ok(spans),
            _ => Err(mismatch(
                "the files have more images or sounds than the prompt has places".to_owned(),
            )),
        }
    }

    /// What each token is.
    fn kinds(&self, n_tokens: usize) -> Result<Vec<u32>> {
        let found = match self.numbers("mm_token_type_ids")? {
            Some(kinds) => Some(kinds),
            None => self.numbers("token_type_ids")?,
        };
        let Some(kinds) = found else {
            return Err(mismatch(
                "the media files have no mm_token_type_ids and no token_type_ids".to_owned(),
            ));
        };
        if kinds.values.len() != n_tokens {
            return Err(mismatch(format!(
                "the media files say what {} tokens are, but there are {n_tokens} ids",
                kinds.values.len()
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "other kinds are refused later"
        )]
        Ok(kinds.values.iter().map(|kind| *kind as u32).collect())
    }

    fn images(&self, encoder: &mut MediaEncoder) -> Result<Vec<Vec<f32>>> {
        let bytes = self.numbers("pixel_values_u8")?.map(|mut bytes| {
            bytes.values.iter_mut().for_each(|value| *value /= 255.0);
            bytes
        });
        let floats = self.numbers("pixel_values")?;
        let Some(pixels) = floats.or(bytes) else {
            return Ok(Vec::new());
        };
        let positions = self.numbers("image_position_ids")?;
        if positions
            .as_ref()
            .is_some_and(|positions| positions.n() != pixels.n())
        {
            return Err(mismatch(
                "image_position_ids are not for as many images as pixel_values".to_owned(),
            ));
        }
        let mut all = Vec::new();
        for i in 0..pixels.n() {
            let at = positions.as_ref().map_or(&[][..], |positions| positions.item(i));
            #[expect(
                clippy::cast_possible_truncation,
                reason = "positions out of range are refused by the encoder"
            )]
            let at: Vec<[i32; 2]> = at
                .chunks_exact(2)
                .map(|at| [at[0] as i32, at[1] as i32])
                .collect();
            let image = ImageInput {
                pixel_values: &singles(pixels.item(i)),
                positions: &at,
            };
            let mut rows = Vec::new();
            encoder.encode_image(&image, &mut rows)?;
            all.push(rows);
        }
        Ok(all)
    }

    fn sounds(&self, encoder: &mut MediaEncoder) -> Result<Vec<Vec<f32>>> {
        let Some(features) = self.numbers("input_features")? else {
            return Ok(Vec::new());
        };
        let [n, n_frames, width] = features.shape[..] else {
            return Err(mismatch("input_features are not of three axes".to_owned()));
        };
        let mask = self.numbers("input_features_mask")?;
        if mask.as_ref().is_some_and(|mask| mask.shape != [n, n_frames]) {
            return Err(mismatch(
                "input_features_mask is not for the frames of input_features".to_owned(),
            ));
        }
        let mut all = Vec::new();
        for i in 0..n {
            let mask = mask.as_ref().map(|mask| mask.item(i));
            let n_real = mask.map_or(n_frames, |mask| {
                mask.iter().take_while(|bit| **bit != 0.0).count()
            });
            if mask.is_some_and(|mask| mask[n_real..].iter().any(|bit| *bit != 0.0)) {
                return Err(mismatch(
                    "input_features_mask has real frames after padding".to_owned(),
                ));
            }
            let mut rows = Vec::new();
            encoder.encode_audio(&singles(&features.item(i)[..n_real * width]), &mut rows)?;
            all.push(rows);
        }
        Ok(all)
    }

    /// The tensor called `name`, in whichever file has it.
    fn numbers(&self, name: &str) -> Result<Option<Numbers>> {
        let found = self
            .files
            .iter()
            .find_map(|(path, file)| file.raw(name).map(|raw| (path, raw)));
        found.map(|(path, raw)| numbers(path, &raw)).transpose()
    }
}

fn mismatch(message: String) -> anyhow::Error {
    Hinted::new(
        message,
        "give the tensors that the reference's processor made for this prompt",
    )
    .into()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "what was f32 in the file, or a byte"
)]
fn singles(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

fn numbers(path: &Path, raw: &RawTensor<'_>) -> Result<Numbers> {
    #[expect(clippy::cast_precision_loss, reason = "ids and positions are small")]
    let decode: fn(&[u8]) -> f64 = match raw.dtype {
        SafeDType::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        SafeDType::BF16 => |b| f32::from_le_bytes([0, 0, b[0], b[1]]).into(),
        SafeDType::I64 => |b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f64,
        SafeDType::I32 => |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        SafeDType::U8 | SafeDType::Bool => |b| b[0].into(),
        other => {
            return Err(Hinted::new(
                format!(
                    "tensor `{}` of `{}` is of {}",
                    raw.name,
                    path.display(),
                    other.name()
                ),
                "give it in F32, BF16, I64, I32, U8 or BOOL",
            )
            .into());
        }
    };
    Ok(Numbers {
        shape: raw.shape.to_vec(),
        values: raw.bytes.chunks_exact(raw.dtype.n_bytes()).map(decode).collect(),
    })
}

/// Cuts `n_tokens` tokens into passes of `chunk`, never within a span whose rows see each other: an image's rows are
/// all in the pass of its first one, and beside them there are at most `chunk` tokens.
pub(crate) fn passes(n_tokens: usize, chunk: usize, spans: &[EncodedSpan]) -> Vec<Range<usize>> {
    let mut passes = Vec::new();
    let mut start = 0;
    while start < n_tokens {
        let mut end = n_tokens.min(start + chunk);
        for span in spans
            .iter()
            .filter(|span| span.attention == SpanAttention::Bidirectional)
        {
            if span.at.start < end && end < span.at.end {
                end = span.at.end;
            }
        }
        passes.push(start..end);
        start = end;
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(at: Range<usize>, attention: SpanAttention) -> EncodedSpan {
        EncodedSpan {
            rows: at.clone().flat_map(|i| [i as f32, 0.5]).collect(),
            at,
            attention,
        }
    }

    #[test]
    fn passes_cut_sounds_but_no_images() {
        let image = |at| span(at, SpanAttention::Bidirectional);
        let spans = [
            image(3..7),
            image(7..9),
            image(12..42),
            span(44..49, SpanAttention::Causal),
        ];
        assert_eq!(passes(50, 5, &spans), [0..7, 7..12, 12..42, 42..47, 47..50]);
        assert_eq!(passes(4, 512, &[]).first(), Some(&(0..4)));
        assert!(spans[2].within(&(42..47)).is_none());
        let part = spans[3].within(&(47..50)).unwrap();
        assert_eq!((part.start, part.rows), (0, &[47.0, 0.5, 48.0, 0.5][..]));
        let part = spans[3].within(&(42..47)).unwrap();
        assert_eq!((part.start, part.rows.len()), (2, 6));
    }
}
