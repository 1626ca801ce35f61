//! Audio files to mono samples.
//!
//! The container is told by its bytes, never by the name. Reading stops soon after the longest clip that the
//! models take, so that an audiobook costs no more than its first half minute. Channels are averaged, as the
//! reference does. Single packets that cannot be decoded are left out, as every player does.

use std::io::{Cursor, ErrorKind, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use symphonia::core::codecs::audio::well_known::CODEC_ID_VORBIS;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;

use super::mp4_lead::lead_seconds;
use super::{Clip, max_samples_at, vorbis_books};
use crate::error::{Error, Result};
use crate::input;
use crate::limits::{
    MAX_AUDIO_DECODE_SECONDS, MAX_AUDIO_PACKET_FRAMES, MAX_AUDIO_SECONDS, MAX_BAD_AUDIO_PACKETS,
    MAX_EMPTY_AUDIO_PACKETS, MAX_SAMPLE_RATE_HZ, MAX_SENT_AUDIO_DECODE_SECONDS, MAX_VORBIS_VALUES,
    MIN_SAMPLE_RATE_HZ,
};

/// Reads an audio file: WAV, MP3, FLAC, OGG (Vorbis), M4A or AAC (AAC-LC, ALAC).
///
/// # Errors
/// As [`decode_audio`], and [`Error::Io`].
pub fn read_audio(path: &Path) -> Result<Clip> {
    let name = input::display(path);
    let mut file = input::open(path)?;
    let mut lead = 0.0;
    // A pipe can be read once only.
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        lead = lead_seconds(&mut file);
        file.rewind().map_err(|source| Error::Io {
            action: "read",
            file: name.clone(),
            source,
        })?;
    }
    let limit = Duration::from_secs(MAX_AUDIO_DECODE_SECONDS);
    decode_guarded(Box::new(file), &name, lead, limit)
}

/// Decodes the bytes of an audio file; `name` is what errors call it.
///
/// # Errors
/// [`Error::NotAudio`], [`Error::AudioCodec`], [`Error::AudioDamaged`], [`Error::AudioTimeout`], and those of
/// [`Clip::new`].
pub fn decode_audio(bytes: &[u8], name: &str) -> Result<Clip> {
    decode_within(bytes, name, Duration::from_secs(MAX_SENT_AUDIO_DECODE_SECONDS))
}

/// The same with another limit of time.
pub(super) fn decode_within(bytes: &[u8], name: &str, limit: Duration) -> Result<Clip> {
    let lead = lead_seconds(&mut Cursor::new(bytes));
    decode_guarded(Box::new(Cursor::new(bytes)), name, lead, limit)
}

fn decode_guarded(source: Box<dyn MediaSource + '_>, name: &str, lead: f64, limit: Duration) -> Result<Clip> {
    let damaged = || Error::AudioDamaged {
        file: name.to_owned(),
        reason: "its header makes no sense".to_owned(),
    };
    input::decode_guarded(|| decode(source, name, lead, limit), damaged)
}

/// `lead` is the silence in front to be left out, in seconds.
fn decode(source: Box<dyn MediaSource + '_>, name: &str, lead: f64, limit: Duration) -> Result<Clip> {
    let begun = Instant::now();
    let stream = MediaSourceStream::new(source, Default::default());
    let options = (FormatOptions::default(), MetadataOptions::default());
    let probed = symphonia::default::get_probe().probe(&Hint::new(), stream, options.0, options.1);
    let mut format = probed.map_err(|error| not_recognized(error, name))?;
    let track = format
        .default_track(TrackType::Audio)
        .ok_or_else(|| codec_error(name, "it has no track of sound that is known"))?;
    let (track_id, declared) = (track.id, declared_seconds(track));
    let parameters = track
        .codec_params
        .as_ref()
        .and_then(|parameters| parameters.audio());
    let parameters = parameters.ok_or_else(|| codec_error(name, "its codec is unknown"))?;
    check_claims(parameters, name)?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(|error| codec_error(name, &error.to_string()))?;
    let mut sound = Sound {
        declared_seconds: declared,
        lead_seconds: lead,
        ..Sound::new(name, begun, limit)
    };
    sound.read(format.as_mut(), decoder.as_mut(), track_id)?;
    let Some(rate_hz) = sound.rate_hz else {
        return Err(Error::AudioEmpty {
            file: name.to_owned(),
        });
    };
    let n_lead = sound.n_lead(rate_hz).min(sound.samples.len());
    sound.samples.drain(..n_lead);
    Clip::new(sound.samples, rate_hz, name)
}

/// Refuses headers for which a decoder would take memory far beyond what their file could fill.
fn check_claims(parameters: &AudioCodecParameters, name: &str) -> Result<()> {
    // PCM's makes room for a whole packet.
    if parameters.max_frames_per_packet > Some(MAX_AUDIO_PACKET_FRAMES) {
        return Err(codec_error(
            name,
            "its header claims larger packets than any encoder writes",
        ));
    }
    if parameters.codec == CODEC_ID_VORBIS {
        let headers = parameters.extra_data.as_deref().unwrap_or_default();
        if vorbis_books::n_values(headers) > MAX_VORBIS_VALUES {
            return Err(codec_error(
                name,
                "its header has larger codebooks than any encoder writes",
            ));
        }
    }
    Ok(())
}

/// What the header says of the length; MP3 files without one are estimated from their size.
fn declared_seconds(track: &Track) -> Option<f64> {
    let time = track.time_base?.calc_duration(track.duration?)?;
    Some(time.as_secs_f64())
}

