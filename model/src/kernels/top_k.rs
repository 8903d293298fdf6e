//! Top-k of each sequence: the rows with the highest logits, of equal ones the first.
//!
//! The host selects without a full sort. A device compares every two logits of a sequence: a row is
//! selected if fewer than `k` are above it, and its place is the number of selected rows before it.
//! burn leaves sorting to the host, which would have to read the logits.

use super::rows::{RowSet, upload};
use burn::tensor::{Device, Int, Tensor};
use std::cmp::Ordering;

/// Numbers of rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Rows that can be selected.
    pub active: usize,
    /// Rows that are selected.
    pub selected: usize,
}

/// [`super::top_k`] on the host.
pub fn on_host(active: &[usize], logits: &[f32], quotas: &[Quota]) -> Vec<usize> {
    let mut selected = Vec::new();
    let mut start = 0;
    for quota in quotas {
        let mut order: Vec<usize> = (start..start + quota.active).collect();
        start += quota.active;
        let by_logit =
            |a: &usize, b: &usize| logits[*b].partial_cmp(&logits[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b));
        if quota.selected < order.len() {
            order.select_nth_unstable_by(quota.selected, by_logit);
            order.truncate(quota.selected);
        }
        order.sort_unstable();
        selected.extend(order.into_iter().map(|i| active[i]));
    }
    selected
}

/// [`super::top_k`] of `logits [n]` on their device.
pub fn on_device(active: &RowSet, logits: &Tensor<1>, quotas: &[Quota]) -> RowSet {
    let device = logits.device();
    let most = quotas.iter().map(|quota| quota.selected).max().unwrap_or(0);
    let (starts, logits) = by_sequence(logits, quotas);
    let shape = logits.dims();
    let [sequences, width] = shape;
    let is_selected =
        num_above(&logits).lower(column(quotas.iter().map(|quota| quota.selected), &device).expand(shape));
    // The place among the selected rows of the sequence; `most` for other rows, which has no place.
    let place = (is_selected.clone().int().cumsum(1) - 1).mask_fill(is_selected.bool_not(), most as i64);
    let within = in_parts(sequences * width, most, |start, len| {
        let shape = [sequences, len, width];
        let place = place.clone().reshape([sequences, 1, width]).expand(shape);
        let takes = place.equal(index(1, shape, &device) + start as i64);
        (takes.int() * index(2, shape, &device)).sum_dim(2).reshape([sequences, len])
    });
    let among_active = within + column(starts.into_iter(), &device).expand([sequences, most]);
    let mut among_active = among_active.reshape([sequences * most]);
    if quotas.iter().any(|quota| quota.selected < most) {
        let places = quotas.iter().enumerate().flat_map(|(i, quota)| i * most..i * most + quota.selected);
        among_active = among_active.select(0, upload(&places.collect::<Vec<_>>(), &device));
    }
    let rows = active.indices(&device).select(0, among_active.clone());
    RowSet::on_device(rows, among_active, quotas.iter().map(|quota| quota.selected).collect())
}

/// First index of each sequence, and the logits `[n]` of sequence after sequence as `[B, L]`:
/// behind those of a shorter one stands `−∞`.
fn by_sequence(logits: &Tensor<1>, quotas: &[Quota]) -> (Vec<usize>, Tensor<2>) {
    let device = logits.device();
    let width = quotas.iter().map(|quota| quota.active).max().unwrap_or(0);
    let shape = [quotas.len(), width];
    let first = |end: &mut usize, quota: &Quota| Some(std::mem::replace(end, *end + quota.active));
    let starts: Vec<usize> = quotas.iter().scan(0, first).collect();
    // A comparison with NaN is false on both sides: as many rows as the quota would not be below.
    let logits = logits.clone().mask_fill(logits.clone().is_nan(), f32::NEG_INFINITY);
    if quotas.iter().all(|quota| quota.active == width) {
        return (starts, logits.reshape(shape));
    }
    let last = logits.dims()[0] - 1;
    let padded = starts.iter().flat_map(|start| (*start..start + width).map(move |at| at.min(last)));
    let logits = logits.select(0, upload(&padded.collect::<Vec<_>>(), &device)).reshape(shape);
    let lens = column(quotas.iter().map(|quota| quota.active), &device).expand(shape);
    (starts, logits.mask_fill(index(1, shape, &device).greater_equal(lens), f32::NEG_INFINITY))
}

/// Comparisons of logits that are in memory at once.
const COMPARISONS_IN_FLIGHT: usize = 1 << 24;

