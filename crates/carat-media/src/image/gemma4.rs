//! Gemma 4's images: as large as a budget of soft tokens allows, the aspect ratio kept, cut into cells.
//!
//! A soft token stands for a square of `pooling * patch_size` pixels. The towers of E2B, E4B, 26B and 31B take
//! patches of `patch_size` and pool them later; the 12B takes whole cells ([`PatchLayout`]).

use super::resize::{Filter, resize};
use super::rgb::RgbImage;
use crate::content_hash::{ContentHash, Hasher};
use crate::error::{Error, Result};

/// Most soft tokens that an image may take: one of the five that the models know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget(u32);

impl TokenBudget {
    /// The reference's choice for images.
    pub const IMAGE: TokenBudget = TokenBudget(280);
    /// The reference's choice for a frame of a video.
    pub const VIDEO_FRAME: TokenBudget = TokenBudget(70);
    /// All, smallest first.
    pub const ALL: [TokenBudget; 5] = [
        TokenBudget(70),
        TokenBudget(140),
        TokenBudget(280),
        TokenBudget(560),
        TokenBudget(1120),
    ];

    /// # Errors
    /// [`Error::TokenBudget`] for any other number.
    pub fn new(tokens: u32) -> Result<TokenBudget> {
        let known = TokenBudget::ALL.into_iter().find(|budget| budget.0 == tokens);
        known.ok_or(Error::TokenBudget(tokens))
    }

    /// The budget in soft tokens.
    #[must_use]
    pub fn tokens(self) -> usize {
        self.0 as usize
    }
}

/// What a row of `pixel_values` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchLayout {
    /// A patch of `patch_size`; `pooling * pooling` of them make a soft token.
    Patches,
    /// A whole cell, which is one soft token (12B unified).
    Cells,
}

/// Resizes and cuts for Gemma 4's vision tower or embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemma4ImageProcessor {
    patch_size: usize,
    pooling: usize,
    layout: PatchLayout,
}

/// One image as the tower or embedder takes it.
///
/// Rows run over the image line by line. The reference pads them to its budget with rows of zeros at position
/// (-1, -1); here are the real ones alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma4Patches {
    /// `[n_rows, row_width]`, in 0 ..= 1; a row is (y, x, channel), channel fastest.
    pub pixel_values: Vec<f32>,
    /// Column and row of each row's patch or cell in the grid.
    pub positions: Vec<[i32; 2]>,
    /// Values of a row: `3 * side * side`.
    pub row_width: usize,
    /// Columns and rows of the grid of patches or cells.
    pub grid: [usize; 2],
    /// Soft tokens of this image.
    pub n_soft_tokens: usize,
    /// Rows that the reference pads to.
    pub max_rows: usize,
    /// What tells this input from others.
    pub content_hash: ContentHash,
}

impl Gemma4ImageProcessor {
    /// Patches of `patch_size` pixels (16 in all published models), `pooling` of them a side in a soft token (3).
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes of 0 and for a soft token of more than 128 pixels a side.
    pub fn new(patch_size: usize, pooling: usize, layout: PatchLayout) -> Result<Gemma4ImageProcessor> {
        // What the largest budget then takes as floating-point pixels: 220 MB.
        const MAX_CELL: usize = 128;
        let check = |setting, value, max| match value {
            value if (1..=max).contains(&value) => Ok(()),
            value => Err(Error::Setting {
                setting,
                value,
                min: 1,
                max,
            }),
        };
        check("patch_size", patch_size, MAX_CELL)?;
        check("pooling_kernel_size", pooling, MAX_CELL / patch_size)?;
        Ok(Gemma4ImageProcessor {
            patch_size,
            pooling,
            layout,
        })
    }

    /// Width and height that an image of `width` x `height` pixels (both at least 1) is resized to: multiples of
    /// a cell, at most `budget` cells.
    #[must_use]
    pub fn target_size(&self, width: usize, height: usize, budget: TokenBudget) -> (usize, usize) {
        let cell = self.patch_size * self.pooling;
        let max_cells = budget.tokens();
        // In the order of the reference's floating-point operations: floors depend on it.
        let target_pixels = (max_cells * self.pooling.pow(2) * self.patch_size.pow(2)) as f64;
        let factor = (target_pixels / (width as f64 * height as f64)).sqrt();
        let cells = |side: usize| (factor * side as f64 / cell as f64).floor() as usize;
        // Only one side can come to nothing, since the product of both ideal sides is the whole budget.
        let (columns, rows) = match (cells(width), cells(height)) {
            (columns, 0) if columns > 0 => ((width / height).min(max_cells), 1),
            (0, rows) if rows > 0 => (1, (height / width).min(max_cells)),
            (columns, rows) => (columns.max(1), rows.max(1)),
        };
        (columns * cell, rows * cell)
    }

