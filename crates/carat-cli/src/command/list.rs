//! `carat list`: the models on this machine, and those that could be pulled.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use carat_hub::{Hub, LocalModel};
use clap::Args;
use serde_json::json;

use crate::output;
use crate::settings::Settings;

/// List the models on this machine, carat's own and those of other programs
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "Examples:\n  carat list\n  carat list --catalogue\n  carat list --json"
)]
pub(crate) struct List {
    /// List the names that can be pulled instead
    #[arg(long)]
    catalogue: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let hub = Hub::new(settings.hub.clone())?;
        if self.catalogue {
            return self.print_catalogue(&hub);
        }
        let models = hub.list();
        if self.json {
            let models: Vec<_> = models.iter().map(model_json).collect();
            return output::json(&models);
        }
        if models.is_empty() {
            output::note("no models on this machine yet; `carat list --catalogue` shows what can be pulled");
            return Ok(());
        }
        let rows: Vec<Vec<String>> = models
            .iter()
            .map(|model| {
                vec![
                    model.name.clone(),
                    output::size(model.size_bytes),
                    age(model.modified),
                    model.place.as_str().to_string(),
                    model.path.display().to_string(),
                ]
            })
            .collect();
        Ok(output::table(
            &["NAME", "SIZE", "CHANGED", "WHERE", "PATH"],
            &rows,
        )?)
    }

    fn print_catalogue(&self, hub: &Hub) -> Result<()> {
        if self.json {
            let entries: Vec<_> = hub
                .catalogue()
                .iter()
                .map(|entry| {
                    json!({
                        "name": entry.name, "aliases": entry.aliases, "description": entry.description,
                        "params": entry.params, "quant": entry.quant, "size_gb": entry.size_gb,
                        "licence": entry.licence,
                    })
                })
                .collect();
            return output::json(&entries);
        }
        let rows: Vec<Vec<String>> = hub
            .catalogue()
            .iter()
            .map(|entry| {
                vec![
                    entry.name.clone(),
                    format!("{} GB", entry.size_gb),
                    entry.aliases.join(", "),
                    entry.description.clone(),
                ]
            })
            .collect();
        Ok(output::table(&["NAME", "SIZE", "ALSO", "WHAT"], &rows)?)
    }
}

fn model_json(model: &LocalModel) -> serde_json::Value {
    let modified = model
        .modified
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    json!({
        "name": model.name,
        "path": model.path.display().to_string(),
        "size_bytes": model.size_bytes,
        "place": model.place.as_str(),
        "modified_unix_s": modified.map(|since| since.as_secs()),
    })
}

/// How long ago, in the largest unit that fits.
fn age(time: Option<SystemTime>) -> String {
    let Some(ago) = time.and_then(|time| SystemTime::now().duration_since(time).ok()) else {
        return "-".to_string();
    };
    in_words(ago)
}

fn in_words(ago: Duration) -> String {
    let seconds = ago.as_secs();
    let units = [
        (86_400 * 365, "year"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    match units.into_iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, name)) => {
            let n = seconds / unit;
            format!("{n} {name}{} ago", if n == 1 { "" } else { "s" })
        }
        None => "just now".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_in_one_unit() {
        let said = |seconds| in_words(Duration::from_secs(seconds));
        assert_eq!(said(5), "just now");
        assert_eq!(said(61), "1 minute ago");
        assert_eq!(said(86_400 * 3), "3 days ago");
        assert_eq!(said(86_400 * 800), "2 years ago");
    }
}
