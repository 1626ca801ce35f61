//! Every way in which a file cannot be used, one sentence each.
//!
//! A message names the file (or what the caller called the bytes) and says what to do. Reasons of the decoding
//! libraries are kept as text, since they mean something only to who looks at the file itself.

use std::io;

use crate::limits;

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} `{file}`")]
    Io {
        /// A verb: `open`, `read`.
        action: &'static str,
        /// The file.
        file: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any of its kind should be.
    #[error("`{file}` is larger than {} MiB, the most that is read of {kind}; make it smaller", limit_bytes >> 20)]
    FileTooLarge {
        /// The file.
        file: String,
        /// What it was read as: `an image`, `an animation`.
        kind: &'static str,
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// The first bytes are those of no known image format.
    #[error("`{file}` is not an image that can be read; give a PNG, JPEG, WebP, GIF, BMP or TIFF file")]
    NotAnImage {
        /// The file.
        file: String,
    },
    /// A known format that no library here reads.
    #[error("`{file}` is {format}, which is not read; convert it to {convert_to}")]
    Unsupported {
        /// The file.
        file: String,
        /// With its article: `a HEIC or AVIF image`.
        format: &'static str,
        /// What to make of it: `JPEG or PNG`.
        convert_to: &'static str,
    },
    /// The header claims more pixels than are read.
    #[error(
        "`{file}` has {width} x {height} pixels; at most {} million, and {} a side, are read: make it smaller",
        limits::MAX_IMAGE_PIXELS / 1_000_000,
        limits::MAX_IMAGE_SIDE
    )]
    ImageTooLarge {
        /// The file.
        file: String,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
    },
    /// The image stops early or its data make no sense.
    #[error("`{file}` is damaged or cut short and cannot be decoded as {format}: {reason}")]
    ImageDamaged {
        /// The file.
        file: String,
        /// The format that it begins as.
        format: String,
        /// What the decoder said.
        reason: String,
    },
    /// Pixels and size do not agree.
    #[error(
        "an image of {width} x {height} pixels needs {} bytes of RGB, not {found}",
        u64::from(*width) * u64::from(*height) * 3
    )]
    PixelCount {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes that were given.
        found: usize,
    },
    /// A budget of soft tokens that no model was made for.
    #[error("an image cannot take {0} soft tokens; the choices are 70, 140, 280, 560 and 1120")]
    TokenBudget(u32),
    /// A processor's sizes make no sense.
    #[error("{setting} = {value} cannot be used for image processing; it lies between {min} and {max}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: usize,
        /// The smallest that works.
        min: usize,
        /// The largest that works.
        max: usize,
    },
    /// The bytes are no audio file.
    #[error(
        "`{file}` is not audio that can be read; give a WAV, MP3, FLAC, OGG (Vorbis) or M4A (AAC, ALAC) file"
    )]
    NotAudio {
        /// The file.
        file: String,
    },
    /// The container is fine, what is inside is not read.
    #[error("the audio in `{file}` cannot be decoded: {reason}; convert it to WAV, MP3 or FLAC")]
    AudioCodec {
        /// The file.
        file: String,
        /// What the library said.
        reason: String,
    },
    /// The audio's data make no sense.
    #[error("the audio in `{file}` is damaged: {reason}")]
    AudioDamaged {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Reading the audio took too long.
    #[error(
        "the audio in `{file}` takes too long to read, more than {seconds} seconds; convert it to WAV, MP3 or FLAC"
    )]
    AudioTimeout {
        /// The file.
        file: String,
        /// The limit.
        seconds: u64,
    },
    /// No samples at all.
    #[error("`{file}` holds no sound: its audio is 0 seconds long")]
    AudioEmpty {
        /// The file.
        file: String,
    },
    /// Too few samples for one feature.
    #[error(
        "a clip of {samples} samples is too short for the audio encoder; give at least {min} (at 16 kHz)"
    )]
    AudioTooShort {
        /// Samples at 16 kHz.
        samples: usize,
        /// The fewest that make one frame.
        min: usize,
    },
    /// Longer than the models take.
    #[error(
        "`{file}` is {} long, and the model hears at most {} seconds ({} tokens); cut it into pieces",
        length(*seconds),
        limits::MAX_AUDIO_SECONDS,
        limits::MAX_AUDIO_TOKENS
    )]
    AudioTooLong {
        /// The file.
        file: String,
        /// Its length in seconds where the file says it.
        seconds: Option<f64>,
    },
    /// NaN or an infinity among the samples.
    #[error("sample {index} of `{file}` is not a finite number; write the file again from its source")]
    AudioNotFinite {
        /// The file.
        file: String,
        /// The first such sample, counted at the file's own rate.
        index: usize,
    },
    /// A sample beyond [`limits::MAX_SAMPLE_MAGNITUDE`].
    #[error(
        "sample {index} of `{file}` is {value:e}, and a sound's lie between -1 and 1; write the file again from its \
         source"
    )]
    AudioTooLoud {
        /// The file.
        file: String,
        /// The first such sample, counted at the file's own rate.
        index: usize,
        /// It.
        value: f32,
    },
    /// A sample rate beyond what is sensible.
    #[error(
        "the audio in `{file}` has a sample rate of {rate_hz} Hz; rates from {} to {} Hz are read",
        limits::MIN_SAMPLE_RATE_HZ,
        limits::MAX_SAMPLE_RATE_HZ
    )]
    SampleRate {
        /// The file.
        file: String,
        /// Its rate in hertz.
        rate_hz: u32,
    },
    /// A number of frames, or a rate of them, that makes no sense.
    #[error("{0}")]
    FrameSampling(String),
    /// The model lacks the sense for it.
    #[error("the model does not take {what}; choose one that does, or leave them out")]
    NoModality {
        /// `images`, `sounds`, `videos`.
        what: &'static str,
    },
    /// No decoder for videos on this machine.
    #[error(
        "`{file}` needs ffmpeg to be decoded, and {missing} is not on the PATH; install ffmpeg, or give an animated \
         GIF or WebP, or a folder of frames"
    )]
    NoVideoTools {
        /// The video.
        file: String,
        /// `ffmpeg`, `ffprobe` or both.
        missing: &'static str,
    },
    /// ffmpeg or ffprobe could not do it.
    #[error("{tool} cannot decode the video `{file}`: {reason}")]
    VideoTool {
        /// The video.
        file: String,
        /// The program.
        tool: &'static str,
        /// The end of what it wrote, or why it could not be run.
        reason: String,
    },
    /// The external decoder took too long.
    #[error("{tool} did not finish `{file}` within {seconds} seconds; cut the video shorter or smaller")]
    VideoTimeout {
        /// The video.
        file: String,
        /// The program.
        tool: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// No frame in it.
    #[error("`{file}` holds no frames")]
    NoFrames {
        /// The video, animation or folder.
        file: String,
    },
    /// Frames of a folder or animation beyond the limit.
    #[error(
        "`{file}` has too many frames or pixels to be read as an animation ({reason}); make it shorter or smaller"
    )]
    AnimationTooLarge {
        /// The animation or folder.
        file: String,
        /// The count and the limit.
        reason: String,
    },
}

fn length(seconds: Option<f64>) -> String {
    match seconds {
        Some(seconds) if seconds >= 3600.0 => {
            format!("{:.1} hours", seconds / 3600.0)
        }
        Some(seconds) => format!("{seconds:.1} seconds"),
        None => format!("more than {} seconds", limits::MAX_AUDIO_SECONDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_clip_is_told_both_lengths() {
        let text = |seconds| {
            Error::AudioTooLong {
                file: "talk.mp3".into(),
                seconds,
            }
            .to_string()
        };
        assert_eq!(
            text(Some(36_000.0)),
            "`talk.mp3` is 10.0 hours long, and the model hears at most 30 seconds (750 tokens); cut it into pieces"
        );
        assert!(text(Some(31.26)).contains("is 31.3 seconds long"));
        assert!(text(None).contains("is more than 30 seconds long"));
    }
}
