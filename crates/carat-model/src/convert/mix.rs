//! The mixes of number formats that users know by name, such as `Q4_K_M`.
//!
//! A mix says which format the bulk of the matrices gets; a few tensors that suffer most get more bits. Names,
//! ids and rules are those of llama.cpp, without an importance matrix, so that a file of one name has the
//! same formats, and about the same size and quality, whoever made it. The rules are in `plan`.

use std::fmt;

use carat_kernels::DType;

use super::ConvertError;

/// A mix of number formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the names of the mixes")]
#[expect(non_camel_case_types, reason = "the names users know")]
pub enum Mix {
    F32,
    BF16,
    F16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    Q3_K_L,
    Q3_K_M,
    Q3_K_S,
    Q2_K,
}

/// Mix, name, format of the bulk, `general.file_type`.
type Row = (Mix, &'static str, DType, u32);

const TABLE: [Row; 17] = [
    (Mix::F32, "F32", DType::F32, 0),
    (Mix::BF16, "BF16", DType::BF16, 32),
    (Mix::F16, "F16", DType::F16, 1),
    (Mix::Q8_0, "Q8_0", DType::Q8_0, 7),
    (Mix::Q6_K, "Q6_K", DType::Q6_K, 18),
    (Mix::Q5_K_M, "Q5_K_M", DType::Q5_K, 17),
    (Mix::Q5_K_S, "Q5_K_S", DType::Q5_K, 16),
    (Mix::Q5_1, "Q5_1", DType::Q5_1, 9),
    (Mix::Q5_0, "Q5_0", DType::Q5_0, 8),
    (Mix::Q4_K_M, "Q4_K_M", DType::Q4_K, 15),
    (Mix::Q4_K_S, "Q4_K_S", DType::Q4_K, 14),
    (Mix::Q4_1, "Q4_1", DType::Q4_1, 3),
    (Mix::Q4_0, "Q4_0", DType::Q4_0, 2),
    (Mix::Q3_K_L, "Q3_K_L", DType::Q3_K, 13),
    (Mix::Q3_K_M, "Q3_K_M", DType::Q3_K, 12),
    (Mix::Q3_K_S, "Q3_K_S", DType::Q3_K, 11),
    (Mix::Q2_K, "Q2_K", DType::Q2_K, 10),
];

impl Mix {
    /// Every mix, from most to fewest bits.
    pub fn all() -> impl Iterator<Item = Mix> {
        TABLE.iter().map(|row| row.0)
    }

    /// The mix of this name, in any letter case. `Q5_K`, `Q4_K` and `Q3_K` mean their `_M`.
    ///
    /// # Errors
    /// [`ConvertError::UnknownMix`], which lists the names.
    pub fn from_name(name: &str) -> Result<Mix, ConvertError> {
        let medium = format!("{name}_M");
        let find = |name: &str| {
            TABLE
                .iter()
                .find(|row| row.1.eq_ignore_ascii_case(name))
                .map(|row| row.0)
        };
        find(name)
            .or_else(|| find(&medium))
            .ok_or_else(|| ConvertError::UnknownMix {
                name: name.to_owned(),
                known: TABLE.map(|row| row.1).join(", "),
            })
    }

    /// The name, such as `Q4_K_M`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The format of the bulk of the matrices.
    #[must_use]
    pub fn bulk(self) -> DType {
        self.row().2
    }

    /// The label that GGUF files carry as `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        self.row().3
    }

    fn row(self) -> &'static Row {
        // The table is written in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }
}

impl fmt::Display for Mix {
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
            assert_eq!(Mix::from_name(&row.1.to_lowercase()).unwrap(), row.0);
        }
        assert_eq!(Mix::from_name("q4_k").unwrap(), Mix::Q4_K_M);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let text = Mix::from_name("IQ4_XS").unwrap_err().to_string();
        assert!(
            text.contains("`IQ4_XS`") && text.contains("Q4_K_M, Q4_K_S"),
            "{text}"
        );
    }
}
