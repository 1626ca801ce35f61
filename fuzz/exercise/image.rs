//! What the fuzzer and the replay of its corpus do with an image: decode it, and make of it what the models take.

use std::hint::black_box;

use carat_media::{
    FrameSampling, Gemma3ImageProcessor, Gemma4ImageProcessor, PanAndScan, PatchLayout, TokenBudget,
    decode_image, decode_video,
};

/// Most pixels of an image that is processed too: what is above takes the same way, slower.
const MAX_PROCESSED: usize = 1 << 16;

/// Decodes `bytes` as an image and, unless that is large, as an animation; panics when a result is not what it is
/// described as.
pub(crate) fn exercise(bytes: &[u8]) {
    let image = match decode_image(bytes, "fuzz") {
        Ok(image) => image,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("`fuzz`") && !text.contains('\n'), "{text}");
            return;
        }
    };
    let (width, height) = (image.width(), image.height());
    assert_eq!(image.pixels().len(), width * height * 3);
    if width * height <= MAX_PROCESSED {
        animation(bytes);
    }
    for layout in [PatchLayout::Patches, PatchLayout::Cells] {
        let Ok(processor) = Gemma4ImageProcessor::new(16, 3, layout) else {
            return;
        };
        for budget in TokenBudget::ALL {
            let n = processor.n_soft_tokens(width, height, budget);
            assert!((1..=budget.tokens()).contains(&n));
        }
        if width * height <= MAX_PROCESSED {
            let patches = processor.process(&image, TokenBudget::VIDEO_FRAME);
            assert_eq!(
                patches.pixel_values.len(),
                patches.positions.len() * patches.row_width
            );
            assert!(patches.positions.len() <= patches.max_rows);
        }
    }
    if width * height <= MAX_PROCESSED
        && let Ok(processor) = Gemma3ImageProcessor::new(28, Some(PanAndScan::default()))
    {
        let images = black_box(processor.process(&image));
        assert_eq!(images.pixel_values.len(), (1 + images.n_crops) * 3 * 28 * 28);
    }
}

fn animation(bytes: &[u8]) {
    let mut n_seen = 0;
    let mut last = 0.0;
    let taken = decode_video(bytes, "fuzz", FrameSampling::default(), None, &mut |frame| {
        let image = &frame.image;
        assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
        assert!(frame.seconds >= last);
        (n_seen, last) = (n_seen + 1, frame.seconds);
        Ok(())
    });
    match taken {
        Ok(n_taken) => assert_eq!(n_taken, n_seen),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("`fuzz`") && !text.contains('\n'), "{text}");
        }
    }
}
