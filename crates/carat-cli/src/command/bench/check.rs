//! What a model cannot be measured with is refused before it is loaded, since results are shown when all are there.

use super::{Bench, VERIFY_PASSES, draft};
use crate::failure::Hinted;

impl Bench {
    /// Refuses passes and sequences that the model, or `--chunk`, has no room for.
    pub(super) fn check(&self, context_len: usize) -> Result<(), Hinted> {
        let (widest, widest_hint) = self.widest();
        if widest > self.chunk as usize {
            let message = format!(
                "{widest} tokens in one pass are more than the {} of --chunk",
                self.chunk
            );
            return Err(Hinted::wrong_arguments(message, widest_hint));
        }
        let (longest, longest_hint) = self.longest();
        if longest > context_len {
            let message = format!("{longest} tokens are more than the {context_len} of the model's context");
            return Err(Hinted::wrong_arguments(message, longest_hint));
        }
        Ok(())
    }

    /// Most tokens of a pass that is not cut into chunks, and what makes them fewer.
    fn widest(&self) -> (usize, &'static str) {
        if let Some(longest) = self.draft.iter().max() {
            // A draft is checked together with the token before it.
            return (
                longest.saturating_add(1),
                "choose a shorter --draft, or a larger --chunk",
            );
        }
        let widest = self.batch.iter().chain(&self.verify).max();
        let hint = "choose a smaller --batch or --verify, or a larger --chunk";
        (widest.copied().unwrap_or(0), hint)
    }

    /// Most tokens of a sequence, and what makes them fewer.
    fn longest(&self) -> (usize, &'static str) {
        let most = |list: &[usize]| list.iter().copied().max().unwrap_or(0);
        if !self.draft.is_empty() {
            let n = draft::longest(self.draft_depth(), self.n_drafted(), most(&self.draft));
            return (n, "choose a smaller --depth or --decode, or a shorter --draft");
        }
        let decoded = if self.decode > 0 {
            most(&self.depth).saturating_add(self.decode)
        } else {
            0
        };
        [
            (most(&self.prefill), "choose a smaller --prefill"),
            (decoded, "choose a smaller --depth or --decode"),
            (
                most(&self.verify).saturating_mul(VERIFY_PASSES),
                "choose a smaller --verify, of which eight passes are measured",
            ),
        ]
        .into_iter()
        .max()
        .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn check(flags: &str) -> Result<(), String> {
        let bench = Line::parse_from(["carat", "model"].into_iter().chain(flags.split_whitespace())).bench;
        let told = |error: Hinted| crate::failure::told(&error.into());
        bench.check(32_768).map_err(told)
    }

    #[test]
    fn what_there_is_no_room_for_is_refused_with_what_to_change() {
        for (flags, part) in [
            ("--chunk 65536 --verify 65536", "hint: choose a smaller --verify"),
            ("--verify 4097 --chunk 8192", "32776 tokens"),
            ("--draft 2 --depth 40000", "hint: choose a smaller --depth"),
            ("--draft 2 --depth 32768", "hint: choose a smaller --depth"),
            ("--draft 8 --chunk 8", "hint: choose a shorter --draft"),
            ("--batch 9 --chunk 8", "hint: choose a smaller --batch"),
            ("--prefill 32769", "hint: choose a smaller --prefill"),
            ("--depth 18446744073709551615", "hint: choose a smaller --depth"),
        ] {
            let error = check(flags).unwrap_err();
            assert!(error.contains(part), "{flags}: {error}");
        }
        for flags in [
            "",
            "--verify 4096 --chunk 4096",
            "--depth 40000 --decode 0",
            "--draft 2 --depth 32000",
        ] {
            assert_eq!(check(flags), Ok(()), "{flags}");
        }
    }
}
