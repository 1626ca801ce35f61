//! Clips, frames and mel features, against the reference's; tones in every format.

use carat_media::{Clip, MelFeatures, RawFrames, read_audio};
use carat_testkit::{Golden, assert_close, fixture};

/// The reference's own transform is in f32.
const TOL_MEL: f32 = 1e-4;

fn mask(features: &MelFeatures) -> Vec<i64> {
    features.mask.iter().map(|real| i64::from(*real)).collect()
}

#[test]
fn frames_and_features_of_real_size() {
    let golden = Golden::open(&fixture("gemma4-preprocess/golden.safetensors"));
    for (i, n_frames) in [25, 13, 1, 3].into_iter().enumerate() {
        let clip = read_audio(&fixture(format!("gemma4-preprocess/audio{i}.wav"))).unwrap();
        let frames = RawFrames::new(&clip, RawFrames::PUBLISHED_LEN).unwrap();
        assert_eq!(frames.n_soft_tokens, n_frames);
        assert_eq!(frames.values, golden.f32s(&format!("frames.{i}")).data);
        let features = MelFeatures::new(&clip).unwrap();
        assert_eq!(mask(&features), golden.i64s(&format!("mel.{i}.mask")).data);
        assert_close(
            "mel",
            &features.values,
            &golden.f32s(&format!("mel.{i}")).data,
            TOL_MEL,
        );
    }
}

#[test]
fn the_tiny_models_inputs() {
    let unified = Golden::open(&fixture("gemma4-unified/multimodal.safetensors"));
    let clip = read_audio(&fixture("gemma4-unified/audio.wav")).unwrap();
    let frames = RawFrames::new(&clip, 640).unwrap();
    assert_eq!(frames.values, unified.f32s("input_features").data);

    let edge = Golden::open(&fixture("gemma4-edge/towers.safetensors"));
    let clip = read_audio(&fixture("gemma4-edge/audio.wav")).unwrap();
    let features = MelFeatures::new(&clip).unwrap();
    assert_close(
        "mel",
        &features.values,
        &edge.f32s("input_features").data,
        TOL_MEL,
    );
    assert_eq!(mask(&features), edge.i64s("input_features_mask").data);
    assert_eq!(features.n_soft_tokens, 37);
}

/// Signal to error, in dB, of the mean of 440 Hz and 1000 Hz at 0.5 each, away from the ends.
fn signal_to_error(clip: &Clip) -> f64 {
    let tone = |i: usize| {
        let turn = 2.0 * std::f64::consts::PI * i as f64 / 16_000.0;
        ((440.0 * turn).sin() + (1000.0 * turn).sin()) * 0.25
    };
    let (mut signal, mut error) = (0.0, 0.0);
    for (i, sample) in clip.samples().iter().enumerate().skip(800).take(6400) {
        signal += tone(i).powi(2);
        error += (f64::from(*sample) - tone(i)).powi(2);
    }
    10.0 * (signal / error).log10()
}

/// The lossy ones reach what ffmpeg's decoders reach with the same files: 26.0, 41.9 and 32.1 dB.
#[test]
fn every_format_gives_the_same_tone() {
    for (name, db) in [
        ("tone.wav", 80.0),
        ("tone_f32.wav", 80.0),
        ("tone.flac", 80.0),
        ("tone_alac.m4a", 80.0),
        ("tone.mp3", 25.9),
        ("tone.ogg", 41.8),
        ("tone.m4a", 32.0),
    ] {
        let clip = read_audio(&fixture(format!("media/{name}"))).unwrap();
        // Containers that tell no padding may be a codec frame longer.
        assert!(
            (0.49..0.56).contains(&clip.seconds()),
            "{name}: {}",
            clip.seconds()
        );
        let found = signal_to_error(&clip);
        assert!(found > db, "{name}: {found:.1} dB");
    }
}
