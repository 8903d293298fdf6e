//! CPU kernels against plain burn operations, values and gradients, in f32.

use super::{
    Grid, HeadInput, KernelSet, Layout, Merge, RowSet, RowsLora, Scoring, Segment, Wave, cpu::FlexOps, f32_slice,
    kernel_set::PlainKernels, plain, rows, token_log_probs,
};
use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Distribution, Int, Tensor},
};
use retie_config::{Activation, Gating};
use std::sync::{Mutex, PoisonError};

fn floats(data: burn::tensor::TensorData) -> Vec<f32> {
    f32_slice(&data).to_vec()
}

/// Rounding of sums of up to a few hundred f32 products on either side stays below this, relative
/// to the largest element.
const TOLERANCE: f32 = 2e-6;

fn device() -> Device {
    Device::flex().autodiff()
}

/// Normally distributed numbers, reproducible by seed.
pub(super) fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    /// Lock on the generator, which all threads share.
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let device = device();
    device.seed(seed);
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device)
}

fn assert_close<const D: usize>(what: &str, actual: Tensor<D>, expected: Tensor<D>) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let (actual, expected) = (floats(actual.into_data()), floats(expected.into_data()));
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - e).abs() <= TOLERANCE * scale, "{what}[{i}]: {a} and {e}, scale {scale}");
    }
}

/// Compares two functions of `inputs`, and the gradients of `Σ f(inputs)·w` for a fixed random `w`.
fn compare<const N: usize, const D: usize, const O: usize>(
    inputs: [Tensor<D>; N],
    host: impl Fn([Tensor<D>; N]) -> Tensor<O>,
    plain: impl Fn([Tensor<D>; N]) -> Tensor<O>,
) {
    let run = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<O>| {
        let inputs = inputs.clone().map(|x| x.detach().require_grad());
        let out = f(inputs.clone());
        let weights = random(out.dims(), 99);
        let mut grads = (out.clone() * weights).sum().backward();
        (out.inner(), inputs.map(|x| x.grad_remove(&mut grads).unwrap()))
    };
    let (out, grads) = run(&host);
    let (expected, expected_grads) = run(&plain);
    assert_close("value", out, expected);
    for (i, (grad, expected)) in grads.into_iter().zip(expected_grads).enumerate() {
        assert_close(&format!("gradient {i}"), grad, expected);
    }
}

#[test]
fn a_sum_equals_the_plain_one() {
    compare([random([300, 113], 28), random([300, 113], 29)], |[x, y]| super::add(x, y), |[x, y]| x + y);
}

#[test]
fn rows_of_a_table_equal_the_plain_selection() {
    // Row 3 is read three times, row 0 never.
    let ids = Tensor::<1, Int>::from_ints([3, 1, 3, 6, 3], &device());
    compare([random([7, 37], 30)], |[t]| super::embedding(t, ids.clone()), |[t]| t.select(0, ids.clone()));
}

#[test]
fn merge_equals_the_plain_one_for_every_gating() {
    for gating in [Gating::StraightThrough, Gating::Delta, Gating::Weighted] {
        let how = Merge { rows: [0, 3, 4, 6].into(), gating };
        let inputs = || [random([7, 5], 31), random([4, 5], 32), random([4, 5], 33)];
        // `compare` takes inputs of one rank; the first column of the third is the gate.
        compare(
            inputs(),
            |[x, y, g]| super::merge(x, y, g.narrow(1, 0, 1), how.clone()),
            |[x, y, g]| plain::merge(x, y, g.narrow(1, 0, 1), &how),
        );
        let [x, y, g] = inputs().map(Tensor::inner);
        let out = floats(super::merge(x.clone(), y.clone(), g.clone().narrow(1, 0, 1) * 0.0 + 1.0, how).into_data());
        let (x, y) = (floats(x.into_data()), floats(y.into_data()));
        assert_eq!(out[5..15], x[5..15], "rows that are not named");
        let weighted: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(out[..5], if gating == Gating::Weighted { &weighted } else { &y }[..5], "a gate of 1");
    }
    let how = Merge { rows: [1, 2].into(), gating: Gating::Additive };
    let gate = || random::<2>([2, 1], 34);
    compare(
        [random([4, 3], 35), random([2, 3], 36)],
        |[x, y]| super::merge(x, y, gate(), how.clone()),
        |[x, y]| plain::merge(x, y, gate(), &how),
    );
    // What the gate was made of is in the graph, without an effect.
    compare(
        [random([4, 3], 35), random([2, 3], 36), random([2, 1], 37)],
        |[x, y, g]| super::merge(x, y, g * 2.0, how.clone()),
        |[x, y, g]| plain::merge(x, y, gate(), &how) + g.narrow(0, 0, 1) * 0.0,
    );
}

