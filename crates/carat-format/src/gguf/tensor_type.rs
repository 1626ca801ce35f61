//! Tensor types by their GGUF ids: those carat computes with, and those it only knows by name.

use carat_kernels::DType;

/// The type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TensorType {
    /// One that carat reads.
    Known(DType),
    /// One that carat does not read but whose size is known, so that it can be checked and listed.
    Foreign(&'static Foreign),
    /// An id that is in no table.
    Unknown,
}

/// A type that carat does not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

const fn foreign(id: u32, name: &'static str, block_len: usize, block_bytes: usize) -> Foreign {
    Foreign {
        id,
        name,
        block_len,
        block_bytes,
    }
}

static FOREIGN: [Foreign; 19] = [
    foreign(9, "Q8_1", 32, 36),
    foreign(15, "Q8_K", 256, 292),
    foreign(16, "IQ2_XXS", 256, 66),
    foreign(17, "IQ2_XS", 256, 74),
    foreign(18, "IQ3_XXS", 256, 98),
    foreign(19, "IQ1_S", 256, 50),
    foreign(21, "IQ3_S", 256, 110),
    foreign(22, "IQ2_S", 256, 82),
    foreign(24, "I8", 1, 1),
    foreign(25, "I16", 1, 2),
    foreign(26, "I32", 1, 4),
    foreign(27, "I64", 1, 8),
    foreign(28, "F64", 1, 8),
    foreign(29, "IQ1_M", 256, 56),
    foreign(34, "TQ1_0", 256, 54),
    foreign(35, "TQ2_0", 256, 66),
    foreign(39, "MXFP4", 32, 17),
    foreign(40, "NVFP4", 64, 36),
    foreign(41, "Q1_0", 128, 18),
];

impl TensorType {
    pub(super) fn from_id(id: u32) -> TensorType {
        if let Some(dtype) = DType::from_gguf_id(id) {
            return TensorType::Known(dtype);
        }
        FOREIGN
            .iter()
            .find(|foreign| foreign.id == id)
            .map_or(TensorType::Unknown, TensorType::Foreign)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            TensorType::Known(dtype) => dtype.name(),
            TensorType::Foreign(foreign) => foreign.name,
            TensorType::Unknown => "unknown",
        }
    }

    /// Elements and bytes of a block, if known.
    pub(super) fn block(self) -> Option<(usize, usize)> {
        match self {
            TensorType::Known(dtype) => Some((dtype.block_len(), dtype.block_bytes())),
            TensorType::Foreign(foreign) => Some((foreign.block_len, foreign.block_bytes)),
            TensorType::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_in_both_tables() {
        for entry in &FOREIGN {
            assert_eq!(TensorType::from_id(entry.id), TensorType::Foreign(entry));
        }
        assert_eq!(TensorType::from_id(12), TensorType::Known(DType::Q4_K));
        assert_eq!(TensorType::from_id(4), TensorType::Unknown);
    }
}
