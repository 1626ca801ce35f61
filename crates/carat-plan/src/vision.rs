//! The towers of the multimodal sizes.
//!
//! Gemma 4 publishes them in 16 bits as one file beside the text model, whose size is what counts here: 175 MB for
//! 12B, which has no tower but embedders; about 1.2 GB for 26B-A4B and 31B; about 0.99 GB for E2B and E4B, sounds
//! included.
//!
//! SigLIP as Gemma 3 has it: 896 x 896 pixels in patches of 14, 27 layers, 417 million parameters, the same in
//! 4B, 12B and 27B; a projection to the model's width after it. Published in 16 bits, and in GGUF as a file of its
//! own, so these bytes come on top of the language model's.

use carat_model::{AudioConfig, Config, Family, MediaConfig, VisionConfig};

const PATCH: u64 = 14;
const PATCHES: u64 = 64 * 64;
const WIDTH: u64 = 1152;
const MLP_WIDTH: u64 = 4304;
const LAYERS: u64 = 27;
/// BF16 or F16.
const BYTES: u64 = 2;

/// Most rows that go through a tower's MLP at a time.
const MLP_ROWS: u64 = 2048;

/// Rows of an image of Gemma 4 unless the user says otherwise, and the patches that they are pooled from.
const SOFT_TOKENS: u64 = 280;
const PATCHES_OF_GEMMA4: u64 = 9 * SOFT_TOKENS;
/// Places of a patch along a side that its towers know, and of a cell that the 12B's embedder knows.
const POSITIONS_OF_GEMMA4: u64 = 10_240;
const POSITIONS_OF_UNIFIED: u64 = 1120;
/// Rows of the longest sound, and the bands of its spectrum.
const SOUND_TOKENS: u64 = 750;
const MEL_BANDS: u64 = 128;
/// Layers of the 12B, which has embedders instead of towers.
const LAYERS_OF_UNIFIED: usize = 48;
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

/// Whether its towers are for sounds too: as its files say, else those of the published E2B, E4B and 12B of Gemma 4 are.
#[must_use]
pub fn hears(config: &Config, media: Option<&MediaConfig>) -> bool {
    match media {
        Some(media) => media.audio.is_some(),
        None => config.family == Family::Gemma4 && !matches!(config.layers.len(), 30 | 60),
    }
}

/// Bytes that the towers compute in while they look at an image of the usual size or listen to half a minute, and of
/// the tables that they keep in f32 beside their files; 0 for a model without. `media` are the settings of its files;
/// without them the published sizes count.
#[must_use]
pub fn tower_buffers(config: &Config, media: Option<&MediaConfig>) -> u64 {
    match media {
        Some(media) => {
            let vision = media
                .vision
                .as_ref()
                .map_or(0, |vision| vision_buffers(vision, config));
            let audio = media.audio.as_ref().map_or(0, audio_buffers);
            let tables = media.vision.as_ref().map_or(0, |vision| tables(vision, config));
            vision.max(audio).saturating_add(tables)
        }
        None if vision_bytes(config).is_none() => 0,
        None if config.family == Family::Gemma3 => {
            encoder_buffers(PATCHES, WIDTH, MLP_WIDTH, 1) + siglip_tables(PATCHES, WIDTH, config)
        }
        None => match config.layers.len() {
            LAYERS_OF_UNIFIED => {
                embedder_buffers(48, config) + position_tables(POSITIONS_OF_UNIFIED, config.d_model as u64)
            }
            30 | 60 => {
                encoder_buffers(PATCHES_OF_GEMMA4, WIDTH, MLP_WIDTH, 2)
                    + position_tables(POSITIONS_OF_GEMMA4, WIDTH)
            }
            _ => encoder_buffers(PATCHES_OF_GEMMA4, 768, 3072, 2) + position_tables(POSITIONS_OF_GEMMA4, 768),
        },
    }
}

/// Bytes of what a loaded tower keeps in f32.
fn tables(vision: &VisionConfig, config: &Config) -> u64 {
    match vision {
        VisionConfig::Siglip(c) => {
            let side = (c.image_size / c.patch_size.max(1)) as u64;
            siglip_tables(side.saturating_mul(side), c.d_model as u64, config)
        }
        VisionConfig::Gemma4(c) => position_tables(c.positions as u64, c.d_model as u64),
        VisionConfig::Unified(c) => position_tables(c.positions as u64, c.d_model as u64),
    }
}

