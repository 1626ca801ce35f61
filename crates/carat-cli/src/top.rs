//! What `carat top` shows: samples of the admin API, what two of them say together, and the screen.

mod board;
mod desk;
mod screen;

pub(crate) use board::Board;
pub(crate) use desk::Desk;
pub(crate) use screen::draw;
