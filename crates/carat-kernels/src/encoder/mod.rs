//! What the towers for images and audio need beside the language model's kernels: products of many rows with
//! float weights, and attention in which every row sees every other.
//!
//! Two arithmetics ([`EncoderPrecision`]):
//!
//! - `F32`: the reference's. Weights become f32, all products and sums are in f32.
//! - `Half`: both operands of every product are rounded to 16 bits, with up to twice the multiplications a cycle. Where
//!   the processor is fast at bf16, to that, as the published models were trained: each element errs by 2^-9 of itself at
//!   most, and sums are in f32. Else to integers (`integer_round.rs`), if it multiplies those faster than f32: elements
//!   err by 2^-13 of the root mean square of their block, or 2^-16 of its largest. Else it is `F32`.
//!
//! [`Operand`] is the input of products, made row by row by the caller, so that a norm or an activation costs no
//! pass of its own. [`attend`] is full attention over rows of one image; [`attend_near`] is the audio encoder's,
//! over the last few rows with terms for the distance.

mod attention;
mod near;
mod operand;
mod product;
mod softmax;

pub use attention::{AttentionScratch, EncoderHeads, attend};
pub use near::{NearAttention, attend_near};
pub use operand::Operand;
pub use product::EncoderProduct;
pub(crate) use product::PairScratch;

/// How the towers multiply. See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderPrecision {
    /// All f32.
    F32,
    /// Operands of 16 bits, where the processor is faster at them.
    Half,
}

/// What a precision is on a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    F32,
    Bf16,
    Integers,
}

impl EncoderPrecision {
    /// What is used with an instruction set: the scalar kernels stand for bf16 too, as their specification.
    fn on(self, isa: crate::Isa) -> Arithmetic {
        match self {
            EncoderPrecision::Half if crate::pair_gemm::pays(isa) => Arithmetic::Bf16,
            EncoderPrecision::Half if crate::integer_gemm::pays(isa) => Arithmetic::Integers,
            EncoderPrecision::F32 | EncoderPrecision::Half => Arithmetic::F32,
        }
    }
}
