//! What tells the files of one model from those of another without reading them whole.

use carat_format::{TensorInfo, TensorView};
use sha2::{Digest, Sha256};

/// Bytes from both ends of each tensor that are looked at.
const SAMPLE: usize = 1024;

/// A digest of `settings`, of the names, formats and shapes of tensors, and of a little of the numbers of each that carat
/// can read.
pub(crate) fn fingerprint<'a>(
    settings: &str,
    infos: impl Iterator<Item = TensorInfo<'a>>,
    tensors: impl Iterator<Item = Result<TensorView<'a>, carat_format::Error>>,
) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(settings);
    for info in infos {
        digest.update(format!("\n{} {} {:?}", info.name, info.type_name, info.shape));
    }
    for tensor in tensors.flatten() {
        let bytes = tensor.bytes;
        digest.update(&bytes[..bytes.len().min(SAMPLE)]);
        digest.update(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
    }
    digest.finalize().into()
}

/// The first bytes of a fingerprint as a number: enough to tell a few files apart.
pub(crate) fn short(fingerprint: &[u8; 32]) -> u64 {
    let bytes = fingerprint.iter().take(8);
    bytes.fold(0, |id, byte| id << 8 | u64::from(*byte))
}
