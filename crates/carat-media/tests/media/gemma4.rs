//! Gemma 4's patches, cells, positions and sizes, equal to the reference's.

use carat_media::{Gemma4ImageProcessor, Gemma4Patches, PatchLayout, TokenBudget, read_image};
use carat_testkit::{Golden, Tensor, assert_close, fixture};
use serde::Deserialize;

/// Levels are exact; the scale of 1/255 is applied in f32 by both.
const TOL_SCALE: f32 = 1e-6;

fn process(image: &str, patch_size: usize, layout: PatchLayout) -> Gemma4Patches {
    let processor = Gemma4ImageProcessor::new(patch_size, 3, layout).unwrap();
    processor.process(&read_image(&fixture(image)).unwrap(), TokenBudget::VIDEO_FRAME)
}

/// Compares with rows `image` of the padded tensors `[n_images, max_rows, ..]`.
fn check(got: &Gemma4Patches, pixels: &[f32], positions: &Tensor<i64>, image: usize) {
    assert_eq!(positions.shape[1], got.max_rows);
    let n_rows = got.positions.len();
    assert_eq!(n_rows, got.grid[0] * got.grid[1]);
    let begin = image * got.max_rows;
    let real = &pixels[begin * got.row_width..][..n_rows * got.row_width];
    assert_close("pixels", &got.pixel_values, real, TOL_SCALE);
    let wanted: Vec<[i64; 2]> = positions.data[2 * begin..][..2 * got.max_rows]
        .chunks(2)
        .map(|pair| [pair[0], pair[1]])
        .collect();
    let padding = vec![[-1, -1]; got.max_rows - n_rows];
    let real = got.positions.iter().map(|position| position.map(i64::from));
    assert_eq!(real.chain(padding).collect::<Vec<_>>(), wanted);
}

fn scaled(levels: &Tensor<i64>) -> Vec<f32> {
    levels.data.iter().map(|level| *level as f32 / 255.0).collect()
}

#[test]
fn patches_and_cells_of_real_size() {
    let golden = Golden::open(&fixture("gemma4-preprocess/golden.safetensors"));
    for (layout, name) in [(PatchLayout::Patches, "tower"), (PatchLayout::Cells, "unified")] {
        for (image, tokens) in [(0, 60), (1, 65)] {
            let got = process(&format!("gemma4-preprocess/image{image}.png"), 16, layout);
            assert_eq!(got.n_soft_tokens, tokens);
            let pixels = scaled(&golden.i64s(&format!("{name}.{image}.pixels_u8")));
            check(
                &got,
                &pixels,
                &golden.i64s(&format!("{name}.{image}.positions")),
                0,
            );
        }
    }
}

#[test]
fn the_tiny_models_inputs() {
    let unified = Golden::open(&fixture("gemma4-unified/multimodal.safetensors"));
    let edge = Golden::open(&fixture("gemma4-edge/towers.safetensors"));
    for image in 0..2 {
        let got = process(&format!("gemma4-unified/image{image}.png"), 4, PatchLayout::Cells);
        let pixels = scaled(&unified.i64s("pixel_values_u8"));
        check(&got, &pixels, &unified.i64s("image_position_ids"), image);
        let got = process(&format!("gemma4-edge/image{image}.png"), 4, PatchLayout::Patches);
        let pixels = edge.f32s("pixel_values");
        check(&got, &pixels.data, &edge.i64s("image_position_ids"), image);
    }
}

#[derive(Deserialize)]
struct Size {
    height: usize,
    width: usize,
    max_soft_tokens: u32,
    target: Option<(usize, usize)>,
    soft_tokens: Option<usize>,
}

#[test]
fn target_sizes() {
    let text = std::fs::read_to_string(fixture("gemma4-preprocess/sizes.json")).unwrap();
    let sizes: Vec<Size> = serde_json::from_str(&text).unwrap();
    let processor = Gemma4ImageProcessor::new(16, 3, PatchLayout::Patches).unwrap();
    assert!(sizes.len() >= 60);
    for size in sizes {
        let budget = TokenBudget::new(size.max_soft_tokens).unwrap();
        let (width, height) = processor.target_size(size.width, size.height, budget);
        assert_eq!(
            Some((height, width)),
            size.target,
            "{} x {}",
            size.width,
            size.height
        );
        let tokens = processor.n_soft_tokens(size.width, size.height, budget);
        assert_eq!(Some(tokens), size.soft_tokens);
    }
}

#[test]
fn the_hash_follows_what_the_model_sees() {
    let image = read_image(&fixture("gemma4-preprocess/image0.png")).unwrap();
    let hash = |layout, budget| {
        let processor = Gemma4ImageProcessor::new(16, 3, layout).unwrap();
        processor.process(&image, budget).content_hash
    };
    let one = hash(PatchLayout::Patches, TokenBudget::IMAGE);
    assert_eq!(one, hash(PatchLayout::Patches, TokenBudget::IMAGE));
    assert_ne!(one, hash(PatchLayout::Cells, TokenBudget::IMAGE));
    assert_ne!(one, hash(PatchLayout::Patches, TokenBudget::VIDEO_FRAME));
}
