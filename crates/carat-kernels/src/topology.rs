//! How many threads are worth having.

use std::collections::BTreeSet;
use std::path::Path;

/// Physical cores that this process may use, at least 1.
///
/// Two threads of one core share its multipliers and its memory port: a second one makes the kernels slower.
/// The process's affinity and its cgroup's CPU quota are honoured, as far as the system tells.
#[must_use]
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(allowed_cores().unwrap_or(allowed)).max(1)
}

/// Cores with a thread that this process may run on, where Linux tells.
fn allowed_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    cores(&cpu_list(list)?, Path::new("/sys/devices/system/cpu"))
}

/// Cores of which these are the threads, as the folder says: each set of siblings is one. Processors that it knows nothing of
/// are possible, not there: firmware announces some that could be added, and others are switched off.
fn cores(cpus: &[usize], folder: &Path) -> Option<usize> {
    let siblings = |cpu: &usize| {
        let path = folder.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        std::fs::read_to_string(path).ok()
    };
    let cores: BTreeSet<String> = cpus.iter().filter_map(siblings).collect();
    (!cores.is_empty()).then_some(cores.len())
}

/// `0-3,8` as numbers; `None` when it is not of that form.
fn cpu_list(list: &str) -> Option<Vec<usize>> {
    /// More than Linux supports: a list cannot make us count for ever.
    const MAX_CPU: usize = 1 << 16;
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last > MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_at_least_one_and_no_more_than_allowed() {
        let n = physical_cores();
        assert!(n >= 1 && n <= std::thread::available_parallelism().map_or(1, usize::from));
    }

    #[test]
    fn two_threads_are_one_core_and_absent_processors_none() {
        let folder = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0-1\n"), (1, "0-1\n"), (2, "2-3\n"), (3, "2-3\n")] {
            let topology = folder.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("thread_siblings_list"), siblings).unwrap();
        }
        assert_eq!(cores(&[0, 1, 2, 3, 4, 5], folder.path()), Some(2));
        assert_eq!(cores(&[1], folder.path()), Some(1));
        assert_eq!(cores(&[4, 5], folder.path()), None);
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(cpu_list("\t0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cpu_list("x"), None);
        assert_eq!(cpu_list("0-99999999999"), None);
    }
}