/// Embeddings of positions, and the projection, which is stored the other way round.
fn siglip_tables(patches: u64, width: u64, config: &Config) -> u64 {
    let rows = patches.saturating_add(config.d_model as u64);
    rows.saturating_mul(4 * width)
}

/// Embeddings of columns and of rows.
fn position_tables(positions: u64, width: u64) -> u64 {
    positions.saturating_mul(2 * 4 * width)
}

fn vision_buffers(vision: &VisionConfig, config: &Config) -> u64 {
    match vision {
        VisionConfig::Siglip(c) => {
            let side = (c.image_size / c.patch_size.max(1)) as u64;
            encoder_buffers(side.saturating_mul(side), c.d_model as u64, c.d_ff as u64, 1)
        }
        VisionConfig::Gemma4(c) => {
            let patches = SOFT_TOKENS.saturating_mul((c.pooling as u64).saturating_pow(2));
            encoder_buffers(patches, c.d_model as u64, c.d_ff as u64, 2)
        }
        VisionConfig::Unified(c) => embedder_buffers((c.patch_size * c.pooling) as u64, config),
    }
}

/// A tower over `patches`, `width` wide: six rows of its width for each in f32, keys and values in 16 bits, `n_wide` rows
/// of its MLP for as many as it takes at once, and the input of a product in 16 bits.
fn encoder_buffers(patches: u64, width: u64, mlp_width: u64, n_wide: u64) -> u64 {
    let narrow = patches.saturating_mul(width);
    let wide = patches.min(MLP_ROWS).saturating_mul(mlp_width);
    let floats = narrow
        .saturating_mul(6)
        .saturating_add(n_wide.saturating_mul(wide));
    let pairs = narrow.max(wide).saturating_add(narrow.saturating_mul(2));
    floats.saturating_mul(4).saturating_add(pairs.saturating_mul(2))
}

/// An embedder of cells of `side` x `side` pixels: each cell as it comes, as the input of a product, and as two rows.
fn embedder_buffers(side: u64, config: &Config) -> u64 {
    let pixels = 3 * side.saturating_mul(side);
    SOFT_TOKENS.saturating_mul(6 * pixels + 8 * config.d_model as u64)
}

fn audio_buffers(audio: &AudioConfig) -> u64 {
    match audio {
        // The layers, whose MLP is four times as wide; before them two convolutions over half of the frames and bands.
        AudioConfig::Conformer(c) => {
            let layers = encoder_buffers(SOUND_TOKENS, c.d_model as u64, 4 * c.d_model as u64, 2);
            let subsampled = 4 * 2 * SOUND_TOKENS * (MEL_BANDS / 2) * c.channels[0] as u64;
            layers.max(subsampled)
        }
        AudioConfig::Unified(c) => SOUND_TOKENS * 6 * c.frame_len as u64,
    }
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

    /// 4,096 patches of 1,152: 113 MB of rows, 35 MB of the MLP, 37 MB in 16 bits; and 31 MB of tables.
    #[test]
    fn an_image_of_gemma3_takes_a_fifth_of_a_gigabyte_for_a_while() {
        let bytes = |size: &str| tower_buffers(&Config::published(size).unwrap(), None) / 1_000_000;
        assert_eq!(bytes("4B"), 215);
        assert_eq!(bytes("1B"), 0);
        assert_eq!(bytes("31B"), 263);
        assert_eq!(bytes("E4B"), 180);
        assert_eq!(bytes("gemma4-12B"), 54);
    }

    #[test]
    fn three_of_the_published_sizes_hear() {
        let hearing = |size: &&str| hears(&Config::published(size).unwrap(), None);
        let sizes = ["4B", "27B", "E2B", "E4B", "gemma4-12B", "26B-A4B", "31B"];
        let found: Vec<&str> = sizes.into_iter().filter(hearing).collect();
        assert_eq!(found, ["E2B", "E4B", "gemma4-12B"]);
        let seeing = MediaConfig::default();
        assert!(!hears(&Config::published("E2B").unwrap(), Some(&seeing)));
    }
}
