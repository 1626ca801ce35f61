//! Every limit of this crate.

/// Most images, sounds and videos of one prompt. Each is bounded by `carat-media`'s limits.
pub const MAX_ATTACHMENTS: usize = 256;

/// Bytes of a prompt's inputs that wait decoded for their tower unless the caller says otherwise: some 27 images of Gemma 3.
pub const DEFAULT_PREPARED_BYTES: usize = 256 << 20;

/// Bytes of encoded rows that are kept for the next question unless the caller says otherwise: some 60 images of the
/// 12B.
pub const DEFAULT_CACHE_BYTES: usize = 256 << 20;