#[test]
fn loras_of_some_rows_equal_the_plain_ones() {
    let matrix = |shape: [usize; 2], seed| random(shape, seed).inner();
    let (x, w) = (matrix([40, 7], 37), matrix([11, 7], 38));
    // Few rows and many; rows 3 and 4 have no LoRA.
    let lora = |rows, seed| RowsLora { rows, a: matrix([2, 7], seed), b: matrix([11, 2], seed + 1) };
    let loras = [lora(0..3, 39), lora(5..40, 41)];
    let found = super::linear_loras(x.clone(), w.clone(), &loras);
    assert_close("value", found.clone(), PlainKernels.linear_loras(x.clone(), w.clone(), &loras));
    let alone = super::linear(x.clone().narrow(0, 3, 2), w.clone());
    assert_close("rows without a LoRA", found.clone().narrow(0, 3, 2), alone);
    let [first, _] = &loras;
    let alone = super::linear_lora(x.narrow(0, 0, 3), w, first.a.clone(), first.b.clone());
    assert_close("rows with a LoRA", found.narrow(0, 0, 3), alone);
}

#[test]
fn linear_equals_the_plain_product() {
    // Plain operations split 640 rows into two pieces.
    for rows in [5, 640] {
        let inputs = [random([rows, 7], 1), random([11, 7], 2)];
        compare(inputs, |[x, w]| super::linear(x, w), |[x, w]| plain::linear(x, w));
    }
}

#[test]
fn a_linear_with_lora_equals_the_plain_sum() {
    compare(
        [random([5, 7], 1), random([11, 7], 2), random([3, 7], 26), random([11, 3], 27)],
        |[x, w, a, b]| super::linear_lora(x, w, a, b),
        |[x, w, a, b]| plain::linear_lora(x, w, a, b),
    );
}

#[test]
fn a_linear_with_merged_lora_equals_that_of_its_parts() {
    let inputs = || [random([300, 40], 50), random([70, 40], 51), random([8, 40], 52), random([70, 8], 53)];
    compare(inputs(), |[x, w, a, b]| super::linear_merged(x, w, a, b), |[x, w, a, b]| plain::linear_lora(x, w, a, b));
    compare(
        inputs(),
        |[x, w, a, b]| super::linear_merged(x, w, a, b),
        |[x, w, a, b]| PlainKernels.linear_merged(x, w, a, b),
    );
}

#[test]
fn a_product_with_other_magnitudes_equals_the_plain_one() {
    // 70 rows are three tasks of the CPU kernels, 640 rows two pieces of the plain operations.
    let norms = random::<2>([1, 11], 50).abs().inner() + 0.5;
    let flat = |x: Tensor<2>| x.reshape([11]);
    for rows in [70, 640] {
        compare(
            [random([rows, 11], 51), random([1, 11], 52)],
            |[y, m]| super::rescale(y, flat(m), flat(norms.clone())),
            |[y, m]| plain::rescale(y, flat(m), flat(norms.clone())),
        );
    }
}

#[test]
fn norms_of_rows_equal_the_plain_ones_for_either_type_and_over_several_panels() {
    for [out, input, rank] in [[5, 7, 3], [700, 900, 4]] {
        let [weight, a, b] = [random([out, input], 53), random([rank, input], 54), random([out, rank], 55)]
            .map(|x: Tensor<2>| x.inner().cast(DType::BF16));
        let wide = [&weight, &a, &b].map(|x| x.clone().cast(DType::F32));
        let [w, x, y] = wide.clone();
        let expected = plain::row_norms(w, x, y);
        let [w, x, y] = wide;
        assert_close("f32", super::row_norms(w, x, y), expected.clone());
        assert_close("bf16", super::row_norms(weight, a, b), expected);
    }
    // An update that leaves 2⁻¹⁷ of a row, exact in f32; the expanded square would leave nothing.
    let matrix = |x: [[f32; 2]; 2]| Tensor::<2>::from_floats(x, &Device::flex());
    let (weight, a) = (matrix([[3.0, 4.0], [0.0, 2.0]]), matrix([[3.0, 4.0], [1.0, 0.0]]));
    let left = (-17f32).exp2();
    let found = floats(super::row_norms(weight, a, matrix([[left - 1.0, 0.0], [0.0, 0.0]])).into_data());
    assert_eq!(found, [5.0 * left, 2.0]);
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &Device::flex());
    for norms in [super::row_norms, plain::row_norms] {
        assert_eq!(floats(norms(zeros([2, 3]), zeros([1, 3]), zeros([2, 1])).into_data()), [1.0, 1.0]);
    }
}

