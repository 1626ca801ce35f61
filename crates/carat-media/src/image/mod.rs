//! Still images: decoding to RGB, the reference's resizing, and what each family makes of the pixels.

mod decode;
mod gemma3;
mod gemma4;
mod jpeg_end;
mod resize;
mod rgb;
mod webp_chunks;

pub use decode::{decode_image, read_image};
pub use gemma3::{Gemma3ImageProcessor, Gemma3Images, PanAndScan};
pub use gemma4::{Gemma4ImageProcessor, Gemma4Patches, PatchLayout, TokenBudget};
pub use rgb::RgbImage;

pub(crate) use decode::{check_size, damaged, damaged_by, limits, over_white};
