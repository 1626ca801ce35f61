//! `carat top`: a running gateway, on a screen.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyModifiers};

use crate::failure::Hinted;
use crate::settings;
use crate::top::{Board, Desk, draw};

/// Watch a running gateway: requests, targets, errors, spending
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat top                                      the gateway on this machine\n  carat top --url http://10.0.0.5:8091 --every 5\n\nKeys: q or Esc ends it.\n\nThe gateway needs [admin] in its configuration; the key is in CARAT_ADMIN_KEY, or is the key of a \
                  user who is an admin or a viewer."
)]
pub(crate) struct Top {
    /// Address of the gateway's admin API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8091")]
    url: String,
    /// Variable that holds the key
    #[arg(long, value_name = "NAME", default_value = "CARAT_ADMIN_KEY")]
    key_env: String,
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
}

impl Top {
    pub(crate) fn run(self) -> Result<()> {
        if !std::io::stdout().is_terminal() {
            let hint = "without one, `curl` asks the admin API for the same: GET /admin/v1/status and /admin/v1/targets";
            return Err(Hinted::new("`carat top` draws on a terminal, and this is none", hint).into());
        }
        let key = settings::variable(&self.key_env).ok_or_else(|| {
            Hinted::new(
                format!("the variable {} is not set", self.key_env),
                "give the gateway's admin key in it",
            )
        })?;
        let desk = Desk::new(&self.url, key)?;
        // Once before the screen is taken, so that a mistake is told in plain words.
        let mut board = Board::default();
        board.take(desk.look()?);
        let mut terminal = ratatui::try_init().context("the terminal cannot be drawn on")?;
        let result = watch(&mut terminal, &desk, &mut board, Duration::from_secs(self.every));
        ratatui::try_restore()?;
        result
    }
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    desk: &Desk,
    board: &mut Board,
    every: Duration,
) -> Result<()> {
    let mut looked = Instant::now();
    loop {
        terminal.draw(|frame| draw(frame, board))?;
        if event::poll(every.saturating_sub(looked.elapsed()))?
            && let Event::Key(key) = event::read()?
        {
            let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
        if looked.elapsed() >= every {
            looked = Instant::now();
            match desk.look() {
                Ok(sample) => board.take(sample),
                Err(error) => board.lose(format!("{error:#}")),
            }
        }
    }
}
