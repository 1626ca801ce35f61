//! What stands in a prompt for each input: text, and runs of placeholder tokens.
//!
//! The pieces are data; ids are the caller's. A [`PromptPiece::Media`] becomes the begin marker, `n_soft_tokens`
//! times the placeholder, and the end marker of its [`MediaKind`]. Text pieces must be joined with the text
//! around them before they are tokenized: newlines that meet become one token.
//!
//! | kind | Gemma 3 | Gemma 4 |
//! |---|---|---|
//! | image | `<start_of_image>` `<image_soft_token>` `<end_of_image>` | `<\|image>` `<\|image\|>` `<image\|>` |
//! | video frame | as images | `<\|image>` `<\|video\|>` `<image\|>` |
//! | audio | none | `<\|audio>` `<\|audio\|>` `<audio\|>` |

/// A part of what replaces one image, clip or video in a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptPiece {
    /// Ordinary text.
    Text(String),
    /// Begin marker, placeholders, end marker. Embedding rows follow the order of these pieces.
    Media {
        /// Which markers and placeholder.
        kind: MediaKind,
        /// Placeholders.
        n_soft_tokens: usize,
    },
}

/// Which markers stand around placeholders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// A still image or a crop of one.
    Image,
    /// A frame of a video.
    VideoFrame,
    /// A clip of sound.
    Audio,
}

/// For one image of Gemma 3 with `n_crops` crops behind it ([`Gemma3Images`](crate::Gemma3Images)); each takes
/// `n_soft_tokens` (256 in all published models).
#[must_use]
pub fn gemma3_image_pieces(n_crops: usize, n_soft_tokens: usize) -> Vec<PromptPiece> {
    let image = PromptPiece::Media {
        kind: MediaKind::Image,
        n_soft_tokens,
    };
    let text = |text: &str| PromptPiece::Text(text.to_owned());
    if n_crops == 0 {
        return vec![text("\n\n"), image, text("\n\n")];
    }
    let mut pieces = vec![text("Here is the original image \n\n"), image.clone()];
    for i in 0..n_crops {
        pieces.push(text(match i {
            0 => "\n\n and here are some crops to help you see better \n\n",
            _ => "\n\n \n\n",
        }));
        pieces.push(image.clone());
    }
    pieces.push(text("\n\n"));
    pieces
}

/// For one image of Gemma 4.
#[must_use]
pub fn gemma4_image_pieces(n_soft_tokens: usize) -> Vec<PromptPiece> {
    vec![PromptPiece::Media {
        kind: MediaKind::Image,
        n_soft_tokens,
    }]
}

/// For one video of Gemma 4: for each frame its time in seconds and its soft tokens.
#[must_use]
pub fn gemma4_video_pieces(frames: &[(f64, usize)]) -> Vec<PromptPiece> {
    let mut pieces = Vec::with_capacity(2 * frames.len());
    for (i, (seconds, n_soft_tokens)) in frames.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        pieces.push(PromptPiece::Text(format!("{space}{} ", timestamp(*seconds))));
        pieces.push(PromptPiece::Media {
            kind: MediaKind::VideoFrame,
            n_soft_tokens: *n_soft_tokens,
        });
    }
    pieces
}

/// For one clip of Gemma 4.
#[must_use]
pub fn audio_pieces(n_soft_tokens: usize) -> Vec<PromptPiece> {
    vec![PromptPiece::Media {
        kind: MediaKind::Audio,
        n_soft_tokens,
    }]
}

/// Minutes and whole seconds; minutes go on counting beyond 59.
fn timestamp(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces as the reference writes them, with one letter for a block of placeholders.
    fn written(pieces: &[PromptPiece]) -> String {
        let piece = |piece: &PromptPiece| match piece {
            PromptPiece::Text(text) => text.clone(),
            PromptPiece::Media { kind, n_soft_tokens } => format!("[{kind:?} {n_soft_tokens}]"),
        };
        pieces.iter().map(piece).collect()
    }

    #[test]
    fn crops_are_announced_as_in_the_reference() {
        assert_eq!(written(&gemma3_image_pieces(0, 256)), "\n\n[Image 256]\n\n");
        assert_eq!(
            written(&gemma3_image_pieces(2, 256)),
            "Here is the original image \n\n[Image 256]\n\n and here are some crops to help you see better \
             \n\n[Image 256]\n\n \n\n[Image 256]\n\n"
        );
    }

    #[test]
    fn frames_carry_their_time() {
        assert_eq!(
            written(&gemma4_video_pieces(&[
                (0.0, 64),
                (59.99, 64),
                (61.5, 64),
                (6000.0, 63)
            ])),
            "00:00 [VideoFrame 64] 00:59 [VideoFrame 64] 01:01 [VideoFrame 64] 100:00 [VideoFrame 63]"
        );
        assert_eq!(written(&audio_pieces(750)), "[Audio 750]");
        assert_eq!(written(&gemma4_image_pieces(256)), "[Image 256]");
    }
}
