//! What can go wrong with a file: which file, where in it, and what is the matter.
//!
//! [`Error`] is the fact with its file; [`Place`] says where in the file; [`Fault`] says what is wrong
//! there, with the numbers. Names that come from a file are shown escaped and shortened, so that a hostile
//! one cannot write to the terminal.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`: check that it is there and that you may access it", path.display())]
    Io {
        /// What was tried, a verb: `open`, `map`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason given.
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("the disk of `{}` is full: free space for the whole file and run again", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A folder, a pipe or a device where a file is needed.
    #[error("`{}` is not a regular file: give the path of one", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// A folder without weights.
    #[error(
        "`{}` has neither `model.safetensors` nor `model.safetensors.index.json`: give the folder that has",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A file above the size that the caller allows.
    #[error("`{}` has {size} bytes, more than the limit of {limit}: check that it is the right file", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The content is not as the format demands.
    #[error("`{}`, {place}: {fault}; {}", path.display(), fault.advice())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong there.
        fault: Fault,
    },
    /// A part of the file that is JSON does not parse.
    #[error("`{}`, {place}: not the JSON that is expected; get the file again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A tensor in a number format that carat does not read.
    #[error(
        "`{}`, tensor `{}`: type {type_name} is not supported; use a version of the model in \
         another format, such as Q4_K_M, Q8_0 or BF16", path.display(), Shown(tensor)
    )]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name of the format, such as `IQ2_XXS`.
        type_name: String,
    },
    /// A key has a value of another type than the one asked for.
    #[error(
        "`{}`, key `{}`: found {found}, expected {expected}; convert the model again",
        path.display(), Shown(key)
    )]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type or value that is there.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// What was declared or handed over for writing breaks a rule of the format.
    #[error("cannot write `{}`, {place}: {fault}", path.display())]
    Unwritable {
        /// The file that was to be written.
        path: PathBuf,
        /// The key or tensor.
        place: Place,
        /// The rule that is broken.
        fault: Fault,
    },
}

/// Where in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The head of the file.
    Header,
    /// A key whose name is not known yet, counted from 0.
    KeyNumber(u64),
    /// The key of this name.
    Key(String),
    /// A tensor whose name is not known yet, counted from 0.
    TensorNumber(u64),
    /// The tensor of this name.
    Tensor(String),
    /// The numbers that tie the parts of a split file together.
    Split,
    /// The list of shards.
    Index,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::KeyNumber(i) => write!(f, "key number {i}"),
            Place::Key(name) => write!(f, "key `{}`", Shown(name)),
            Place::TensorNumber(i) => write!(f, "tensor number {i}"),
            Place::Tensor(name) => write!(f, "tensor `{}`", Shown(name)),
            Place::Split => f.write_str("split"),
            Place::Index => f.write_str("index"),
        }
    }
}

/// What is wrong at a [`Place`]. Sizes and offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum Fault {
    #[error("the file does not begin with `GGUF`")]
    Magic,
    #[error("the file is big endian")]
    BigEndian,
    #[error("version {found} is not supported")]
    Version { found: u32 },
    #[error("{field} takes {needed} bytes but the file has only {left} more")]
    Truncated {
        field: &'static str,
        needed: u64,
        left: u64,
    },
    #[error("{field} is {found}, more than the limit of {limit}")]
    TooMany {
        field: &'static str,
        found: u64,
        limit: u64,
    },
    #[error("{field} has {found} bytes, more than the limit of {limit}")]
    TooLong {
        field: &'static str,
        found: u64,
        limit: u64,
    },
    #[error("{field} is not UTF-8")]
    NotUtf8 { field: &'static str },
    #[error("the name is used twice")]
    Duplicate,
    #[error("value type {found} is unknown")]
    ValueType { found: u32 },
    #[error("an array inside an array is not supported")]
    NestedArray,
    #[error("a bool is {found}, not 0 or 1")]
    BoolByte { found: u8 },
    #[error("alignment {found} is not a power of two of at least 8")]
    Alignment { found: u64 },
    #[error("offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { offset: u64, alignment: u64 },
    #[error("dimension {axis} is 0")]
    ZeroDim { axis: usize },
    #[error("the dimensions multiply to more than memory can hold")]
    SizeOverflow,
    #[error("rows of {row} elements are not whole blocks of {block}")]
    PartialBlock { row: u64, block: usize },
    #[error("the data is at bytes {begin}..{end} but the data section has {size}")]
    OutOfBounds { begin: u64, end: u64, size: u64 },
    #[error("the data overlaps that of tensor `{}`", Shown(other))]
    Overlap { other: String },
    #[error("the data begins at byte {begin}, leaving a hole after {previous_end}")]
    Hole { begin: u64, previous_end: u64 },
    #[error("{left} bytes after the last tensor belong to none")]
    LeftOver { left: u64 },
    #[error("the data has {found} bytes, shape and type need {expected}")]
    ByteCount { found: u64, expected: u64 },
    #[error("dtype `{}` is not supported", Shown(found))]
    Dtype { found: String },
    #[error("{field} is {found}, expected {expected}")]
    Mismatch {
        field: &'static str,
        found: u64,
        expected: u64,
    },
    #[error("the key `{field}` is missing")]
    MissingKey { field: &'static str },
    #[error("the file is one of {count} parts but is not named `NAME-00001-of-{count:05}.gguf`")]
    SplitName { count: u64 },
    #[error("the file name `{}` is not a plain name inside the folder", Shown(name))]
    ShardName { name: String },
    #[error("the tensor is not in `{}`, the file that the index names", Shown(shard))]
    NotInShard { shard: String },
    #[error("{left} bytes of data are missing")]
    Missing { left: u64 },
    #[error("the data is out of order, next is that of tensor `{}`", Shown(next))]
    Order { next: String },
}

impl Fault {
    /// What the user can do about a file with this fault.
    fn advice(&self) -> &'static str {
        match self {
            Fault::Magic => "give a GGUF file",
            Fault::BigEndian => "get or convert a little-endian one",
            Fault::Version { .. } => "supported are versions 2 and 3: convert the model again",
            Fault::Truncated { .. } => "it is incomplete or damaged, get it again",
            Fault::Dtype { .. } | Fault::NestedArray => "convert the model again without it",
            Fault::SplitName { .. } => "give it its original name back, beside the other parts",
            Fault::Mismatch { .. } | Fault::NotInShard { .. } => "get all the files again, from one place",
            _ => "it is damaged or was made wrongly, get or convert it again",
        }
    }

    /// The error of a file that was read.
    pub(crate) fn at(self, path: impl Into<PathBuf>, place: Place) -> Error {
        Error::Malformed {
            path: path.into(),
            place,
            fault: self,
        }
    }

    /// The error of a file that is being written.
    pub(crate) fn unwritable(self, path: impl Into<PathBuf>, place: Place) -> Error {
        Error::Unwritable {
            path: path.into(),
            place,
            fault: self,
        }
    }
}

/// A name from a file, escaped and cut to what fits into a message.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_CHARS: usize = 100;
        for c in self.0.chars().take(MAX_CHARS) {
            write!(f, "{}", c.escape_debug())?;
        }
        if self.0.chars().nth(MAX_CHARS).is_some() {
            f.write_str("…")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_cannot_reach_the_terminal() {
        let name = format!("\u{1b}[2J{}", "x".repeat(500));
        let text = Fault::Duplicate.at("m.gguf", Place::Key(name)).to_string();
        assert!(text.starts_with(r"`m.gguf`, key `\u{1b}[2Jxxx"), "{text}");
        assert!(text.len() < 250, "{text}");
    }
}
