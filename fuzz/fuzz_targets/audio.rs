#![no_main]

#[path = "../exercise/audio.rs"]
mod exercise;
mod own_panics;

libfuzzer_sys::fuzz_target!(init: own_panics::are_findings(), |bytes: &[u8]| exercise::exercise(bytes));
