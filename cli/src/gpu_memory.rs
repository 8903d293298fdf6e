//! Free memory of an NVIDIA GPU, as the tool of its driver says it: `nvidia-smi`. Other GPUs are
//! not asked: WGPU has no such number.

use crate::memory::Available;
use std::{ffi::OsStr, process::Command};

const TOOL: &str = "nvidia-smi";

/// Memory that is free on the GPU that `device`, a name as of `--device`, has turned out to be;
/// `None` where it is none of CUDA's, or the tool does not answer.
pub fn available(device: &str) -> Option<Available> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    ask(OsStr::new(TOOL), device, visible.as_deref())
}

fn ask(tool: &OsStr, device: &str, visible: Option<&str>) -> Option<Available> {
    let id = id(device, visible)?;
    let query = ["--query-gpu=memory.free,name", "--format=csv,noheader,nounits", "--id"];
    let answer = Command::new(tool).args(query).arg(&id).output().ok().filter(|output| output.status.success())?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let (mebibytes, name) = answer.lines().next()?.split_once(',')?;
    let bytes = mebibytes.trim().parse::<u64>().ok()? << 20;
    Some(Available { bytes, bound: format!("of the GPU {id}, {}", name.trim()) })
}

/// What the tool calls the GPU: CUDA counts those that `CUDA_VISIBLE_DEVICES` lists, by number or
/// by UUID; the tool counts all.
fn id(device: &str, visible: Option<&str>) -> Option<String> {
    let (kind, index) = device.split_once(':').unwrap_or((device, "0"));
    let index: usize = index.parse().ok()?;
    match (kind, visible) {
        ("cuda" | "auto", None) => Some(index.to_string()),
        ("cuda" | "auto", Some(list)) => {
            list.split(',').nth(index).map(|id| id.trim().to_owned()).filter(|id| !id.is_empty())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices_are_counted_anew() {
        assert_eq!(id("cuda", None).as_deref(), Some("0"));
        assert_eq!(id("cuda:3", None).as_deref(), Some("3"));
        assert_eq!(id("cuda:1", Some("4, GPU-8f3c,5")).as_deref(), Some("GPU-8f3c"));
        assert_eq!(id("cuda:1", Some("4")), None);
        assert_eq!(id("cuda", Some("")), None);
        assert_eq!(id("auto", Some("2,1")).as_deref(), Some("2"));
        assert_eq!(id("wgpu", None), None);
        assert_eq!(id("cpu", None), None);
    }

    #[cfg(unix)]
    #[test]
    fn the_answer_of_the_tool_is_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join(TOOL);
        let write = |script: &str| {
            fs_err::write(&tool, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs_err::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        write(r#"[ "$4" = 2 ] && echo "81000, NVIDIA H100 80GB HBM3""#);
        let found = ask(tool.as_os_str(), "cuda:2", None);
        let bound = "of the GPU 2, NVIDIA H100 80GB HBM3".to_owned();
        assert_eq!(found, Some(Available { bytes: 81_000 << 20, bound }));
        assert_eq!(ask(tool.as_os_str(), "cuda:1", None), None);
        write(r#"echo "[N/A], NVIDIA H100""#);
        assert_eq!(ask(tool.as_os_str(), "cuda", None), None);
        assert_eq!(ask(OsStr::new("no-such-tool"), "cuda", None), None);
    }
}
