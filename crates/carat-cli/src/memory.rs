//! What the system says about memory. Linux only; elsewhere nothing is known.

use std::fs;
use std::path::Path;

/// Where Linux shows its control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Most memory that this process has held, in bytes.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory that this process holds and that no file stands for, in bytes; 0 where the system does not say.
pub(crate) fn own_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, "RssAnon:").unwrap_or(0)
}

/// Memory of the machine and what of it is available, in bytes.
pub(crate) fn machine_bytes() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((field(&text, "MemTotal:")?, field(&text, "MemAvailable:")?))
}

/// What this process may take, in bytes: what the machine has available, or less where its control group is
/// limited, as in a container.
pub(crate) fn usable_bytes() -> Option<u64> {
    let (_, available) = machine_bytes()?;
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(available.min(group_room(Path::new(CGROUPS), &group).unwrap_or(u64::MAX)))
}

/// The least room that the process's control group and those above it leave; `None` when none has a limit.
fn group_room(root: &Path, memberships: &str) -> Option<u64> {
    let room = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, files) = match controllers {
            "" => (root.to_owned(), ["memory.max", "anon"]),
            list if list.split(',').any(|name| name == "memory") => {
                (root.join("memory"), ["memory.limit_in_bytes", "total_rss"])
            }
            _ => return None,
        };
        let folder = root.join(path.trim().trim_start_matches('/'));
        let groups = folder.ancestors().take_while(|folder| folder.starts_with(&root));
        groups.filter_map(|folder| room_in(folder, files)).min()
    };
    memberships.lines().filter_map(room).min()
}

/// The limit of one group less what its processes hold. Cached files are not counted: they give way.
fn room_in(folder: &Path, [limit, held]: [&str; 2]) -> Option<u64> {
    // No limit is the word `max`, or in the older form a number that no machine has.
    let limit: u64 = fs::read_to_string(folder.join(limit)).ok()?.trim().parse().ok()?;
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let held = statistics
        .lines()
        .find_map(|line| line.strip_prefix(held)?.trim().parse().ok());
    Some(limit.saturating_sub(held.unwrap_or(0)))
}

/// A `Name:   123 kB` line in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "MemTotal:       16318480 kB\nMemFree: x kB\n";
        assert_eq!(field(text, "MemTotal:"), Some(16_318_480 * 1024));
        assert_eq!(field(text, "MemFree:"), None);
        assert_eq!(field(text, "VmHWM:"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/memory.max", "1000\n");
        write("a/memory.stat", "anon 300\nfile 600\n");
        write("a/b/memory.max", "max\n");
        let room = |groups: &str| group_room(root.path(), groups);
        assert_eq!(room("0::/a/b\n"), Some(700));
        assert_eq!(room("0::/c\n"), None);
        assert_eq!(room("nonsense\n0:\n"), None);
        write("memory/old/memory.limit_in_bytes", "500\n");
        write("memory/old/memory.stat", "total_rss 100\n");
        assert_eq!(room("4:cpu:/a\n3:memory,x:/old\n0::/a\n"), Some(400));
    }
}
