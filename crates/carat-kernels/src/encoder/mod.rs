//! What the towers for images and audio need beside the language model's kernels: products of many rows with
//! float weights, and attention in which every row sees every other.
//!
//! Two arithmetics ([`EncoderPrecision`]):
//!
//! - `F32`: the reference's. Weights become f32, all products and sums are in f32.
//! - `Bf16`: both operands of every product are rounded to bf16 and summed in f32, as the published models were
//!   trained, with twice the multiplications a cycle. The rounding is that of an element, 2^-8 at most; sums of
//!   many average it out. Where the processor is not faster at bf16, this is `F32`.
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
    /// Operands in bf16, sums in f32, where the processor is faster at it.
    Bf16,
}

impl EncoderPrecision {
    /// What is used with an instruction set: the scalar kernels stand for bf16 too, as their specification.
    fn on(self, isa: crate::Isa) -> EncoderPrecision {
        if crate::pair_gemm::pays(isa) {
            self
        } else {
            EncoderPrecision::F32
        }
    }
}
