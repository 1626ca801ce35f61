//! A plan as people and scripts read it.

use anyhow::Result;
use carat_plan::{Cell, Fit, Grid, Kind, Machine, Page, Place, decode_bytes, hears, heat_map, page, size};
use serde_json::{Value, json};

use super::Outcome;
use crate::output::{self, counted};

/// Machines of each kind that are shown unless all are asked for.
const MACHINES_OF_A_KIND: usize = 3;

/// Columns of a row's name and of a number in the table of contexts.
const NAME_WIDTH: usize = 8;
const NUMBER_WIDTH: usize = 6;

impl Outcome {
    /// The heat map.
    pub(super) fn picture(&self) -> String {
        heat_map(&self.grid, &self.subject.name, &self.target_line())
    }

    /// The page with the heat map.
    pub(super) fn page(&self) -> String {
        page(&Page {
            title: &self.subject.name,
            subtitle: &self.target_line(),
            parts: &self.parts(),
            sum: (self.target.needed(&self.plan), &self.sum_line()),
            grid: &self.grid,
            machines: &self.places(),
        })
    }

    /// What is planned for, in a line.
    pub(super) fn target_line(&self) -> String {
        let sequences = match self.setup.n_sequences {
            1 => String::new(),
            n => format!(" for each of {n} sequences"),
        };
        format!(
            "{} of memory can be used ({}); {} KV cache{sequences}, {}",
            size(self.target.usable),
            self.target.name,
            self.setup.kv_dtype,
            counted(self.setup.n_threads, "thread")
        )
    }

    /// Whether it fits, in a phrase.
    pub(super) fn sum_line(&self) -> String {
        let usable = size(self.target.usable);
        match self.fit {
            Fit::Fits => format!("fits into {usable}"),
            Fit::Tight => format!("fits into {usable}, but tightly"),
            Fit::DoesNotFit => format!("does not fit into {usable}"),
            Fit::BeyondContext => format!(
                "beyond the model's context of {}",
                counted(self.subject.config.context_len, "token")
            ),
        }
    }

    /// The parts of the plan: name, bytes, remark.
    pub(super) fn parts(&self) -> Vec<(String, u64, String)> {
        let layers = &self.subject.config.layers;
        let window = layers.iter().find_map(|layer| layer.window).unwrap_or(0);
        // Some layers of E2B and E4B take the cache of others.
        let owners = |is_local: bool| {
            let of_kind = || layers.iter().filter(|layer| layer.window.is_some() == is_local);
            let (n, n_own) = (
                of_kind().count(),
                of_kind().filter(|layer| layer.owns_kv()).count(),
            );
            let share = if n_own < n {
                format!("{n_own} of ")
            } else {
                String::new()
            };
            format!("{share}{}", counted(n, "layer"))
        };
        let part = |name: &str, bytes, remark: String| (name.to_owned(), bytes, remark);
        let mut parts = vec![
            part(
                "weights",
                self.plan.weights.total(),
                format!("{}, mapped", self.quant),
            ),
            part(
                "cache, local layers",
                self.plan.kv.local,
                format!("in {}, window {window}", owners(true)),
            ),
            part(
                "cache, global layers",
                self.plan.kv.global,
                format!("in {}, {}", owners(false), counted(self.setup.context, "token")),
            ),
            part(
                "buffers",
                self.plan.buffers.total(),
                format!(
                    "for {} a pass, {}",
                    counted(self.setup.max_batch_tokens, "token"),
                    counted(self.setup.n_threads, "thread")
                ),
            ),
        ];
        if self.plan.towers > 0 {
            parts.push(part(
                "towers",
                self.plan.towers,
                format!("for {}, with what they compute in", self.senses()),
            ));
        }
        if self.plan.drafter > 0 {
            parts.push(part(
                "drafter",
                self.plan.drafter,
                "that guesses ahead; --no-draft goes without".to_owned(),
            ));
        }
        let is_computer = |machine: &Machine| machine.kind != Kind::Gpu;
        if self.target.gpu.as_ref().is_none_or(is_computer) {
            let process = self.plan.process;
            parts.push(part(
                "program",
                process.program + process.tokenizer,
                "with its tokenizer".to_owned(),
            ));
        }
        parts
    }

