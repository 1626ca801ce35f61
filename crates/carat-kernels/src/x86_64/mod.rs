//! The x86-64 versions: AVX2 (with FMA and F16C), the same with AVX-VNNI, AVX-512 (F, BW, VL, DQ, VNNI), and that with AMX
//! (tiles of bf16).

use std::ops::Range;

use crate::activation::QuantizedTile;
use crate::aligned::Aligned;
use crate::block::BlockFormat;

pub(crate) mod amx;
#[cfg(all(test, target_os = "linux"))]
mod amx_emulator;
mod amx_matmul;
mod amx_pairs;
pub(crate) mod avx2;
mod avx2_dot;
mod avx2_panel;
mod avx2_products;
mod avx2_unit;
mod avx2_unpack;
pub(crate) mod avx512;
mod avx512_above;
mod avx512_lanes;
mod avx512_matmul;
mod avx512_pack;
mod avx512_q8_0;
mod avx512_quantize;
mod rounded;

pub(crate) use amx_matmul::{TileTask, multiply as multiply_amx, panel_rows as amx_panel_rows};
pub(crate) use amx_pairs::multiply as multiply_pairs_amx;
pub(crate) use avx2::Avx2;
pub(crate) use avx2_dot::{dot_rows as dot_rows_avx2, dot_rows_vnni as dot_rows_avx_vnni};
pub(crate) use avx2_panel::{
    multiply_panel as multiply_panel_avx2, multiply_panel_vnni as multiply_panel_avx_vnni,
};
pub(crate) use avx2_products::TILE_X as AVX2_TILE_X;
pub(crate) use avx512::Avx512;
pub(crate) use avx512_above::above as above_avx512;
pub(crate) use avx512_lanes::Lanes;
pub(crate) use avx512_matmul::{MAX_FEW, PANEL_ROWS, multiply as multiply_avx512, tile_rows};
pub(crate) use avx512_pack::Packed;
pub(crate) use avx512_q8_0::Sums as Q8_0Sums;
pub(crate) use avx512_quantize::quantize as quantize_avx512;
pub(crate) use rounded::RoundedRows;

/// What the sums of the products begin with: the part that the codes' offset has too much, `-OFFSET` times the sum of the
/// activations, for the `blocks` of them, or their half blocks if those have scales of their own. Once for many weight
/// rows, since it would be one operation in twelve.
#[inline(always)]
fn fill_shares<F: BlockFormat>(shares: &mut Aligned<i32>, x: &QuantizedTile<'_>, blocks: Range<usize>) {
    if F::HAS_MIN {
        return;
    }
    let isum = if F::SUB == 32 { x.isum32 } else { x.isum };
    shares.resize(isum.len());
    let part = blocks.start * 32 / F::SUB..blocks.end * 32 / F::SUB;
    for (share, isum) in shares[part.clone()].iter_mut().zip(&isum[part]) {
        *share = -F::OFFSET * isum;
    }
}

/// The f16 at `from` as f32.
///
/// # Safety
/// `from` is valid for reading two bytes.
#[inline]
#[target_feature(enable = "f16c")]
unsafe fn f16_at(from: *const u8) -> f32 {
    use std::arch::x86_64::{_mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32};
    // SAFETY: two bytes, by the caller's word.
    let bits = unsafe { from.cast::<u16>().read_unaligned() };
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}
