//! Every limit of this crate.
//!
//! They hold memory and time to what a laptop has, whatever a file claims. Sizes are checked in headers, before
//! anything is decoded.

/// Largest image file, in bytes.
pub const MAX_IMAGE_FILE_BYTES: u64 = 256 << 20;
/// Most pixels of an image: a 108-megapixel phone picture passes.
pub const MAX_IMAGE_PIXELS: u64 = 120_000_000;
/// Longest side of an image, in pixels (JPEG's own limit).
pub const MAX_IMAGE_SIDE: u32 = 65_535;
/// Most bytes of a decoded image before it becomes 8-bit RGB, and of what its decoder may take beside it.
pub const MAX_DECODED_IMAGE_BYTES: u64 = 512 << 20;

/// Longest clip, in seconds: what the models were trained for.
pub const MAX_AUDIO_SECONDS: u32 = 30;
/// Soft tokens of the longest clip, at 40 ms each.
pub const MAX_AUDIO_TOKENS: usize = 750;
/// What a clip may be longer than [`MAX_AUDIO_SECONDS`] by, in milliseconds, and is cut off: MP3 and AAC encoders
/// pad a clip of exactly 30 s by up to two of their frames.
pub const AUDIO_PADDING_MS: u32 = 100;
/// The same in samples, where that is more: two frames of AAC, which at 8 kHz are a quarter of a second.
pub const AUDIO_PADDING_SAMPLES: u32 = 2048;
/// Lowest sample rate that is read, in hertz.
pub const MIN_SAMPLE_RATE_HZ: u32 = 1_000;
/// Highest sample rate that is read, in hertz.
pub const MAX_SAMPLE_RATE_HZ: u32 = 768_000;
/// Packets that may fail to decode in one file, beside what its good ones excuse.
pub const MAX_BAD_AUDIO_PACKETS: usize = 100;
/// Packets without sound after which the sound is taken to be over.
pub const MAX_EMPTY_AUDIO_PACKETS: usize = 1000;
/// Most frames of one packet that a header may claim, since memory is taken for them in advance: FLAC's packets have
/// up to 65,535, those of every other codec fewer.
pub const MAX_AUDIO_PACKET_FRAMES: u64 = 1 << 16;
/// Most values of a Vorbis file's codebooks together: encoders write some tens of thousands.
pub const MAX_VORBIS_VALUES: u64 = 1 << 22;
/// Largest sample that is believed. Nominally it is 1; files of floats with the values of 32-bit integers reach this.
/// All that is computed from it stays finite.
pub const MAX_SAMPLE_MAGNITUDE: f32 = 2_147_483_648.0;
/// Longest that reading one sound may take, in seconds: a pipe may be as slow as whoever speaks into it.
pub const MAX_AUDIO_DECODE_SECONDS: u64 = 300;
/// The same of a sound that somebody sent and that is there as a whole, which takes a fraction of a second.
pub const MAX_SENT_AUDIO_DECODE_SECONDS: u64 = 20;

/// Frames that are taken from a video unless the caller says otherwise, as in the reference.
pub const DEFAULT_VIDEO_FRAMES: usize = 32;
/// Most frames that a caller may ask for.
pub const MAX_VIDEO_FRAMES: usize = 1024;
/// Most pixel values of all frames of a video together: 1 GiB of them.
pub const MAX_PREPARED_VALUES: usize = 1 << 28;
/// Longest that the external decoder may take, in seconds.
pub const MAX_VIDEO_DECODE_SECONDS: u64 = 300;
/// Longest that it may take for a video that somebody sent, in seconds.
pub const MAX_SENT_VIDEO_DECODE_SECONDS: u64 = 60;
/// Most pixels of a frame of a video that somebody sent: 8192 x 4320.
pub const MAX_SENT_VIDEO_PIXELS: u64 = 8192 * 4320;
/// Most pixels of all frames of an animated GIF or WebP together (about 20 s of decoding).
pub const MAX_ANIMATION_PIXELS: u64 = 1 << 31;
/// The same of one that somebody sent (about 5 s).
pub const MAX_SENT_ANIMATION_PIXELS: u64 = 1 << 29;
/// Largest animated GIF or WebP file, in bytes.
pub const MAX_ANIMATION_FILE_BYTES: u64 = 256 << 20;
/// Most frames of an animation and most files of a folder of frames.
pub const MAX_SOURCE_FRAMES: usize = 200_000;
