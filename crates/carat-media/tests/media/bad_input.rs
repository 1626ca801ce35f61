//! Files that cannot be used: one sentence each, and no memory taken for what they claim.

use std::fs;
use std::path::PathBuf;

use carat_media::{Error, decode_audio, decode_image, read_audio, read_image};
use carat_testkit::fixture;

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture(format!("media/{name}"))).unwrap()
}

/// A PNG whose header claims a size, with next to no data.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = bytes("rgb.png");
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

fn wav(rate_hz: u32, n_channels: u16, bits: u16, format: u16, data: &[u8]) -> Vec<u8> {
    let frame = n_channels * bits / 8;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + data.len() as u32).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0");
    wav.extend(format.to_le_bytes());
    wav.extend(n_channels.to_le_bytes());
    wav.extend(rate_hz.to_le_bytes());
    wav.extend((rate_hz * u32::from(frame)).to_le_bytes());
    wav.extend(frame.to_le_bytes());
    wav.extend(bits.to_le_bytes());
    wav.extend(b"data");
    wav.extend((data.len() as u32).to_le_bytes());
    wav.extend(data);
    wav
}

#[test]
fn bombs_are_refused_by_their_headers() {
    let error = decode_image(&png_claiming(30_000, 30_000), "bomb.png").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`bomb.png` has 30000 x 30000 pixels; at most 120 million, and 65535 a side, are read: make it smaller"
    );
    for (width, height) in [
        (u32::MAX >> 1, u32::MAX >> 1),
        (70_000, 1),
        (1, 70_000),
        (20_000, 6_001),
    ] {
        let error = decode_image(&png_claiming(width, height), "bomb.png").unwrap_err();
        assert!(
            matches!(error, Error::ImageTooLarge { .. } | Error::ImageDamaged { .. }),
            "{error}"
        );
    }
}

#[test]
fn images_cut_short_are_damaged() {
    for name in [
        "rgb.png",
        "rgb.bmp",
        "rgb.tiff",
        "palette.gif",
        "lossless.webp",
        "progressive.jpg",
        "orientation6.jpg",
    ] {
        let whole = bytes(name);
        for part in [whole.len() / 2, whole.len() * 9 / 10, whole.len() - 20] {
            let error = decode_image(&whole[..part], "cut").unwrap_err().to_string();
            assert!(
                error.starts_with("`cut` is damaged or cut short and cannot be"),
                "{name}: {error}"
            );
            assert!(!error.contains('\n'));
        }
    }
}

#[test]
fn a_webp_takes_no_memory_for_a_chunk_that_is_not_there() {
    let webp = |exif_bytes: u32| {
        let mut chunks = b"WEBPVP8X\x0a\0\0\0\x18\0\0\0\0\0\0\0\0\0".to_vec();
        // One pixel; 13 bytes and the padding.
        chunks.extend(b"VP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0");
        chunks.extend(b"EXIF");
        chunks.extend(exif_bytes.to_le_bytes());
        chunks.extend(b"abc");
        [&b"RIFF"[..], &(chunks.len() as u32).to_le_bytes(), &chunks].concat()
    };
    let image = decode_image(&webp(3), "small.webp").unwrap();
    assert_eq!((image.width(), image.height()), (1, 1));
    for claimed in [4, 1 << 31, u32::MAX] {
        let error = decode_image(&webp(claimed), "bomb.webp").unwrap_err().to_string();
        assert!(
            error.contains("a chunk ends behind the file"),
            "{claimed}: {error}"
        );
    }
    for name in ["lossless.webp", "lossy.webp", "motion.webp"] {
        let mut whole = bytes(name);
        assert!(decode_image(&whole, name).is_ok(), "{name}");
        whole.extend(b"and more that is none of it");
        assert!(decode_image(&whole, name).is_ok(), "{name}");
    }
}

#[test]
fn names_do_not_make_formats() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    fs::write(path("notes.png"), "just some text\n").unwrap();
    let error = read_image(&path("notes.png")).unwrap_err().to_string();
    assert!(
        error.contains("notes.png` is not an image that can be read; give a PNG"),
        "{error}"
    );
    let error = read_audio(&path("notes.png")).unwrap_err().to_string();
    assert!(
        error.contains("notes.png` is not audio that can be read; give a WAV"),
        "{error}"
    );
    fs::copy(fixture("media/rgb.png"), path("picture.jpg")).unwrap();
    assert!(read_image(&path("picture.jpg")).is_ok());
    for missing in [
        read_image(&path("nothing.png")).err(),
        read_audio(&path("nothing.wav")).err(),
    ] {
        assert!(matches!(missing, Some(Error::Io { .. })));
    }
    assert!(read_image(dir.path()).is_err() && read_audio(dir.path()).is_err());
}

#[test]
fn sounds_without_sound() {
    let empty = wav(16_000, 1, 16, 1, &[]);
    let error = decode_audio(&empty, "silence.wav").unwrap_err().to_string();
    assert_eq!(error, "`silence.wav` holds no sound: its audio is 0 seconds long");

    let mut samples = vec![0u8; 400];
    samples[100..104].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = decode_audio(&wav(16_000, 1, 32, 3, &samples), "nan.wav").unwrap_err();
    assert!(
        matches!(error, Error::AudioNotFinite { index: 25, .. }),
        "{error}"
    );

    let error = decode_audio(&bytes("tone_opus.ogg"), "voice.ogg")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the audio in `voice.ogg` cannot be decoded"),
        "{error}"
    );
}

#[test]
fn long_sounds_are_refused_after_half_a_minute() {
    let minute = wav(8_000, 1, 16, 1, &vec![1; 8_000 * 2 * 60]);
    let error = decode_audio(&minute, "long.wav").unwrap_err().to_string();
    assert_eq!(
        error,
        "`long.wav` is 60.0 seconds long, and the model hears at most 30 seconds (750 tokens); cut it into pieces"
    );
    // An audiobook: the frames of half a second again and again. The first frame, which tells the number of
    // frames and begins 36 bytes before this word, is 417 bytes long.
    let mp3 = bytes("tone.mp3");
    let info = mp3.windows(4).position(|word| word == b"Info").unwrap();
    let long = mp3[info - 36 + 417..].repeat(100);
    let begun = std::time::Instant::now();
    let error = decode_audio(&long, "book.mp3")
        .map(|clip| clip.seconds())
        .unwrap_err();
    assert!(matches!(error, Error::AudioTooLong { .. }), "{error}");
    // With a first frame that says half a second, the rest is not heard, nor decoded to its end.
    assert!(decode_audio(&mp3.repeat(100), "half.mp3").unwrap().seconds() < 0.6);
    assert!(begun.elapsed().as_secs() < 10);
}

#[test]
fn any_rate_and_any_number_of_channels() {
    for (rate_hz, n_channels) in [(8_000, 1), (44_100, 6), (192_000, 2), (11_127, 8)] {
        let n_frames = rate_hz as usize / 10;
        let data = vec![0u8; n_frames * n_channels as usize * 2];
        let clip = decode_audio(&wav(rate_hz, n_channels, 16, 1, &data), "a.wav").unwrap();
        assert!((1599..=1601).contains(&clip.samples().len()));
    }
    for rate_hz in [1, 999, 1_000_000] {
        let error = decode_audio(&wav(rate_hz, 1, 16, 1, &[0; 4000]), "a.wav").unwrap_err();
        assert!(!matches!(error, Error::Io { .. }), "{error}");
    }
}
