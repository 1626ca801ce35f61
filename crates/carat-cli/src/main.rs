//! The `carat` command.

fn main() {}
