//! Sounds whose headers are made to cost memory or time, and honest ones that look alike.

use std::time::Duration;

use super::decode::{decode_audio, decode_within};
use crate::error::Error;

/// A QuickTime file of mono PCM, 8 bits a sample and a packet each.
struct Movie {
    rate_hz: u32,
    n_samples: u32,
    /// What the sample entry says a packet holds.
    frames_per_packet: u32,
    /// Entries without samples in front of the table of times.
    n_empty_times: usize,
    /// Samples in front that the edit list leaves out.
    n_lead: u32,
}

impl Movie {
    fn new(rate_hz: u32, n_samples: u32) -> Movie {
        Movie {
            rate_hz,
            n_samples,
            frames_per_packet: 1,
            n_empty_times: 0,
            n_lead: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let brand = boxed(b"ftyp", &[&b"qt  "[..], &[0; 4]]);
        let data_at = brand.len() as u32 + 8;
        let data = boxed(b"mdat", &[&vec![5; self.n_samples as usize]]);
        let times = [&[0u8; 4][..], &(self.n_empty_times as u32 + 1).to_be_bytes()].concat();
        let last_times = words(&[self.n_samples, 1]);
        let tables = [
            boxed(b"stsd", &[&words(&[0, 1]), &self.sample_entry()]),
            boxed(b"stts", &[&times, &vec![0; 8 * self.n_empty_times], &last_times]),
            boxed(b"stsc", &[&words(&[0, 1, 1, self.n_samples, 1])]),
            boxed(b"stsz", &[&words(&[0, 1, self.n_samples])]),
            boxed(b"stco", &[&words(&[0, 1, data_at])]),
        ];
        let info = boxed(b"minf", &[&boxed(b"stbl", &[&tables.concat()])]);
        let header = words(&[0, 0, 0, self.rate_hz, self.n_samples, 0]);
        let handler = [&[0; 8], &b"soun"[..], &[0; 12]].concat();
        let media = [boxed(b"mdhd", &[&header]), boxed(b"hdlr", &[&handler]), info].concat();
        let edits = words(&[0, 1, self.n_samples, self.n_lead, 1 << 16]);
        let track = [
            boxed(b"tkhd", &[&words(&[0, 0, 0, 1]), &[0; 68]]),
            boxed(b"edts", &[&boxed(b"elst", &[&edits])]),
            boxed(b"mdia", &[&media]),
        ];
        let movie_header = boxed(b"mvhd", &[&words(&[0, 0, 0, 1000, 1000]), &[0; 80]]);
        let movie = boxed(b"moov", &[&movie_header, &boxed(b"trak", &[&track.concat()])]);
        [brand, data, movie].concat()
    }

    /// In its second version, which alone tells how many frames a packet holds.
    fn sample_entry(&self) -> Vec<u8> {
        let version_0 = words(&[0, 1, 2 << 16, 0, 3 << 16 | 16, 0xfffe << 16, 1 << 16]);
        let rate = f64::from(self.rate_hz).to_be_bytes();
        let (n_channels, bits, signed) = (1, 8, 4);
        let format = words(&[n_channels, 0x7f00_0000, bits, signed, 1, self.frames_per_packet]);
        boxed(b"lpcm", &[&version_0, &words(&[72]), &rate, &format])
    }
}

fn boxed(kind: &[u8; 4], content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let size = (content.len() as u32 + 8).to_be_bytes();
    [&size[..], kind, &content].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn no_room_is_made_for_what_a_header_claims_of_packets() {
    let movie = |frames_per_packet| Movie {
        frames_per_packet,
        ..Movie::new(16_000, 1600)
    };
    assert_eq!(
        decode_audio(&movie(1).bytes(), "a.mov").unwrap().samples().len(),
        1600
    );
    assert_eq!(
        decode_audio(&movie(1 << 16).bytes(), "a.mov")
            .unwrap()
            .samples()
            .len(),
        1600
    );
    for claimed in [(1 << 16) + 1, 1 << 24] {
        let error = decode_audio(&movie(claimed).bytes(), "a.mov")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the audio in `a.mov` cannot be decoded: its header claims larger packets than any encoder writes; \
             convert it to WAV, MP3 or FLAC"
        );
    }
}

#[test]
fn a_table_that_is_searched_for_every_packet_costs_no_more_than_the_limit() {
    let movie = Movie {
        n_empty_times: 200_000,
        ..Movie::new(16_000, 20_000)
    };
    let limit = Duration::from_millis(100);
    let error = decode_within(&movie.bytes(), "a.mov", limit).unwrap_err();
    assert!(matches!(error, Error::AudioTimeout { .. }), "{error}");
}

#[test]
fn a_packet_for_every_sample_is_no_reason_to_refuse() {
    let n_samples = (1 << 20) + 480;
    let clip = decode_audio(&Movie::new(48_000, n_samples).bytes(), "a.mov").unwrap();
    assert!((clip.seconds() - f64::from(n_samples) / 48_000.0).abs() < 1e-3);
}

#[test]
fn the_lead_does_not_count_as_length() {
    // Half a minute at 8 kHz, an encoder's lead in front, and its last frame's rest behind.
    let movie = |n_samples, n_lead| Movie {
        n_lead,
        ..Movie::new(8_000, n_samples)
    };
    let clip = decode_audio(&movie(241_664, 1024).bytes(), "a.mov").unwrap();
    assert_eq!(clip.samples().len(), 480_000);
    assert!(decode_audio(&movie(242_048 + 2112, 2112).bytes(), "a.mov").is_ok());
    let error = decode_audio(&movie(242_049 + 2112, 2112).bytes(), "a.mov").unwrap_err();
    assert!(matches!(error, Error::AudioTooLong { .. }), "{error}");
}

/// Bits as Vorbis packs them: the least significant first.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn put(&mut self, value: u32, n_bits: u32) {
        self.0.extend((0..n_bits).map(|bit| value >> bit & 1 == 1));
    }

    fn bytes(&self) -> Vec<u8> {
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        self.0.chunks(8).map(byte).collect()
    }
}

