//! Activations to 8 or 16 bits, eight blocks of 32 at a time: maxima and sums of so many are found side by side, with a
//! third of the shuffles that one block after the other takes, and their divisions are one.

use std::arch::x86_64::*;

use crate::activation::{Eight, LARGEST, LARGEST_WIDE};

/// Bits of infinity: those of a finite number's absolute value are below.
const INFINITE: i32 = 0x7F80_0000;

/// As [`crate::activation`] says; nothing and `false` if one of the numbers is broken.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) fn quantize(values: &[&[f32; 32]; 8], to: &mut Eight<'_>) -> bool {
    // Absolute values are ordered as their bits are.
    let absolute = _mm512_set1_epi32(i32::MAX);
    let most = values.map(|block| {
        let [a, b] = halves(block).map(|half| _mm512_and_si512(_mm512_castps_si512(half), absolute));
        _mm512_max_epi32(a, b)
    });
    let max = |a, b| _mm512_max_epi32(a, b);
    let most = fold_quarters(most, max);
    let most = _mm512_castsi512_si256(fold_halves([most, most], max));
    if _mm256_cmpge_epi32_mask(most, _mm256_set1_epi32(INFINITE)) != 0 {
        return false;
    }
    let largest = _mm256_castsi256_ps(most);
    let goal = _mm256_set1_ps(if to.low.is_some() { LARGEST_WIDE } else { LARGEST });
    let scale = _mm256_div_ps(largest, goal);
    let factor = _mm256_div_ps(goal, largest);
    // Zero where the largest is too small for a factor.
    let factor = _mm256_maskz_mov_ps(
        _mm256_cmplt_epi32_mask(_mm256_castps_si256(factor), _mm256_set1_epi32(INFINITE)),
        factor,
    );
    let mut factors = [0.0; 8];
    // SAFETY: eight elements.
    unsafe { _mm256_storeu_ps(factors.as_mut_ptr(), factor) };
    // Whole numbers have words enough: a register a block.
    let mut sums = [_mm512_setzero_si512(); 8];
    for (i, (block, sum)) in values.iter().zip(&mut sums).enumerate() {
        let factor = _mm512_set1_ps(factors[i]);
        let [a, b] = halves(block).map(|half| _mm512_cvtps_epi32(_mm512_mul_ps(half, factor)));
        let in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        let mut whole = _mm512_permutexvar_epi64(in_order, _mm512_packs_epi32(a, b));
        match &mut to.low {
            None => put(&mut to.q[i], whole),
            Some(low) => {
                let high = _mm512_srai_epi16::<8>(_mm512_add_epi16(whole, _mm512_set1_epi16(128)));
                let shifted = _mm512_slli_epi16::<8>(high);
                // -127 at least: see the twin.
                let rest = _mm512_max_epi16(_mm512_sub_epi16(whole, shifted), _mm512_set1_epi16(-127));
                put(&mut to.q[i], high);
                put(&mut low[i], rest);
                whole = _mm512_add_epi16(shifted, rest);
            }
        }
        *sum = _mm512_madd_epi16(whole, _mm512_set1_epi16(1));
    }
    let by_block = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    let isum = _mm512_permutexvar_epi32(by_block, fold_quarters(sums, |a, b| _mm512_add_epi32(a, b)));
    // Both halves of a block are the halves of 64 bits.
    let isum32 = _mm512_cvtepi64_epi32(_mm512_add_epi32(isum, _mm512_srli_epi64::<32>(isum)));
    let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    let scale16 = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(scale));
    // SAFETY: arrays of sixteen and of eight elements.
    unsafe {
        _mm512_storeu_ps(to.scale.as_mut_ptr(), scale16);
        _mm512_storeu_si512(to.isum.as_mut_ptr().cast(), isum);
        _mm512_storeu_ps(
            to.sum.as_mut_ptr(),
            _mm512_mul_ps(scale16, _mm512_cvtepi32_ps(isum)),
        );
        _mm256_storeu_ps(to.scale32.as_mut_ptr(), scale);
        _mm256_storeu_si256(to.isum32.as_mut_ptr().cast(), isum32);
        _mm256_storeu_ps(
            to.sum32.as_mut_ptr(),
            _mm256_mul_ps(scale, _mm256_cvtepi32_ps(isum32)),
        );
    }
    true
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves(block: &[f32; 32]) -> [__m512; 2] {
    // SAFETY: sixteen elements each.
    unsafe {
        [
            _mm512_loadu_ps(block.as_ptr()),
            _mm512_loadu_ps(block.as_ptr().add(16)),
        ]
    }
}

/// Words that fit eight bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn put(to: &mut [i8; 32], from: __m512i) {
    // SAFETY: 32 elements.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(from)) };
}

/// The lanes of eight registers `a` to `h`, folded but for two that are left of each: `[a01..d01, a23..d23, e01..h01,
/// e23..h23]`, where 01 are a register's first two quarters, and 23 its others.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_quarters(of: [__m512i; 8], with: impl Fn(__m512i, __m512i) -> __m512i) -> __m512i {
    let [a, b, c, d, e, f, g, h] = of;
    let [first, last] = [[a, b, c, d], [e, f, g, h]].map(|[a, b, c, d]| {
        let ab = with(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = with(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        with(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    });
    fold_halves([first, last], with)
}

/// The quarters of two registers, two folded to one: `[a01, a23, b01, b23]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_halves([a, b]: [__m512i; 2], with: impl Fn(__m512i, __m512i) -> __m512i) -> __m512i {
    with(
        _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
    )
}