#[test]
fn rms_norm_equals_the_plain_one() {
    // 70 rows are three tasks; 37 columns leave a tail after the 16 lanes. 640 rows are two pieces
    // of the plain operations.
    for rows in [70, 640] {
        compare(
            [random([rows, 37], 3), random([1, 37], 4)],
            |[x, w]| super::rms_norm(x, w.reshape([37]), 1e-5),
            |[x, w]| plain::rms_norm(x, w.reshape([37]), 1e-5),
        );
    }
}

#[test]
fn layer_norm_equals_the_plain_one() {
    let flat = |x: Tensor<2>| x.reshape([37]);
    for rows in [70, 640] {
        let (x, w, b) = (random([rows, 37], 44), random([1, 37], 45), random([1, 37], 46));
        compare(
            [x * 2.0 + 1.0, w, b],
            |[x, w, b]| super::layer_norm(x, flat(w), flat(b), 1e-5),
            |[x, w, b]| plain::layer_norm(x, flat(w), flat(b), 1e-5),
        );
    }
}

#[test]
fn a_gated_activation_equals_the_plain_one() {
    for act in [Activation::Silu, Activation::GeluTanh] {
        compare(
            [random([300, 61], 5) * 3.0, random([300, 61], 6)],
            |[g, u]| super::gated(g, u, act),
            |[g, u]| PlainKernels.gated(g, u, act),
        );
    }
}

#[test]
fn an_activation_with_waves_equals_the_plain_one() {
    for (wave, scalars) in [(Wave::Snake, 2), (Wave::Dra, 6), (Wave::SiluDra, 6)] {
        let flat = |s: Tensor<2>| s.reshape([scalars]);
        // More than one task of rows, and a rest that fills no vector.
        for rows in [3, 700] {
            compare(
                [random([rows, 61], 47) * 3.0, random([rows, 61], 48), random([1, scalars], 49) * 2.0],
                |[g, u, s]| super::waved(g, u, flat(s), wave),
                |[g, u, s]| PlainKernels.waved(g, u, flat(s), wave),
            );
        }
    }
}

#[test]
fn a_bias_and_gelu_equal_the_plain_ones() {
    let flat = |b: Tensor<2>| b.reshape([61]);
    for rows in [3, 300] {
        compare(
            [random([rows, 61], 60), random([1, 61], 61)],
            |[x, b]| super::add_bias(x, flat(b)),
            |[x, b]| PlainKernels.add_bias(x, flat(b)),
        );
        compare(
            [random([rows, 61], 62) * 3.0],
            |[x]| super::activation(x, Activation::Gelu),
            |[x]| PlainKernels.activation(x, Activation::Gelu),
        );
    }
}

#[test]
fn a_sum_by_factors_equals_the_plain_one() {
    let flat = |x: Tensor<2>| {
        let [_, width] = x.dims();
        x.reshape([width])
    };
    for widths in [[1, 1], [61, 1], [1, 61], [61, 61]] {
        let factors = widths.map(|width| random([1, width], 50 + width as u64));
        let [f, g] = factors;
        compare(
            // Small ones: sums over all elements are rounded by a part of their terms.
            [random([70, 61], 52) * 0.05, random([70, 61], 53) * 0.05, f, g],
            |[x, y, f, g]| super::mix([x, y], [flat(f), flat(g)]),
            |[x, y, f, g]| PlainKernels.mix([x, y], [flat(f), flat(g)]),
        );
    }
    let one = || Tensor::ones([1], &device());
    compare(
        [random([70, 61], 57), random([70, 61], 58), random([1, 61], 59)],
        |[x, y, f]| super::mix([x, y], [one(), flat(f)]),
        |[x, y, f]| PlainKernels.mix([x, y], [one(), flat(f)]),
    );
}

