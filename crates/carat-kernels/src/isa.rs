//! Which instruction set the kernels use: detected once, at run time, and forced lower on request.
//!
//! An [`Isa`] can only be had from [`Isa::detect`] or [`Isa::named`], which look at the processor. Holding
//! one is therefore the proof that its instructions exist, and the dispatching functions rely on it.

use std::fmt;

use crate::Error;

/// An instruction set that this processor has and that carat has kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(crate) Level);

/// The sets by themselves, without the promise that the processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Scalar,
    Avx2,
    /// AVX2 with AVX-VNNI: another integer product, the rest is the same.
    AvxVnni,
    Avx512,
    /// AVX-512 with its products of bf16, and AMX with tiles of bf16 for many activation rows.
    Amx,
    Neon,
    /// NEON with the 8-bit product of four.
    Dotprod,
    /// That, and the 8-bit product of matrices.
    I8mm,
}

impl Level {
    /// Best first, as far as one processor can have them.
    const ALL: [(Level, &'static str); 8] = [
        (Level::Amx, "amx"),
        (Level::Avx512, "avx512"),
        (Level::AvxVnni, "avxvnni"),
        (Level::Avx2, "avx2"),
        (Level::I8mm, "i8mm"),
        (Level::Dotprod, "dotprod"),
        (Level::Neon, "neon"),
        (Level::Scalar, "scalar"),
    ];

    fn is_present(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => has_avx2() && std::arch::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => has_avx512(),
            #[cfg(target_arch = "x86_64")]
            Level::Amx => {
                has_avx512()
                    && std::arch::is_x86_feature_detected!("avx512bf16")
                    && crate::x86_64::amx::is_present()
            }
            // Every 64-bit ARM processor has it, and compilers take it for granted.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Level::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Level::I8mm => {
                std::arch::is_aarch64_feature_detected!("dotprod")
                    && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            _ => false,
        }
    }
}

impl Isa {
    /// Whether it multiplies tiles of bf16.
    #[must_use]
    pub fn has_tiles(self) -> bool {
        self.0 == Level::Amx
    }

    /// Whether its vectors are those of AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512(self) -> bool {
        matches!(self.0, Level::Avx512 | Level::Amx)
    }

    /// The best set that this processor has.
    #[must_use]
    pub fn detect() -> Isa {
        let best = Level::ALL.iter().find(|(level, _)| level.is_present());
        Isa(best.map_or(Level::Scalar, |(level, _)| *level))
    }

    /// Every set that this processor has, best first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Level::ALL
            .iter()
            .filter(|(level, _)| level.is_present())
            .map(|(level, _)| Isa(*level))
    }

    /// The set called `scalar`, `avx2`, `avxvnni`, `avx512`, `amx`, `neon`, `dotprod` or `i8mm`.
    ///
    /// # Errors
    /// [`Error::UnknownIsa`] for another name, [`Error::MissingIsa`] when the processor lacks it.
    pub fn named(name: &str) -> Result<Isa, Error> {
        let Some((level, _)) = Level::ALL.iter().find(|(_, n)| *n == name) else {
            return Err(Error::UnknownIsa {
                name: name.to_owned(),
            });
        };
        if level.is_present() {
            Ok(Isa(*level))
        } else {
            Err(Error::MissingIsa {
                name: name.to_owned(),
                best: Isa::detect().name(),
            })
        }
    }

    /// `scalar`, `avx2`, `avxvnni`, `avx512`, `amx`, `neon`, `dotprod` or `i8mm`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Level::ALL
            .iter()
            .find(|(level, _)| *level == self.0)
            .map_or("scalar", |(_, name)| name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The processor's features that matter to carat, each with whether it is there. For `carat doctor`.
#[must_use]
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! seen { ($($name:tt),*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*] } }
        seen![
            "avx2",
            "fma",
            "f16c",
            "avxvnni",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512dq",
            "avx512vnni",
            "avx512bf16"
        ]
        .into_iter()
        .chain([("amx", crate::x86_64::amx::is_present())])
        .collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! seen { ($($name:tt),*) => { vec![$(($name, std::arch::is_aarch64_feature_detected!($name))),*] } }
        seen!["neon", "dotprod", "i8mm"]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

/// Whether Intel made the processor.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_intel() -> bool {
    static IS_INTEL: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *IS_INTEL.get_or_init(|| {
        let id = std::arch::x86_64::__cpuid(0);
        [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"]
    })
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_set_is_available_by_name() {
        let best = Isa::detect();
        assert_eq!(Isa::named(best.name()).unwrap(), best);
        assert_eq!(Isa::available().next(), Some(best));
        assert!(Isa::available().any(|isa| isa.name() == "scalar"));
    }

    #[test]
    fn sets_of_other_processors_are_refused() {
        let other = if cfg!(target_arch = "x86_64") {
            "neon"
        } else {
            "avx2"
        };
        assert!(matches!(Isa::named(other), Err(Error::MissingIsa { .. })));
        assert!(matches!(Isa::named("sse"), Err(Error::UnknownIsa { .. })));
    }
}
