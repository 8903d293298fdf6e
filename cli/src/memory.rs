//! Memory that a command needs, beside the memory that it can have: said before the work starts,
//! and refused where not even what it has to hold at once fits.
//!
//! What it can have is the least of what the kernel calls available (`MemAvailable`, with free
//! swap) and of what the limits of the process's control groups leave (`memory.max` of each group
//! up to the root, version 2; `memory.limit_in_bytes`, version 1), in which file caches count as
//! free.

use crate::gpu_memory;
use anyhow::bail;
use retie_report::number::bytes;
use std::path::Path;

/// Where the kernel shows its numbers.
const ROOT: &str = "/";
/// A limit from which on a control group of version 1 has none.
const NO_LIMIT: u64 = 1 << 60;

/// Memory that a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Bytes that are held at once whatever happens, such as weights.
    pub least: u64,
    /// Bytes with what is estimated, such as activations.
    pub estimate: u64,
}

impl Need {
    /// A need without an estimate.
    pub fn exact(bytes: u64) -> Self {
        Self { least: bytes, estimate: bytes }
    }
}

/// Memory that this process can have, and what bounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    pub bytes: u64,
    pub bound: String,
}

/// Says what `work` needs, and compares it with what there is. `hint` says what would fit into so
/// many bytes.
///
/// # Errors
/// The least that it needs is more than there is.
pub fn check(work: &str, need: Need, hint: impl FnOnce(u64) -> String) -> anyhow::Result<()> {
    compare(work, need, available(Path::new(ROOT)), hint)
}

/// As [`check`], with the memory of the GPU of `device`, a name as of `--device`.
///
/// # Errors
/// The least that it needs is more than there is.
pub fn check_gpu(work: &str, need: Need, device: &str, hint: impl FnOnce(u64) -> String) -> anyhow::Result<()> {
    compare(work, need, gpu_memory::available(device), hint)
}

fn compare(
    work: &str,
    need: Need,
    available: Option<Available>,
    hint: impl FnOnce(u64) -> String,
) -> anyhow::Result<()> {
    let Need { least, estimate } = need;
    let Some(Available { bytes: free, bound }) = available else {
        tracing::info!(needed = %bytes(estimate), "{work}: memory; nothing says how much is free");
        return Ok(());
    };
    tracing::info!(needed = %bytes(estimate), free = %bytes(free), %bound, "{work}: memory");
    if least > free {
        bail!(
            "{work} needs at least {} of memory, {} are free ({bound})\nhint: {}",
            bytes(least),
            bytes(free),
            hint(free)
        );
    }
    if estimate > free {
        let hint = hint(free);
        tracing::warn!("{work} may need {} of memory, {} are free ({bound}); {hint}", bytes(estimate), bytes(free));
    }
    Ok(())
}

/// What this process can have; `None` if the system does not say.
fn available(root: &Path) -> Option<Available> {
    let mut found = vec![kernel(root)?];
    found.extend(control_groups(root));
    found.into_iter().min_by_key(|available| available.bytes)
}

fn kernel(root: &Path) -> Option<Available> {
    let info = fs_err::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let bytes = (kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) * 1024;
    Some(Available { bytes, bound: "of this machine".to_owned() })
}

/// What each control group of this process leaves.
fn control_groups(root: &Path) -> Vec<Available> {
    let groups = fs_err::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mount, names) = match controllers {
            "" => ("sys/fs/cgroup", ["memory.max", "memory.current"]),
            all if all.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes"])
            }
            _ => continue,
        };
        // A container may see its own group as the root, whatever its path outside is called.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            found.extend(left(&root.join(mount).join(group), names).map(|bytes| {
                let name = format!("/{}", group.display());
                Available { bytes, bound: format!("of the control group `{name}`") }
            }));
        }
    }
    found
}

/// Bytes that the limit of the group `folder` leaves; `None` without a limit.
fn left(folder: &Path, [limit, usage]: [&str; 2]) -> Option<u64> {
    let number = |name: &str| fs_err::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(limit).filter(|limit| *limit < NO_LIMIT)?;
    let stat = fs_err::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let caches = ["inactive_file ", "total_inactive_file "];
    let cached =
        caches.iter().find_map(|key| stat.lines().find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok()));
    Some((limit + cached.unwrap_or(0)).saturating_sub(number(usage)?).min(limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const MIB: u64 = 1 << 20;

    fn system(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  4096000 kB\nMemFree: 1 kB\nMemAvailable:  1024000 kB\nSwapFree:  102400 kB\n");

    #[test]
    fn without_limits_the_kernel_says_what_is_free() {
        let root = system(&[MEMINFO, ("proc/self/cgroup", "0::/a/b\n"), ("sys/fs/cgroup/a/memory.max", "max\n")]);
        let expected = Available { bytes: 1100 * MIB, bound: "of this machine".to_owned() };
        assert_eq!(available(root.path()), Some(expected));
        assert_eq!(available(system(&[]).path()), None);
    }

    #[test]
    fn the_tightest_group_counts_and_its_file_cache_is_free() {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "536870912\n"),
            ("sys/fs/cgroup/a/memory.current", "314572800\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 104857600\n"),
            ("sys/fs/cgroup/a/b/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/b/memory.current", "0\n"),
        ]);
        let expected = Available { bytes: 312 * MIB, bound: "of the control group `/a`".to_owned() };
        assert_eq!(available(root.path()), Some(expected));
    }

    #[test]
    fn groups_of_version_1_and_of_a_container_are_read() {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,memory:/docker/0123\n3:pids:/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "209715200\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 52428800\n"),
        ]);
        let expected = Available { bytes: 150 * MIB, bound: "of the control group `/`".to_owned() };
        assert_eq!(available(root.path()), Some(expected));
        let unlimited = system(&[
            MEMINFO,
            ("proc/self/cgroup", "5:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n"),
        ]);
        assert_eq!(available(unlimited.path()).unwrap().bytes, 1100 * MIB);
    }

    #[test]
    fn what_cannot_fit_is_refused_with_what_would() {
        let free = || Some(Available { bytes: 100 * MIB, bound: "of this machine".to_owned() });
        let hint = |free: u64| format!("take {} in place", free / MIB);
        compare("x", Need::exact(100 * MIB), free(), hint).unwrap();
        compare("x", Need { least: 100 * MIB, estimate: 200 * MIB }, free(), hint).unwrap();
        compare("x", Need::exact(1 << 50), None, hint).unwrap();
        let message = compare("training", Need::exact(101 * MIB), free(), hint).unwrap_err().to_string();
        assert!(message.starts_with("training needs at least 10"), "{message}");
        assert!(message.ends_with("(of this machine)\nhint: take 100 in place"), "{message}");
    }
}
