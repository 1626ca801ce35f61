//! Towers and embedders against the reference's, layer by layer, on every instruction set; and whole prompts with
//! images and sounds, from what the processors give to logits and greedy text.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;

use carat_model::{
    Checkpoint, EncoderPrecision, Error, ImageInput, Isa, LanguageModel, LoadOptions, LogitRows,
    MediaEncoder, MediaSource, MediaSpan, MediaStage, Model, Segment, SpanAttention,
};
use carat_testkit::{Golden, assert_close, fixture, relative_l2};
use common::{Media, checkpoint, media};

/// Relative L2 in f32.
const TOL_F32: f64 = 1e-4;
/// Relative L2 of soft tokens with operands in bf16. A rounding is 2^-9 of an element at most and some 0.0017 of it
/// in the mean of squares; products of two operands, over some layers of these sharp little towers, make ten of it.
const TOL_BF16: f64 = 0.03;
/// Absolute, of logits; the fixtures' own bound.
const TOL_LOGITS_ABS: f32 = 2e-3;

fn encoder(checkpoint: &Checkpoint, isa: Isa, precision: EncoderPrecision) -> MediaEncoder {
    let source = MediaSource::find(checkpoint).unwrap().unwrap();
    let options = LoadOptions {
        isa,
        ..LoadOptions::default()
    };
    MediaEncoder::load(&source, &options, precision).unwrap()
}

/// The rows of all images, then of all sounds.
fn encode(encoder: &mut MediaEncoder, media: &Media) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut rows = Vec::new();
    let images = media.images.iter().map(|(pixel_values, positions)| {
        encoder
            .encode_image(
                &ImageInput {
                    pixel_values,
                    positions,
                },
                &mut rows,
            )
            .unwrap();
        rows.clone()
    });
    let images = images.collect();
    let sounds = media.sounds.iter().map(|features| {
        encoder.encode_audio(features, &mut rows).unwrap();
        rows.clone()
    });
    (images, sounds.collect())
}

/// Soft tokens of every fixture, on every instruction set, in both precisions.
fn check_features(model: &str) {
    let checkpoint = checkpoint(model);
    let media = media(model);
    for isa in Isa::available() {
        for (precision, tolerance) in [
            (EncoderPrecision::F32, TOL_F32),
            (EncoderPrecision::Bf16, TOL_BF16),
        ] {
            let (images, sounds) = encode(&mut encoder(&checkpoint, isa, precision), &media);
            for (what, got, want) in [
                ("image", images, &media.image_features),
                ("audio", sounds, &media.audio_features),
            ] {
                let error = relative_l2(&got.concat(), want);
                assert!(error < tolerance, "{model} {what} {isa} {precision:?}: {error:e}");
            }
        }
    }
}

/// Rows that are no padding, of a golden tensor `[images, patches, width]`.
fn real_rows(golden: &Golden, name: &str, image: usize, positions: &[[i32; 2]]) -> Vec<f32> {
    let all = golden.f32s(name);
    let n = all.shape[1];
    let rows = (0..n).filter(|t| positions.is_empty() || positions[*t] != [-1, -1]);
    rows.flat_map(|t| all.row(image * n + t)).copied().collect()
}

fn assert_stage(name: &str, got: &[f32], want: &[f32]) {
    let error = relative_l2(got, want);
    assert!(error < TOL_F32, "{name}: {error:e}");
}

#[test]
fn gemma3_vision_soft_tokens_equal_the_reference() {
    check_features("gemma3-vision");
}

#[test]
fn siglip_equals_the_reference_layer_by_layer() {
    let golden = Golden::open(&fixture("gemma3-vision/multimodal.safetensors"));
    let checkpoint = checkpoint("gemma3-vision");
    for isa in Isa::available() {
        let mut encoder = encoder(&checkpoint, isa, EncoderPrecision::F32);
        let mut seen = 0;
        for (i, (pixel_values, positions)) in media("gemma3-vision").images.iter().enumerate() {
            let image = ImageInput {
                pixel_values,
                positions,
            };
            let observer = &mut |stage: MediaStage, rows: &[f32]| {
                let name = match stage {
                    MediaStage::Embedded => "vision.embeddings",
                    // The reference counts the embeddings as 0.
                    MediaStage::Layer(0) => "vision.layer_1",
                    MediaStage::Layer(_) => return,
                    MediaStage::Encoded => "vision.last_hidden_state",
                };
                seen += 1;
                assert_stage(name, rows, &real_rows(&golden, name, i, &[]));
            };
            encoder
                .encode_image_observed(&image, &mut Vec::new(), observer)
                .unwrap();
        }
        assert_eq!(seen, 6);
    }
}

