//! Writing to stdout: results only. Everything else (progress, notes, prompts) goes to stderr.

use std::io::{self, IsTerminal, Write};

use carat_ledger::Micros;
pub(crate) use carat_plan::size;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::failure::OutputError;

/// Writes text as it is.
pub(crate) fn write(text: &str) -> Result<(), OutputError> {
    write_bytes(text.as_bytes())
}

/// Writes bytes and flushes, so that a stream is seen as it comes.
pub(crate) fn write_bytes(bytes: &[u8]) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(OutputError)
}

/// Writes text and ends the line.
pub(crate) fn line(text: &str) -> Result<(), OutputError> {
    write(&format!("{text}\n"))
}

/// Writes a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(line(&text)?)
}

/// Writes a value as JSON in one line.
pub(crate) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(value)?;
    Ok(line(&text)?)
}

/// Writes a table whose columns are as wide as their widest cell. Numbers right, all else left.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), OutputError> {
    write(&table_text(head, rows))
}

fn table_text(head: &[&str], rows: &[Vec<String>]) -> String {
    let printable = |row: &Vec<String>| row.iter().map(|cell| printable(cell)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(printable).collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.width());
        cells
            .chain(head.get(column).map(|cell| cell.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let format_row = |cells: &[String]| {
        let mut text = String::new();
        for (cell, &width) in cells.iter().zip(&widths) {
            let is_number = cell.starts_with(|c: char| c.is_ascii_digit() || c == '$');
            // Letters of some scripts take two columns, and marks above them none, which `format` does not count.
            let blanks = " ".repeat(width.saturating_sub(cell.width()));
            text += &if is_number {
                format!("{blanks}{cell}  ")
            } else {
                format!("{cell}{blanks}  ")
            };
        }
        text.trim_end().to_string()
    };
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let mut text = format_row(&head) + "\n";
    for row in &rows {
        text += &(format_row(row) + "\n");
    }
    text
}

/// Columns of the terminal that is written to; `None` where that is none.
pub(crate) fn terminal_width() -> Option<usize> {
    let is_terminal = io::stdout().is_terminal();
    let size = is_terminal.then(crossterm::terminal::size)?.ok()?;
    Some(usize::from(size.0)).filter(|columns| *columns > 0)
}

/// A text of somebody else's for a terminal, which would take some of its characters as orders.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// The same for a text of several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// Writes a note to stderr. Notes are not results: when nobody reads them, nothing is lost.
pub(crate) fn note(text: &str) {
    let _unread = writeln!(io::stderr().lock(), "{text}");
}

/// An amount without zeros that say nothing: `$0.15`, `$20`.
pub(crate) fn dollars(amount: Micros) -> String {
    let text = amount.to_string();
    let text = text.trim_end_matches('0');
    text.trim_end_matches('.').to_string()
}

/// How many there are of what is called so: `1 thread`, `2 threads`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_a_terminal_no_orders() {
        assert_eq!(printable("a\u{1b}]0;b\u{7}é"), "a\\u{1b}]0;b\\u{7}é");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(dollars(Micros(150_000)), "$0.15");
        assert_eq!(dollars(Micros(20_000_000)), "$20");
        assert_eq!(dollars(Micros(0)), "$0");
    }

    #[test]
    fn sizes_are_said_in_powers_of_ten() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(253_113_024), "253 MB");
        assert_eq!(size(7_366_423_360), "7.4 GB");
        assert_eq!(size(999_700_000), "1.0 GB");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(1, "thread"), "1 thread");
        assert_eq!(
            (counted(0, "token"), counted(2, "token")),
            ("0 tokens".into(), "2 tokens".into())
        );
    }

    #[test]
    fn columns_hold_below_wide_letters() {
        let row = |name: &str| vec![name.to_string(), "x".to_string()];
        let text = table_text(&["NAME", "WHERE"], &[row("日本語"), row("gemma")]);
        assert_eq!(text, "NAME    WHERE\n日本語  x\ngemma   x\n");
    }
}
