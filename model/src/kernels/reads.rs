//! Transfers between a device and the host. A read waits until the device has done all its work, so
//! a training step makes few of them: numbers stay on the device as [`Late`] values until the host
//! needs them, and several are read in one transfer. Reads are counted.

use super::{f32_slice, kernels_of};
use crate::is_host;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::{
    cell::Cell,
    sync::{Arc, OnceLock},
};

/// Numbers that the host reads when it needs them, once. Clones share what was read.
#[derive(Clone, Debug)]
pub struct Late {
    /// `None` if the host has made the numbers.
    source: Option<Source>,
    host: Arc<OnceLock<Vec<f32>>>,
}

/// Numbers on a device.
#[derive(Clone, Debug)]
enum Source {
    Floats(Tensor<1>),
    /// Up to 16.7 million, which f32 holds exactly; converted when they are read.
    Integers(Tensor<1, Int>),
}

impl Source {
    fn floats(self) -> Tensor<1> {
        match self {
            Self::Floats(tensor) => tensor,
            Self::Integers(tensor) => tensor.float(),
        }
    }
}

impl Late {
    /// Values of `tensor`, row by row.
    #[must_use]
    pub fn new<const D: usize>(tensor: Tensor<D>) -> Self {
        let len = tensor.dims().iter().product::<usize>();
        Self { source: Some(Source::Floats(tensor.inner().reshape([len]))), host: Arc::default() }
    }

    /// Values of integers up to 16.7 million.
    #[must_use]
    pub fn integers(tensor: Tensor<1, Int>) -> Self {
        Self { source: Some(Source::Integers(tensor)), host: Arc::default() }
    }

    /// Values that the host has.
    #[must_use]
    pub fn known(values: Vec<f32>) -> Self {
        Self { source: None, host: Arc::new(OnceLock::from(values)) }
    }

    /// The values on the device, if they are there and no integers.
    #[must_use]
    pub fn tensor(&self) -> Option<&Tensor<1>> {
        match self.source.as_ref()? {
            Source::Floats(tensor) => Some(tensor),
            Source::Integers(_) => None,
        }
    }

    /// The values, if the host has them already.
    #[must_use]
    pub fn if_known(&self) -> Option<&[f32]> {
        self.host.get().map(Vec::as_slice)
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        let read = || self.source.clone().map(|source| read(vec![source.floats()]).remove(0)).unwrap_or_default();
        self.host.get_or_init(read)
    }
}

/// Reads what the host does not have yet of `all`, in one transfer.
pub fn read_together<'a>(all: impl IntoIterator<Item = &'a Late>) {
    let unread = all.into_iter().filter(|late| late.host.get().is_none());
    let (cells, tensors): (Vec<_>, Vec<_>) =
        unread.filter_map(|late| Some((&late.host, late.source.clone()?.floats()))).unzip();
    for (cell, values) in cells.into_iter().zip(read(tensors)) {
        // Clones of one value may be among them; the first has set it.
        let _ = cell.set(values);
    }
}

/// Values of vectors, in one transfer.
#[must_use]
pub fn read(vectors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
    match vectors.first().map(Tensor::device) {
        Some(device) => kernels_of(&device).read(vectors),
        None => Vec::new(),
    }
}

/// Vectors of `lens` elements on `device` from `values`, one after the other, in one transfer.
///
/// # Panics
/// When `values` are not as many as all of them have.
#[must_use]
pub fn write(values: Vec<f32>, lens: &[usize], device: &Device) -> Vec<Tensor<1>> {
    assert_eq!(lens.iter().sum::<usize>(), values.len(), "values for all vectors");
    let vector = |values: Vec<f32>| {
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), device)
    };
    if lens.len() == 1 {
        return vec![vector(values)];
    }
    let mut end = 0;
    let ranges = lens.iter().map(|len| {
        end += len;
        end - len..end
    });
    if is_host(device) {
        return ranges.map(|range| vector(values[range].to_vec())).collect();
    }
    let all = vector(values);
    ranges.map(|range| all.clone().slice([range])).collect()
}

/// Mean of all elements, read from the device.
#[must_use]
pub fn read_mean<const D: usize>(x: Tensor<D>) -> f32 {
    Late::new(x.mean()).values()[0]
}

thread_local! {
    static READS: Cell<usize> = const { Cell::new(0) };
}

/// Values of vectors on a device with memory of its own.
pub(super) fn transfer(vectors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
    if vectors.is_empty() {
        return Vec::new();
    }
    READS.set(READS.get() + 1);
    let lens: Vec<usize> = vectors.iter().map(|vector| vector.dims()[0]).collect();
    let data = Tensor::cat(vectors, 0).into_data();
    let mut rest = f32_slice(&data);
    lens.into_iter().map(|len| rest.split_off(..len).unwrap_or_default().to_vec()).collect()
}

/// The elements of `tensor` on the host: a read, if they are on a device.
#[must_use]
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> TensorData {
    if !is_host(&tensor.device()) {
        READS.set(READS.get() + 1);
    }
    tensor.into_data()
}

/// Number of reads that this thread has made so far. The CPU makes none: its tensors are in the
/// host's memory.
#[must_use]
pub fn num_reads() -> usize {
    READS.get()
}
