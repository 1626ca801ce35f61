//! How many threads are worth having.

/// Physical cores that this process may use, at least 1.
///
/// Two threads of one core share its multipliers and its memory port: a second one makes the kernels slower.
/// The process's affinity and its cgroup's CPU quota are honoured, as far as the system tells.
#[must_use]
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(cores_of_system().unwrap_or(allowed)).max(1)
}

/// Cores of the whole machine, where Linux lists them: each set of sibling threads is one.
fn cores_of_system() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let path = entry.ok()?.path().join("topology/thread_siblings_list");
        if let Ok(siblings) = std::fs::read_to_string(path) {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_at_least_one_and_no_more_than_allowed() {
        let n = super::physical_cores();
        assert!(n >= 1 && n <= std::thread::available_parallelism().map_or(1, usize::from));
    }
}