/// A codebook of 2^17 entries, in 20 bytes at most.
fn put_book(setup: &mut Bits, n_dimensions: u32, with_values: bool) {
    setup.put(0x56_4342, 24);
    setup.put(n_dimensions, 16);
    setup.put(1 << 17, 24);
    // Ordered by length, all of 17 bits.
    setup.put(1, 1);
    setup.put(16, 5);
    setup.put(1 << 17, 18);
    setup.put(u32::from(with_values), 4);
    if with_values {
        // One value of one bit, which all vectors are made of.
        setup.put(0, 32);
        setup.put(0, 32);
        setup.put(0, 4);
        setup.put(0, 1);
        setup.put(0, 1);
    }
}

/// An Ogg Vorbis file of nothing but codebooks and a packet.
fn vorbis(n_books: u32, n_dimensions: u32, with_values: bool) -> Vec<u8> {
    let mut identity = b"\x01vorbis\0\0\0\0\x01".to_vec();
    identity.extend(16_000u32.to_le_bytes());
    identity.extend([0; 12]);
    identity.extend([0xb8, 1]);
    let mut setup = Bits::default();
    setup.put(n_books - 1, 8);
    for _ in 0..n_books {
        put_book(&mut setup, n_dimensions, with_values);
    }
    let setup = [b"\x05vorbis".to_vec(), setup.bytes()].concat();
    let comment = b"\x03vorbis\0\0\0\0\0\0\0\0\x01".to_vec();
    let pages = [(2, identity), (0, comment), (0, setup), (4, vec![0; 10])];
    let pages = (0..)
        .zip(pages)
        .map(|(number, (flags, packet))| page(number, flags, &packet));
    pages.collect::<Vec<_>>().concat()
}

/// An Ogg page of one packet.
fn page(number: u32, flags: u8, packet: &[u8]) -> Vec<u8> {
    let mut page = b"OggS\0".to_vec();
    page.push(flags);
    page.extend([0; 8]);
    page.extend(7u32.to_le_bytes());
    page.extend(number.to_le_bytes());
    page.extend([0; 4]);
    page.push((packet.len() / 255 + 1) as u8);
    page.extend(vec![255; packet.len() / 255]);
    page.push((packet.len() % 255) as u8);
    page.extend(packet);
    let crc = page.iter().fold(0u32, |crc, byte| {
        let shifted = |crc: u32, _| crc << 1 ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 };
        (0..8).fold(crc ^ u32::from(*byte) << 24, shifted)
    });
    page[22..26].copy_from_slice(&crc.to_le_bytes());
    page
}

#[test]
fn codebooks_are_not_written_out_for_what_they_claim() {
    for (n_books, n_dimensions) in [(2, 31), (3, 31), (256, 1)] {
        let file = vorbis(n_books, n_dimensions, true);
        assert!(file.len() < 8000);
        let error = decode_audio(&file, "a.ogg").unwrap_err().to_string();
        assert_eq!(
            error,
            "the audio in `a.ogg` cannot be decoded: its header has larger codebooks than any encoder writes; \
             convert it to WAV, MP3 or FLAC"
        );
    }
    // One alone is the decoder's to refuse, by what is missing behind it.
    let error = decode_audio(&vorbis(1, 31, true), "a.ogg")
        .unwrap_err()
        .to_string();
    assert!(!error.contains("codebook"), "{error}");
    // So are those that are not counted because the decoder does not write them out.
    for n_dimensions in [33, 65_535] {
        let error = decode_audio(&vorbis(256, n_dimensions, false), "a.ogg")
            .unwrap_err()
            .to_string();
        assert!(error.contains("codebook dimension is too large"), "{error}");
    }
}
