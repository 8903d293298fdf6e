//! `--device`: `auto | cpu | wgpu[:i] | cuda[:i]`.

use crate::ModelError;
use burn::tensor::Device;

const KNOWN: &str = "auto, cpu, wgpu, wgpu:N, cuda, cuda:N";

/// The device that `name` asks for. `auto` takes the first backend in this binary of CUDA, WGPU, CPU.
///
/// # Errors
/// When the name is unknown, or its backend is not in this binary.
pub fn device(name: &str) -> Result<Device, ModelError> {
    let unknown = || ModelError::UnknownDevice { found: name.to_owned(), known: KNOWN };
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (name, None),
    };
    match (kind, index) {
        ("auto", None) if cfg!(feature = "cuda") => cuda(None),
        ("auto", None) if cfg!(feature = "wgpu") => wgpu(None),
        ("auto" | "cpu", None) => Ok(Device::flex()),
        ("wgpu", index) => wgpu(index),
        ("cuda", index) => cuda(index),
        _ => Err(unknown()),
    }
}

/// The backends in this binary.
#[must_use]
pub fn backends() -> Vec<&'static str> {
    [("cpu", true), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))]
        .into_iter()
        .filter_map(|(name, built)| built.then_some(name))
        .collect()
}

#[cfg(feature = "wgpu")]
fn wgpu(index: Option<usize>) -> Result<Device, ModelError> {
    use burn::tensor::DeviceKind;
    Ok(Device::wgpu(index.map_or_else(DeviceKind::default, DeviceKind::DiscreteGpu)))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: Option<usize>) -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt { backend: "wgpu" })
}

#[cfg(feature = "cuda")]
fn cuda(index: Option<usize>) -> Result<Device, ModelError> {
    Ok(Device::cuda(index.unwrap_or(0)))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: Option<usize>) -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt { backend: "cuda" })
}
