//! Google's generateContent.

mod answer;
mod question;
mod reader;
mod request;
mod writer;

pub(super) use answer::answer;
pub(super) use question::question;
pub(super) use reader::{Client, ContentReader};
pub(crate) use request::NO_SIGNATURE;
pub(super) use request::{request, safe};
pub(super) use writer::ContentWriter;
