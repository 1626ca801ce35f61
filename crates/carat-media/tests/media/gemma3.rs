//! Gemma 3's pixels: equal to the reference's to the bit of the 8-bit levels.

use carat_media::{Gemma3ImageProcessor, PanAndScan, read_image};
use carat_testkit::{Golden, assert_close, fixture};

/// Levels are exact; what is left is the rounding of `(x - 127.5) / 127.5`.
const TOL_NORMALIZE: f32 = 1e-6;

fn values(image_size: usize, pan_and_scan: Option<PanAndScan>) -> (Vec<f32>, Vec<usize>) {
    let processor = Gemma3ImageProcessor::new(image_size, pan_and_scan).unwrap();
    let mut values = Vec::new();
    let mut n_crops = Vec::new();
    for name in ["gemma3-vision/image0.png", "gemma3-vision/image1.png"] {
        let images = processor.process(&read_image(&fixture(name)).unwrap());
        assert_eq!(images.content_hashes.len(), 1 + images.n_crops);
        n_crops.push(images.n_crops);
        values.extend(images.pixel_values);
    }
    (values, n_crops)
}

#[test]
fn whole_images() {
    let golden = Golden::open(&fixture("gemma3-vision/preprocess.safetensors"));
    let (plain, n_crops) = values(64, None);
    assert_eq!(n_crops, [0, 0]);
    assert_close(
        "plain",
        &plain,
        &golden.f32s("plain.pixel_values").data,
        TOL_NORMALIZE,
    );
    let golden = Golden::open(&fixture("gemma3-vision/multimodal.safetensors"));
    assert_close(
        "multimodal",
        &plain,
        &golden.f32s("pixel_values").data,
        TOL_NORMALIZE,
    );
}

#[test]
fn crops() {
    let golden = Golden::open(&fixture("gemma3-vision/preprocess.safetensors"));
    let settings = PanAndScan {
        min_crop_size: 32,
        ..PanAndScan::default()
    };
    let (crops, n_crops) = values(64, Some(settings));
    assert_eq!(n_crops, [2, 2]);
    assert_close(
        "crops",
        &crops,
        &golden.f32s("pan_and_scan.pixel_values").data,
        TOL_NORMALIZE,
    );
}

#[test]
fn the_published_size() {
    let golden = Golden::open(&fixture("gemma3-vision/preprocess.safetensors"));
    let sample = golden.f32s("size896.rows_step_29_cols_step_7");
    let (all, _) = values(896, None);
    let rows = all
        .chunks(896)
        .enumerate()
        .filter(|(row, _)| (row % 896) % 29 == 0);
    let got: Vec<f32> = rows.flat_map(|(_, row)| row.iter().copied().step_by(7)).collect();
    assert_close("896", &got, &sample.data, TOL_NORMALIZE);
}
