//! The number formats that weights come in, with their sizes. Layouts are documented in `quant/`.

use std::fmt;

/// How the numbers of a tensor are stored. Names and ids are those of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the variants are the names of the formats")]
#[expect(non_camel_case_types, reason = "the names users know")]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// One row of the format table: format, GGUF id, elements per block, bytes per block, name.
type Row = (DType, u32, usize, usize, &'static str);

const TABLE: [Row; 15] = [
    (DType::F32, 0, 1, 4, "F32"),
    (DType::F16, 1, 1, 2, "F16"),
    (DType::BF16, 30, 1, 2, "BF16"),
    (DType::Q4_0, 2, 32, 18, "Q4_0"),
    (DType::Q4_1, 3, 32, 20, "Q4_1"),
    (DType::Q5_0, 6, 32, 22, "Q5_0"),
    (DType::Q5_1, 7, 32, 24, "Q5_1"),
    (DType::Q8_0, 8, 32, 34, "Q8_0"),
    (DType::Q2_K, 10, 256, 84, "Q2_K"),
    (DType::Q3_K, 11, 256, 110, "Q3_K"),
    (DType::Q4_K, 12, 256, 144, "Q4_K"),
    (DType::Q5_K, 13, 256, 176, "Q5_K"),
    (DType::Q6_K, 14, 256, 210, "Q6_K"),
    (DType::IQ4_NL, 20, 32, 18, "IQ4_NL"),
    (DType::IQ4_XS, 23, 256, 136, "IQ4_XS"),
];

impl DType {
    /// Every format, in the order of the table above.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The format with this GGUF type id, if carat reads it.
    #[must_use]
    pub fn from_gguf_id(id: u32) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The format with this name, in any letter case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE
            .iter()
            .find(|row| row.4.eq_ignore_ascii_case(name))
            .map(|row| row.0)
    }

    /// The GGUF type id.
    #[must_use]
    pub fn gguf_id(self) -> u32 {
        self.row().1
    }

    /// Elements per block; a row's length must be a multiple of it.
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The name people know, such as `Q4_K`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().4
    }

    /// True for formats with a block scale, false for F32, F16 and BF16.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of `n` elements. `None` when `n` is not a whole number of blocks or the size overflows.
    #[must_use]
    pub fn bytes_for(self, n: usize) -> Option<usize> {
        let (len, bytes) = (self.block_len(), self.block_bytes());
        if !n.is_multiple_of(len) {
            None
        } else {
            (n / len).checked_mul(bytes)
        }
    }

    const fn row(self) -> &'static Row {
        // The table is written in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(DType::from_gguf_id(row.1), Some(row.0));
            assert_eq!(DType::from_name(&row.4.to_lowercase()), Some(row.0));
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(DType::Q4_K.bytes_for(512), Some(288));
        assert_eq!(DType::Q4_K.bytes_for(100), None);
        assert_eq!(DType::F32.bytes_for(usize::MAX), None);
    }
}
