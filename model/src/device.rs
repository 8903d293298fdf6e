//! Device names: `auto | cpu | wgpu[:i] | cuda[:i]`, as in `--device`.

use crate::ModelError;
use burn::tensor::Device;

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
    named(name, burn::backend::CubeDevice::cuda(index.unwrap_or(0)))
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
