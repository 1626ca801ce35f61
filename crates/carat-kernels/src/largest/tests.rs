//! What is found is what sorting whole rows of products would find.

use proptest::prelude::*;

use super::*;
use crate::matmul::tests::{Case, any_dtype};
use crate::{DType, Isa};

/// The `k` largest of a row of products, by sorting it.
fn sorted(products: &[f32], k: usize) -> Vec<RowProduct> {
    let mut all: Vec<RowProduct> = (0..)
        .zip(products)
        .map(|(row, product)| RowProduct {
            row,
            product: *product,
        })
        .collect();
    all.retain(|found| found.product.is_finite());
    all.sort_by(by_product);
    all.truncate(k);
    all
}

fn find(case: &Case, isa: Isa, precision: Precision, n_threads: usize, k: &[usize]) -> Vec<Vec<RowProduct>> {
    let compute = Compute::new(isa, n_threads).unwrap();
    let weights = Matrix::new(case.dtype, case.n_rows, case.n_cols, &case.bytes).unwrap();
    let (mut memory, mut found) = (Largest::new(precision), Vec::new());
    // The second time, the memory is used.
    for _ in 0..2 {
        let longest_row = || compute.longest_row(weights);
        compute.largest(&mut memory, &case.x, weights, longest_row, k, &mut found);
    }
    found
}

/// The products of each activation row alone, `[n_x, n_rows]`.
fn alone(case: &Case, isa: Isa, precision: Precision) -> Vec<f32> {
    let rows = case.x.chunks_exact(case.n_cols).map(|x| Case {
        n_x: 1,
        bytes: case.bytes.clone(),
        x: x.to_vec(),
        ..*case
    });
    rows.flat_map(|row| row.multiply(isa, precision, 1)).collect()
}