    /// What the towers are for.
    fn senses(&self) -> &'static str {
        if hears(&self.subject.config, self.subject.media.as_ref()) {
            "images and sounds"
        } else {
            "images"
        }
    }

    /// The machines that the plan fits on, smallest memory first and the fastest of those, with the most tokens a
    /// second when the cache is empty and full.
    pub(super) fn places(&self) -> Vec<(Place<'_>, f64, f64)> {
        let mut places: Vec<Place<'_>> = self
            .machines
            .iter()
            .filter_map(|machine| machine.place(&self.plan))
            .collect();
        places.sort_by(|a, b| {
            let faster = b.machine.bandwidth_gb_s.total_cmp(&a.machine.bandwidth_gb_s);
            a.memory_gib.total_cmp(&b.memory_gib).then(faster)
        });
        let with_speeds = places.into_iter().map(|place| {
            let (empty, full) = self.decode_speeds(place.machine);
            (place, empty, full)
        });
        with_speeds.collect()
    }

    /// The most tokens a second of one sequence on a machine, with an empty and a full cache.
    fn decode_speeds(&self, machine: &Machine) -> (f64, f64) {
        let (config, weights) = (&self.subject.config, &self.plan.weights);
        let empty = decode_bytes(config, weights, self.setup.kv_dtype, 0);
        (
            machine.decode_tok_per_s(empty),
            machine.decode_tok_per_s(self.plan.decode_bytes),
        )
    }

    pub(super) fn print(&self, color: bool, all_machines: bool) -> Result<()> {
        let subject = &self.subject;
        output::line(&format!(
            "{} ({}), context {}: {}\n{}",
            output::printable(&subject.name),
            subject.origin,
            self.setup.context,
            self.sum_line(),
            self.target_line()
        ))?;
        if let Some(instead) = &self.instead {
            output::line(instead)?;
        }
        if let Some(gpu) = &self.target.gpu {
            let (empty, full) = self.decode_speeds(gpu);
            output::line(&format!(
                "{:.0} GB/s allow at most {empty:.1} tokens/s with an empty cache, {full:.1} with a full one",
                gpu.bandwidth_gb_s
            ))?;
        }
        output::line("")?;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let sum = ("peak".to_owned(), self.target.needed(&self.plan), self.sum_line());
        for (name, bytes, remark) in self.parts().into_iter().chain([sum]) {
            rows.push(vec![name, size(bytes), remark]);
        }
        if let Some(vision) = self.vision.filter(|_| self.plan.towers == 0) {
            let remark = "beside it, with the file that has them";
            rows.push(vec!["towers".to_owned(), size(vision), remark.to_owned()]);
        }
        output::table(&["PART", "MEMORY", ""], &rows)?;
        output::line("")?;
        self.print_grid(color)?;
        self.print_machines(all_machines)
    }

    /// The table of contexts, in as many pieces as the terminal is too narrow for.
    fn print_grid(&self, color: bool) -> Result<()> {
        let context_len = self.subject.config.context_len;
        let mut text = grid_text(&self.grid, context_len, output::terminal_width(), color);
        if self.grid.contexts.iter().any(|n| *n > context_len) {
            text += &format!(
                "Longer contexts are beyond this model's {}.\n",
                counted(context_len, "token")
            );
        }
        Ok(output::write(&text)?)
    }

    fn print_machines(&self, all: bool) -> Result<()> {
        let places = self.places();
        if places.is_empty() {
            return Ok(output::line("\nIt fits on no machine of the list.")?);
        }
        let mut rows: Vec<Vec<String>> = Vec::new();
        for kind in [Kind::Laptop, Kind::Desktop, Kind::Small, Kind::Server, Kind::Gpu] {
            let of_kind = places.iter().filter(|(place, ..)| place.machine.kind == kind);
            let n_shown = if all { usize::MAX } else { MACHINES_OF_A_KIND };
            for (place, empty, full) in of_kind.take(n_shown) {
                rows.push(vec![
                    place.machine.name.clone(),
                    format!("{} GiB", place.memory_gib),
                    format!("{} GB/s", place.machine.bandwidth_gb_s),
                    format!("{empty:.1}"),
                    format!("{full:.1}"),
                ]);
            }
        }
        output::line(
            "\nMachines it fits on, and tokens/s of one sequence at most, cache empty and full.\ncarat itself computes on \
             processors; graphics cards are for other programs.",
        )?;
        output::table(&["MACHINE", "MEMORY", "BANDWIDTH", "EMPTY", "FULL"], &rows)?;
        if rows.len() < places.len() {
            output::line(&format!("{} more with --machines", places.len() - rows.len()))?;
        }
        Ok(())
    }

    pub(super) fn json(&self) -> Value {
        let (plan, config) = (&self.plan, &self.subject.config);
        let machines: Vec<Value> = self
            .places()
            .into_iter()
            .map(|(place, empty, full)| {
                json!({
                    "name": place.machine.name, "kind": place.machine.kind.name(), "memory_gib": place.memory_gib,
                    "bandwidth_gb_s": place.machine.bandwidth_gb_s, "usable_bytes": place.usable,
                    "needed_bytes": place.needed,
                    "decode_tok_per_s_at_most": {"empty": empty, "full": full},
                })
            })
            .collect();
        let grid: Vec<Value> = self
            .grid
            .rows
            .iter()
            .map(|(mix, cells)| json!({"quant": mix.name(), "cells": cells.iter().map(cell_json).collect::<Vec<_>>()}))
            .collect();
        let speed = self.target.gpu.as_ref().map(|gpu| {
            let (empty, full) = self.decode_speeds(gpu);
            json!({"empty": empty, "full": full})
        });
        json!({
            "target_decode_tok_per_s_at_most": speed,
            "model": self.subject.name, "origin": self.subject.origin, "quant": self.quant,
            "context": self.setup.context, "model_context": config.context_len,
            "kv_type": self.setup.kv_dtype.to_string(), "sequences": self.setup.n_sequences,
            "threads": self.setup.n_threads, "batch_tokens": self.setup.max_batch_tokens,
            "target": self.target.name, "usable_bytes": self.target.usable,
            "weights_bytes": {
                "embedding": plan.weights.embedding, "head": plan.weights.head, "attention": plan.weights.attention,
                "mlp": plan.weights.mlp, "experts": plan.weights.experts,
                "per_layer_embeddings": plan.weights.per_layer, "small": plan.weights.small, "rest": plan.weights.rest,
                "total": plan.weights.total(),
            },
            "kv_bytes": {"local": plan.kv.local, "global": plan.kv.global, "total": plan.kv.total()},
            "buffers_bytes": {
                "activations": plan.buffers.activations, "products": plan.buffers.products,
                "attention": plan.buffers.attention, "logits": plan.buffers.logits, "total": plan.buffers.total(),
            },
            "process_bytes": {"program": plan.process.program, "tokenizer": plan.process.tokenizer},
            "vision_bytes": self.vision, "towers_bytes": plan.towers, "drafter_bytes": plan.drafter,
            "peak_bytes": plan.peak(), "device_bytes": plan.on_device(), "fit": self.fit.words(),
            "decode_bytes_full": plan.decode_bytes,
            "grid": grid, "machines": machines,
        })
    }
}

