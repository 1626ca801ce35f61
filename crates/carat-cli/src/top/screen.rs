//! The screen of `carat top`: figures of the whole above, a curve, and a line for each target.

use carat_ledger::Micros;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::board::{Board, Line};

const HEAD: [&str; 8] = [
    "TARGET",
    "OPEN",
    "ANSWERS/S",
    "TOKENS/S",
    "FIRST MS",
    "FAILED",
    "STATE",
    "TODAY",
];

/// Draws it.
pub(crate) fn draw(frame: &mut Frame<'_>, board: &Board) {
    let [head, curve, table, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(5),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(vec![title(board), figures(board)]), head);
    let most = board.rates.iter().max().copied().unwrap_or(0);
    let block = Block::bordered().title(format!(" requests a second, {most} at most "));
    let n = usize::from(curve.width.saturating_sub(2));
    let shown: Vec<u64> = board.rates.iter().rev().take(n).rev().copied().collect();
    let sparkline = Sparkline::default()
        .data(&shown)
        .style(Style::new().fg(Color::Green))
        .block(block);
    frame.render_widget(sparkline, curve);
    let widths = [
        // In a narrow terminal figures give way, not the names that they belong to.
        Constraint::Min(20),
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(12),
    ];
    let rows: Vec<Row<'_>> = board.lines.iter().map(row).collect();
    let names = Row::new(HEAD.map(|name| Cell::from(name).style(Modifier::BOLD)));
    frame.render_widget(
        Table::new(rows, widths).header(names).block(Block::bordered()),
        table,
    );
    let foot_text = match &board.trouble {
        Some(trouble) => Text::from(format!("{trouble}; q ends")).red(),
        None => Text::from("q ends").dark_gray(),
    };
    frame.render_widget(Paragraph::new(foot_text), foot);
}

fn title(board: &Board) -> Text<'static> {
    let up = board.status.uptime_s;
    let time = format!("{}:{:02}:{:02}", up / 3600, up / 60 % 60, up % 60);
    Text::from(vec![
        Span::from(format!("carat gateway {}", board.status.version)).bold(),
        Span::from(format!("  up {time}")),
    ])
}

fn figures(board: &Board) -> Text<'static> {
    let failed = Span::from(format!("failed {:.1}/s", board.failed_per_s));
    let failed = if board.failed_per_s > 0.0 {
        failed.red()
    } else {
        failed
    };
    Text::from(vec![
        Span::from(format!(
            "requests {:.1}/s   refused {:.1}/s   ",
            board.per_s, board.refused_per_s
        )),
        failed,
        Span::from(format!(
            "   answers under way {}   spent today {}",
            board.status.answers_under_way,
            Micros(board.micros)
        )),
    ])
}

fn row(line: &Line) -> Row<'static> {
    let failed = match line.new_failures {
        0 => Cell::from(line.failures.to_string()),
        new => Cell::from(format!("{} +{new}", line.failures)).style(Color::Red),
    };
    let state = match line.resting_s {
        Some(s) => Cell::from(format!("rests {s} s")).style(Color::Yellow),
        None => Cell::from("well").style(Color::Green),
    };
    Row::new(vec![
        Cell::from(line.name.clone()),
        Cell::from(line.in_flight.to_string()),
        Cell::from(format!("{:.1}", line.per_s)),
        Cell::from(format!("{:.0}", line.tokens_per_s)),
        Cell::from(line.first_ms.map_or(String::from("-"), |ms| format!("{ms:.0}"))),
        failed,
        state,
        Cell::from(Micros(line.micros).to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::top::board::tests::sample;

    #[test]
    fn everything_is_on_the_screen() {
        let mut board = Board::default();
        board.take(sample(0, 1000));
        board.take(sample(1, 1050));
        board.lose("no gateway answers".into());
        let mut terminal = Terminal::new(TestBackend::new(100, 14)).unwrap();
        terminal.draw(|frame| draw(frame, &board)).unwrap();
        let text = terminal.backend().to_string();
        for shown in [
            "up 1:01:02",
            "requests 55.0/s",
            "failed 5.0/s",
            "answers under way 3",
            "spent today $1.250000",
            "openai/gpt",
            "50.0",
            "2500",
            "105 +5",
            "rests 2 s",
            "no gateway answers; q ends",
        ] {
            assert!(text.contains(shown), "{shown}:\n{text}");
        }
        // However small the terminal is.
        let mut tiny = Terminal::new(TestBackend::new(3, 2)).unwrap();
        tiny.draw(|frame| draw(frame, &board)).unwrap();
    }
}
