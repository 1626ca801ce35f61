//! The number formats that safetensors files name.

use carat_kernels::DType;

/// How the numbers of a tensor in a safetensors file are stored. All but three are for reading raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the names of the formats")]
#[expect(non_camel_case_types, reason = "the names in the files")]
pub enum SafeDType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F8_E4M3,
    F8_E5M2,
    F8_E8M0,
    F16,
    BF16,
    F32,
    F64,
    C64,
}

/// Format, name in the file, bytes of an element.
const TABLE: [(SafeDType, &str, usize); 17] = [
    (SafeDType::Bool, "BOOL", 1),
    (SafeDType::U8, "U8", 1),
    (SafeDType::I8, "I8", 1),
    (SafeDType::U16, "U16", 2),
    (SafeDType::I16, "I16", 2),
    (SafeDType::U32, "U32", 4),
    (SafeDType::I32, "I32", 4),
    (SafeDType::U64, "U64", 8),
    (SafeDType::I64, "I64", 8),
    (SafeDType::F8_E4M3, "F8_E4M3", 1),
    (SafeDType::F8_E5M2, "F8_E5M2", 1),
    (SafeDType::F8_E8M0, "F8_E8M0", 1),
    (SafeDType::F16, "F16", 2),
    (SafeDType::BF16, "BF16", 2),
    (SafeDType::F32, "F32", 4),
    (SafeDType::F64, "F64", 8),
    (SafeDType::C64, "C64", 8),
];

impl SafeDType {
    /// The format of this name.
    pub(super) fn from_name(name: &str) -> Option<SafeDType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The name in the file, such as `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        // The table is written in the order of the enum; a test holds it to that.
        TABLE[self as usize].1
    }

    /// Bytes of an element.
    #[must_use]
    pub fn n_bytes(self) -> usize {
        TABLE[self as usize].2
    }

    /// The format that carat computes with, for F32, F16 and BF16.
    #[must_use]
    pub fn to_dtype(self) -> Option<DType> {
        match self {
            SafeDType::F32 => Some(DType::F32),
            SafeDType::F16 => Some(DType::F16),
            SafeDType::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(SafeDType::from_name(row.1), Some(row.0));
        }
    }

    #[test]
    fn sizes_agree_with_the_kernels() {
        for (dtype, _, n_bytes) in TABLE {
            assert!(
                dtype
                    .to_dtype()
                    .is_none_or(|kernel| kernel.bytes_for(1) == Some(n_bytes))
            );
        }
    }
}
