//! Guessing what a model will say: a drafter made for it ([`Mtp`]), or a smaller model with the same tokenizer.
//!
//! Guesses change only the speed of an answer, never its text: whoever asked for them has the model check them. A
//! drafter computes on the threads of its target and keeps what it has of a sequence in the target's cache: for the
//! first kind the last hidden states, for the second a cache of its own with the tokens that it holds. Both are brought
//! in order when guesses are asked for, so that nobody has to tell a drafter what was accepted.

mod mtp;
mod small;
mod source;

pub use mtp::DraftStep;
pub(crate) use mtp::{Mtp, Target};
pub(crate) use small::Small;
pub use source::Drafters;

/// What a model may have as its drafter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrafterKind {
    /// Made for this model: reads its keys, values and hidden states.
    Mtp,
    /// A smaller model by itself.
    Model,
}

/// A drafter ready to run.
pub(crate) enum Drafter {
    Mtp(Box<Mtp>),
    Small(Box<Small>),
}

/// The index of the largest of a row of logits.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}
