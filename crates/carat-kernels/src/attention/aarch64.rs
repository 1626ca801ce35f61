//! Quantized rows with NEON: 32 elements a chunk, as signed bytes in two registers, by `sdot` where the processor has
//! it.

use std::arch::aarch64::*;

use super::lanes::KvSimd;
use crate::aarch64::{Base, Dotprod, Neon, Unit, prefetch, widen_f16};

// SAFETY: every 64-bit ARM processor has NEON, and `DOT` says that it has `dotprod`.
unsafe impl<const DOT: bool> KvSimd for Neon<DOT> {
    type Chunk = [int8x16_t; 2];
    const CHUNK: usize = 32;
    const OFFSET_Q8: i32 = 0;
    const OFFSET_Q4: i32 = 0;

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        prefetch(at);
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> float32x4_t {
        // SAFETY: four bytes, as the trait's contract says.
        unsafe {
            let bytes = vcreate_s8(u64::from(from.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8, high: bool) -> float32x4_t {
        // SAFETY: four bytes, as the trait's contract says.
        unsafe {
            let four = from.cast::<u32>().read_unaligned();
            let nibbles = (if high { four >> 4 } else { four }) & 0x0f0f_0f0f;
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(u64::from(nibbles))))))
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> float32x4_t {
        // SAFETY: two bytes, as the trait's contract says.
        unsafe { widen_f16(vdup_n_u16(from.cast::<u16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn chunk_q8(self, values: *const u8, i: usize) -> [int8x16_t; 2] {
        // SAFETY: the row has this chunk of 32 bytes.
        unsafe {
            let from = values.add(32 * i).cast();
            [vld1q_s8(from), vld1q_s8(from.add(16))]
        }
    }
    #[inline(always)]
    unsafe fn chunk_q4(self, values: *const u8, i: usize) -> [int8x16_t; 2] {
        // SAFETY: the row has this block; two blocks share their 32 bytes.
        unsafe {
            let from = values.add(i / 2 * 32);
            [vld1q_u8(from), vld1q_u8(from.add(16))].map(|bytes| {
                let half = if i % 2 == 1 {
                    vshrq_n_u8::<4>(bytes)
                } else {
                    vandq_u8(bytes, vdupq_n_u8(15))
                };
                vsubq_s8(vreinterpretq_s8_u8(half), vdupq_n_s8(8))
            })
        }
    }
    #[inline(always)]
    unsafe fn chunk_scales(self, scales: *const u8, i: usize) -> float32x4_t {
        // SAFETY: the row has this block's scale.
        unsafe { self.splat_f16(scales.add(2 * i)) }
    }
    #[inline(always)]
    unsafe fn dot(self, chunk: [int8x16_t; 2], q: *const i8, start: *const i32) -> float32x4_t {
        // SAFETY: `q` has 32 bytes and `start` four lanes.
        unsafe {
            let (q, sums) = ([vld1q_s8(q), vld1q_s8(q.add(16))], vld1q_s32(start));
            vcvtq_f32_s32(if DOT {
                Dotprod.dot(Dotprod.dot(sums, chunk[0], q[0]), chunk[1], q[1])
            } else {
                Base.dot(Base.dot(sums, chunk[0], q[0]), chunk[1], q[1])
            })
        }
    }
}
