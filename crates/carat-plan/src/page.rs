//! A plan as a page: one HTML file without scripts or anything to fetch.

use crate::heat_map::{escape, push};
use crate::{Grid, Place, heat_map, size};

/// What a page shows.
pub struct Page<'a> {
    /// The model's name.
    pub title: &'a str,
    /// What is planned for, in a sentence.
    pub subtitle: &'a str,
    /// The parts of one plan: what it is, bytes, a remark.
    pub parts: &'a [(String, u64, String)],
    /// The sum of them, and whether it fits, in words.
    pub sum: (u64, &'a str),
    /// All mixes by all contexts.
    pub grid: &'a Grid,
    /// Machines that the plan fits on, each with its bound on tokens a second when the cache is empty and full.
    pub machines: &'a [(Place<'a>, f64, f64)],
}

const STYLE: &str = ":root{color-scheme:light dark;--paper:#fff;--ink:#14181d;--faint:#5b6470;--line:#d9dee4;--bar:#7ab0ec}\
    @media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#eceff2;--faint:#a4adb8;--line:#333a42;--bar:#3f78b8}}\
    body{margin:2rem auto;max-width:60rem;padding:0 1rem;background:var(--paper);color:var(--ink);\
    font:15px/1.5 system-ui,sans-serif}h1{font-size:1.4rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:2rem 0 .5rem}\
    p{color:var(--faint);margin:.3rem 0}.chart{overflow-x:auto}svg{max-width:100%;height:auto;display:block}\
    table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line)}\
    th{font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
    .chart svg{min-width:38rem}.name{min-width:10rem}.bar{width:30%}.bar i{display:block;height:.7rem;border-radius:2px;background:var(--bar)}tfoot td{font-weight:600}\
    @media (max-width:40rem){.bar{display:none}}";

/// The page.
#[must_use]
pub fn page(page: &Page<'_>) -> String {
    let (title, subtitle) = (escape(page.title), escape(page.subtitle));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}: memory plan</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<h1>{title}: memory plan</h1>\n<p>{subtitle}</p>\n"
    );
    html += "<h2>Where the memory goes</h2>\n<table>\n<thead><tr><th>part</th><th class=\"n\">memory</th><th class=\"bar\">share</th>\
             <th></th></tr></thead>\n<tbody>\n";
    for (name, bytes, remark) in page.parts {
        let percent = 100.0 * *bytes as f64 / page.sum.0.max(1) as f64;
        push(
            &mut html,
            format_args!(
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"bar\"><i style=\"width:{percent:.1}%\"></i></td><td>{}</td></tr>\n",
                escape(name),
                size(*bytes),
                escape(remark)
            ),
        );
    }
    push(
        &mut html,
        format_args!(
            "</tbody>\n<tfoot><tr><td>peak</td><td class=\"n\">{}</td><td class=\"bar\"></td><td>{}</td></tr></tfoot>\n</table>\n",
            size(page.sum.0),
            escape(page.sum.1)
        ),
    );
    html += "<h2>Every quantization by context</h2>\n<div class=\"chart\">\n";
    html += &heat_map(page.grid, page.title, page.subtitle);
    html += "</div>\n";
    machines(&mut html, page);
    html += "</body>\n</html>\n";
    html
}

fn machines(html: &mut String, page: &Page<'_>) {
    if page.machines.is_empty() {
        return;
    }
    *html += "<h2>Machines it fits on</h2>\n<p>Tokens a second of one sequence, with the cache empty and full, are an upper bound: \
              the memory's published bandwidth over the bytes that each token reads. carat itself computes on processors; graphics \
              cards are listed for other programs.</p>\n<div class=\"chart\">\n<table>\n<thead><tr><th class=\"name\">machine</th>\
              <th class=\"n\">memory</th><th class=\"n\">bandwidth</th><th class=\"n\">tokens/s, empty</th><th class=\"n\">full</th>\
              </tr></thead>\n<tbody>\n";
    for (place, empty, full) in page.machines {
        push(
            html,
            format_args!(
                "<tr><td>{}</td><td class=\"n\">{} GiB</td><td class=\"n\">{} GB/s</td><td class=\"n\">{empty:.1}</td><td class=\"n\">{full:.1}</td></tr>\n",
                escape(&place.machine.name),
                place.memory_gib,
                place.machine.bandwidth_gb_s
            ),
        );
    }
    *html += "</tbody>\n</table>\n</div>\n";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Machine, Plan, Setup, Weights};
    use carat_model::convert::Mix;
    use carat_model::{Config, KvDType, Precision};

    #[test]
    fn the_page_is_whole_and_fetches_nothing() {
        let config = Config::published("1B").unwrap();
        let setup = Setup {
            context: 4096,
            n_sequences: 1,
            kv_dtype: KvDType::F16,
            n_threads: 4,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes: 0,
            drafter: None,
        };
        let grid = Grid::new(
            &config,
            &setup,
            [(Mix::Q4_0, Weights::of_mix(&config, Mix::Q4_0))],
            &[1024, 4096],
            8_000_000_000,
            Plan::peak,
        );
        let plan = Plan::new(&config, &Weights::of_mix(&config, Mix::Q4_0), &setup);
        let machine = Machine::find("RTX 4060").unwrap();
        let place = machine.place(&plan).unwrap();
        let html = page(&Page {
            title: "gemma3:1b <x>",
            subtitle: "for 8 GB",
            parts: &[("weights".to_owned(), plan.weights.total(), "mapped".to_owned())],
            sum: (plan.peak(), "fits"),
            grid: &grid,
            machines: &[(place, 271.5, 200.0)],
        });
        assert!(html.contains("gemma3:1b &lt;x&gt;") && html.contains("<svg") && html.contains("271.5"));
        assert!(html.contains("RTX 4060") && html.ends_with("</html>\n"));
        for fetched in ["<script", "<link", "src=", "url("] {
            assert!(!html.contains(fetched), "{fetched}");
        }
    }
}
