//! Machines that people own or rent, and what to expect of them.
//!
//! The list is `machines.toml`: memory sizes and bandwidths as their makers publish them. Decoding reads all
//! weights and the visible cache for every token, so bandwidth over bytes bounds its speed from above; programs reach
//! 60 to 90 % of it. Prefill is bound by arithmetic and not estimated.

use serde::Deserialize;

use crate::{Error, Plan};

const LIST: &str = include_str!("../machines.toml");

/// Bytes of a gigabyte of memory modules and video memory.
const GIB: f64 = (1u64 << 30) as f64;

/// What kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A laptop.
    Laptop,
    /// A desktop, mini PC or workstation without its graphics card.
    Desktop,
    /// A handheld console or single-board computer.
    Small,
    /// A server's processor, all memory channels in use.
    Server,
    /// A graphics card or accelerator with memory of its own.
    Gpu,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Laptop => "laptop",
            Kind::Desktop => "desktop",
            Kind::Small => "small",
            Kind::Server => "server",
            Kind::Gpu => "gpu",
        }
    }
}

/// One machine of the list.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What people call it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Memory it can be had with, in GiB, smallest first.
    pub memory_gib: Vec<f64>,
    /// Published bandwidth of that memory, in GB/s.
    pub bandwidth_gb_s: f64,
}

/// A machine with one of its memory sizes.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Memory, in GiB.
    pub memory_gib: f64,
    /// Bytes that a model can use of it.
    pub usable: u64,
    /// Bytes that the plan needs there.
    pub needed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    machine: Vec<Machine>,
}

impl Machine {
    /// The list.
    ///
    /// # Errors
    /// [`Error::Machines`] when it is damaged, which would be a mistake in carat.
    pub fn all() -> Result<Vec<Machine>, Error> {
        let list: List = toml::from_str(LIST).map_err(|error| Error::Machines {
            reason: error.to_string(),
        })?;
        Ok(list.machine)
    }

    /// The machine of this name. Case, blanks, dashes and makers do not matter, and the end of a name, or else any
    /// part, is enough when it is that of one machine only.
    ///
    /// # Errors
    /// [`Error::UnknownMachine`] with the names that come near, [`Error::Machines`].
    pub fn find(name: &str) -> Result<Machine, Error> {
        let all = Machine::all()?;
        let wanted = plain(name);
        let is_part = |machine: &&Machine| !wanted.is_empty() && plain(&machine.name).contains(&wanted);
        let parts: Vec<&Machine> = all.iter().filter(is_part).collect();
        let exact = |machine: &Machine| plain(&machine.name) == wanted;
        let at_end = |machine: &Machine| plain(&machine.name).ends_with(&wanted);
        for is_meant in [&exact as &dyn Fn(&Machine) -> bool, &at_end, &|_| true] {
            let mut meant = parts.iter().filter(|machine| is_meant(machine));
            if let (Some(only), None) = (meant.next(), meant.next()) {
                return Ok((*only).clone());
            }
        }
        // Of a name with more words than the list has, some may be a machine; not surely the one that is meant.
        let asked = words(name);
        let is_within = |machine: &&Machine| {
            let own = words(&machine.name);
            asked.windows(own.len().max(1)).any(|part| part == own)
        };
        let within = all.iter().filter(is_within);
        let near = parts.iter().copied().chain(within);
        Err(Error::UnknownMachine {
            name: name.to_owned(),
            near: near.map(|machine| machine.name.clone()).collect(),
        })
    }

    /// Bytes of memory that a model can use out of `memory_gib`.
    ///
    /// A computer keeps an eighth for everything else, at least 2 and at most 4 GiB; a graphics card a sixteenth, at
    /// least half a GiB, for its driver and the screen.
    #[must_use]
    pub fn usable(&self, memory_gib: f64) -> u64 {
        if self.kind == Kind::Gpu {
            ((memory_gib - (memory_gib / 16.0).max(0.5)).max(0.0) * GIB) as u64
        } else {
            usable_ram((memory_gib * GIB) as u64)
        }
    }

    /// The smallest memory of this machine that the plan fits into, if one does.
    #[must_use]
    pub fn place(&self, plan: &Plan) -> Option<Place<'_>> {
        let needed = self.needed(plan);
        let place = |&memory_gib: &f64| Place {
            machine: self,
            memory_gib,
            usable: self.usable(memory_gib),
            needed,
        };
        self.memory_gib
            .iter()
            .map(place)
            .find(|place| place.needed <= place.usable)
    }

    /// Bytes that the plan needs on this machine: on a graphics card, without the program.
    #[must_use]
    pub fn needed(&self, plan: &Plan) -> u64 {
        if self.kind == Kind::Gpu {
            plan.on_device()
        } else {
            plan.peak()
        }
    }

    /// The most tokens a second of one sequence when each reads `bytes`: an upper bound.
    #[must_use]
    pub fn decode_tok_per_s(&self, bytes: u64) -> f64 {
        self.bandwidth_gb_s * 1e9 / (bytes as f64).max(1.0)
    }
}