fn not_recognized(error: SymphoniaError, name: &str) -> Error {
    match error {
        SymphoniaError::IoError(source) if source.kind() != ErrorKind::UnexpectedEof => Error::Io {
            action: "read",
            file: name.to_owned(),
            source,
        },
        _ => Error::NotAudio {
            file: name.to_owned(),
        },
    }
}

fn codec_error(name: &str, reason: &str) -> Error {
    Error::AudioCodec {
        file: name.to_owned(),
        reason: reason.to_owned(),
    }
}

/// What has been decoded so far.
struct Sound<'a> {
    name: &'a str,
    declared_seconds: Option<f64>,
    samples: Vec<f32>,
    rate_hz: Option<u32>,
    /// What of the samples is an encoder's silence, in front.
    lead_seconds: f64,
    n_good: usize,
    n_bad: usize,
    begun: Instant,
    /// Longest that it may take from `begun` on.
    limit: Duration,
    /// One packet's samples, all channels.
    interleaved: Vec<f32>,
}

impl<'a> Sound<'a> {
    fn new(name: &'a str, begun: Instant, limit: Duration) -> Sound<'a> {
        Sound {
            name,
            declared_seconds: None,
            samples: Vec::new(),
            rate_hz: None,
            lead_seconds: 0.0,
            n_good: 0,
            n_bad: 0,
            begun,
            limit,
            interleaved: Vec::new(),
        }
    }

    /// Decodes packets until the end, or until the clip is too long or has taken too long. Their number is no measure
    /// of either: there are files with one packet for every sample.
    fn read(
        &mut self,
        format: &mut (dyn FormatReader + '_),
        decoder: &mut dyn AudioDecoder,
        track_id: u32,
    ) -> Result<()> {
        let mut n_empty = 0;
        loop {
            // Looking for the next packet may take as long as a table in the header is made to.
            if self.begun.elapsed() > self.limit {
                return Err(Error::AudioTimeout {
                    file: self.name.to_owned(),
                    seconds: self.limit.as_secs(),
                });
            }
            // What lies beyond the declared end is decoded to nothing.
            if n_empty > MAX_EMPTY_AUDIO_PACKETS {
                return self.check_enough();
            }
            let packet = match format.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) | Err(SymphoniaError::ResetRequired) => return self.check_enough(),
                Err(error) => return self.stopped_by(error),
            };
            if packet.track_id != track_id {
                continue;
            }
            match decoder.decode(&packet) {
                Ok(buffer) => {
                    let (rate_hz, n_channels) = (buffer.spec().rate(), buffer.num_planes());
                    if buffer.is_empty() || n_channels == 0 {
                        n_empty += 1;
                        continue;
                    }
                    n_empty = 0;
                    buffer.copy_to_vec_interleaved(&mut self.interleaved);
                    self.n_good += 1;
                    self.append(rate_hz, n_channels)?;
                }
                Err(SymphoniaError::IoError(error)) if error.kind() != ErrorKind::UnexpectedEof => {
                    return self.stopped_by(SymphoniaError::IoError(error));
                }
                Err(error) => {
                    self.count_bad(&error)?;
                    decoder.reset();
                }
            }
        }
    }

    /// Samples of the silence in front.
    fn n_lead(&self, rate_hz: u32) -> usize {
        (self.lead_seconds * f64::from(rate_hz)).round() as usize
    }

    fn append(&mut self, rate_hz: u32, n_channels: usize) -> Result<()> {
        let known = *self.rate_hz.get_or_insert(rate_hz);
        if known != rate_hz {
            return Err(self.damaged("its sample rate changes on the way"));
        }
        if !(MIN_SAMPLE_RATE_HZ..=MAX_SAMPLE_RATE_HZ).contains(&rate_hz) {
            let file = self.name.to_owned();
            return Err(Error::SampleRate { file, rate_hz });
        }
        let frames = self.interleaved.chunks_exact(n_channels);
        let mean = |frame: &[f32]| frame.iter().sum::<f32>() / n_channels as f32;
        self.samples.extend(frames.map(mean));
        if self.samples.len() > max_samples_at(rate_hz) + self.n_lead(rate_hz) {
            // A header may claim less than there is; then its length is not worth telling.
            let limit = f64::from(MAX_AUDIO_SECONDS);
            return Err(Error::AudioTooLong {
                file: self.name.to_owned(),
                seconds: self.declared_seconds.filter(|seconds| *seconds > limit),
            });
        }
        Ok(())
    }

    fn count_bad(&mut self, error: &SymphoniaError) -> Result<()> {
        self.n_bad += 1;
        if self.n_bad > MAX_BAD_AUDIO_PACKETS.max(self.n_good) {
            return Err(self.damaged(&error.to_string()));
        }
        Ok(())
    }

    /// The container or the decoder gave up: what was decoded before counts if the file merely ends.
    fn stopped_by(&self, error: SymphoniaError) -> Result<()> {
        match error {
            SymphoniaError::IoError(source) if source.kind() == ErrorKind::UnexpectedEof => {
                self.check_enough()
            }
            SymphoniaError::IoError(source) => Err(Error::Io {
                action: "read",
                file: self.name.to_owned(),
                source,
            }),
            other => Err(self.damaged(&other.to_string())),
        }
    }

    fn check_enough(&self) -> Result<()> {
        if self.n_bad > self.n_good {
            return Err(self.damaged("most of its packets cannot be decoded"));
        }
        Ok(())
    }

    fn damaged(&self, reason: &str) -> Error {
        Error::AudioDamaged {
            file: self.name.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_audio_is_told_so() {
        for bytes in [&b""[..], b"hello", b"RIFF", &[0; 5000], b"\x89PNG\r\n\x1a\n"] {
            let error = decode_audio(bytes, "x.mp3").unwrap_err();
            assert!(matches!(error, Error::NotAudio { .. }), "{error}");
        }
    }
}
