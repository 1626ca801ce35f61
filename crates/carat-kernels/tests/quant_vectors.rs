//! The number formats against vectors of the reference decoder, and the bounds that encoding keeps.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use carat_kernels::{DType, QuantError, dequantize, quantize};
use proptest::prelude::*;

/// Half a unit in the last place of f16, relative to the value: 11 significant bits.
const F16_ROUNDING: f32 = 1.0 / 2048.0;
/// The same for BF16, which has 8 significant bits.
const BF16_ROUNDING: f32 = 1.0 / 256.0;

fn writable() -> impl Iterator<Item = DType> {
    DType::all().filter(|d| !matches!(d, DType::IQ4_NL | DType::IQ4_XS))
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xa5; dtype.bytes_for(values.len()).unwrap()];
    quantize(dtype, values, &mut bytes).unwrap();
    bytes
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dequantize(dtype, bytes, &mut values).unwrap();
    values
}

fn round_trip(dtype: DType, values: &[f32]) -> Vec<f32> {
    decode(dtype, &encode(dtype, values))
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max: f32, v| max.max(v.abs()))
}

/// Numbers in `-1 .. 1` that are the same in every run.
fn uniform(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Sums of twelve uniform numbers: normal enough, with a standard deviation of 2.
fn normal(n: usize) -> Vec<f32> {
    uniform(12 * n)
        .chunks_exact(12)
        .map(|twelve| twelve.iter().sum())
        .collect()
}

/// Root mean square of `a - b`, relative to that of `b`.
fn distortion(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    (error / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

#[test]
fn blocks_decode_to_the_reference_values() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/quant/quant_vectors.json"
    );
    let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut n_checked = 0;
    for vector in vectors.as_array().unwrap() {
        let Some(dtype) = DType::from_name(vector["type"].as_str().unwrap()) else {
            continue;
        };
        let hex = vector["block_hex"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect();
        let expected: Vec<f32> = vector["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(decode(dtype, &bytes), expected, "{dtype}");
        n_checked += 1;
    }
    assert_eq!(n_checked, 12);
}

#[test]
fn plain_floats_round_to_nearest_even() {
    let check = |dtype, value: f32, expected: u16| {
        assert_eq!(encode(dtype, &[value]), expected.to_le_bytes(), "{dtype} {value}");
    };
    // Ties: the even neighbour wins, below and above.
    check(DType::F16, 1.0 + 1.0 / 2048.0, 0x3c00);
    check(DType::F16, 1.0 + 3.0 / 2048.0, 0x3c02);
    check(DType::F16, 1.0 + 1.0 / 2048.0 + f32::EPSILON, 0x3c01);
    check(DType::BF16, 1.0 + 1.0 / 256.0, 0x3f80);
    check(DType::BF16, 1.0 + 3.0 / 256.0, 0x3f82);
    check(DType::BF16, 1.0 + 1.0 / 256.0 + f32::EPSILON, 0x3f81);
    // Signs, subnormals and the largest values.
    check(DType::F16, -0.0, 0x8000);
    check(DType::F16, 6.0e-8, 0x0001);
    check(DType::F16, -65504.0, 0xfbff);
    check(DType::BF16, -2.0, 0xc000);
    check(DType::BF16, f32::from_bits(0x7f7f_7fff), 0x7f7f);
}

#[test]
fn plain_floats_keep_their_derived_bounds() {
    let data = normal(1000);
    assert_eq!(round_trip(DType::F32, &data), data);
    for (dtype, rounding) in [(DType::F16, F16_ROUNDING), (DType::BF16, BF16_ROUNDING)] {
        for (v, d) in data.iter().zip(round_trip(dtype, &data)) {
            assert!((v - d).abs() <= v.abs() * rounding, "{dtype}: {v} became {d}");
        }
    }
}

/// For every element: rounding on the grid leaves half a step; the outermost value of a grid without its
/// positive end (Q4_0, Q5_0) leaves a whole one. On top of that the stored scale is off by 2⁻¹¹ of itself,
/// which counts once per level, and so is the stored minimum.
#[test]
fn simple_formats_keep_their_derived_bounds() {
    let data = normal(32 * 512);
    for (dtype, steps, levels, has_min) in [
        (DType::Q4_0, 1.0, 8.0, false),
        (DType::Q4_1, 0.5, 15.0, true),
        (DType::Q5_0, 1.0, 16.0, false),
        (DType::Q5_1, 0.5, 31.0, true),
        (DType::Q8_0, 0.5, 127.0, false),
    ] {
        for (block, decoded) in data.chunks(32).zip(round_trip(dtype, &data).chunks(32)) {
            let top = largest(block);
            let (min, max) = block
                .iter()
                .fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
            let (width, offset) = if has_min {
                (max - min, min.abs())
            } else {
                (top, 0.0)
            };
            let bound = width / levels * (steps + levels * F16_ROUNDING)
                + offset * F16_ROUNDING
                + top * 4.0 * f32::EPSILON;
            for (v, d) in block.iter().zip(decoded) {
                assert!((v - d).abs() <= bound, "{dtype}: {v} became {d}, bound {bound}");
            }
        }
    }
}

/// The searched formats have no bound per element. Their distortion on normal data may exceed that of the
/// reference encoders on such data by one percent.
#[test]
fn searched_formats_are_as_good_as_the_reference() {
    let data = normal(256 * 256);
    for (dtype, reference) in [
        (DType::Q2_K, 0.2963),
        (DType::Q3_K, 0.1509),
        (DType::Q4_K, 0.0714),
        (DType::Q5_K, 0.0361),
        (DType::Q6_K, 0.0178),
    ] {
        let found = distortion(&round_trip(dtype, &data), &data);
        assert!(found <= reference * 1.01, "{dtype}: {found}");
    }
}

#[test]
fn more_bits_are_never_worse() {
    let data = normal(256 * 64);
    let order = [
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::Q8_0,
        DType::F16,
    ];
    let found: Vec<f64> = order
        .iter()
        .map(|&d| distortion(&round_trip(d, &data), &data))
        .collect();
    assert!(found.is_sorted_by(|a, b| a > b), "{found:?}");
}

#[test]
fn zeros_stay_zeros() {
    for dtype in writable() {
        assert_eq!(round_trip(dtype, &[0.0; 512]), [0.0; 512], "{dtype}");
        assert_eq!(round_trip(dtype, &[-0.0; 512]), [0.0; 512], "{dtype}");
    }
}

/// One number everywhere needs no grid: only the rounding of scale and sub-scale is left.
#[test]
fn constant_blocks_keep_their_value() {
    for dtype in writable() {
        for value in [1.0, -1.0, 0.037, -812.5] {
            for decoded in round_trip(dtype, &[value; 256]) {
                assert!(
                    (decoded - value).abs() <= value.abs() * BF16_ROUNDING,
                    "{dtype}: {value} {decoded}"
                );
            }
        }
    }
}

/// A single outlier must not be lost, and the zeros around it must stay next to nothing.
#[test]
fn lone_values_survive() {
    for dtype in writable() {
        for value in [3.0, -3.0, 65504.0, -65504.0] {
            let mut data = [0.0; 256];
            data[77] = value;
            for (i, (d, v)) in round_trip(dtype, &data).iter().zip(data).enumerate() {
                assert!(
                    (d - v).abs() <= value.abs() * BF16_ROUNDING,
                    "{dtype}: value {i} is {d}"
                );
            }
        }
    }
}

/// Below the smallest f16 scale values fade to zero; they never become infinite, nor grow beyond the doubling
/// that rounding the smallest scale up can cause.
#[test]
fn tiny_values_fade() {
    let shape = normal(256);
    for dtype in writable() {
        for size in [1e-3, 1e-5, 1e-7, 1e-9, 1e-20, 1e-38, 1e-44] {
            let data: Vec<f32> = shape.iter().map(|v| v * size).collect();
            for decoded in round_trip(dtype, &data) {
                assert!(
                    decoded.abs() <= 2.0 * largest(&data) + 6e-8,
                    "{dtype} at {size}: {decoded}"
                );
            }
        }
    }
}

/// A checkpoint trained for Q4_0 lies on its grid; encoding must find the very same blocks.
#[test]
fn the_grid_of_trained_q4_0_is_kept() {
    let mut blocks = Vec::new();
    for (n, sixteen) in uniform(16 * 64).chunks(16).enumerate() {
        blocks.extend_from_slice(&(0x2800 + 37 * n as u16).to_le_bytes());
        blocks.extend(sixteen.iter().map(|v| (v.abs() * 255.0) as u8));
        // Level -8 is the outermost one; without it the grid cannot be known from the values.
        *blocks.last_mut().unwrap() &= 0xf0;
    }
    assert_eq!(encode(DType::Q4_0, &decode(DType::Q4_0, &blocks)), blocks);
}

#[test]
fn bad_values_are_named() {
    for dtype in writable() {
        let mut bytes = vec![0; dtype.bytes_for(512).unwrap()];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut data = [0.5; 512];
            data[300] = bad;
            match quantize(dtype, &data, &mut bytes) {
                Err(QuantError::NotFinite { index: 300, value }) => {
                    assert_eq!(value.to_bits(), bad.to_bits())
                }
                other => panic!("{dtype}: {other:?}"),
            }
        }
    }
}

#[test]
fn values_beyond_f16_are_refused_where_they_cannot_be_held() {
    for dtype in writable() {
        let mut data = [0.5; 256];
        data[3] = -1e6;
        let result = quantize(dtype, &data, &mut vec![0; dtype.bytes_for(256).unwrap()]);
        if matches!(dtype, DType::F32 | DType::BF16) {
            assert_eq!(result, Ok(()));
        } else {
            let text = result.unwrap_err().to_string();
            assert!(
                text.contains("value 3 is -1000000") && text.contains(dtype.name()),
                "{text}"
            );
        }
    }
}

#[test]
fn read_only_formats_say_so() {
    let error = quantize(DType::IQ4_NL, &[0.0; 32], &mut [0; 18]).unwrap_err();
    assert_eq!(error, QuantError::ReadOnly { dtype: DType::IQ4_NL });
}

#[test]
fn lengths_must_match() {
    for dtype in DType::all() {
        let (n, size) = (2 * dtype.block_len(), 2 * dtype.block_bytes());
        for (n_values, n_bytes) in [
            (n, size - 1),
            (n, size + 1),
            (n - 1, size),
            (n + 1, size),
            (0, size),
            (n, 0),
        ] {
            let error = QuantError::Length {
                dtype,
                n_values,
                n_bytes,
            };
            assert_eq!(
                dequantize(dtype, &vec![0; n_bytes], &mut vec![0.0; n_values]),
                Err(error.clone())
            );
            assert_eq!(
                quantize(dtype, &vec![0.0; n_values], &mut vec![0; n_bytes]),
                Err(error)
            );
        }
        assert_eq!(dequantize(dtype, &[], &mut []), Ok(()));
    }
}

proptest! {
    #[test]
    fn any_bytes_decode(bytes in proptest::collection::vec(any::<u8>(), 4 * 256)) {
        for dtype in DType::all() {
            let bytes = &bytes[..bytes.len() / dtype.block_bytes() * dtype.block_bytes()];
            prop_assert!(!decode(dtype, bytes).is_empty());
        }
    }

    #[test]
    fn any_bits_encode_to_finite_values_or_an_error(bits in proptest::collection::vec(any::<u32>(), 256)) {
        let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
        for dtype in writable() {
            let mut bytes = vec![0; dtype.bytes_for(256).unwrap()];
            if quantize(dtype, &values, &mut bytes).is_ok() {
                prop_assert!(decode(dtype, &bytes).iter().all(|v| v.is_finite()));
            }
        }
    }

    /// Exponents all over the range that is accepted, mixed in one block.
    #[test]
    fn mixed_magnitudes_stay_bounded(parts in proptest::collection::vec((-1.0_f32..1.0, -149_i32..16), 256)) {
        let values: Vec<f32> = parts.iter().map(|&(v, e)| v * 2.0_f32.powi(e)).collect();
        for dtype in writable() {
            for decoded in round_trip(dtype, &values) {
                prop_assert!(decoded.abs() <= 2.0 * largest(&values) + 6e-8, "{} {}", dtype, decoded);
            }
        }
    }
}
