//! Every operation of the decoder on another device against the CPU, value and gradient; then a whole small model.
//!
//! `RETIE_DEVICE` names the device (`wgpu`, `cuda`, …); `scripts/check-device` sets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use burn::tensor::{Device, Distribution, FloatDType, Int, Tensor, TensorData};
use retie_config::{Activation, Divergence, Gating};
use retie_model::{
    CausalLm, Choice, KvCache, WeightDtype,
    kernels::{
        self, CrossEntropyTerm, DistillTerm, HeadInput, HeadTerms, HeadValues, Layout, Merge, Readout, Scoring,
        Teacher, agreement, head_loss, token_log_probs,
    },
};
use std::sync::{Mutex, PoisonError};
use support::{Golden, differences, ids, routed, values};

/// f32 with another order of summation; relative to the largest element.
const TOLERANCE: f32 = 1e-4;

/// The same where devices multiply f32 in TF32: factors have 10 bits behind the point.
const TOLERANCE_OF_TF32: f32 = 2e-3;

/// How much larger the differences of a whole random model are than those of a product: its weights are large.
const OF_A_MODEL: f32 = 25.0;

fn device() -> Option<Device> {
    let Some(name) = std::env::var("RETIE_DEVICE").ok().filter(|name| name != "cpu") else {
        eprintln!("skipped: RETIE_DEVICE names no device beside the CPU");
        return None;
    };
    Some(retie_model::device(&name).unwrap())
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    assert_within(what, actual, expected, tolerance());
}

/// Logits of a whole random model.
fn assert_model_close(what: &str, actual: &[f32], expected: &[f32]) {
    let factor = if tolerance() > TOLERANCE { OF_A_MODEL } else { 1.0 };
    assert_within(what, actual, expected, factor * tolerance());
}

fn tolerance() -> f32 {
    let is_cuda = std::env::var("RETIE_DEVICE").is_ok_and(|name| name.starts_with("cuda"));
    if is_cuda { TOLERANCE_OF_TF32 } else { TOLERANCE }
}

fn assert_within(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let (max, _) = differences(actual, expected);
    eprintln!("{what}: differs by {max:.2e}, largest {scale:.2e}");
    assert!(max <= tolerance * scale, "{what}: differs by {max}, largest {scale}");
}

fn random(shape: &[usize], seed: u64) -> TensorData {
    /// All threads draw from one generator.
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Device::flex();
    device.seed(seed);
    let count = shape.iter().product::<usize>();
    let flat = Tensor::<1>::random([count], Distribution::Normal(0.0, 1.0), &device);
    TensorData::new(values(flat), shape.to_vec())
}

/// Value and gradients of `Σ f(inputs)·w` on `device`.
fn run<const D: usize, const O: usize>(
    device: &Device,
    inputs: &[TensorData],
    f: impl Fn(Vec<Tensor<D>>) -> Tensor<O>,
) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let inputs: Vec<Tensor<D>> = inputs.iter().map(|x| Tensor::from_data(x.clone(), &device).require_grad()).collect();
    let out = f(inputs.clone());
    let weights = Tensor::<O>::from_data(random(&out.dims(), 99), &device);
    let mut grads = (out.clone() * weights).sum().backward();
    let grads = inputs.iter().map(|x| values(x.grad_remove(&mut grads).unwrap()));
    std::iter::once(values(out.inner())).chain(grads).collect()
}

fn compare<const D: usize, const O: usize>(
    what: &str,
    device: &Device,
    shapes: &[&[usize]],
    f: impl Fn(Vec<Tensor<D>>) -> Tensor<O>,
) {
    let inputs: Vec<TensorData> = shapes.iter().enumerate().map(|(i, s)| random(s, i as u64)).collect();
    let actual = run(device, &inputs, &f);
    let expected = run(&Device::flex(), &inputs, &f);
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        let part = if i == 0 { "value".to_owned() } else { format!("gradient {i}") };
        assert_close(&format!("{what}, {part}"), a, e);
    }
}

