//! What the fuzzer and the replay of its corpus do with a sound: decode it, and make of it what the models take.

use carat_media::{MelFeatures, RawFrames, decode_audio, limits};

/// Decodes `bytes`; panics when a result is not what it is described as.
pub(crate) fn exercise(bytes: &[u8]) {
    let clip = match decode_audio(bytes, "fuzz") {
        Ok(clip) => clip,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("`fuzz`") && !text.contains('\n'), "{text}");
            return;
        }
    };
    assert!(!clip.samples().is_empty() && clip.samples().iter().all(|sample| sample.is_finite()));
    if let Ok(frames) = RawFrames::new(&clip, RawFrames::PUBLISHED_LEN) {
        assert_eq!(
            frames.values.len(),
            frames.n_soft_tokens * RawFrames::PUBLISHED_LEN
        );
        assert!(frames.n_soft_tokens <= limits::MAX_AUDIO_TOKENS);
    }
    if let Ok(features) = MelFeatures::new(&clip) {
        assert_eq!(features.values.len(), features.mask.len() * MelFeatures::WIDTH);
        assert!((1..=limits::MAX_AUDIO_TOKENS).contains(&features.n_soft_tokens));
        assert!(features.values.iter().all(|value| value.is_finite()));
    }
}