fn cell_json(cell: &Cell) -> Value {
    json!({
        "context": cell.context, "weights_bytes": cell.plan.weights.total(), "kv_local_bytes": cell.plan.kv.local,
        "kv_global_bytes": cell.plan.kv.global, "buffers_bytes": cell.plan.buffers.total(),
        "peak_bytes": cell.plan.peak(), "needed_bytes": cell.needed, "fit": cell.fit.words(),
    })
}

/// Contexts that the model has as columns. Words say what the colours do; where columns are narrow, signs do.
fn grid_text(grid: &Grid, context_len: usize, width: Option<usize>, color: bool) -> String {
    let columns: Vec<usize> = (0..grid.contexts.len())
        .filter(|i| grid.contexts[*i] <= context_len)
        .collect();
    let cells = || grid.rows.iter().flat_map(|row| &row.1);
    let digits = if cells().all(|cell| cell.needed < 10_000_000_000) {
        2
    } else {
        1
    };
    let width = width.unwrap_or(usize::MAX);
    let column_width = |is_narrow| NUMBER_WIDTH + told(Fit::Fits, is_narrow).len();
    let is_narrow = NAME_WIDTH + columns.len() * column_width(false) > width;
    let column_width = column_width(is_narrow);
    let n_together = (width.saturating_sub(NAME_WIDTH) / column_width).max(1);
    let mut text = String::new();
    for columns in columns.chunks(n_together) {
        let mut lines = vec![format!("{:<NAME_WIDTH$}", "GB")];
        for i in columns {
            let context = format!("{:>NUMBER_WIDTH$}", short(grid.contexts[*i]));
            lines[0] += &format!("{context:<column_width$}");
        }
        for (mix, cells) in &grid.rows {
            let mut line = format!("{:<NAME_WIDTH$}", mix.name());
            for cell in columns.iter().filter_map(|i| cells.get(*i)) {
                let told = told(cell.fit, is_narrow);
                let told = format!("{:>NUMBER_WIDTH$.digits$}{told}", cell.needed as f64 / 1e9);
                line += &if color { painted(&told, cell.fit) } else { told };
            }
            lines.push(line);
        }
        for line in lines {
            text += line.trim_end();
            text += "\n";
        }
    }
    if is_narrow {
        text += "! is tight: over 90 % of the memory; x does not fit.\n";
    }
    text
}

