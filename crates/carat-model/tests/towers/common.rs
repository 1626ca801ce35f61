//! What the reference's processors gave for the multimodal fixtures, and what its towers made of it.

use std::path::PathBuf;

use carat_model::Checkpoint;
use carat_testkit::{Golden, fixture};

/// A prompt with images and sounds.
pub(crate) struct Media {
    /// Pixel values, and positions of patches.
    pub(crate) images: Vec<(Vec<f32>, Vec<[i32; 2]>)>,
    /// Features of the frames that are no padding.
    pub(crate) sounds: Vec<Vec<f32>>,
    pub(crate) image_features: Vec<f32>,
    pub(crate) audio_features: Vec<f32>,
    pub(crate) tokens: Vec<u32>,
    /// What each token is: 0 text, 1 image, 3 sound.
    pub(crate) kinds: Vec<i64>,
}

impl Media {
    /// Where each image and sound begins, and which it is.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, i64)> {
        let mut start = 0;
        self.kinds.chunk_by(|a, b| a == b).filter_map(move |run| {
            start += run.len();
            (run[0] != 0).then_some((start - run.len(), run[0]))
        })
    }
}

/// The folder of a fixture's model.
pub(crate) fn folder(model: &str) -> PathBuf {
    fixture(format!("{model}/config.json"))
        .parent()
        .unwrap()
        .to_owned()
}

pub(crate) fn checkpoint(model: &str) -> Checkpoint {
    Checkpoint::open(&folder(model)).unwrap()
}

/// Gemma 4's towers have a file of their own; the unified model has its pixels as bytes.
pub(crate) fn media(model: &str) -> Media {
    let prompt = Golden::open(&fixture(format!("{model}/multimodal.safetensors")));
    let has_towers = !matches!(model, "gemma3-vision" | "gemma4-unified");
    let file = if has_towers { "towers" } else { "multimodal" };
    let golden = Golden::open(&fixture(format!("{model}/{file}.safetensors")));
    let has = |name: &str| golden.names().any(|n| n == name);
    let (pixels, n_images) = if has("pixel_values_u8") {
        let bytes = golden.i64s("pixel_values_u8");
        (
            bytes.data.iter().map(|b| *b as f32 / 255.0).collect(),
            bytes.shape[0],
        )
    } else {
        let floats = golden.f32s("pixel_values");
        (floats.data, floats.shape[0])
    };
    let positions: Vec<[i32; 2]> = if has("image_position_ids") {
        let ids = golden.i64s("image_position_ids").data;
        ids.chunks_exact(2)
            .map(|at| [at[0] as i32, at[1] as i32])
            .collect()
    } else {
        Vec::new()
    };
    let images = (0..n_images).map(|i| {
        let part = |n: usize| i * (n / n_images)..(i + 1) * (n / n_images);
        (
            pixels[part(pixels.len())].to_vec(),
            positions[part(positions.len())].to_vec(),
        )
    });
    let sounds = if has("input_features") {
        let features = golden.f32s("input_features");
        let valid = golden
            .i64s("input_features_mask")
            .data
            .iter()
            .filter(|bit| **bit == 1)
            .count();
        assert_eq!(features.shape[0], 1);
        vec![features.data[..valid * features.shape[2]].to_vec()]
    } else {
        Vec::new()
    };
    let of = |name: &str| {
        if has(name) {
            golden.f32s(name).data
        } else {
            Vec::new()
        }
    };
    let kinds = if model == "gemma3-vision" {
        "token_type_ids"
    } else {
        "mm_token_type_ids"
    };
    let tokens = prompt.i64s("input_ids").data;
    Media {
        images: images.collect(),
        sounds,
        image_features: of("image_features"),
        audio_features: of("audio_features"),
        tokens: tokens.iter().map(|id| u32::try_from(*id).unwrap()).collect(),
        kinds: prompt.i64s(kinds).data,
    }
}
