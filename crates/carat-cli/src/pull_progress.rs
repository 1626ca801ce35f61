//! What a download looks like on the terminal: one bar per file on stderr, plain lines when it is no terminal.

use carat_hub::{Event, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::note;

/// Draws the events of a pull.
pub(crate) struct PullProgress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl PullProgress {
    /// Nothing is drawn until the first event.
    pub(crate) fn new() -> Self {
        let target = ProgressDrawTarget::stderr();
        let is_terminal = !target.is_hidden();
        let bar = ProgressBar::with_draw_target(None, target);
        Self { bar, is_terminal }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        if self.is_terminal {
            self.bar.println(text);
        } else {
            note(text);
        }
    }

    fn begin(&mut self, name: &str, done: u64, total: Option<u64>) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = if total.is_some() {
            "{msg}  {wide_bar}  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}"
        } else {
            "{msg}  {spinner}  {decimal_bytes}  {decimal_bytes_per_sec}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(name.to_string());
        // What an earlier pull left is no speed of this one.
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    fn step(&mut self, what: &'static str, done: u64, total: u64) {
        if self.bar.message() != what {
            self.begin(what, 0, Some(total));
            if !self.is_terminal {
                note(what);
            }
        }
        self.bar.set_position(done);
    }
}

impl Progress for PullProgress {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Waiting { lock } => {
                self.say(&format!(
                    "another carat pulls this model; waiting for it ({})",
                    lock.display()
                ));
            }
            Event::Trying { source } => self.say(&format!("trying {source}")),
            Event::Failed { source, reason } => self.say(&format!("{source}: {reason}")),
            Event::File {
                name,
                index,
                n_files,
                resumed_bytes,
                total_bytes,
            } => {
                self.begin(name, resumed_bytes, total_bytes);
                if !self.is_terminal {
                    note(&format!("file {index} of {n_files}: {name}"));
                }
            }
            Event::Bytes { done, total } => {
                if let Some(total) = total {
                    self.bar.set_length(total);
                }
                self.bar.set_position(done);
            }
            Event::Retrying { reason, wait } => {
                self.say(&format!("{reason}; trying again in {:.1} s", wait.as_secs_f64()));
            }
            Event::Verifying { done, total } => self.step("verifying", done, total),
            Event::Assembling { done, total } => self.step("assembling", done, total),
            Event::Ready { path } => {
                self.bar.finish_and_clear();
                note(&format!("ready: {}", path.display()));
            }
            _ => {}
        }
    }
}

impl Drop for PullProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