/// Bytes of a computer's memory that a model can use: all but an eighth, at least 2 and at most 4 GiB.
#[must_use]
pub fn usable_ram(bytes: u64) -> u64 {
    bytes.saturating_sub((bytes / 8).clamp(2 << 30, 4 << 30))
}

/// Words that people and drivers put before and behind names.
const MAKERS: [&str; 8] = [
    "nvidia", "geforce", "tesla", "amd", "radeon", "intel", "apple", "gpu",
];

/// A name without what people write differently.
fn plain(name: &str) -> String {
    words(name).concat()
}

/// The words of a name, without makers.
fn words(name: &str) -> Vec<String> {
    let words = name.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
    words
        .filter(|word| !word.is_empty() && !MAKERS.contains(&word.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Setup, Weights};
    use carat_model::convert::Mix;
    use carat_model::{Config, KvDType, Precision};

    #[test]
    fn the_list_is_sound() {
        let all = Machine::all().unwrap();
        assert!(all.len() >= 40, "{}", all.len());
        let mut names: Vec<String> = all.iter().map(|machine| plain(&machine.name)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "a name is given twice");
        for machine in &all {
            let name = &machine.name;
            assert!((15.0..10_000.0).contains(&machine.bandwidth_gb_s), "{name}");
            assert!(
                machine.memory_gib.windows(2).all(|pair| pair[0] < pair[1]),
                "{name}"
            );
            assert!(
                machine.memory_gib.iter().all(|gib| (4.0..=4096.0).contains(gib)),
                "{name}"
            );
            assert!(!machine.memory_gib.is_empty(), "{name}");
            assert!(
                machine.kind != Kind::Gpu || machine.memory_gib.len() == 1,
                "{name}"
            );
        }
    }

    #[test]
    fn machines_are_found_by_what_people_write() {
        assert_eq!(Machine::find("rtx-4090").unwrap().name, "RTX 4090");
        assert_eq!(Machine::find("3060").unwrap().memory_gib, [12.0]);
        let text = Machine::find("a100").unwrap_err().to_string();
        assert!(
            text.ends_with("those that come near are A100 40GB; A100 80GB"),
            "{text}"
        );
        for (written, name) in [
            ("4090", "RTX 4090"),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
            ("Tesla T4", "T4"),
            ("AMD Radeon RX 7900 XT", "RX 7900 XT"),
            ("dgx spark", "NVIDIA DGX Spark"),
            ("EPYC 9005", "EPYC 9005, 12-channel DDR5-6000"),
        ] {
            assert_eq!(Machine::find(written).unwrap().name, name, "{written}");
        }
        assert!(Machine::find("").is_err());
        let text = Machine::find("toaster").unwrap_err().to_string();
        assert!(
            text.contains("270M --machines") && !text.contains("RTX"),
            "{text}"
        );
        let text = Machine::find("NVIDIA GeForce RTX 4090 Max")
            .unwrap_err()
            .to_string();
        assert!(text.ends_with("those that come near are RTX 4090"), "{text}");
    }

    #[test]
    fn the_smallest_model_fits_on_every_machine() {
        let config = Config::published("270M").unwrap();
        let setup = Setup {
            context: config.context_len,
            n_sequences: 1,
            kv_dtype: KvDType::F16,
            n_threads: 64,
            has_tiles: true,
            max_batch_tokens: 512,
            precision: Precision::Int16,
            tower_bytes: 0,
            drafter: None,
        };
        let plan = Plan::new(&config, &Weights::of_mix(&config, Mix::Q4_K_M), &setup);
        for machine in Machine::all().unwrap() {
            assert!(machine.place(&plan).is_some(), "{}", machine.name);
        }
    }

    #[test]
    fn a_part_of_the_memory_is_left_to_others() {
        assert_eq!(usable_ram(16 << 30), 14 << 30);
        assert_eq!(usable_ram(64 << 30), 60 << 30);
        assert_eq!(usable_ram(1 << 30), 0);
        let card = Machine::find("RTX 4090").unwrap();
        assert_eq!(card.usable(24.0), (22.5 * GIB) as u64);
        assert!((card.decode_tok_per_s(1_008_000_000) - 1000.0).abs() < 1.0);
    }
}
