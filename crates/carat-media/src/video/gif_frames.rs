//! What the frames of a GIF cost to decode, told by their headers.
//!
//! The screen's size is no measure of it: a frame may be larger than the screen, and what lies outside is decoded and
//! then cut off, as browsers cut it off. Such files exist and are read; a screen of one pixel with frames of a hundred
//! million each is not.

/// Blocks of the file, by their first byte.
const EXTENSION: u8 = 0x21;
const IMAGE: u8 = 0x2c;

/// Frames of a GIF and their pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    pub(super) n_frames: usize,
    /// Those of the frame or of the screen, whichever are more, over all frames.
    pub(super) n_pixels: u64,
}

/// The cost of all frames up to the end, or to what makes no sense: there the decoder ends too.
pub(super) fn cost(gif: &[u8]) -> Cost {
    let mut cost = Cost::default();
    // `None` is the end.
    let _ = add_frames(gif, &mut cost);
    cost
}

fn add_frames(gif: &[u8], cost: &mut Cost) -> Option<()> {
    let mut rest = Rest(gif);
    rest.take(6)?;
    let screen = rest.take(7)?;
    let n_screen = pixels(&screen[..4]);
    rest.take(palette_bytes(screen[4]))?;
    loop {
        match rest.take(1)?[0] {
            EXTENSION => {
                rest.take(1)?;
            }
            IMAGE => {
                let frame = rest.take(9)?;
                cost.n_frames += 1;
                cost.n_pixels += pixels(&frame[4..8]).max(n_screen);
                rest.take(palette_bytes(frame[8]))?;
                // The size of the first codes.
                rest.take(1)?;
            }
            _ => return None,
        }
        // Both end with blocks of up to 255 bytes and an empty one.
        loop {
            match rest.take(1)?[0] {
                0 => break,
                n_bytes => rest.take(usize::from(n_bytes))?,
            };
        }
    }
}

/// Width times height.
fn pixels(size: &[u8]) -> u64 {
    let side = |at: usize| u64::from(u16::from_le_bytes([size[at], size[at + 1]]));
    side(0) * side(2)
}

fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    }
}

/// What has not been looked at yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n_bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n_bytes)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_testkit::fixture;

    #[test]
    fn frames_are_found_behind_palettes_and_extensions() {
        let gif = std::fs::read(fixture("media/motion.gif")).unwrap();
        let whole = Cost {
            n_frames: 12,
            n_pixels: 12 * 32 * 24,
        };
        assert_eq!(cost(&gif), whole);
        for cut in 0..gif.len() {
            assert!(cost(&gif[..cut]).n_frames <= 12);
        }
    }
}
