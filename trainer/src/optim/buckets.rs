//! Sums of gradients over ranks. Small tensors are summed together in buckets: each alone would
//! wait for the slowest connection.

use super::{
    gradients::Gradients,
    parameters::{ParameterList, ParameterRange},
};
use burn::tensor::{Device, Tensor, TensorData};
use retie_collective::Collective;
use retie_model::kernels::{f32_slice, f32_slice_mut};

/// Elements of a bucket, 16 MiB: long enough that the time goes into moving bytes.
pub const BUCKET: usize = 1 << 22;

/// For each of `parameters`, whether some rank has a gradient of it.
pub fn present(parameters: &ParameterList, grads: &Gradients, ranks: &dyn Collective) -> Vec<bool> {
    let has = |range: &ParameterRange| f64::from(u8::from(grads.has(&range.parameter.name)));
    let mut counts: Vec<f64> = parameters.ranges().iter().map(has).collect();
    ranks.all_reduce_f64(&mut counts);
    counts.into_iter().map(|count| count > 0.0).collect()
}

/// Takes a gradient to the host; zeros where this rank has none.
pub fn take(grads: &mut Gradients, name: &str, len: usize) -> TensorData {
    grads.take(name).map_or_else(|| TensorData::new(vec![0.0f32; len], [len]), Tensor::into_data)
}

/// Makes each gradient of a `present` parameter the sum over all ranks.
pub fn all_reduce(
    parameters: &ParameterList,
    present: &[bool],
    grads: &mut Gradients,
    device: &Device,
    ranks: &dyn Collective,
    bucket: usize,
) {
    let mut small: Vec<(&str, TensorData)> = Vec::new();
    let mut pending = 0;
    for (ParameterRange { parameter, range }, _) in parameters.ranges().iter().zip(present).filter(|(_, p)| **p) {
        let (name, len) = (parameter.name.as_str(), range.len());
        let mut grad = take(grads, name, len);
        if len >= bucket {
            ranks.all_reduce(f32_slice_mut(&mut grad));
            grads.put(name, Tensor::from_data(grad, device));
            continue;
        }
        if pending + len > bucket {
            flush(&mut small, grads, device, ranks);
            pending = 0;
        }
        pending += len;
        small.push((name, grad));
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
