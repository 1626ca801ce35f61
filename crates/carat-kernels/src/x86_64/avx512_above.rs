//! Which of some numbers are above another.

use std::arch::x86_64::*;

/// A bit for each number that is above `bar`, the first in the lowest; for NaN none.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn above(numbers: &[f32; 64], bar: f32) -> u64 {
    let bar = _mm512_set1_ps(bar);
    let mut above = 0;
    for (i, sixteen) in numbers.as_chunks::<16>().0.iter().enumerate() {
        // SAFETY: sixteen numbers.
        let sixteen = unsafe { _mm512_loadu_ps(sixteen.as_ptr()) };
        above |= u64::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(sixteen, bar)) << (16 * i);
    }
    above
}
