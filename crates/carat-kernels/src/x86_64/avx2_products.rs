//! Sums of products of a tile, [`TILE_ROWS`] weight rows by [`TILE_X`] activation rows, in assembly: the compiler makes
//! trees of such sums, for which sixteen registers are too few, unless a loop keeps it from it, and then the loop's own
//! instructions are one in six.
//!
//! A step is one 32-bit lane of columns: four bytes or two words. Two registers of weights are loaded for it, and a lane
//! of each activation row is broadcast; both go by the load ports, so that the others only multiply and add.

use std::arch::asm;
use std::arch::x86_64::*;

/// Weight rows of a tile: two registers.
pub(super) const TILE_ROWS: usize = 16;
/// Activation rows of a tile, which stand together in memory.
pub(crate) const TILE_X: usize = 3;

/// Sums of a tile, for each activation row the first and the last eight weight rows.
pub(super) type Sums = [[__m256i; 2]; TILE_X];

/// No sums yet.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn zero() -> Sums {
    [[_mm256_setzero_si256(); 2]; TILE_X]
}

/// The two registers of weights of step `$k`.
macro_rules! weights {
    ($k:literal) => {
        concat!(
            "vmovdqa {w0}, [{w} + 64 * ",
            $k,
            "]\n",
            "vmovdqa {w1}, [{w} + 64 * ",
            $k,
            " + 32]\n",
        )
    };
}

/// Lane `$k` of an activation row that begins at `$at`.
macro_rules! lane {
    ($k:literal, $at:literal) => {
        concat!("vpbroadcastd {x0}, [{x} + 4 * ", $k, " + ", $at, "]\n")
    };
}

/// A step's products with one activation row, by an instruction that sets its first operand or adds to it.
macro_rules! straight {
    ($multiply:literal, $d0:literal, $d1:literal) => {
        concat!(
            $multiply,
            " {",
            $d0,
            "}, {w0}, {x0}\n",
            $multiply,
            " {",
            $d1,
            "}, {w1}, {x0}\n"
        )
    };
}

/// The same, added by an instruction of its own.
macro_rules! added {
    ($multiply:literal, $add:literal, $d0:literal, $d1:literal) => {
        concat!(
            $multiply,
            " {p0}, {w0}, {x0}\n",
            $add,
            " {",
            $d0,
            "}, {",
            $d0,
            "}, {p0}\n",
            $multiply,
            " {p0}, {w1}, {x0}\n",
            $add,
            " {",
            $d1,
            "}, {",
            $d1,
            "}, {p0}\n",
        )
    };
}

/// Steps: the first by `$first` alone, the others by `$next`, with an addition if one is named. `$row` are the beginnings
/// of the activation rows.
macro_rules! steps {
    ($row:tt, $first:literal, $next:literal, $add:literal, [$($k:literal)*]) => {
        concat!(steps!(@one $row, $first, "0"), $( steps!(@added $row, $next, $add, $k), )*)
    };
    ($row:tt, $first:literal, $next:literal, [$($k:literal)*]) => {
        concat!(steps!(@one $row, $first, "0"), $( steps!(@one $row, $next, $k), )*)
    };
    (@one [$x0:literal $x1:literal $x2:literal], $multiply:literal, $k:literal) => {
        concat!(
            weights!($k),
            lane!($k, $x0),
            straight!($multiply, "d0", "d1"),
            lane!($k, $x1),
            straight!($multiply, "d2", "d3"),
            lane!($k, $x2),
            straight!($multiply, "d4", "d5"),
        )
    };
    (@added [$x0:literal $x1:literal $x2:literal], $multiply:literal, $add:literal, $k:literal) => {
        concat!(
            weights!($k),
            lane!($k, $x0),
            added!($multiply, $add, "d0", "d1"),
            lane!($k, $x1),
            added!($multiply, $add, "d2", "d3"),
            lane!($k, $x2),
            added!($multiply, $add, "d4", "d5"),
        )
    };
}