#[test]
fn a_depthwise_convolution_equals_the_plain_one() {
    let flat = |x: Tensor<2>| x.reshape([37]);
    // Row 0 is read by many, row 44 by none.
    let causal = |lag: usize| (0..44usize).map(|row| row.saturating_sub(lag)).collect::<RowSet>();
    for count in [1, 5] {
        let taps: Vec<RowSet> = (0..count).map(causal).collect();
        compare(
            [random([45, 37], 54), random([37, count], 55), random([1, 37], 56)],
            |[x, w, b]| super::depthwise(x, w, flat(b), &taps),
            |[x, w, b]| PlainKernels.depthwise(x, w, flat(b), &taps),
        );
    }
}

#[test]
fn a_linear_of_a_gated_activation_equals_the_plain_one_with_and_without_lora() {
    let (gate, up, weight) = (random([300, 61], 5), random([300, 61], 6), random([23, 61], 34));
    compare(
        [gate.clone(), up.clone(), weight.clone()],
        |[g, u, w]| super::gated_linear(g, u, Activation::GeluTanh, w),
        |[g, u, w]| plain::linear(PlainKernels.gated(g, u, Activation::GeluTanh), w),
    );
    compare(
        [gate, up, weight, random([3, 61], 35), random([23, 3], 36)],
        |[g, u, w, a, b]| super::gated_linear_lora(g, u, Activation::Silu, w, a, b),
        |[g, u, w, a, b]| plain::linear_lora(PlainKernels.gated(g, u, Activation::Silu), w, a, b),
    );
    for activation in [Activation::Silu, Activation::Gelu] {
        let [gate, up] = [random([40, 61], 30), random([40, 61], 31)];
        compare(
            [gate, up, random([23, 61], 32), random([3, 61], 35), random([23, 3], 36)],
            |[g, u, w, a, b]| super::gated_linear_merged(g, u, activation, w, a, b),
            |[g, u, w, a, b]| plain::linear_lora(PlainKernels.gated(g, u, activation), w, a, b),
        );
    }
}

#[test]
fn rope_equals_the_plain_one() {
    let angles = random([6, 4], 7).inner();
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    compare(
        [random([2, 6, 3, 8], 8)],
        |[x]| super::rope(x, cos.clone(), sin.clone()),
        |[x]| plain::rope(x, cos.clone(), sin.clone()),
    );
    // Only the first eight channels of a longer head are rotated.
    compare(
        [random([2, 6, 3, 14], 8)],
        |[x]| super::rope(x, cos.clone(), sin.clone()),
        |[x]| plain::rope(x, cos.clone(), sin.clone()),
    );
}

#[test]
fn attention_equals_the_plain_one_over_several_blocks() {
    // Three blocks of queries and two of keys.
    let layout = Layout::batch(2, 150);
    let long = Layout::batch(1, 530);
    for (layout, rows) in [(layout, 300), (long, 530)] {
        compare(
            [random([rows, 4, 8], 9), random([rows, 4, 8], 10), random([rows, 4, 8], 11)],
            |[q, k, v]| super::attention(q, k, v, &layout, Scoring::plain(8)),
            |[q, k, v]| plain::attention(q, k, v, &layout, Scoring::plain(8)),
        );
    }
}

#[test]
fn attention_with_a_window_and_a_soft_cap_equals_the_plain_one() {
    // Windows within a block of queries, over several of them, and over two blocks of keys; and a
    // prefix that falls out of the window.
    let (grid, packed) = (Layout::batch(1, 700), Layout::packed([(40, 0..0), (90, 0..40), (5, 0..40)]));
    for (layout, rows) in [(grid, 700), (packed, 135)] {
        for (softcap, window) in
            [(None, Some(3)), (Some(0.7), Some(100)), (Some(2.0), None), (None, Some(600)), (None, Some(1))]
        {
            let scoring = Scoring { scale: 0.3, softcap, window };
            compare(
                [random([rows, 2, 8], 41), random([rows, 2, 8], 42), random([rows, 2, 8], 43)],
                |[q, k, v]| super::attention(q, k, v, &layout, scoring),
                |[q, k, v]| plain::attention(q, k, v, &layout, scoring),
            );
        }
    }
}

