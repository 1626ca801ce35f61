//! A bar for prompts that take a while to read.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Tokens that are worth a bar.
const LONG: usize = 1024;

/// The bar, once there is one. It is on stderr, and only where that is a terminal.
#[derive(Default)]
pub(crate) struct PrefillProgress {
    bar: Option<ProgressBar>,
}

impl PrefillProgress {
    /// `n_done` of `n_prompt` tokens have been read.
    pub(crate) fn show(&mut self, n_done: usize, n_prompt: usize) {
        if self.bar.is_none() && n_prompt.saturating_sub(n_done) < LONG {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(n_prompt as u64), ProgressDrawTarget::stderr());
            let template = "reading the prompt  {wide_bar}  {human_pos} of {human_len} tokens, {eta} left";
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
            .with_position(n_done as u64)
        });
        bar.set_position(n_done as u64);
        if n_done >= n_prompt {
            self.end();
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
