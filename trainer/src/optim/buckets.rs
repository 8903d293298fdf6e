//! Sums of gradients over ranks, in buckets. Each tensor alone would wait for the slowest
//! connection, and on a GPU for all the work that the device has: a bucket is read in one transfer,
//! and written back in one.

use super::{
    gradients::Gradients,
    parameters::{ParameterList, ParameterRange},
};
use burn::tensor::{Device, Tensor};
use retie_collective::Collective;
use retie_model::kernels::{read, write};

/// Elements of a bucket, 16 MiB: long enough that the time goes into moving bytes.
pub const BUCKET: usize = 1 << 22;

/// For each of `parameters`, whether some rank has a gradient of it.
pub fn present(parameters: &ParameterList, grads: &Gradients, ranks: &dyn Collective) -> Vec<bool> {
    let has = |range: &ParameterRange| f64::from(u8::from(grads.has(&range.parameter.name)));
    let mut counts: Vec<f64> = parameters.ranges().iter().map(has).collect();
    ranks.all_reduce_f64(&mut counts);
    counts.into_iter().map(|count| count > 0.0).collect()
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
    let mut pending: Vec<&ParameterRange> = Vec::new();
    let mut len = 0;
    for (range, _) in parameters.ranges().iter().zip(present).filter(|(_, present)| **present) {
        if len + range.range.len() > bucket {
            sum(&std::mem::take(&mut pending), grads, device, ranks);
            len = 0;
        }
        len += range.range.len();
        pending.push(range);
    }
    sum(&pending, grads, device, ranks);
}

/// Makes the gradients of a bucket their sums; zeros stand for one that this rank does not have.
fn sum(bucket: &[&ParameterRange], grads: &mut Gradients, device: &Device, ranks: &dyn Collective) {
    let own: Vec<Option<Tensor<1>>> = bucket.iter().map(|range| grads.take(&range.parameter.name)).collect();
    let is_own: Vec<bool> = own.iter().map(Option::is_some).collect();
    let mut own = read(own.into_iter().flatten().collect()).into_iter();
    let mut values = Vec::new();
    for (range, is_own) in bucket.iter().zip(is_own) {
        match is_own.then(|| own.next()).flatten() {
            // The only one, such as the table of embeddings, is not copied.
            Some(grad) if values.is_empty() => values = grad,
            Some(grad) => values.extend(grad),
            None => values.resize(values.len() + range.range.len(), 0.0),
        }
    }
    ranks.all_reduce(&mut values);
    let lens: Vec<usize> = bucket.iter().map(|range| range.range.len()).collect();
    for (range, sum) in bucket.iter().zip(write(values, &lens, device)) {
        grads.put(&range.parameter.name, sum);
    }
}