#[test]
fn attention_of_queries_that_a_device_selects_equals_that_of_the_host() {
    let rows = [1, 2, 4, 7, 9, 10];
    let device = Device::flex();
    for (layout, per_sequence) in
        [(Layout::batch(2, 6), vec![3, 3]), (Layout::packed([(5, 0..0), (1, 0..0), (6, 0..0)]), vec![3, 0, 3])]
    {
        let at = rows::upload(&rows, &device);
        let on_device = RowSet::on_device(at.clone(), at, per_sequence.clone().into());
        let starts: Vec<usize> = layout.segments().iter().map(|segment| segment.queries.start).collect();
        let selected = layout.with_queries(&per_sequence, on_device.minus_of_sequence(&starts, &per_sequence));
        let of_host = layout.segments().iter().filter_map(|segment| {
            let at = rows::range(&rows, &segment.queries);
            (!at.is_empty()).then(|| segment.only(&rows[at.clone()], at.start))
        });
        let of_host = Layout::ragged(of_host.collect());
        let scoring = Scoring { window: Some(3), ..Scoring::plain(8) };
        compare(
            [random([6, 4, 8], 40), random([12, 2, 8], 41), random([12, 2, 8], 42)],
            |[q, k, v]| super::attention(q, k, v, &of_host, scoring),
            |[q, k, v]| plain::attention(q, k, v, &selected, scoring),
        );
    }
}

#[test]
fn grouped_attention_with_a_cache_equals_the_plain_one() {
    let (k, v) = (random([2 * 90, 2, 8], 12), random([2 * 90, 2, 8], 13));
    let layout = |tokens| Layout::cached(Grid { batch: 2, tokens, kv_len: 80, capacity: 90 });
    for tokens in [1, 3, 80] {
        let layout = layout(tokens);
        compare(
            [random([2 * tokens, 6, 8], 14)],
            |[q]| super::attention(q, k.clone(), v.clone(), &layout, Scoring::plain(8)),
            |[q]| plain::attention(q, k.clone(), v.clone(), &layout, Scoring::plain(8)),
        );
        let q = random([2 * tokens, 6, 8], 15);
        compare(
            [k.clone(), v.clone()],
            |[k, v]| super::attention(q.clone(), k, v, &layout, Scoring::plain(8)),
            |[k, v]| plain::attention(q.clone(), k, v, &layout, Scoring::plain(8)),
        );
    }
}

#[test]
fn attention_of_one_query_a_sequence_equals_the_plain_one() {
    // Keys over three blocks, with a prefix, and a query that does not attend to all keys; also
    // with more heads than are read together.
    let alone = |query: usize, prefix, keys| Segment::last(query..query + 1, prefix, keys);
    let middle = Segment { own: Some([40].into()), ..alone(2, 0..0, 710..800) };
    let layout = Layout::ragged(vec![alone(0, 0..0, 10..710), alone(1, 10..600, 710..713), middle]);
    for (heads, kv_heads) in [(1, 1), (6, 2), (22, 2)] {
        let (k, v) = (random([800, kv_heads, 12], 61), random([800, kv_heads, 12], 62));
        let q = random([3, heads, 12], 63);
        for (softcap, window) in [(None, None), (Some(0.7), None), (None, Some(300))] {
            let scoring = Scoring { scale: 0.3, softcap, window };
            compare(
                [q.clone()],
                |[q]| super::attention(q, k.clone(), v.clone(), &layout, scoring),
                |[q]| plain::attention(q, k.clone(), v.clone(), &layout, scoring),
            );
            compare(
                [k.clone(), v.clone()],
                |[k, v]| super::attention(q.clone(), k, v, &layout, scoring),
                |[k, v]| plain::attention(q.clone(), k, v, &layout, scoring),
            );
        }
    }
}

#[test]
fn packed_attention_with_shared_prefixes_equals_the_plain_one() {
    // Runs without a prefix, runs that share one, and one of a single row; 600 rows are two blocks
    // of keys.
    let layout = Layout::packed([(600, 0..0), (70, 0..600), (1, 0..600), (5, 0..0), (9, 671..676)]);
    let rows = layout.num_rows();
    let (k, v) = (random([rows, 2, 8], 31), random([rows, 2, 8], 32));
    let q = random([rows, 4, 8], 33);
    compare(
        [q.clone()],
        |[q]| super::attention(q, k.clone(), v.clone(), &layout, Scoring::plain(8)),
        |[q]| plain::attention(q, k.clone(), v.clone(), &layout, Scoring::plain(8)),
    );
    compare(
        [k, v],
        |[k, v]| super::attention(q.clone(), k, v, &layout, Scoring::plain(8)),
        |[k, v]| plain::attention(q.clone(), k, v, &layout, Scoring::plain(8)),
    );
}

