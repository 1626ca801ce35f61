//! Towers and embedders against the reference's, layer by layer, on every instruction set; and whole prompts with
//! images and sounds, from what the processors give to logits and greedy text.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;
mod mmproj;

use carat_model::{
    Checkpoint, EncoderPrecision, Error, ImageInput, Isa, LanguageModel, LoadOptions, LogitRows,
    MediaEncoder, MediaSource, MediaSpan, MediaStage, Model, Segment, SpanAttention,
};
use carat_testkit::{Golden, assert_close, fixture, relative_l2};
use common::{Media, checkpoint, media};

/// Relative L2 in f32.
const TOL_F32: f64 = 1e-4;
/// Relative L2 of soft tokens with operands in bf16. A rounding is 2^-8 of an element at most and some 0.0017 of it
/// in the mean of squares; products of two operands, over some layers of these sharp little towers, make ten of it.
const TOL_BF16: f64 = 0.03;
/// Gemma 4's ids for rows of videos, sounds and images, in these small vocabularies.
const PLACEHOLDERS: [usize; 3] = [505, 510, 511];
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
            (EncoderPrecision::Half, TOL_BF16),
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
fn gemma4_unified_soft_tokens_equal_the_reference() {
    check_features("gemma4-unified");
}

#[test]
fn gemma4_edge_soft_tokens_equal_the_reference() {
    check_features("gemma4-edge");
}

#[test]
fn gemma4_dense_soft_tokens_equal_the_reference() {
    check_features("gemma4-dense");
}

#[test]
fn gemma4_moe_soft_tokens_equal_the_reference() {
    check_features("gemma4-moe");
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

#[test]
fn gemma4_towers_equal_the_reference_layer_by_layer() {
    for model in ["gemma4-edge", "gemma4-dense", "gemma4-moe"] {
        let golden = Golden::open(&fixture(format!("{model}/towers.safetensors")));
        let checkpoint = checkpoint(model);
        let media = media(model);
        for isa in Isa::available() {
            let mut encoder = encoder(&checkpoint, isa, EncoderPrecision::F32);
            let mut pooled = Vec::new();
            for (i, (pixel_values, positions)) in media.images.iter().enumerate() {
                let image = ImageInput {
                    pixel_values,
                    positions,
                };
                let observer = &mut |stage: MediaStage, rows: &[f32]| {
                    let name = match stage {
                        MediaStage::Embedded => "vision.embeddings".to_owned(),
                        MediaStage::Layer(layer) => format!("vision.layer_{layer}"),
                        MediaStage::Encoded => return pooled.extend_from_slice(rows),
                    };
                    assert_stage(
                        &format!("{model} {name}"),
                        rows,
                        &real_rows(&golden, &name, i, positions),
                    );
                };
                encoder
                    .encode_image_observed(&image, &mut Vec::new(), observer)
                    .unwrap();
            }
            assert_stage(
                &format!("{model} pooled"),
                &pooled,
                &golden.f32s("vision.pooled").data,
            );
        }
    }
}

#[test]
fn the_conformer_equals_the_reference_layer_by_layer() {
    let golden = Golden::open(&fixture("gemma4-edge/towers.safetensors"));
    let checkpoint = checkpoint("gemma4-edge");
    let media = media("gemma4-edge");
    for isa in Isa::available() {
        let mut stages = Vec::new();
        let observer = &mut |stage: MediaStage, rows: &[f32]| {
            let name = match stage {
                MediaStage::Embedded => "audio.subsampled".to_owned(),
                MediaStage::Layer(layer) => format!("audio.layer_{layer}"),
                MediaStage::Encoded => "audio.last_hidden_state".to_owned(),
            };
            assert_stage(&name, rows, &golden.f32s(&name).data);
            stages.push(stage);
        };
        let mut encoder = encoder(&checkpoint, isa, EncoderPrecision::F32);
        encoder
            .encode_audio_observed(&media.sounds[0], &mut Vec::new(), observer)
            .unwrap();
        assert_eq!(stages.len(), 5);
    }
}

/// A prompt with media, from the processors' tensors to logits and 32 greedy tokens, on every instruction set.
fn check_whole(model_name: &str) {
    Isa::available().for_each(|isa| check_whole_on(model_name, isa));
}

fn check_whole_on(model_name: &str, isa: Isa) {
    let checkpoint = checkpoint(model_name);
    let media = media(model_name);
    let options = LoadOptions {
        isa,
        ..LoadOptions::reference()
    };
    let mut model = Model::from_checkpoint(&checkpoint, options).unwrap();
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
    let (greedy, steps) = (golden.i64s("greedy_ids").data, golden.f32s("greedy_logits"));
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
        assert_close(
            &format!("{model_name} {isa}: step {i}"),
            last,
            steps.row(i),
            TOL_LOGITS_ABS,
        );
        let best = (0..vocab_size)
            .max_by(|a, b| last[*a].total_cmp(&last[*b]))
            .unwrap();
        assert_eq!(
            best,
            usize::try_from(*want).unwrap(),
            "{model_name} {isa}: token {i}"
        );
        // The reference embeds Gemma 4's placeholders that nothing takes the place of as padding.
        let is_padding = model_name.starts_with("gemma4") && PLACEHOLDERS.contains(&best);
        let token = if is_padding { 0 } else { best };
        let mut batch = [Segment {
            tokens: &[u32::try_from(token).unwrap()],
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

#[test]
fn gemma4_unified_sees_and_hears_as_the_reference() {
    check_whole("gemma4-unified");
}

#[test]
fn gemma4_edge_sees_and_hears_as_the_reference() {
    check_whole("gemma4-edge");
}

#[test]
fn gemma4_dense_sees_as_the_reference() {
    check_whole("gemma4-dense");
}

#[test]
fn gemma4_moe_sees_as_the_reference() {
    check_whole("gemma4-moe");
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
    let edge = checkpoint("gemma4-edge");
    let mut towers = encoder(&edge, Isa::detect(), EncoderPrecision::F32);
    let patches = |n: usize| vec![0.5; n * 48];
    let grid: Vec<[i32; 2]> = (0..9).map(|i| [i % 3, i / 3]).collect();
    assert!(towers.encode_image(&image(&patches(9), &grid), &mut rows).is_ok());
    for positions in [
        &grid[..8],
        &[[-1, -1]; 9],
        &[[0, -1]; 9],
        &[[160, 0]; 9],
        &[[i32::MIN, 3]; 9],
        &[],
    ] {
        let n = positions.len();
        let result = towers.encode_image(&image(&patches(n), positions), &mut rows);
        assert!(matches!(
            result,
            Err(Error::MediaShape { .. } | Error::MediaPosition { .. })
        ));
    }
    assert!(
        towers
            .encode_image(&image(&patches(8), &grid), &mut rows)
            .is_err()
    );
    for n in [0, 1, 127, 129, 128 * 3001] {
        assert!(matches!(
            towers.encode_audio(&vec![0.0; n], &mut rows),
            Err(Error::MediaShape { .. })
        ));
    }
    assert_eq!(rows.len() % 64, 0);
}

#[test]
fn a_model_of_text_alone_has_no_towers() {
    let folder = fixture("gemma3-text/config.json");
    let checkpoint = Checkpoint::open(folder.parent().unwrap()).unwrap();
    assert!(MediaSource::find(&checkpoint).unwrap().is_none());
}
