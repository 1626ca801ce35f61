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
    #[error("no machine is called `{name}`; {}", nearest(near))]
    UnknownMachine {
        /// What was asked for.
        name: String,
        /// Names of the list that have it in them, or that it has in it.
        near: Vec<String>,
    },
    /// A size that is no size.
    #[error("`{text}` is no amount of memory; write it as 16GB, 8GiB or 512MB")]
    Size {
        /// What was written.
        text: String,
    },
}

/// What comes near a name; some machines have commas in theirs.
fn nearest(near: &[String]) -> String {
    match near {
        // The smallest model fits on every machine of the list, so that all are shown.
        [] => "`carat plan 270M --machines` lists those that are known".into(),
        near => format!("those that come near are {}", near.join("; ")),
    }
}