/// All sets, the tiles of AMX too, whose rounding the first look allows for.
fn check(case: &Case, k: &[usize], n_threads: usize) {
    for isa in Isa::available() {
        for precision in [Precision::Int16, Precision::Int8, Precision::F32] {
            let n_few = Compute::new(isa, 1).unwrap().n_few();
            let is_screened =
                precision == Precision::Int16 && case.dtype.is_quantized() && case.n_x >= SCREEN_MIN_X;
            let products = if is_screened || case.n_x <= n_few {
                alone(case, isa, precision)
            } else {
                case.multiply(isa, precision, 1)
            };
            let found = find(case, isa, precision, n_threads, k);
            assert_eq!(found.len(), case.n_x);
            for (t, (found, row)) in found.iter().zip(products.chunks_exact(case.n_rows)).enumerate() {
                assert_eq!(
                    *found,
                    sorted(row, k[t]),
                    "{isa} {precision:?} {} row {t} of {}",
                    case.dtype,
                    case.n_x
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn each_set_sees_what_is_above(
        block in prop::collection::vec(prop_oneof![8 => -2f32..2.0, 1 => Just(f32::NAN), 1 => Just(1.0f32)], 1..=BLOCK),
        bar in prop_oneof![Just(1.0f32), Just(f32::NEG_INFINITY), -2f32..2.0],
    ) {
        for isa in Isa::available() {
            let bits = above(isa, &block, bar);
            for i in 0..BLOCK {
                let is_above = block.get(i).is_some_and(|product| *product > bar);
                prop_assert_eq!(bits >> i & 1 == 1, is_above, "{} {}", isa, i);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_largest_equal_those_of_whole_rows(
        dtype in any_dtype(), n_rows in 1usize..700, n_x in 1usize..24, which: usize, seed: u64,
        most in 0usize..300, n_threads in 1usize..4,
    ) {
        let case = Case::new(dtype, n_rows, n_x, which, seed, false);
        let k: Vec<usize> = (0..n_x).map(|t| most / (t + 1)).collect();
        check(&case, &k, n_threads);
    }

    /// Products that differ by less than what 8 bits can tell apart, and equal ones.
    #[test]
    fn close_calls_are_decided_in_full_precision(
        dtype in any_dtype(), n_x in 1usize..20, which: usize, seed: u64, n_equal in 1usize..4,
    ) {
        let mut case = Case::new(dtype, 300, n_x, which, seed, false);
        // Rows that are like the first but for one block, and the same once more.
        let row_len = case.bytes.len() / case.n_rows;
        let block = dtype.block_bytes();
        for row in 1..case.n_rows {
            let (first, rest) = case.bytes.split_at_mut(row_len);
            let own = &mut rest[(row - 1) * row_len..][..row_len];
            let changed = row / n_equal % (row_len / block) * block..;
            let kept = own[changed.clone()][..block].to_vec();
            own.copy_from_slice(first);
            own[changed][..block].copy_from_slice(&kept);
        }
        check(&case, &vec![5; n_x], 2);
    }
}

#[test]
fn what_is_no_number_is_not_found_and_hides_nothing() {
    for dtype in [DType::Q8_0, DType::Q6_K, DType::Q4_K] {
        for n_x in [1, 5, 20] {
            // Whole chunks: what is read past a row's end would spoil the rows before.
            let mut case = Case::new(dtype, 40, n_x, 3, 3, false);
            let row = case.bytes.len() / 40;
            case.bytes[17 * row..18 * row].fill(0xff);
            case.x[0] = f32::NAN;
            for isa in Isa::available() {
                let found = find(&case, isa, Precision::Int16, 2, &vec![100; n_x]);
                for (t, found) in found.iter().enumerate() {
                    let expected = if t == 0 { 0 } else { 39 };
                    assert_eq!(found.len(), expected, "{isa} {dtype} row {t} of {n_x}");
                    assert!(found.iter().all(|found| found.row != 17));
                }
            }
        }
    }
}

#[test]
fn rows_too_long_for_a_bound_are_looked_at_in_full_precision() {
    let mut case = Case::new(DType::Q8_0, 64, 6, 3, 5, false);
    let (n_cols, n_rows) = (case.n_cols, case.n_rows);
    let mut huge = vec![0.0; n_rows * n_cols];
    for (i, value) in huge.iter_mut().enumerate() {
        *value = 1e19 * ((i % 13) as f32 - 6.0);
    }
    let weights: Vec<u8> = huge.iter().flat_map(|value| value.to_le_bytes()).collect();
    let compute = Compute::new(Isa::detect(), 2).unwrap();
    let floats = Matrix::new(DType::F32, n_rows, n_cols, &weights).unwrap();
    assert_eq!(compute.longest_row(floats), f32::INFINITY);
    let quantized = Matrix::new(case.dtype, n_rows, n_cols, &case.bytes).unwrap();
    let (mut memory, mut found) = (Largest::new(Precision::Int16), Vec::new());
    case.x.truncate(6 * n_cols);
    compute.largest(
        &mut memory,
        &case.x,
        quantized,
        || f32::INFINITY,
        &[9; 6],
        &mut found,
    );
    let products = alone(&case, Isa::detect(), Precision::Int16);
    for (found, row) in found.iter().zip(products.chunks_exact(n_rows)) {
        assert_eq!(*found, sorted(row, 9));
    }
}

#[test]
fn the_longest_row_is_at_least_as_long_as_each() {
    for dtype in DType::all() {
        let case = Case::new(dtype, 600, 1, 1, 11, false);
        let mut values = vec![0.0; case.n_rows * case.n_cols];
        dequantize(dtype, &case.bytes, &mut values).unwrap();
        let lengths = values
            .chunks_exact(case.n_cols)
            .map(|row| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt());
        let longest = lengths.fold(0.0, f64::max);
        let weights = Matrix::new(dtype, case.n_rows, case.n_cols, &case.bytes).unwrap();
        for n_threads in [1, 3] {
            let compute = Compute::new(Isa::detect(), n_threads).unwrap();
            let got = f64::from(compute.longest_row(weights));
            assert!(
                got >= longest && got < longest * 1.01,
                "{dtype}: {got} of {longest}"
            );
        }
    }
}

/// Rows whose roundings to bf16 all go one way, for the largest product down and for another up: by nearly 2^-8 of itself in
/// the weights and as much in the activations. Of the sets only AMX rounds so, with as many rows.
#[test]
fn roundings_that_all_go_one_way_hide_nothing() {
    const N_COLS: usize = 1024;
    let x = |i: usize| {
        if i < N_COLS / 2 {
            1.0 + 1.0 / 256.0
        } else {
            1.00391
        }
    };
    let row = |scale: f32, code: &dyn Fn(usize) -> i8| -> Vec<u8> {
        let block = |b: usize| {
            let codes = (32 * b..32 * (b + 1)).map(|i| code(i).cast_unsigned());
            let scale = half::f16::from_f32(scale).to_le_bytes();
            scale.into_iter().chain(codes).collect::<Vec<u8>>()
        };
        (0..N_COLS / 32).flat_map(block).collect()
    };
    let first = row(0.007_904_053, &|i| if i < 512 { 127 } else { 0 });
    let second = row(0.008_033_752, &|i| if (512..1015).contains(&i) { 127 } else { 0 });
    let case = Case {
        dtype: DType::Q8_0,
        n_rows: 2,
        n_cols: N_COLS,
        n_x: 17,
        bytes: [first, second].concat(),
        x: (0..17).flat_map(|_| (0..N_COLS).map(x)).collect(),
    };
    check(&case, &[1; 17], 2);
}
