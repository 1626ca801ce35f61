//! A grid as a picture: SVG that browsers and viewers show alike, readable on light and dark paper.
//!
//! Each cell says its bytes and, in words, whether it fits; the colour repeats it, so that nothing depends on
//! seeing colours. Cells that fit are the darker the fuller the memory becomes.

use std::fmt::Write;

use crate::grid::context_name;
use crate::{Cell, Fit, Grid, size};

const CELL_WIDTH: usize = 84;
const CELL_HEIGHT: usize = 38;
const LEFT: usize = 96;
const TOP: usize = 84;
const BELOW: usize = 56;

/// Colours of an almost empty and an almost full memory; cells that fit lie between.
const EMPTY: [f64; 3] = [226.0, 238.0, 252.0];
const FULL: [f64; 3] = [122.0, 176.0, 236.0];
const TIGHT: &str = "#f6c75a";
const DOES_NOT_FIT: &str = "#e39a86";

/// Ink on cells is always dark, since cells are light; ink on paper follows the reader's scheme.
const STYLE: &str = "text{font-family:system-ui,sans-serif;font-size:13px;fill:#14181d}\
    .paper{fill:#fff}.small{font-size:11px}.title{font-size:16px;font-weight:600}\
    .cell{font-weight:600}.none{fill:none;stroke:#8a929c;stroke-dasharray:3 3}.ink,.faint{fill:#14181d}.faint{fill:#5b6470}\
    @media (prefers-color-scheme:dark){.paper{fill:#14171b}.ink{fill:#eceff2}.faint{fill:#a4adb8}}";

/// The picture, with a title and a line below it.
#[must_use]
pub fn heat_map(grid: &Grid, title: &str, subtitle: &str) -> String {
    let width = (LEFT + CELL_WIDTH * grid.contexts.len() + 12).max(720);
    let height = TOP + CELL_HEIGHT * grid.rows.len() + BELOW;
    let (title, subtitle) = (escape(title), escape(subtitle));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{title}: {subtitle}\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    text(&mut svg, "title ink", 12, 26, "start", &title);
    text(&mut svg, "faint", 12, 46, "start", &subtitle);
    for (i, context) in grid.contexts.iter().enumerate() {
        let x = LEFT + CELL_WIDTH * i + CELL_WIDTH / 2;
        text(&mut svg, "ink", x, TOP - 10, "middle", &context_name(*context));
    }
    for (row, (mix, cells)) in grid.rows.iter().enumerate() {
        let y = TOP + CELL_HEIGHT * row;
        text(&mut svg, "ink", LEFT - 10, y + 24, "end", mix.name());
        for (column, cell) in cells.iter().enumerate() {
            draw(&mut svg, cell, grid.usable, LEFT + CELL_WIDTH * column, y);
        }
    }
    legend(&mut svg, TOP + CELL_HEIGHT * grid.rows.len() + 20);
    svg += "</svg>\n";
    svg
}

fn draw(svg: &mut String, cell: &Cell, usable: u64, x: usize, y: usize) {
    let (width, height) = (CELL_WIDTH - 2, CELL_HEIGHT - 2);
    let (middle, bytes) = (x + CELL_WIDTH / 2, size(cell.needed));
    let told = format!(
        "{}, {} tokens: {bytes}, {}",
        cell.mix,
        cell.context,
        cell.fit.words()
    );
    push(svg, format_args!("<g><title>{told}</title>"));
    let paint = match cell.fit {
        Fit::BeyondContext => "class=\"none\"".to_owned(),
        Fit::DoesNotFit => format!("fill=\"{DOES_NOT_FIT}\""),
        Fit::Tight => format!("fill=\"{TIGHT}\""),
        Fit::Fits => format!("fill=\"{}\"", shade(cell.needed as f64 / usable.max(1) as f64)),
    };
    push(
        svg,
        format_args!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"3\" {paint}/>"),
    );
    if cell.fit == Fit::BeyondContext {
        text(svg, "faint small", middle, y + 23, "middle", "too long");
    } else {
        text(svg, "cell", middle, y + 17, "middle", &bytes);
        text(svg, "small", middle, y + 31, "middle", short(cell.fit));
    }
    *svg += "</g>\n";
}

/// A fit in the few letters that a cell has room for.
fn short(fit: Fit) -> &'static str {
    match fit {
        Fit::DoesNotFit => "no",
        other => other.words(),
    }
}

/// The colour of a cell that fits, by the share of the memory that it fills.
fn shade(share: f64) -> String {
    let share = share.clamp(0.0, 1.0);
    let mut colour = "#".to_owned();
    for (empty, full) in EMPTY.into_iter().zip(FULL) {
        let value = (empty + (full - empty) * share).round() as u8;
        push(&mut colour, format_args!("{value:02x}"));
    }
    colour
}

fn legend(svg: &mut String, y: usize) {
    let entries = [
        (shade(0.1), "fits"),
        (shade(0.85), "fits, memory well used"),
        (TIGHT.to_owned(), "tight: over 90 %"),
        (DOES_NOT_FIT.to_owned(), "no: does not fit"),
        (String::new(), "beyond the model's context"),
    ];
    let mut x = 12;
    for (colour, words) in entries {
        let paint = if colour.is_empty() {
            "class=\"none\"".to_owned()
        } else {
            format!("fill=\"{colour}\"")
        };
        push(
            svg,
            format_args!("<rect x=\"{x}\" y=\"{y}\" width=\"14\" height=\"14\" rx=\"2\" {paint}/>\n"),
        );
        text(svg, "faint small", x + 20, y + 11, "start", words);
        x += 40 + 6 * words.chars().count();
    }
}

fn text(svg: &mut String, class: &str, x: usize, y: usize, anchor: &str, escaped: &str) {
    push(
        svg,
        format_args!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{escaped}</text>\n"
        ),
    );
}

/// Appends; writing to a string cannot fail.
pub(crate) fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _always_ok = text.write_fmt(arguments);
}

/// Text as XML and HTML show it.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // Control characters are not allowed in XML at all.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CONTEXTS, Plan, Setup, Weights};
    use carat_model::convert::Mix;
    use carat_model::{Config, KvDType, Precision};

    #[test]
    fn every_cell_says_what_it_is_in_words() {
        let setup = Setup {
            context: 0,
            n_sequences: 1,
            kv_dtype: KvDType::F16,
            n_threads: 4,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes: 0,
            drafter: None,
        };
        let config = Config::published("4B").unwrap();
        let mixes = Mix::all().map(|mix| (mix, Weights::of_mix(&config, mix)));
        let grid = Grid::new(&config, &setup, mixes, &CONTEXTS, 8_500_000_000, Plan::peak);
        let svg = heat_map(&grid, "a <b> & \"c\"", "8 GB\u{1}");
        assert_eq!(svg.matches("<g><title>").count(), 17 * 9);
        assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;") && !svg.contains('\u{1}'));
        for words in ["fits", "tight", "does not fit", "beyond context"] {
            let expected = grid
                .rows
                .iter()
                .flat_map(|row| &row.1)
                .filter(|cell| cell.fit.words() == words)
                .count();
            assert!(expected > 0, "{words}");
            assert_eq!(
                svg.matches(&format!(", {words}</title>")).count(),
                expected,
                "{words}"
            );
        }
    }

    #[test]
    fn shades_go_from_empty_to_full() {
        assert_eq!(shade(0.0), "#e2eefc");
        assert_eq!(shade(7.0), "#7ab0ec");
        assert_eq!(shade(f64::NAN), "#000000");
    }
}
