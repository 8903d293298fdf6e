//! Top-k of each sequence, in two launches: a row is selected if fewer than `k` of its sequence are
//! above it, and its place is the number of selected rows before it. A unit compares one row with
//! the others of its sequence.

use super::launch::{Bound, cubes_for_units, dense, dims, position, units};
use crate::kernels::Quota;
use burn::tensor::DType;
use burn_cubecl::{ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::prelude::*;

/// Integers that stand in the order of the logits: of numbers that are none as of −∞, and of both
/// zeros the same. A comparison of floats may assume that there is no NaN.
#[cube]
fn rank(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    let size = bits & 0x7fff_ffffu32;
    let mut rank = size | 0x8000_0000u32;
    if size > 0x7f80_0000u32 {
        rank = 0x007f_ffffu32.runtime();
    } else if bits != size && size != 0u32 {
        rank = bits ^ 0xffff_ffffu32;
    }
    rank
}

/// The sequence of active row `at`. Of each sequence `quotas` has where its active rows end, how
/// many are selected, and the place of the first of these.
#[cube]
fn sequence_of(quotas: &[i32], sequences: usize, at: usize) -> usize {
    let mut low = 0usize;
    let mut high = sequences;
    while low < high {
        let middle = (low + high) / 2;
        if quotas[3 * middle] as usize <= at {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Where the active rows of a sequence begin.
#[cube]
fn start_of(quotas: &[i32], sequence: usize) -> usize {
    let mut start = 0usize;
    if sequence > 0 {
        start = quotas[3 * (sequence - 1)] as usize;
    }
    start
}

#[cube(launch)]
fn top_k_kernel(logits: &[f32], quotas: &[i32], is_selected: &mut [i32], count: usize, sequences: usize) {
    let at = position();
    if at < count {
        let sequence = sequence_of(quotas, sequences, at);
        let start = start_of(quotas, sequence);
        let own = rank(logits[at]);
        let mut above = 0i32;
        for other in start..quotas[3 * sequence] as usize {
            let rank = rank(logits[other]);
            if rank > own || (rank == own && other < at) {
                above += 1i32;
            }
        }
        let mut selected = 0i32;
        if above < quotas[3 * sequence + 1] {
            selected = 1i32.runtime();
        }
        is_selected[at] = selected;
    }
}

#[cube(launch)]
fn top_k_places_kernel(
    is_selected: &[i32],
    active: &[i32],
    quotas: &[i32],
    rows: &mut [i32],
    among_active: &mut [i32],
    count: usize,
    sequences: usize,
) {
    let at = position();
    if at < count {
        if is_selected[at] == 1i32 {
            let sequence = sequence_of(quotas, sequences, at);
            let mut place = quotas[3 * sequence + 2];
            for other in start_of(quotas, sequence)..at {
                place += is_selected[other];
            }
            rows[place as usize] = active[at];
            among_active[place as usize] = at as i32;
        }
    }
}

/// What the kernels are told of the sequences, and how many rows are selected.
pub fn quotas(quotas: &[Quota]) -> (Vec<i32>, usize) {
    let (mut end, mut place, mut all) = (0, 0, Vec::with_capacity(3 * quotas.len()));
    for Quota { active, selected } in quotas {
        end += active;
        all.extend([end as i32, *selected as i32, place as i32]);
        place += selected;
    }
    (all, place)
}

/// Of `active` rows `[n]` with `logits [n]` the `selected` ones, and their indices among the active
/// ones.
pub fn top_k(logits: CubeTensor, active: CubeTensor, quotas: CubeTensor, selected: usize) -> [CubeTensor; 2] {
    let (logits, [count], [numbers]) = (dense(logits), dims(&active), dims(&quotas));
    let integers = |count: usize| {
        let (client, device) = (active.client.clone(), active.device.clone());
        empty_device_contiguous_dtype(client, device, [count].into(), DType::I32)
    };
    let (is_selected, rows, among_active) = (integers(count), integers(selected), integers(selected));
    let (client, sequences) = (logits.client.clone(), numbers / 3);
    top_k_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        logits.bound(),
        quotas.clone().bound(),
        is_selected.clone().bound(),
        count,
        sequences,
    );
    top_k_places_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        is_selected.bound(),
        active.clone().bound(),
        quotas.bound(),
        rows.clone().bound(),
        among_active.clone().bound(),
        count,
        sequences,
    );
    [rows, among_active]
}

#[cfg(test)]
mod tests {
    use super::{super::super::Quota, quotas};

    #[test]
    fn a_sequence_is_told_by_its_end_its_number_and_its_first_place() {
        let all = [[4, 2], [0, 0], [3, 1]].map(|[active, selected]| Quota { active, selected });
        assert_eq!(quotas(&all), (vec![4, 2, 0, 4, 0, 2, 7, 1, 2], 3));
    }
}