/// For each element of `x [B, L]`, how many of its row are larger, or equal and before it.
fn num_above(x: &Tensor<2>) -> Tensor<2, Int> {
    let [sequences, width] = x.dims();
    in_parts(sequences * width, width, |start, len| {
        let shape = [sequences, len, width];
        let own = x.clone().narrow(1, start, len).reshape([sequences, len, 1]).expand(shape);
        let other = x.clone().reshape([sequences, 1, width]).expand(shape);
        let is_before = index(2, shape, &x.device()).lower(index(1, shape, &x.device()) + start as i64);
        let is_above = other.clone().greater(own.clone()).bool_or(other.equal(own).bool_and(is_before));
        is_above.int().sum_dim(2).reshape([sequences, len])
    })
}

/// Columns `0..width` of `[B, width]`, as many at a time (`columns(start, len)`) as the comparisons
/// in memory allow, each column with `comparisons`.
fn in_parts(comparisons: usize, width: usize, columns: impl Fn(usize, usize) -> Tensor<2, Int>) -> Tensor<2, Int> {
    let step = (COMPARISONS_IN_FLIGHT / comparisons).clamp(1, width);
    let parts = (0..width).step_by(step).map(|start| columns(start, step.min(width - start)));
    Tensor::cat(parts.collect(), 1)
}

/// Tensor of `shape` whose elements are their own index along `dim`.
fn index<const D: usize>(dim: usize, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let mut along = [1; D];
    along[dim] = shape[dim];
    Tensor::<1, Int>::arange(0..shape[dim] as i64, device).reshape(along).expand(shape)
}

/// Numbers as a column, `[B, 1]`.
fn column(numbers: impl ExactSizeIterator<Item = usize>, device: &Device) -> Tensor<2, Int> {
    let len = numbers.len();
    upload(&numbers.collect::<Vec<_>>(), device).reshape([len, 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    /// Selected rows and their indices among the active ones, of host and device alike.
    fn select(active: &[usize], logits: &[f32], quotas: [[usize; 2]; 2]) -> Vec<usize> {
        let device = Device::flex();
        let quotas = quotas.map(|[active, selected]| Quota { active, selected });
        let expected = on_host(active, logits, &quotas);
        let logits = Tensor::from_data(TensorData::new(logits.to_vec(), [logits.len()]), &device);
        let active = RowSet::from(active);
        let found = on_device(&active, &logits, &quotas);
        assert_eq!(**found.host(), *expected);
        assert_eq!(found.per_sequence(&[]), quotas.map(|quota| quota.selected));
        assert_eq!(**active.positions(&found).host(), **active.positions(&expected.clone().into()).host());
        expected
    }

    #[test]
    fn the_highest_of_each_sequence_come_in_order_on_host_and_device() {
        let logits = [0.1, 0.9, 0.5, 0.7, -1.0, -3.0, -2.0];
        let all = [0, 1, 2, 3, 4, 5, 6];
        assert_eq!(select(&all, &logits, [[4, 2], [3, 1]]), [1, 3, 4]);
        assert_eq!(select(&all, &[0.0; 7], [[4, 2], [3, 1]]), [0, 1, 4]);
        assert_eq!(select(&all, &[f32::NEG_INFINITY; 7], [[4, 2], [3, 3]]), [0, 1, 4, 5, 6]);
        assert_eq!(select(&[1, 3, 4, 6], &[0.2, 0.3, 0.2, 0.1], [[2, 1], [2, 1]]), [3, 4]);
        assert_eq!(select(&[1, 3, 4, 6], &[0.2, 0.3, 0.2, 0.1], [[0, 0], [4, 3]]), [1, 3, 4]);
        assert_eq!(select(&[2, 5], &[0.0, 0.0], [[1, 1], [1, 1]]), [2, 5]);
    }

    #[test]
    fn as_many_as_the_quota_are_selected_of_logits_that_are_not_numbers() {
        let logits = Tensor::<1>::from_floats([f32::NAN, 1.0, f32::NAN, f32::NAN], &Device::flex());
        let quota = Quota { active: 4, selected: 3 };
        assert_eq!(**on_device(&(0..4).collect(), &logits, &[quota]).host(), [0, 1, 2]);
    }

    #[test]
    fn long_sequences_are_compared_in_parts() {
        // 5,000 rows: 25 million comparisons. 2,503 is prime: no two logits are equal within 2,503.
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 1009) % 2503) as f32).collect();
        select(&(0..5000).collect::<Vec<_>>(), &logits, [[5000, 1700], [0, 0]]);
    }
}
