//! Which panics are findings: carat's own. Those of the decoders of others become errors (`carat_media`'s `input.rs`);
//! the fuzzer would end with the first of them, so its hook is told only of the rest.

use std::panic;

pub(crate) fn are_findings() {
    let ends_the_run = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let is_own = info.location().is_none_or(|place| !place.file().contains("/registry/"));
        if is_own {
            ends_the_run(info);
        }
    }));
}
