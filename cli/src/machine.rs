//! Description of this machine, for reports that say where a number was measured.

use std::thread::available_parallelism;

/// Name of the processor, or its architecture if the system does not report one.
pub fn processor() -> String {
    let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// Threads that this process may use.
pub fn threads() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Total and available memory in bytes; `None` if the system does not report them.
pub fn memory() -> Option<(u64, u64)> {
    let info = fs_err::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some((kib("MemTotal:")? * 1024, kib("MemAvailable:")? * 1024))
}

/// Vector instructions that the CPU backend has code for and this processor has.
pub fn vector_instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let found = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found: [(&str, bool); 0] = [];
    found.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}

/// One line: processor, threads, system.
pub fn summary() -> String {
    format!("{}, {} threads, {}", processor(), threads(), std::env::consts::OS)
}