#[test]
fn operations_agree_with_the_cpu() {
    let Some(device) = device() else { return };
    compare("add", &device, &[&[37, 24], &[37, 24]], |x: Vec<Tensor<2>>| kernels::add(x[0].clone(), x[1].clone()));
    compare("embedding", &device, &[&[37, 24]], |x: Vec<Tensor<2>>| {
        let ids = Tensor::<1, Int>::from_ints([3, 1, 3, 36, 3], &x[0].device().inner());
        kernels::embedding(x[0].clone(), ids)
    });
    compare("linear", &device, &[&[37, 24], &[50, 24]], |x: Vec<Tensor<2>>| {
        kernels::linear(x[0].clone(), x[1].clone())
    });
    compare("linear_lora", &device, &[&[37, 24], &[50, 24], &[4, 24], &[50, 4]], |x: Vec<Tensor<2>>| {
        kernels::linear_lora(x[0].clone(), x[1].clone(), x[2].clone(), x[3].clone())
    });
    let norms = |x: &Tensor<2>| {
        kernels::row_norms(x.clone().inner(), x.clone().inner().narrow(0, 0, 4), x.clone().inner().narrow(1, 0, 4))
    };
    compare("rescale", &device, &[&[37, 24], &[1, 37]], |x: Vec<Tensor<2>>| {
        kernels::rescale(x[0].clone().transpose(), x[1].clone().reshape([37]), norms(&x[0]))
    });
    compare("rms_norm", &device, &[&[37, 24], &[1, 24]], |x: Vec<Tensor<2>>| {
        kernels::rms_norm(x[0].clone(), x[1].clone().reshape([24]), 1e-5)
    });
    compare("layer_norm", &device, &[&[37, 24], &[1, 24], &[1, 24]], |x: Vec<Tensor<2>>| {
        kernels::layer_norm(x[0].clone(), x[1].clone().reshape([24]), x[2].clone().reshape([24]), 1e-5)
    });
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        compare("linear of a gated activation", &device, &[&[37, 40], &[37, 40], &[24, 40]], |x: Vec<Tensor<2>>| {
            kernels::gated_linear(x[0].clone(), x[1].clone(), activation, x[2].clone())
        });
    }
    compare("rope", &device, &[&[2, 6, 3, 8]], |x: Vec<Tensor<4>>| {
        let angles = Tensor::<2>::from_data(random(&[6, 4], 5), &x[0].device().inner());
        kernels::rope(x[0].clone(), angles.clone().cos(), angles.sin())
    });
    let packed = Layout::packed([(20, 0..0), (5, 0..20), (1, 0..20), (12, 0..0)]);
    for (what, layout, scoring) in [
        ("attention", Layout::batch(2, 19), Scoring::plain(8)),
        ("packed attention", packed.clone(), Scoring::plain(8)),
        ("attention in a window", packed, Scoring { softcap: Some(1.5), window: Some(7), ..Scoring::plain(8) }),
    ] {
        compare(what, &device, &[&[38, 4, 8], &[38, 2, 8], &[38, 2, 8]], |x: Vec<Tensor<3>>| {
            kernels::attention(x[0].clone(), x[1].clone(), x[2].clone(), &layout, scoring)
        });
    }
}

#[test]
fn what_routers_move_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    compare("gather", &device, &[&[7, 5]], |x: Vec<Tensor<2>>| kernels::gather(x[0].clone(), &[0, 3, 4, 6]));
    for gating in [Gating::StraightThrough, Gating::Delta, Gating::Weighted] {
        let how = Merge { rows: [0, 3, 4, 6].into(), gating };
        compare(&format!("merge, {gating}"), &device, &[&[7, 5], &[4, 5], &[4, 1]], |x: Vec<Tensor<2>>| {
            kernels::merge(x[0].clone(), x[1].clone(), x[2].clone(), how.clone())
        });
    }
    let how = Merge { rows: [0, 3, 4, 6].into(), gating: Gating::Additive };
    compare("merge, additive", &device, &[&[7, 5], &[4, 5]], |x: Vec<Tensor<2>>| {
        let gate = Tensor::ones([4, 1], &x[0].device().inner());
        kernels::merge(x[0].clone(), x[1].clone(), gate, how.clone())
    });
}

#[test]
fn head_loss_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    let distill = |divergence| DistillTerm { weight: 0.7, divergence, temperature: 2.0 };
    let cross_entropy = CrossEntropyTerm { weight: 0.3, label_smoothing: 0.1, z_loss: 0.01 };
    for divergence in [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.25 },
        Divergence::Tvd,
        Divergence::SkewKl { alpha: 0.1 },
    ] {
        let losses = [&device, &Device::flex()].map(|device| {
            let tensor = |shape: &[usize], seed| Tensor::<2>::from_data(random(shape, seed), device);
            let (weight, hidden) = (tensor(&[50, 16], 2), tensor(&[13, 16], 1));
            let teacher = HeadInput { hidden: tensor(&[13, 24], 3), head: tensor(&[50, 24], 4).into() };
            let last = HeadTerms { cross_entropy, teacher: Some(distill(divergence)), last: None };
            let exit = HeadTerms { last: Some(distill(divergence)), ..last };
            let targets: Vec<u32> = (0..13).collect();
            let input = HeadInput { hidden: hidden.clone(), head: weight.clone().into() };
            let scores = (token_log_probs(&input, &targets), agreement(&input, &teacher));
            let readouts = [Readout { hidden: tensor(&[13, 16], 5), terms: exit }, Readout { hidden, terms: last }];
            (head_loss(weight.into(), &readouts, Some(&Teacher::Model(Box::new(teacher))), &targets), scores)
        });
        let [(actual, scores), (expected, expected_scores)] = losses;
        let ((log_probs, greedy), (kl, same_top)) = scores;
        let ((expected_log_probs, expected_greedy), (expected_kl, expected_same_top)) = expected_scores;
        assert_close("log-probabilities", &log_probs, &expected_log_probs);
        assert_close("agreement", &kl, &expected_kl);
        assert_eq!((greedy, same_top), (expected_greedy, expected_same_top));
        assert_close("gradient of the head", &values(actual.grad_weight), &values(expected.grad_weight));
        for (actual, expected) in actual.readouts.into_iter().zip(expected.readouts) {
            let values_of = |v: HeadValues| {
                [v.nll, v.cross_entropy, v.z_loss, v.teacher.unwrap(), v.last.unwrap_or(0.0)].map(|x| x as f32)
            };
            assert_close("values", &values_of(actual.values), &values_of(expected.values));
            assert_close("gradient of the hidden states", &values(actual.grad_hidden), &values(expected.grad_hidden));
        }
    }
}

