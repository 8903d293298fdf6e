//! Device names: `auto | cpu | wgpu[:i] | cuda[:i]`, as in `--device`.

use crate::ModelError;
use burn::tensor::Device;
#[cfg(any(feature = "cuda", test))]
use std::path::Path;
use std::sync::Once;

const KNOWN: &str = "auto, cpu, wgpu, wgpu:N, cuda, cuda:N";

/// Device of a name. `auto` takes the first of CUDA, WGPU and CPU that this binary was built with
/// and this machine has; it warns, once, where it passes over a GPU that only lacks a file.
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
        ("auto", None) => {
            static WARNED: Once = Once::new();
            let (device, warning) = first(cuda("cuda", None), || wgpu("wgpu", None));
            if let Some(warning) = warning {
                WARNED.call_once(|| tracing::warn!("{warning}"));
            }
            Ok(device)
        }
        ("cpu", None) => Ok(Device::flex()),
        ("wgpu", index) => wgpu(name, index),
        ("cuda", index) => cuda(name, index),
        _ => Err(unknown()),
    }
}

/// The first device of `cuda`, `wgpu` and the CPU, and a line where CUDA has a device that cannot
/// be used.
fn first(
    cuda: Result<Device, ModelError>,
    wgpu: impl FnOnce() -> Result<Device, ModelError>,
) -> (Device, Option<String>) {
    let error = match cuda {
        Ok(device) => return (device, None),
        Err(error) => error,
    };
    let (device, name) = wgpu().map_or_else(|_| (Device::flex(), "the CPU"), |device| (device, "wgpu"));
    let is_there = matches!(error, ModelError::NoLibdevice { .. });
    let reason = error.to_string().replace('\n', "; ");
    (device, is_there.then(|| format!("`--device auto` takes {name}, although CUDA has a GPU: {reason}")))
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

    #[test]
    fn a_gpu_that_is_passed_over_is_named_in_one_line() {
        let not_built = |backend| Err(ModelError::BackendNotBuilt { backend });
        let no_file = || Err(ModelError::NoLibdevice { searched: "`/opt/cuda`".to_owned() });
        let (device, warning) = first(no_file(), || not_built("wgpu"));
        let warning = warning.unwrap();
        assert!(is_host(&device) && !warning.contains('\n'), "{warning}");
        assert!(
            warning.starts_with("`--device auto` takes the CPU, although CUDA has a GPU: CUDA's math"),
            "{warning}"
        );
        assert!(warning.contains("under `/opt/cuda`; hint: set `CUDA_PATH`"), "{warning}");
        let (_, warning) = first(no_file(), || Ok(Device::flex()));
        assert!(warning.unwrap().contains("takes wgpu"));
        // No GPU, or a program without CUDA, is nothing to warn of.
        let no_gpu = ModelError::NoSuchDevice { name: "cuda".to_owned(), reason: "none".to_owned() };
        for error in [Err(no_gpu), not_built("cuda"), Ok(Device::flex())] {
            assert_eq!(first(error, || not_built("wgpu")).1, None);
        }
    }

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
