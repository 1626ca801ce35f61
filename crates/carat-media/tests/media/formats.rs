//! Each image format as Pillow reads it, on white where it is transparent. Of greys of 16 bits, which Pillow clips at
//! 255, the expected pixels are the high bytes.

use carat_media::{RgbImage, read_image};
use carat_testkit::{Golden, fixture};

fn largest_difference(name: &str, golden: &Golden) -> i64 {
    let image: RgbImage = read_image(&fixture(format!("media/{name}"))).unwrap();
    let expected = golden.i64s(name);
    assert_eq!(expected.shape, [image.height(), image.width(), 3], "{name}");
    let pairs = image.pixels().iter().zip(&expected.data);
    pairs
        .map(|(got, want)| (i64::from(*got) - want).abs())
        .max()
        .unwrap()
}

#[test]
fn lossless_formats_are_exact() {
    let golden = Golden::open(&fixture("media/expected.safetensors"));
    let names: Vec<String> = golden.names().map(str::to_owned).collect();
    let lossy = |name: &str| name.ends_with(".jpg") || name == "lossy.webp";
    assert!(names.len() >= 25);
    for name in names.iter().filter(|name| !lossy(name)) {
        assert_eq!(largest_difference(name, &golden), 0, "{name}");
    }
}

/// Decoders may differ in how they round the inverse transform and spread colours over pixels.
#[test]
fn lossy_formats_are_close() {
    let golden = Golden::open(&fixture("media/expected.safetensors"));
    for name in ["grey.jpg", "progressive.jpg", "cmyk.jpg", "lossy.webp"] {
        let difference = largest_difference(name, &golden);
        assert!(difference <= 4, "{name}: {difference}");
    }
}

#[test]
fn cameras_are_held_in_eight_ways() {
    let golden = Golden::open(&fixture("media/expected.safetensors"));
    for turn in 1..=8 {
        let difference = largest_difference(&format!("orientation{turn}.jpg"), &golden);
        assert!(difference <= 2, "{turn}: {difference}");
    }
}