#[test]
fn a_recursive_model_agrees_with_the_cpu_in_prefill_and_decode() {
    let Some(device) = device() else { return };
    for name in ["tied", "dora"] {
        agrees(name, &device);
    }
}

#[test]
fn routed_models_agree_with_the_cpu_in_whole_sequences_and_in_decoding() {
    let Some(device) = device() else { return };
    for name in ["routed_mlp", "routed_linear", "routed_kv", "routed_softmax", "routed_sigmoid"] {
        let (golden, rows) = (Golden::named(name), routed::rows(name));
        let [model, on_cpu] =
            [&device, &Device::flex()].map(|device| CausalLm::load(&golden.config(), &golden, device).unwrap());
        let (logits, routing) = routed::run(&model, &rows, Choice::Threshold);
        let (expected, expected_routing) = routed::run(&on_cpu, &rows, Choice::Threshold);
        let count = rows.len() * rows[0].len();
        assert_eq!(routing.depths(count), expected_routing.depths(count), "{name}");
        assert_model_close(name, &logits, &expected);
        // Each length of a ragged cache is another shape, which some devices compile a kernel for.
        assert_decodes(name, &model, &rows, &expected, [(0, 5), (5, 6), (6, 7)]);
    }
}

/// Reads `rows` into a cache, some tokens after the other; `expected` has the logits of whole rows.
fn assert_decodes(what: &str, model: &CausalLm, rows: &[Vec<u32>], expected: &[f32], steps: [(usize, usize); 3]) {
    let (device, tokens, width) = (model.device(), rows[0].len(), model.config().vocab_size);
    let mut cache = KvCache::new(model.config(), rows.len(), tokens, &device);
    for (start, end) in steps {
        let part: Vec<Vec<u32>> = rows.iter().map(|row| row[start..end].to_vec()).collect();
        let logits = values(model.logits(model.forward(ids(&part, &device), Some(&mut cache))));
        let of_row = |row: &[f32]| row[start * width..end * width].to_vec();
        let expected: Vec<f32> = expected.chunks(tokens * width).flat_map(of_row).collect();
        assert_model_close(&format!("{what}, tokens {start} to {end}"), &logits, &expected);
    }
}

/// Products rounded to bf16 on the one side, f32 on the other: 7 bits behind the point.
const TOLERANCE_OF_BF16: f32 = 8e-3;

#[test]
fn a_recursive_model_with_bf16_weights_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    if !device.supports_dtype(FloatDType::BF16) {
        eprintln!("skipped: the device has no bf16");
        return;
    }
    for name in ["tied", "dora"] {
        let (golden, rows) = (Golden::named(name), routed::rows(name));
        let [actual, expected] = [&device, &Device::flex()].map(|device| {
            let model = CausalLm::load_with(&golden.config(), &golden, device, WeightDtype::Bf16).unwrap();
            values(model.logits(model.forward(ids(&rows, device), None)))
        });
        assert_within(&format!("logits of {name} in bf16"), &actual, &expected, OF_A_MODEL * TOLERANCE_OF_BF16);
    }
}

fn agrees(name: &str, device: &Device) {
    let (golden, rows) = (Golden::named(name), routed::rows(name));
    let model = CausalLm::load(&golden.config(), &golden, device).unwrap();
    let full = values(model.logits(model.forward(ids(&rows, device), None)));
    assert_model_close("logits", &full, &golden.floats("golden.logits"));
    assert_decodes("decoded logits", &model, &rows, &full, [(0, 8), (8, 9), (9, 10)]);
}
