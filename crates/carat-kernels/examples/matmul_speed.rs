//! How fast each weight format is multiplied, beside the machine's limits.
//!
//! ```text
//! cargo run --release -p carat-kernels --example matmul_speed -- [FORMAT,..] [ROWS,..] [ISA] [int8|int16] [MIB] [COLUMNS]
//! ```
//!
//! For each format and number of activation rows: the time of one pass over a matrix (256 MiB, which no cache holds),
//! the bytes of weights read a second, the operations a second, the time beside that of one activation row, and beside
//! that of reading the same memory with all threads and nothing else, measured in turns with it, since a machine's
//! bandwidth changes by the minute where others use it too. Medians of several passes.

use std::hint::black_box;
use std::time::Instant;

use carat_kernels::{Activations, Compute, DType, Isa, Matrix, Precision, Product, read_once};

#[expect(
    clippy::print_stdout,
    reason = "a report on the terminal is what this example is for"
)]
fn say(line: &str) {
    println!("{line}");
}

/// Bytes that are valid blocks of every format: small f16 scales wherever a scale may be, noise elsewhere.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = vec![0; n];
    for pair in bytes.chunks_exact_mut(2) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // The upper byte of an f16 below 0x78 is never an infinity.
        pair.copy_from_slice(&[(state >> 56) as u8, (state >> 48) as u8 & 0x2F]);
    }
    bytes
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let formats = arguments.next().unwrap_or_else(|| "q4_0,q4_k,q6_k,q8_0".into());
    let rows = arguments.next().unwrap_or_else(|| "1,2,4,8,16,512".into());
    let isa = arguments
        .next()
        .map_or(Ok(Isa::detect()), |name| Isa::named(&name))?;
    let precision = match arguments.next().as_deref() {
        Some("int16") => Precision::Int16,
        _ => Precision::Int8,
    };
    let weight_bytes = arguments.next().map_or(Ok(256), |mib| mib.parse::<usize>())? << 20;
    // Those of a 12B's hidden state.
    let n_cols = arguments.next().map_or(Ok(3840), |n| n.parse::<usize>())?;
    let compute = Compute::new(isa, carat_kernels::physical_cores())?;
    say(&format!(
        "{isa}, {} threads, {precision:?}",
        compute.pool().n_threads()
    ));
    for format in formats.split(',') {
        let dtype = DType::from_name(format).ok_or("no such format")?;
        let row_bytes = dtype.bytes_for(n_cols).ok_or("no whole rows")?;
        let n_rows = weight_bytes / row_bytes;
        let bytes = noise(n_rows * row_bytes);
        let weights = Matrix::new(dtype, n_rows, n_cols, &bytes)?;
        let mut single = f64::NAN;
        for n_x in rows.split(',') {
            let n_x: usize = n_x.parse()?;
            let x: Vec<f32> = (0..n_x * n_cols).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut activations = Activations::new(precision);
            activations.fill(&compute, &x, n_x, n_cols, &[weights]);
            let mut out = vec![0.0; n_x * n_rows];
            let (mut times, mut shares) = (Vec::new(), Vec::new());
            for _ in 0..if n_x > 64 { 5 } else { 31 } {
                let start = Instant::now();
                black_box(read_once(compute.pool(), &bytes));
                let read = start.elapsed().as_secs_f64();
                let start = Instant::now();
                compute.multiply(
                    &activations,
                    &mut [Product {
                        weights,
                        out: &mut out,
                    }],
                );
                times.push(start.elapsed().as_secs_f64());
                shares.push(read / times[times.len() - 1]);
            }
            let (time, share) = (median(times), median(shares));
            if n_x == 1 {
                single = time;
            }
            let operations = (2 * n_x * n_rows * n_cols) as f64;
            say(&format!(
                "{dtype:8} {n_x:4} rows {:8.2} ms  {:6.1} GB/s  {:6.3} Tops/s  {:5.2} x  {:3.0} % of reading",
                time * 1e3,
                bytes.len() as f64 / time / 1e9,
                operations / time / 1e12,
                time / single,
                100.0 * share,
            ));
        }
    }
    Ok(())
}
