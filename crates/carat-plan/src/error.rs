//! What can be wrong with a wish for a plan.

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of machines is damaged: a mistake in carat.
    #[error("the list of machines cannot be read: {reason}")]
    Machines {
        /// Where and why.
        reason: String,
    },
    /// No machine of this name.
    #[error("no machine is called `{name}`; those that come near are {near}")]
    UnknownMachine {
        /// What was asked for.
        name: String,
        /// Names of the list, joined.
        near: String,
    },
    /// A size that is no size.
    #[error("`{text}` is no amount of memory; write it as 16GB, 8GiB or 512MB")]
    Size {
        /// What was written.
        text: String,
    },
}