/// A prompt with media, from the processors' tensors to logits and 32 greedy tokens.
fn check_whole(model_name: &str) {
    let checkpoint = checkpoint(model_name);
    let media = media(model_name);
    let mut model = Model::from_checkpoint(&checkpoint, LoadOptions::reference()).unwrap();
    let source = MediaSource::find(&checkpoint).unwrap().unwrap();
    let mut encoder = model.media_encoder(&source, EncoderPrecision::F32).unwrap();
    let (images, sounds) = encode(&mut encoder, &media);
    let (mut images, mut sounds) = (images.iter(), sounds.iter());
    let spans: Vec<MediaSpan<'_>> = media
        .runs()
        .map(|(start, kind)| {
            let (rows, attention) = match kind {
                1 => (images.next().unwrap(), SpanAttention::Bidirectional),
                _ => (sounds.next().unwrap(), SpanAttention::Causal),
            };
            MediaSpan {
                start,
                rows,
                attention,
            }
        })
        .collect();
    assert!(images.next().is_none() && sounds.next().is_none());
    let golden = Golden::open(&fixture(format!("{model_name}/multimodal.safetensors")));
    let greedy = golden.i64s("greedy_ids").data;
    let mut cache = model.new_cache(media.tokens.len() + greedy.len()).unwrap();
    let mut logits = Vec::new();
    let mut batch = [Segment {
        tokens: &media.tokens,
        media: &spans,
        cache: &mut cache,
        logits: LogitRows::All,
    }];
    model.forward(&mut batch, &mut logits).unwrap();
    assert_close("logits", &logits, &golden.f32s("logits").data, TOL_LOGITS_ABS);
    let vocab_size = model.vocab_size();
    for (i, want) in greedy.iter().enumerate() {
        let last = &logits[logits.len() - vocab_size..];
        let best = (0..vocab_size)
            .max_by(|a, b| last[*a].total_cmp(&last[*b]))
            .unwrap();
        assert_eq!(best, usize::try_from(*want).unwrap(), "{model_name}: token {i}");
        let mut batch = [Segment {
            tokens: &[u32::try_from(best).unwrap()],
            media: &[],
            cache: &mut cache,
            logits: LogitRows::Last,
        }];
        model.forward(&mut batch, &mut logits).unwrap();
    }
}

#[test]
fn gemma3_vision_sees_as_the_reference() {
    check_whole("gemma3-vision");
}

fn image<'a>(pixel_values: &'a [f32], positions: &'a [[i32; 2]]) -> ImageInput<'a> {
    ImageInput {
        pixel_values,
        positions,
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let gemma3 = checkpoint("gemma3-vision");
    let mut siglip = encoder(&gemma3, Isa::detect(), EncoderPrecision::F32);
    let mut rows = vec![1.0];
    for n in [0, 1, 3 * 64 * 64 - 1, 3 * 64 * 64 + 1] {
        let error = siglip
            .encode_image(&image(&vec![0.0; n], &[]), &mut rows)
            .unwrap_err();
        assert!(matches!(error, Error::MediaShape { .. }), "{error}");
    }
    let error = siglip.encode_audio(&[0.0; 128], &mut rows).unwrap_err();
    assert!(matches!(error, Error::NoModality { what: "audio" }), "{error}");
    assert_eq!(rows, [1.0]);
}

#[test]
fn a_model_of_text_alone_has_no_towers() {
    let folder = fixture("gemma3-text/config.json");
    let checkpoint = Checkpoint::open(folder.parent().unwrap()).unwrap();
    assert!(MediaSource::find(&checkpoint).unwrap().is_none());
}
