//! Sums of gradients over ranks. Many small tensors would each wait for the slowest connection: they are told in buckets.

use super::layout::Layout;
use crate::{collective::Collective, gradients::Gradients};
use burn::tensor::{Device, Tensor, TensorData};
use retie_model::kernels::{f32_slice, f32_slice_mut};

/// Elements of a bucket, 16 MiB: long enough that the time goes into moving bytes.
pub const BUCKET: usize = 1 << 22;

/// Which parameters of `layout` have a gradient on some rank.
pub fn present(layout: &Layout, grads: &Gradients, ranks: &dyn Collective) -> Vec<bool> {
    let mut counts: Vec<f64> =
        layout.entries().iter().map(|entry| f64::from(u8::from(grads.has(&entry.name)))).collect();
    ranks.all_reduce_f64(&mut counts);
    counts.into_iter().map(|count| count > 0.0).collect()
}

/// Takes a gradient to the host; zeros where this rank has none.
pub fn take(grads: &mut Gradients, name: &str, len: usize) -> TensorData {
    grads.take(name).map_or_else(|| TensorData::new(vec![0.0f32; len], [len]), Tensor::into_data)
}

/// Makes each gradient of a `present` parameter the sum over all ranks.
pub fn all_reduce(
    layout: &Layout,
    present: &[bool],
    grads: &mut Gradients,
    device: &Device,
    ranks: &dyn Collective,
    bucket: usize,
) {
    let mut small: Vec<(&str, TensorData)> = Vec::new();
    let mut pending = 0;
    for (entry, _) in layout.entries().iter().zip(present).filter(|(_, present)| **present) {
        let len = entry.range.len();
        let mut grad = take(grads, &entry.name, len);
        if len >= bucket {
            ranks.all_reduce(f32_slice_mut(&mut grad));
            grads.put(&entry.name, Tensor::from_data(grad, device));
            continue;
        }
        if pending + len > bucket {
            flush(&mut small, grads, device, ranks);
            pending = 0;
        }
        pending += len;
        small.push((&entry.name, grad));
    }
    flush(&mut small, grads, device, ranks);
}

/// Sums what is in a bucket and puts it back.
fn flush(small: &mut Vec<(&str, TensorData)>, grads: &mut Gradients, device: &Device, ranks: &dyn Collective) {
    let mut bucket: Vec<f32> = small.iter().flat_map(|(_, grad)| f32_slice(grad)).copied().collect();
    ranks.all_reduce(&mut bucket);
    let mut rest = bucket.as_slice();
    for (name, mut grad) in small.drain(..) {
        let values = f32_slice_mut(&mut grad);
        let (sum, after) = rest.split_at(values.len());
        values.copy_from_slice(sum);
        rest = after;
        grads.put(name, Tensor::from_data(grad, device));
    }
}