fn short(context: usize) -> String {
    if context.is_multiple_of(1024) {
        format!("{}K", context / 1024)
    } else {
        context.to_string()
    }
}

/// A fit in the few letters that a column has room for.
fn told(fit: Fit, is_narrow: bool) -> &'static str {
    match (fit, is_narrow) {
        (Fit::Fits, false) => " fits ",
        (Fit::Tight, false) => " tight",
        (Fit::DoesNotFit, false) => " no   ",
        (Fit::BeyondContext, false) => " long ",
        (Fit::Fits, true) => " ",
        (Fit::Tight, true) => "!",
        (Fit::DoesNotFit | Fit::BeyondContext, true) => "x",
    }
}

fn painted(text: &str, fit: Fit) -> String {
    let code = match fit {
        Fit::Fits => 32,
        Fit::Tight => 33,
        Fit::DoesNotFit | Fit::BeyondContext => 31,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_model::convert::Mix;
    use carat_model::{Config, LoadOptions};
    use carat_plan::{CONTEXTS, Plan, Weights};

    use crate::planning;

    fn grid() -> Grid {
        let config = Config::published("12B").unwrap();
        let setup = planning::setup(&config, &LoadOptions::default(), config.context_len);
        let mixes = [Mix::Q8_0, Mix::Q4_0].map(|mix| (mix, Weights::of_mix(&config, mix)));
        Grid::new(&config, &setup, mixes, &CONTEXTS, 15_000_000_000, Plan::peak)
    }

    #[test]
    fn the_table_has_words_where_there_is_room_for_them() {
        let text = grid_text(&grid(), 131_072, None, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].starts_with("GB          1K          2K") && lines[0].ends_with("128K"),
            "{text}"
        );
        assert!(lines[1].contains("tight") && lines[1].ends_with(" no"), "{text}");
        assert_eq!(lines[2].matches("fits").count(), 7, "{text}");
    }

    #[test]
    fn a_narrow_terminal_gets_signs_and_then_pieces() {
        for width in [80, 79, 40, 24, 15, 3] {
            let text = grid_text(&grid(), 131_072, Some(width), false);
            let table = text.lines().filter(|line| !line.starts_with('!'));
            let widest = table.map(str::len).max().unwrap();
            assert!(widest <= width.max(15), "{width}: {text}");
            assert!(text.ends_with("x does not fit.\n"), "{text}");
            assert_eq!(text.matches("128K").count(), 1, "{width}: {text}");
            let n_pieces = text.matches("GB").count();
            assert_eq!(text.matches("Q4_0").count(), n_pieces, "{width}: {text}");
            assert_eq!(
                n_pieces,
                8usize.div_ceil(((width.max(15) - 8) / 7).max(1)),
                "{width}: {text}"
            );
        }
    }
}
