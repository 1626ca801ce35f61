//! Attention of query rows over a sequence's keys and values, with causal and sliding-window masks.
//!
//! Two shapes of work, two kernels: [`decode`] (one query row per sequence, limited by reading the cache) and
//! [`prefill`] (many rows of one sequence, limited by arithmetic). Both keep scores in f32 and use the online
//! softmax of Milakov and Gimelshein (2018), as FlashAttention does. A row at position `pos` sees positions
//! `pos - window + 1 ..= pos` (all of `0 ..= pos` without a window).
//!
//! A layer's cache is a table of pages ([`KvPage`]) of [`PAGE`] positions each, in one of the formats of
//! [`KvDType`]; position `p` lies in page `p / PAGE`, counted around the table. Numbers get into the cache's
//! format by [`pack_rows`] and back by [`unpack_rows`].

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod decode;
mod format;
mod integer_tile;
mod kv_dtype;
mod lanes;
mod page;
mod prefill;
mod scores;
mod tile;
mod weigh;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use decode::{DecodeQuery, DecodeScratch, decode};
pub use format::{pack_rows, unpack_rows};
pub use kv_dtype::KvDType;
pub use page::{KvPage, KvShape, KvView, PAGE};
pub use prefill::{PrefillQuery, PrefillScratch, prefill};

#[cfg(test)]
mod tests;