    /// Soft tokens that an image of `width` x `height` pixels takes.
    #[must_use]
    pub fn n_soft_tokens(&self, width: usize, height: usize, budget: TokenBudget) -> usize {
        let (width, height) = self.target_size(width, height, budget);
        width * height / (self.patch_size * self.pooling).pow(2)
    }

    /// The image's rows and their positions.
    #[must_use]
    pub fn process(&self, image: &RgbImage, budget: TokenBudget) -> Gemma4Patches {
        let (width, height) = self.target_size(image.width(), image.height(), budget);
        let image = resize(image, width, height, Filter::Bicubic);
        let (side, max_rows) = match self.layout {
            PatchLayout::Patches => (self.patch_size, budget.tokens() * self.pooling.pow(2)),
            PatchLayout::Cells => (self.patch_size * self.pooling, budget.tokens()),
        };
        let mut hasher = Hasher::new("gemma4 image", &[width, height, side]);
        hasher.bytes(image.pixels());
        let (columns, rows) = (width / side, height / side);
        let positions = (0..rows as i32).flat_map(|y| (0..columns as i32).map(move |x| [x, y]));
        Gemma4Patches {
            pixel_values: cut(&image, side),
            positions: positions.collect(),
            row_width: 3 * side * side,
            grid: [columns, rows],
            n_soft_tokens: width * height / (self.patch_size * self.pooling).pow(2),
            max_rows,
            content_hash: hasher.finish(),
        }
    }
}

/// Squares of `side`, row by row; both sides of the image are multiples of it.
fn cut(image: &RgbImage, side: usize) -> Vec<f32> {
    // The reference multiplies by this in f32.
    const SCALE: f32 = 1.0 / 255.0;
    let stride = image.width() * 3;
    let mut values = Vec::with_capacity(image.pixels().len());
    for band in image.pixels().chunks_exact(stride * side) {
        for x in (0..stride).step_by(side * 3) {
            for row in band.chunks_exact(stride) {
                values.extend(row[x..][..side * 3].iter().map(|value| f32::from(*value) * SCALE));
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_the_five_known_ones() {
        assert_eq!(TokenBudget::new(560).unwrap().tokens(), 560);
        let message = TokenBudget::new(281).unwrap_err().to_string();
        assert!(message.contains("281") && message.contains("70, 140, 280, 560 and 1120"));
    }

    #[test]
    fn sizes_of_settings_are_checked() {
        for (patch_size, pooling) in [
            (0, 3),
            (16, 0),
            (129, 1),
            (16, 9),
            (64, 3),
            (usize::MAX, usize::MAX),
        ] {
            assert!(Gemma4ImageProcessor::new(patch_size, pooling, PatchLayout::Cells).is_err());
        }
    }

    #[test]
    fn no_size_goes_beyond_its_budget() {
        let processor = Gemma4ImageProcessor::new(16, 3, PatchLayout::Cells).unwrap();
        let sides = [1, 2, 5, 47, 48, 49, 333, 1000, 4097, 65_535];
        for budget in TokenBudget::ALL {
            for width in sides {
                for height in sides {
                    let n = processor.n_soft_tokens(width, height, budget);
                    assert!((1..=budget.tokens()).contains(&n), "{width} x {height}: {n}");
                }
            }
        }
    }

    #[test]
    fn patches_and_cells_hold_the_same_pixels() {
        let pixels = (0..96 * 48 * 3).map(|i| (i % 251) as u8).collect();
        let image = RgbImage::from_parts(96, 48, pixels);
        let patches = cut(&image, 16);
        let cells = cut(&image, 48);
        // Value (y, x, c) of the second cell, from the patch that holds it.
        for (y, x, c) in [(0, 0, 0), (17, 31, 2), (47, 47, 1)] {
            let patch = (y / 16) * 6 + 3 + x / 16;
            let in_patch = ((y % 16) * 16 + x % 16) * 3 + c;
            assert_eq!(
                cells[48 * 48 * 3 + (y * 48 + x) * 3 + c],
                patches[patch * 768 + in_patch]
            );
        }
    }
}
