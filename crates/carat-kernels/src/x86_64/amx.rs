//! Tiles of AMX: eight registers of 16 rows of 64 bytes, and the product of bf16 tiles.
//!
//! ```text
//! A   16 x 32 bf16    row: one row of the left side, 32 columns
//! B   16 x 16 pairs   row i: elements 2 i and 2 i + 1 of each of 16 columns
//! C   16 x 16 f32     += A B, 16 cycles
//! ```
//!
//! Tiles are the processor's only after the system was asked for them ([`is_present`]), and only while a [`Tiles`]
//! lives. Four sums at a time share their operands: each step loads four tiles and multiplies four times. Bound: 512
//! products of bf16 a cycle and core, if tiles come from the L1 cache; less from the L2 cache, which gives 48 bytes a
//! cycle at best where 64 are wanted.
//!
//! Written in assembly, since the intrinsics are not stable.

use std::arch::asm;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Elements of a tile of bf16.
pub(crate) const TILE: usize = 16 * 32;
/// Rows of the left side, and columns of the right one, of a product of four tiles.
pub(crate) const SIDE: usize = 32;

/// Whether the processor has tiles of bf16 and the system lets this process use them. It is asked once.
pub(crate) fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        let real = has_instructions() && is_permitted();
        #[cfg(all(test, target_os = "linux"))]
        let real = real || super::amx_emulator::install();
        real
    })
}

fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE) == (BF16 | TILE)
}

/// Linux gives a process room for tiles when it asks, and kills it when it does not.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a system call on numbers alone.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What the instruction for it reads: palette 1, and for each of eight tiles its rows and their bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE_TILES: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (row_bytes[i], rows[i]) = (64, 16);
        i += 1;
    }
    Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes,
        rows,
    }
};

/// The calling thread's tiles, all whole, until it is dropped.
pub(crate) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// [`is_present`] said yes, and the thread has no other `Tiles`.
    pub(crate) unsafe fn new() -> Tiles {
        // SAFETY: reads 64 bytes; the instruction is there, by the caller's word.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE_TILES, options(nostack, preserves_flags, readonly))
        };
        Tiles(PhantomData)
    }

    /// `c` = or += the sum over `parts` of the products of their tiles: 32 rows times 32 columns.
    ///
    /// `c` is four tiles `[16][16]`: rows 0 to 15 times columns 0 to 15, times columns 16 to 31, and the other rows
    /// likewise. Each part is `n_steps` times two tiles of A, one under the other, and as many times two of B, one beside
    /// the other.
    ///
    /// # Safety
    /// Each pointer of `parts` is valid for reads of `n_steps * 2 * TILE` elements.
    pub(crate) unsafe fn multiply(
        &self,
        c: &mut [f32; SIDE * SIDE],
        start: Start,
        parts: &[Part],
        n_steps: usize,
    ) {
        if parts.is_empty() || n_steps == 0 {
            if start == Start::Zero {
                c.fill(0.0);
            }
            return;
        }
        // SAFETY: reads what the caller vouches for; `c` has four tiles of 1 KiB. `self` is the proof that tiles are
        // there and whole. The compiler uses no tiles of its own.
        unsafe {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 20f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 30f",
                "20:",
                "tileloadd tmm0, [{c} + {row}]",
                "tileloadd tmm1, [{c} + {row} + 1024]",
                "tileloadd tmm2, [{c} + {row} + 2048]",
                "tileloadd tmm3, [{c} + {row} + 3072]",
                "30:",
                "mov {a}, [{part}]",
                "mov {b}, [{part} + 8]",
                "mov {step}, {n_steps}",
                "40:",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {step}",
                "jnz 40b",
                "add {part}, 16",
                "dec {n_parts}",
                "jnz 30b",
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 1024], tmm1",
                "tilestored [{c} + {row} + 2048], tmm2",
                "tilestored [{c} + {row} + 3072], tmm3",
                c = in(reg) c.as_mut_ptr(),
                row = in(reg) 64usize,
                add = in(reg) u64::from(start == Start::Old),
                part = inout(reg) parts.as_ptr() => _,
                n_parts = inout(reg) parts.len() => _,
                n_steps = in(reg) n_steps,
                a = out(reg) _,
                b = out(reg) _,
                step = out(reg) _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles are there, or there would be no `Tiles`.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// What sums start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Zero,
    Old,
}

/// Where the tiles of one product begin. `repr(C)`, since assembly reads it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Part {
    pub(crate) a: *const u16,
    pub(crate) b: *const u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn widen(x: u16) -> f32 {
        f32::from_bits(u32::from(x) << 16)
    }

    /// The specification: as the instruction, products of even and of odd elements are summed apart.
    fn scalar(c: &mut [f32; SIDE * SIDE], start: Start, parts: &[(&[u16], &[u16])]) {
        if start == Start::Zero {
            c.fill(0.0);
        }
        for (a, b) in parts {
            for (a, b) in a.chunks_exact(2 * TILE).zip(b.chunks_exact(2 * TILE)) {
                for (i, c) in c.iter_mut().enumerate() {
                    let (tile, row, column) = (i / 256, i / 16 % 16, i % 16);
                    let (a, b) = (
                        &a[tile / 2 * TILE + 32 * row..],
                        &b[tile % 2 * TILE + 2 * column..],
                    );
                    let (mut even, mut odd) = (0.0f32, 0.0f32);
                    for k in 0..16 {
                        even = widen(a[2 * k]).mul_add(widen(b[32 * k]), even);
                        odd = widen(a[2 * k + 1]).mul_add(widen(b[32 * k + 1]), odd);
                    }
                    *c += even + odd;
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn equals_its_scalar_twin(n_steps in 0usize..5, n_parts in 0usize..4, old: bool, seed: u64) {
            if !is_present() {
                return Ok(());
            }
            let mut state = seed | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / 8_388_608.0 - 1.0
            };
            let mut tiles = || -> Vec<u16> {
                (0..n_steps * 2 * TILE).map(|_| half::bf16::from_f32(number()).to_bits()).collect()
            };
            let operands: Vec<(Vec<u16>, Vec<u16>)> = (0..n_parts).map(|_| (tiles(), tiles())).collect();
            let mut got = Box::new([0.0; SIDE * SIDE]);
            got.iter_mut().enumerate().for_each(|(i, c)| *c = (i as f32).sin());
            let mut want = got.clone();
            let start = if old { Start::Old } else { Start::Zero };
            let parts: Vec<Part> = operands.iter().map(|(a, b)| Part { a: a.as_ptr(), b: b.as_ptr() }).collect();
            // SAFETY: `is_present`, and each side has `n_steps` times two tiles.
            unsafe { Tiles::new().multiply(&mut got, start, &parts, n_steps) };
            let operands: Vec<(&[u16], &[u16])> = operands.iter().map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
            scalar(&mut want, start, &operands);
            prop_assert!(got.iter().zip(want.iter()).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
