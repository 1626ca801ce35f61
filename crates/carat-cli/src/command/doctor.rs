//! `carat doctor`: what carat sees of this machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use carat_hub::{Hub, LocalModel, Place};
use carat_model::{Isa, cpu_features, physical_cores};
use clap::Args;
use serde_json::json;

use crate::settings::Settings;
use crate::{memory, output};

/// Show what carat sees: processor features, memory, model stores
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  carat doctor\n  carat doctor --json")]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A folder that is looked at for models.
struct Store {
    place: Place,
    dir: PathBuf,
    n_models: usize,
}

impl Doctor {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let used = match &settings.isa {
            Some(name) => Isa::named(name)?,
            None => Isa::detect(),
        };
        let n_threads = settings.threads.unwrap_or_else(physical_cores);
        let stores = stores(settings)?;
        let features = cpu_features();
        if self.json {
            let stores: Vec<_> = stores
                .iter()
                .map(|s| json!({"place": s.place.as_str(), "dir": s.dir.display().to_string(), "exists": s.dir.is_dir(), "models": s.n_models}))
                .collect();
            let memory = memory::machine_bytes();
            return output::json(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "features": features.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "isa": used.name(),
                "isa_available": Isa::available().map(Isa::name).collect::<Vec<_>>(),
                "threads": n_threads,
                "memory_bytes": memory.map(|(total, _)| total),
                "memory_available_bytes": memory.map(|(_, available)| available),
                "memory_usable_bytes": memory::usable_bytes(),
                "offline": settings.hub.offline,
                "stores": stores,
            }));
        }
        let names = |has: bool| {
            let names: Vec<&str> = features
                .iter()
                .filter(|(_, is)| *is == has)
                .map(|(name, _)| *name)
                .collect();
            if names.is_empty() {
                "none".to_string()
            } else {
                names.join(" ")
            }
        };
        let available: Vec<&str> = Isa::available().map(Isa::name).collect();
        let mut text = format!("carat         {}\n", env!("CARGO_PKG_VERSION"));
        text += &format!("processor has {}\n", names(true));
        text += &format!("it lacks      {}\n", names(false));
        text += &format!(
            "kernels       {} (available: {})\n",
            used.name(),
            available.join(", ")
        );
        text += &format!("threads       {n_threads}\n");
        if let Some((total, available)) = memory::machine_bytes() {
            let usable = memory::usable_bytes().unwrap_or(available);
            text += &format!("memory        {}\n", memory_line(total, available, usable));
        }
        text += &format!(
            "network       {}\n",
            if settings.hub.offline {
                "off by setting"
            } else {
                "allowed"
            }
        );
        for store in &stores {
            let state = match store.n_models {
                _ if !store.dir.is_dir() => "no such folder".to_string(),
                1 => "1 model".to_string(),
                n => format!("{n} models"),
            };
            text += &format!("{:<19} {state} ({})\n", store.place.as_str(), store.dir.display());
        }
        Ok(output::write(&text)?)
    }
}

/// The machine's memory, and what of it may be used here where a control group allows less, as in a container.
fn memory_line(total: u64, available: u64, usable: u64) -> String {
    let machine = format!("{}, {} available", output::size(total), output::size(available));
    if usable < available {
        format!("{machine}, {} may be used here", output::size(usable))
    } else {
        machine
    }
}

fn stores(settings: &Settings) -> Result<Vec<Store>> {
    let models = Hub::new(settings.hub.clone())?.list();
    let hub = &settings.hub;
    let dirs = [(Place::Store, &hub.store_dir)]
        .into_iter()
        .chain(hub.hf_cache_dirs.iter().map(|dir| (Place::HuggingFace, dir)))
        .chain(hub.ollama_dirs.iter().map(|dir| (Place::Ollama, dir)))
        .chain(hub.lmstudio_dirs.iter().map(|dir| (Place::LmStudio, dir)))
        .chain(hub.llamacpp_dirs.iter().map(|dir| (Place::LlamaCpp, dir)));
    Ok(dirs
        .map(|(place, dir)| {
            let n_models = models.iter().filter(|model| is_in(model, dir)).count();
            Store {
                place,
                dir: dir.clone(),
                n_models,
            }
        })
        .collect())
}

fn is_in(model: &LocalModel, dir: &Path) -> bool {
    model.path.starts_with(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_the_machines_memory_is_told() {
        let gb = |n: u64| n * 1_000_000_000;
        assert_eq!(memory_line(gb(64), gb(32), gb(32)), "64.0 GB, 32.0 GB available");
        assert_eq!(
            memory_line(gb(64), gb(32), gb(1)),
            "64.0 GB, 32.0 GB available, 1.0 GB may be used here"
        );
    }
}
