//! Rows that routers select: top-k, gathering and merging, and the attention of sequences of
//! unequal lengths.

use crate::{compare, device, random, tolerances};
use burn::tensor::{Device, Tensor, TensorData};
use retie_config::Gating;
use retie_model::kernels::{self, Execution, Late, Layout, Merge, Quota, RowSet, Scoring, num_reads, with_launches};
use retie_testing::values;

/// What the device under test and the CPU select of logits in `quotas`; nothing is read before it
/// is asked for.
fn select(logits: &[f32], quotas: &[[usize; 2]]) -> Vec<usize> {
    let quotas: Vec<Quota> =
        quotas.iter().map(|[active, selected]| Quota { active: *active, selected: *selected }).collect();
    // Every second row is active.
    let active: RowSet = (0..logits.len()).map(|i| 2 * i + 1).collect();
    let [found, expected] = [device(), Device::flex()].map(|device| {
        let logits = Tensor::<1>::from_data(TensorData::new(logits.to_vec(), [logits.len()]), &device);
        let reads = num_reads();
        let rows = kernels::top_k(&active, &Late::new(logits), &quotas);
        assert_eq!(num_reads(), reads, "a selection is not read");
        (rows.host().to_vec(), active.positions(&rows).host().to_vec())
    });
    assert_eq!(found, expected);
    found.0
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn top_k_is_that_of_the_host() {
    // More than a cube of rows in sequences of unequal lengths, one of them empty; ties.
    let logits: Vec<f32> = values(Tensor::<1>::from_data(random(&[700], 3), &Device::flex()));
    let coarse: Vec<f32> = logits.iter().map(|x| (x * 2.0).round()).collect();
    for logits in [&logits, &coarse] {
        select(logits, &[[300, 101], [0, 0], [1, 1], [129, 1], [270, 269]]);
        select(logits, &[[700, 350]]);
    }
    let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
    assert_eq!(select(&[0.0, -0.0, 0.0, -0.0], &[[4, 2]]), [1, 3], "zeros are equal");
    assert_eq!(select(&[low, 1.0, f32::INFINITY, -1.0], &[[4, 3]]), [3, 5, 7]);
    // The CPU compares numbers that are none in its own way; on a device they are as −∞.
    let logits = Tensor::<1>::from_floats([nan, low, -nan, -3.0, nan], &device());
    let quota = Quota { active: 5, selected: 3 };
    assert_eq!(**kernels::top_k(&(0..5).collect(), &Late::new(logits), &[quota]).host(), [0, 1, 3]);
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn rows_of_any_number_are_gathered_and_merged_as_on_the_cpu() {
    let (device, pointwise) = (device(), tolerances().pointwise);
    let some: Vec<usize> = (0..301).filter(|row| row % 3 == 1 || row % 7 == 0).collect();
    let last: Vec<usize> = vec![300];
    let all: Vec<usize> = (0..301).collect();
    for (rows, width) in [(&some, 131), (&last, 1), (&all, 7)] {
        let selected = rows.len();
        let set: RowSet = rows.as_slice().into();
        compare("gather", pointwise, &device, &[&[301, width]], |x: Vec<Tensor<2>>| {
            kernels::gather(x[0].clone(), &set)
        });
        for gating in [Gating::StraightThrough, Gating::Delta, Gating::Weighted, Gating::Additive] {
            let how = Merge { rows: set.clone(), gating };
            let shapes: [&[usize]; 3] = [&[301, width], &[selected, width], &[selected, 1]];
            compare(&format!("merge, {gating}"), pointwise, &device, &shapes, |x: Vec<Tensor<2>>| {
                kernels::merge(x[0].clone(), x[1].clone(), x[2].clone() * 0.5, how.clone())
            });
        }
    }
    // Rows in any order, and some of them twice.
    compare("gather", pointwise, &device, &[&[40, 5]], |x: Vec<Tensor<2>>| {
        kernels::gather(x[0].clone(), &[7, 7, 39, 0, 3, 7].into())
    });
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn sequences_of_unequal_lengths_attend_as_on_the_cpu_in_as_many_launches_as_one() {
    let (device, product) = (device(), tolerances().product);
    let unequal = Layout::packed([(13, 0..0), (1, 0..0), (17, 0..0), (16, 0..0)]);
    // Mostly padding: each sequence for itself.
    let long = Layout::packed([(40, 0..0), (1, 0..0), (2, 0..0), (4, 0..0)]);
    let shapes: [&[usize]; 3] = [&[47, 6, 8], &[47, 2, 8], &[47, 2, 8]];
    for layout in [&unequal, &long] {
        for scoring in [Scoring::plain(8), Scoring { softcap: Some(0.7), window: Some(5), ..Scoring::plain(8) }] {
            compare("attention of unequal lengths", product, &device, &shapes, |x: Vec<Tensor<3>>| {
                kernels::attention(x[0].clone(), x[1].clone(), x[2].clone(), layout, scoring)
            });
        }
    }
    let x = shapes.map(|shape| Tensor::<3>::from_data(random(shape, 1), &device.clone().autodiff()));
    let attend = |layout: &Layout| {
        let [q, k, v] = x.clone().map(Tensor::require_grad);
        let (_, launches) = with_launches(&device, Execution::Real, || {
            kernels::attention(q, k, v, layout, Scoring::plain(8)).sum().backward()
        });
        launches.unwrap().values().sum::<usize>()
    };
    let (one, several) = (attend(&Layout::batch(1, 47)), attend(&unequal));
    assert!(several <= one + 8, "{several} launches, of one sequence {one}: four of them forward and backward");
}