#[test]
fn attention_of_some_queries_is_that_of_all_and_equals_the_plain_one() {
    // Keys over two blocks, with a prefix, and in a cache.
    let packed = Layout::packed([(600, 0..0), (70, 0..600)]);
    let cached = Layout::cached(Grid { batch: 2, tokens: 30, kv_len: 80, capacity: 90 });
    for (layout, keys) in [(packed, 670), (cached, 180)] {
        let some: Vec<usize> = (0..layout.num_rows()).filter(|row| row % 3 == 1 || row % 7 == 0).collect();
        let mut at = 0;
        let segments = layout.segments().iter().map(|segment| {
            let rows: Vec<usize> = some.iter().copied().filter(|row| segment.queries.contains(row)).collect();
            at += rows.len();
            segment.only(&rows, at - rows.len())
        });
        let chosen = Layout::ragged(segments.collect());
        let (k, v) = (random([keys, 2, 8], 51), random([keys, 2, 8], 52));
        let q = random([layout.num_rows(), 4, 8], 53);
        let rows: Vec<i32> = some.iter().map(|row| *row as i32).collect();
        let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &device());
        for window in [None, Some(25)] {
            let scoring = Scoring { window, ..Scoring::plain(8) };
            let take = |x: Tensor<3>| x.select(0, rows.clone());
            let all = take(super::attention(q.clone(), k.clone(), v.clone(), &layout, scoring));
            assert_close("rows of all", super::attention(take(q.clone()), k.clone(), v.clone(), &chosen, scoring), all);
            compare(
                [k.clone(), v.clone()],
                |[k, v]| super::attention(take(q.clone()), k, v, &chosen, scoring),
                |[k, v]| plain::attention(take(q.clone()), k, v, &chosen, scoring),
            );
            compare(
                [take(q.clone())],
                |[q]| super::attention(q, k.clone(), v.clone(), &chosen, scoring),
                |[q]| plain::attention(q, k.clone(), v.clone(), &chosen, scoring),
            );
        }
    }
}

#[test]
fn rows_are_written_into_a_buffer_as_in_plain_operations() {
    let runs = || std::sync::Arc::from([super::RowCopy { rows: 1..3, at: 5 }, super::RowCopy { rows: 4..5, at: 0 }]);
    compare(
        [random([8, 3], 54), random([5, 3], 55)],
        |[buffer, rows]| super::write_rows(buffer, rows, &runs()),
        |[buffer, rows]| plain::write_rows(buffer, &rows, &runs()),
    );
}

#[test]
fn keys_and_values_are_written_to_the_rows_of_a_set() {
    let [buffer, rows] = [random([8, 3], 54).inner(), random([2, 3], 55).inner()];
    let run = |at: &[usize]| {
        let written =
            super::write_keys_values_at([buffer.clone(), -buffer.clone()], [rows.clone(), -rows.clone()], &at.into());
        written.map(|x| floats(x.into_data()))
    };
    let [keys, values] = run(&[2, 7]);
    let (old, new) = (floats(buffer.clone().into_data()), floats(rows.clone().into_data()));
    let expected = [&old[..6], &new[..3], &old[9..21], &new[3..]].concat();
    assert_eq!(keys, expected);
    assert_eq!(values, expected.iter().map(|x| -x).collect::<Vec<_>>());
}

#[test]
fn token_log_probs_are_those_of_the_softmax() {
    let head = HeadInput { hidden: random([4, 9], 22).inner(), head: random([53, 9], 23).inner().into() };
    let logits = plain::linear(head.hidden.clone(), head.head.weight.clone());
    let expected = floats(burn::tensor::activation::log_softmax(logits.clone(), 1).into_data());
    let best = floats(logits.argmax(1).float().into_data());
    let targets = [best[0] as u32, 1, 2, 3];
    let (log_probs, greedy) = token_log_probs(&head, &targets);
    for (row, target) in targets.iter().enumerate() {
        assert!((log_probs[row] - expected[row * 53 + *target as usize]).abs() < 1e-5);
        assert_eq!(greedy[row], best[row] as u32 == *target);
    }
}

#[test]
fn the_extension_itself_is_what_runs_on_the_cpu() {
    assert!([device(), Device::flex()].iter().all(|device| super::kernels_of(device).keeps_bf16_weights()));
    let (x, w) = (random([2, 3], 24).inner(), random([4, 3], 25).inner());
    let direct: Tensor<2> =
        Tensor::from_dispatch(Dispatch::decoder_linear(x.clone().into_dispatch(), w.clone().into_dispatch()));
    assert_eq!(floats(direct.into_data()), floats(super::linear(x, w).into_data()));
}
