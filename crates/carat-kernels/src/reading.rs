//! Reading memory and nothing else: the limit that decode is measured against.
//!
//! Every thread reads its parts in four streams, the fastest way on the machines measured. What other programs leave of
//! the bandwidth changes by the second on a shared machine, so a measurement reads in turns with what it measures.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Pool;

/// Bytes that a thread takes at a time: some 10 µs.
const PART: usize = 256 << 10;
const STREAMS: usize = 4;
const LINE: usize = 64;

/// Reads all of `bytes` once with all threads of `pool`. The result depends on every byte, so that none can be left out;
/// it means nothing else.
#[must_use]
pub fn read_once(pool: &Pool, bytes: &[u8]) -> u64 {
    let sum = AtomicU64::new(0);
    pool.run(bytes.len().div_ceil(PART), &|_, part| {
        let part = &bytes[part * PART..bytes.len().min((part + 1) * PART)];
        sum.fetch_xor(read_part(part), Ordering::Relaxed);
    });
    sum.into_inner()
}

fn read_part(bytes: &[u8]) -> u64 {
    let n_lines = bytes.len() / (STREAMS * LINE);
    let (streams, rest) = bytes.split_at(STREAMS * LINE * n_lines);
    let stream = |s: usize| {
        streams[s * LINE * n_lines..(s + 1) * LINE * n_lines]
            .as_chunks::<LINE>()
            .0
    };
    let lines = stream(0).iter().zip(stream(1)).zip(stream(2)).zip(stream(3));
    let mut sums = [[0_u64; LINE / 8]; STREAMS];
    for (((a, b), c), d) in lines {
        for (line, sums) in [a, b, c, d].into_iter().zip(&mut sums) {
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum ^= u64::from_ne_bytes(*word);
            }
        }
    }
    let rest = rest.iter().fold(0, |sum, &byte| sum ^ u64::from(byte));
    sums.as_flattened().iter().fold(rest, |a, b| a ^ b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let pool = Pool::new(2).unwrap();
        for n in [0, 1, 63, 64, 256, 257, PART - 1, PART, 2 * PART + 300] {
            let mut bytes = vec![0_u8; n];
            assert_eq!(read_once(&pool, &bytes), 0);
            for at in [0, n / 3, n / 2, n.saturating_sub(1)] {
                if at < n {
                    bytes[at] = 1;
                    assert_ne!(read_once(&pool, &bytes), 0, "byte {at} of {n}");
                    bytes[at] = 0;
                }
            }
        }
    }
}