/// `$n` steps of `$code`, as [`steps!`] takes it, on `$sums`; `$p` is the register of products, if it has additions.
macro_rules! run {
    ($n:expr, $row:tt, [$($code:literal),*], $sums:expr, $w:expr, $x:expr, [$($p:ident)*]) => {{
        let mut sums: Sums = $sums;
        match $n {
            2 => run!(@ steps!($row, $($code,)* ["1"]), sums, $w, $x, [$($p)*]),
            4 => run!(@ steps!($row, $($code,)* ["1" "2" "3"]), sums, $w, $x, [$($p)*]),
            8 => run!(@ steps!($row, $($code,)* ["1" "2" "3" "4" "5" "6" "7"]), sums, $w, $x, [$($p)*]),
            _ => {
                const { assert!(matches!($n, 2 | 4 | 8 | 16), "steps are written out for these numbers") };
                run!(
                    @ steps!(
                        $row, $($code,)*
                        ["1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"]
                    ),
                    sums, $w, $x, [$($p)*]
                );
            }
        }
        sums
    }};
    (@ $code:expr, $sums:ident, $w:expr, $x:expr, [$($p:ident)*]) => {{
        let [[d0, d1], [d2, d3], [d4, d5]] = &mut $sums;
        asm!(
            $code,
            w = in(reg) $w,
            x = in(reg) $x,
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            x0 = out(ymm_reg) _,
            $( $p = out(ymm_reg) _, )*
            d0 = inout(ymm_reg) *d0,
            d1 = inout(ymm_reg) *d1,
            d2 = inout(ymm_reg) *d2,
            d3 = inout(ymm_reg) *d3,
            d4 = inout(ymm_reg) *d4,
            d5 = inout(ymm_reg) *d5,
            options(pure, readonly, nostack, preserves_flags),
        );
    }};
}

/// `N` steps on bytes, unsigned codes by signed activations, in sums of 16 bits (`[8 rows][2]` a register), which the
/// products must fit.
///
/// # Safety
/// - AVX2 is there.
/// - `w` is aligned and valid for reads of `64 N` bytes, `x` and what follows it after 32 and 64 bytes for reads of `4 N`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn madd_bytes<const N: usize>(w: *const u8, x: *const i8) -> Sums {
    // SAFETY: reads what the caller vouches for, writes registers that are declared.
    unsafe { run!(N, ["0" "32" "64"], ["vpmaddubsw", "vpmaddubsw", "vpaddw"], zero(), w, x, [p0]) }
}

/// `N` steps on words.
///
/// # Safety
/// - AVX2 is there.
/// - `w` is aligned and valid for reads of `64 N` bytes, `x` and what follows it after 64 and 128 bytes for reads of `4 N`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn madd_words<const N: usize>(w: *const u8, x: *const i16) -> Sums {
    // SAFETY: as in `madd_bytes`.
    unsafe { run!(N, ["0" "64" "128"], ["vpmaddwd", "vpmaddwd", "vpaddd"], zero(), w, x, [p0]) }
}

/// As [`madd_bytes`] by AVX-VNNI, in 32 bits, added to `sums`.
///
/// # Safety
/// As there, and AVX-VNNI is there.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn vnni_bytes<const N: usize>(sums: Sums, w: *const u8, x: *const i8) -> Sums {
    // SAFETY: as in `madd_bytes`.
    unsafe { run!(N, ["0" "32" "64"], ["{{vex}} vpdpbusd", "{{vex}} vpdpbusd"], sums, w, x, []) }
}

/// As [`madd_words`], by AVX-VNNI.
///
/// # Safety
/// As there, and AVX-VNNI is there.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn vnni_words<const N: usize>(w: *const u8, x: *const i16) -> Sums {
    // SAFETY: as in `madd_bytes`.
    unsafe { run!(N, ["0" "64" "128"], ["{{vex}} vpdpwssd", "{{vex}} vpdpwssd"], zero(), w, x, []) }
}
