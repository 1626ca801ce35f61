//! The sampler's random numbers: xoshiro256++ seeded by SplitMix64.
//!
//! The generator is written here, and not taken from a crate, so that a seed keeps its meaning: the same seed
//! gives the same text in every later version of carat on the same logits. Changing anything in this file
//! breaks that promise; the tests pin the sequence.
//!
//! Both generators are by Blackman and Vigna (2018, "Scrambled linear pseudorandom number generators"); the
//! constants are theirs.

/// A stream of random numbers that a seed determines.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of `seed`. Every seed is as good as any other, 0 included.
    pub(crate) fn new(seed: u64) -> Self {
        let mut counter = seed;
        let state = std::array::from_fn(|_| {
            counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = counter;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state }
    }

    /// 64 random bits.
    fn next_bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `[0, 1)`, of 53 random bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact in an f64")]
    pub(crate) fn next_unit(&mut self) -> f64 {
        (self.next_bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_one_two_three_four_gives_the_published_sequence() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let bits: Vec<u64> = (0..4).map(|_| random.next_bits()).collect();
        assert_eq!(
            bits,
            [
                41_943_041,
                58_720_359,
                3_588_806_011_781_223,
                3_591_011_842_654_386
            ]
        );
    }

    #[test]
    fn seed_zero_gives_the_published_state() {
        let random = Random::new(0);
        assert_eq!(random.state[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.state[1], 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn numbers_fill_the_unit_interval_evenly() {
        let mut random = Random::new(7);
        let mut bins = [0u32; 10];
        for _ in 0..100_000 {
            let unit = random.next_unit();
            assert!((0.0..1.0).contains(&unit));
            bins[(unit * 10.0) as usize] += 1;
        }
        // A bin's standard deviation is 95: five of them.
        assert!(bins.iter().all(|&n| n.abs_diff(10_000) < 475), "{bins:?}");
    }
}
