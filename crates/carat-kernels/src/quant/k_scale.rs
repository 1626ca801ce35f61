//! The packed 6-bit scales of K-quants, as bytes and back.
//!
//! Q4_K and Q5_K keep 8 scales and 8 minimums in 12 bytes, Q3_K 16 scales in 12 bytes:
//!
//! ```text
//! Q4_K   byte 0..4    scale 0..4, low six bits;  top two: bits 4, 5 of scale 4..8
//!        byte 4..8    minimum 0..4, low six;     top two: bits 4, 5 of minimum 4..8
//!        byte 8..12   low nibble: bits 0..4 of scale 4..8;  high nibble: the same of minimum 4..8
//! Q3_K   byte 0..8    low nibble: bits 0..4 of scale 0..8;  high nibble: the same of scale 8..16
//!        byte 8..12   byte 8 + j: bits 4, 5 of scales j, 4 + j, 8 + j, 12 + j, lowest first
//! ```

/// Scales and minimums, each in `0 ..= 63`.
pub(super) fn unpack_pairs(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = bytes[j] & 63;
        mins[j] = bytes[j + 4] & 63;
        scales[j + 4] = (bytes[j + 8] & 15) | ((bytes[j] >> 6) << 4);
        mins[j + 4] = (bytes[j + 8] >> 4) | ((bytes[j + 4] >> 6) << 4);
    }
    (scales, mins)
}

/// The inverse of [`unpack_pairs`].
pub(super) fn pack_pairs(scales: &[u8; 8], mins: &[u8; 8], bytes: &mut [u8]) {
    for j in 0..4 {
        bytes[j] = scales[j] | ((scales[j + 4] >> 4) << 6);
        bytes[j + 4] = mins[j] | ((mins[j + 4] >> 4) << 6);
        bytes[j + 8] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
    }
}

/// Signed scales in `-32 ..= 31`.
pub(super) fn unpack_signed(bytes: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = (bytes[j % 8] >> (4 * (j / 8))) & 15;
        let high = (bytes[8 + j % 4] >> (2 * (j / 4))) & 3;
        (low | (high << 4)) as i8 - 32
    })
}

/// The inverse of [`unpack_signed`].
pub(super) fn pack_signed(scales: &[i8; 16], bytes: &mut [u8]) {
    bytes.fill(0);
    for (j, &scale) in scales.iter().enumerate() {
        let biased = (scale + 32) as u8;
        bytes[j % 8] |= (biased & 15) << (4 * (j / 8));
        bytes[8 + j % 4] |= (biased >> 4) << (2 * (j / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back() {
        let scales = [0, 63, 17, 32, 63, 16, 15, 48];
        let mins = [63, 0, 1, 31, 47, 63, 16, 5];
        let mut bytes = [0; 12];
        pack_pairs(&scales, &mins, &mut bytes);
        assert_eq!(unpack_pairs(&bytes), (scales, mins));
    }

    #[test]
    fn signed_scales_come_back() {
        let scales = std::array::from_fn(|j| (j as i8 * 4) - 32 + (j as i8 % 4));
        let mut bytes = [0xff; 12];
        pack_signed(&scales, &mut bytes);
        assert_eq!(unpack_signed(&bytes), scales);
    }
}
