//! Device names: `auto | cpu | wgpu[:i] | cuda[:i]`, as in `--device`.

use crate::ModelError;
use burn::tensor::Device;
#[cfg(any(feature = "cuda", test))]
use std::path::Path;

const KNOWN: &str = "auto, cpu, wgpu, wgpu:N, cuda, cuda:N";

/// Device of a name. `auto` takes the first of CUDA, WGPU and CPU that this binary was built with
/// and this machine has.
///
/// # Errors
/// When the name is unknown, its backend is not in this binary, or this machine has no such device.
pub fn device(name: &str) -> Result<Device, ModelError> {
    let unknown = || ModelError::UnknownDevice { found: name.to_owned(), known: KNOWN };
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (name, None),
    };
    match (kind, index) {
        ("auto", None) => Ok(cuda("cuda", None).or_else(|_| wgpu("wgpu", None)).unwrap_or_else(|_| Device::flex())),
        ("cpu", None) => Ok(Device::flex()),
        ("wgpu", index) => wgpu(name, index),
        ("cuda", index) => cuda(name, index),
        _ => Err(unknown()),
    }
}

/// Whether tensors on `device` are in the memory of the host.
#[must_use]
pub fn is_host(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

/// Names of the backends in this binary.
#[must_use]
pub fn backends() -> Vec<&'static str> {
    [("cpu", true), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))]
        .into_iter()
        .filter_map(|(name, built)| built.then_some(name))
        .collect()
}

#[cfg(feature = "wgpu")]
fn wgpu(name: &str, index: Option<usize>) -> Result<Device, ModelError> {
    use burn::backend::{CubeDevice, WgpuDeviceKind};
    named(name, CubeDevice::wgpu(index.map_or_else(WgpuDeviceKind::default, WgpuDeviceKind::DiscreteGpu)))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: &str, _: Option<usize>) -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt { backend: "wgpu" })
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, index: Option<usize>) -> Result<Device, ModelError> {
    let device = named(name, burn::backend::CubeDevice::cuda(index.unwrap_or(0)))?;
    let cuda_path = std::env::var_os("CUDA_PATH").map(std::path::PathBuf::from);
    libdevice(cuda_path.as_deref(), &CUDA_ROOTS.map(Path::new))?;
    Ok(device)
}

/// Where CubeCL looks for a CUDA toolkit if `CUDA_PATH` names none.
#[cfg(any(feature = "cuda", test))]
const CUDA_ROOTS: [&str; 4] = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"];

/// Proves that CubeCL will find the bitcode of CUDA's mathematical functions, which kernels with
/// `exp` or `tanh` are linked with when they first run: in `cuda_path` or, without one, in a root.
#[cfg(any(feature = "cuda", test))]
fn libdevice(cuda_path: Option<&Path>, roots: &[&Path]) -> Result<(), ModelError> {
    let searched = cuda_path.map_or_else(|| roots.to_vec(), |path| vec![path]);
    let is_there = |root: &&Path| root.join("nvvm/libdevice/libdevice.10.bc").is_file();
    if searched.iter().any(is_there) {
        return Ok(());
    }
    let names: Vec<String> = searched.iter().map(|root| format!("`{}`", root.display())).collect();
    Err(ModelError::NoLibdevice { searched: names.join(", ") })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &str, _: Option<usize>) -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt { backend: "cuda" })
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn named<E: std::fmt::Display>(name: &str, found: Result<burn::backend::CubeDevice, E>) -> Result<Device, ModelError> {
    // One stream for all threads. With one for each, a weight that one thread has loaded and
    // another reads is shared between streams in every operation, which waits for both.
    cubecl_environment::stream::set_policy(cubecl_environment::stream::StreamPolicy::Single);
    let missing = |reason: E| ModelError::NoSuchDevice { name: name.to_owned(), reason: reason.to_string() };
    Ok(Device::new(found.map_err(missing)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    /// `CUDA_PATH` stands for itself: no root is looked at beside it, as CubeCL does.
    #[test]
    fn mathematical_functions_of_cuda() {
        let folder = tempfile::tempdir().unwrap();
        let (full, empty) = (folder.path().join("full"), folder.path().join("empty"));
        fs::create_dir_all(full.join("nvvm/libdevice")).unwrap();
        fs::write(full.join("nvvm/libdevice/libdevice.10.bc"), b"BC").unwrap();
        assert!(libdevice(Some(&full), &[]).is_ok());
        assert!(libdevice(None, &[&empty, &full]).is_ok());
        let error = libdevice(Some(&empty), &[&full]).unwrap_err().to_string();
        assert!(error.contains("empty`\nhint: set `CUDA_PATH`"), "{error}");
        let error = libdevice(None, &CUDA_ROOTS.map(Path::new)[..2]).unwrap_err().to_string();
        assert!(error.contains("under `/usr/local/cuda`, `/opt/cuda`"), "{error}");
    }
}
