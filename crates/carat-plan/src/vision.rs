//! The towers of the multimodal sizes.
//!
//! Gemma 4 publishes them in 16 bits as one file beside the text model, whose size is what counts here: 175 MB for
//! 12B, which has no tower but embedders; about 1.2 GB for 26B-A4B and 31B; about 0.99 GB for E2B and E4B, sounds
//! included.
//!
//! SigLIP as Gemma 3 has it: 896 x 896 pixels in patches of 14, 27 layers, 417 million parameters, the same in
//! 4B, 12B and 27B; a projection to the model's width after it. Published in 16 bits, and in GGUF as a file of its
//! own, so these bytes come on top of the language model's.

use carat_model::{Config, Family};

const PATCH: u64 = 14;
const PATCHES: u64 = 64 * 64;
const WIDTH: u64 = 1152;
const MLP_WIDTH: u64 = 4304;
const LAYERS: u64 = 27;
/// BF16 or F16.
const BYTES: u64 = 2;

/// Layers of the published sizes that see images.
const LAYERS_OF_MULTIMODAL: [usize; 3] = [34, 48, 62];

/// Bytes of Gemma 4's towers by the text model's number of layers.
const BYTES_OF_GEMMA4: [(usize, u64); 5] = [
    (35, 990_000_000),
    (42, 990_000_000),
    (48, 175_115_840),
    (30, 1_200_000_000),
    (60, 1_200_000_000),
];

/// Bytes of the towers and their projections in 16 bits; `None` for sizes without one.
#[must_use]
pub fn vision_bytes(config: &Config) -> Option<u64> {
    if config.family == Family::Gemma4 {
        let known = BYTES_OF_GEMMA4.iter().find(|(n, _)| *n == config.layers.len());
        return known.map(|(_, bytes)| *bytes);
    }
    let sees = LAYERS_OF_MULTIMODAL.contains(&config.layers.len());
    sees.then(|| BYTES * (tower_parameters() + WIDTH * (config.d_model as u64 + 1)))
}

fn tower_parameters() -> u64 {
    let patches = 3 * PATCH * PATCH * WIDTH + WIDTH + PATCHES * WIDTH;
    let norm = 2 * WIDTH;
    let attention = 4 * (WIDTH * WIDTH + WIDTH);
    let mlp = 2 * WIDTH * MLP_WIDTH + WIDTH + MLP_WIDTH;
    patches + LAYERS * (attention + mlp + 2 * norm) + norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tower_has_the_published_number_of_parameters() {
        assert_eq!((tower_parameters() + 500_000) / 1_000_000, 417);
        let bytes = |size: &str| vision_bytes(&Config::published(size).unwrap());
        assert_eq!(bytes("1B"), None);
        assert_eq!(bytes("12B"), Some(2 * (tower_parameters() + 1152 * 3841)));
    }
}
