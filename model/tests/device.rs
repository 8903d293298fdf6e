//! Every operation of the decoder on another device against the CPU, value and gradient; then small
//! models.
//!
//! `RETIE_DEVICE` names the device (`wgpu`, `cuda`, …). `scripts/check-device` sets it and runs
//! these tests, which are ignored otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod captured;
mod fused;
mod routed;

use burn::tensor::{Device, Distribution, FloatDType, Int, Tensor, TensorData};
use retie_config::{Activation, Divergence, Gating, KvSharing, RouterConfig};
use retie_model::{
    CausalLm, KvCache, SelectionRule, WeightDtype,
    kernels::{
        self, CrossEntropyTerm, DistillTerm, HeadInput, HeadTerms, HeadValues, Layout, Merge, Readout, Scoring,
        Teacher, agreement, head_loss, token_log_probs,
    },
};
use retie_testing::{Golden, differences, ids, values};
use std::sync::{Mutex, PoisonError};

/// Largest differences that pass, relative to the largest element (at least 1).
struct Tolerances {
    /// Operations without a matrix product: norms, rotary embedding, sums, gathers.
    pointwise: f32,
    /// Operations with a matrix product: linear layers, attention, the losses of the head.
    product: f32,
    /// Logits of a small random model. Its weights are large, and each layer amplifies the rounding
    /// of the last.
    model: f32,
    /// Logits in decoding against those of a full forward pass on the same device.
    decoding: f32,
    /// Logits of a small random model with weights in bf16, which has 7 bits behind the point.
    bf16_model: f32,
}

/// Devices that multiply f32 in full: sums in another order. Measured on lavapipe (Mesa 22.3.6),
/// relative to the largest element: pointwise 1.7e-7, products 6.3e-7, models 6.1e-6, decoding
/// 1.1e-6. Ten times that is allowed. It has no bf16.
const F32: Tolerances = Tolerances { pointwise: 2e-6, product: 6e-6, model: 6e-5, decoding: 1e-5, bf16_model: 0.2 };

/// CUDA multiplies f32 in TF32, whose factors have 10 bits behind the point. Measured on an H100
/// (docs/results/gpu.md): pointwise below 3e-7, products up to 8e-4, models up to 2e-2 and with
/// bf16 up to 0.11, decoding 0. Allowed: ten times the first, about twice the others, and for
/// decoding, where another shape may round otherwise, what a single product may differ by.
const TF32: Tolerances = Tolerances { pointwise: 3e-6, product: 2e-3, model: 0.05, decoding: 2e-3, bf16_model: 0.2 };

/// The name of the device under test.
fn name() -> String {
    let name = std::env::var("RETIE_DEVICE").expect("RETIE_DEVICE names a device: run scripts/check-device");
    assert_ne!(name, "cpu", "the CPU is the reference");
    name
}

fn device() -> Device {
    retie_model::device(&name()).unwrap()
}

fn tolerances() -> Tolerances {
    if name().starts_with("cuda") { TF32 } else { F32 }
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    assert_within(what, actual, expected, tolerances().product);
}

fn assert_within(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let (max, _) = differences(actual, expected);
    eprintln!("{what}: differs by {max:.2e}, largest {scale:.2e}");
    assert!(max <= tolerance * scale, "{what}: differs by {max}, largest {scale}");
}

fn random(shape: &[usize], seed: u64) -> TensorData {
    /// Lock on the generator, which all threads share.
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
    tolerance: f32,
    device: &Device,
    shapes: &[&[usize]],
    f: impl Fn(Vec<Tensor<D>>) -> Tensor<O>,
) {
    let inputs: Vec<TensorData> = shapes.iter().enumerate().map(|(i, s)| random(s, i as u64)).collect();
    let actual = run(device, &inputs, &f);
    let expected = run(&Device::flex(), &inputs, &f);
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        let part = if i == 0 { "value".to_owned() } else { format!("gradient {i}") };
        assert_within(&format!("{what}, {part}"), a, e, tolerance);
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn operations_agree_with_the_cpu() {
    let (device, Tolerances { pointwise, product, .. }) = (device(), tolerances());
    compare("add", pointwise, &device, &[&[37, 24], &[37, 24]], |x: Vec<Tensor<2>>| {
        kernels::add(x[0].clone(), x[1].clone())
    });
    compare("embedding", pointwise, &device, &[&[37, 24]], |x: Vec<Tensor<2>>| {
        let ids = Tensor::<1, Int>::from_ints([3, 1, 3, 36, 3], &x[0].device().inner());
        kernels::embedding(x[0].clone(), ids)
    });
    compare("linear", product, &device, &[&[37, 24], &[50, 24]], |x: Vec<Tensor<2>>| {
        kernels::linear(x[0].clone(), x[1].clone())
    });
    compare("linear_lora", product, &device, &[&[37, 24], &[50, 24], &[4, 24], &[50, 4]], |x: Vec<Tensor<2>>| {
        kernels::linear_lora(x[0].clone(), x[1].clone(), x[2].clone(), x[3].clone())
    });
    let norms = |x: &Tensor<2>| {
        kernels::row_norms(x.clone().inner(), x.clone().inner().narrow(0, 0, 4), x.clone().inner().narrow(1, 0, 4))
    };
    compare("rescale", product, &device, &[&[37, 24], &[1, 37]], |x: Vec<Tensor<2>>| {
        kernels::rescale(x[0].clone().transpose(), x[1].clone().reshape([37]), norms(&x[0]))
    });
    compare("rms_norm", pointwise, &device, &[&[37, 24], &[1, 24]], |x: Vec<Tensor<2>>| {
        kernels::rms_norm(x[0].clone(), x[1].clone().reshape([24]), 1e-5)
    });
    compare("layer_norm", pointwise, &device, &[&[37, 24], &[1, 24], &[1, 24]], |x: Vec<Tensor<2>>| {
        kernels::layer_norm(x[0].clone(), x[1].clone().reshape([24]), x[2].clone().reshape([24]), 1e-5)
    });
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        compare(
            "linear of a gated activation",
            product,
            &device,
            &[&[37, 40], &[37, 40], &[24, 40]],
            |x: Vec<Tensor<2>>| kernels::gated_linear(x[0].clone(), x[1].clone(), activation, x[2].clone()),
        );
    }
    compare("rope", pointwise, &device, &[&[2, 6, 3, 8]], |x: Vec<Tensor<4>>| {
        let angles = Tensor::<2>::from_data(random(&[6, 4], 5), &x[0].device().inner());
        kernels::rope(x[0].clone(), angles.clone().cos(), angles.sin())
    });
    let packed = Layout::packed([(20, 0..0), (5, 0..20), (1, 0..20), (12, 0..0)]);
    for (what, layout, scoring) in [
        ("attention", Layout::batch(2, 19), Scoring::plain(8)),
        ("packed attention", packed.clone(), Scoring::plain(8)),
        ("attention in a window", packed, Scoring { softcap: Some(1.5), window: Some(7), ..Scoring::plain(8) }),
    ] {
        compare(what, product, &device, &[&[38, 4, 8], &[38, 2, 8], &[38, 2, 8]], |x: Vec<Tensor<3>>| {
            kernels::attention(x[0].clone(), x[1].clone(), x[2].clone(), &layout, scoring)
        });
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn what_routers_move_agrees_with_the_cpu() {
    let (device, Tolerances { pointwise, .. }) = (device(), tolerances());
    compare("gather", pointwise, &device, &[&[7, 5]], |x: Vec<Tensor<2>>| {
        kernels::gather(x[0].clone(), &[0, 3, 4, 6].into())
    });
    for gating in [Gating::StraightThrough, Gating::Delta, Gating::Weighted] {
        let how = Merge { rows: [0, 3, 4, 6].into(), gating };
        compare(&format!("merge, {gating}"), pointwise, &device, &[&[7, 5], &[4, 5], &[4, 1]], |x: Vec<Tensor<2>>| {
            kernels::merge(x[0].clone(), x[1].clone(), x[2].clone(), how.clone())
        });
    }
    let how = Merge { rows: [0, 3, 4, 6].into(), gating: Gating::Additive };
    compare("merge, additive", pointwise, &device, &[&[7, 5], &[4, 5]], |x: Vec<Tensor<2>>| {
        let gate = Tensor::ones([4, 1], &x[0].device().inner());
        kernels::merge(x[0].clone(), x[1].clone(), gate, how.clone())
    });
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn head_loss_agrees_with_the_cpu() {
    let device = device();
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
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_recursive_model_agrees_with_the_cpu_in_prefill_and_decode() {
    let device = device();
    for name in ["tied", "dora"] {
        agrees(name, &device);
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn routed_models_agree_with_the_cpu_in_whole_sequences_and_in_decoding() {
    let device = device();
    for name in ["routed_mlp", "routed_linear", "routed_kv", "routed_softmax", "routed_sigmoid"] {
        let (golden, rows) = (Golden::named(name), routed::rows(name));
        let [model, on_cpu] =
            [&device, &Device::flex()].map(|device| CausalLm::load(&golden.config(), &golden, device).unwrap());
        let (logits, routing) = routed::run(&model, &rows, SelectionRule::Causal);
        let (expected, expected_routing) = routed::run(&on_cpu, &rows, SelectionRule::Causal);
        let count = rows.len() * rows[0].len();
        assert_eq!(routing.recursion_counts(count), expected_routing.recursion_counts(count), "{name}");
        assert_within(name, &logits, &expected, tolerances().model);
        // Each length of a ragged cache is another shape, which some devices compile a kernel for.
        assert_decodes(name, &model, &rows, &logits, [(0, 5), (5, 6), (6, 7)]);
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn top_k_of_whole_and_packed_sequences_agrees_with_the_cpu_and_is_not_read() {
    let device = device();
    for (name, kv_sharing) in [
        ("routed_mlp", KvSharing::RecursionWise),
        ("routed_linear", KvSharing::Shared),
        ("routed_kv", KvSharing::Hybrid),
    ] {
        let changed = routed::Changed::new(name, |router| {
            if let (KvSharing::Shared, RouterConfig::ExpertChoice(router)) = (kv_sharing, router) {
                // The first recursion computes what the others read.
                router.capacities[0] = 1.0;
                router.thresholds.iter_mut().for_each(|thresholds| thresholds[0] = None);
            }
        });
        let changed = changed.with_kv_sharing(kv_sharing);
        let rows = routed::rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let ragged = [(tokens - 2, 0..0), (2, 0..0), ((batch - 1) * tokens, 0..0)];
        for layout in [Layout::batch(batch, tokens), Layout::packed(ragged)] {
            let run = |device: &Device| {
                let model = CausalLm::load(&changed.config, &changed, device).unwrap();
                let reads = kernels::num_reads();
                let (hidden, trace) =
                    model.forward_routed(routed::flat(&rows, device), layout.clone(), routed::top_k(&model));
                assert_eq!(kernels::num_reads(), reads, "a forward pass by top-k");
                (values(model.logits(hidden)), trace.recursion_counts(batch * tokens))
            };
            let [(logits, counts), (expected, expected_counts)] = [&device, &Device::flex()].map(run);
            assert_eq!(counts, expected_counts, "{name}");
            assert_within(&format!("{name}, top-k, {kv_sharing}"), &logits, &expected, tolerances().model);
        }
    }
}

/// Reads `rows` into a cache, some tokens after the other; `expected` has the logits of whole rows
/// on the same device.
fn assert_decodes(what: &str, model: &CausalLm, rows: &[Vec<u32>], expected: &[f32], steps: [(usize, usize); 3]) {
    let (device, tokens, width) = (model.device(), rows[0].len(), model.config().vocab_size);
    let mut cache = KvCache::for_batch(model.config(), rows.len(), tokens, &device);
    for (start, end) in steps {
        let part: Vec<Vec<u32>> = rows.iter().map(|row| row[start..end].to_vec()).collect();
        let logits = values(model.logits(model.forward(ids(&part, &device), Some(&mut cache))));
        let of_row = |row: &[f32]| row[start * width..end * width].to_vec();
        let expected: Vec<f32> = expected.chunks(tokens * width).flat_map(of_row).collect();
        assert_within(&format!("{what}, tokens {start} to {end}"), &logits, &expected, tolerances().decoding);
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_recursive_model_with_bf16_weights_agrees_with_the_cpu() {
    let device = device();
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
        assert_within(&format!("logits of {name} in bf16"), &actual, &expected, tolerances().bf16_model);
    }
}

fn agrees(name: &str, device: &Device) {
    let (golden, rows) = (Golden::named(name), routed::rows(name));
    let model = CausalLm::load(&golden.config(), &golden, device).unwrap();
    let full = values(model.logits(model.forward(ids(&rows, device), None)));
    assert_within("logits", &full, &golden.floats("golden.logits"), tolerances().model);
    assert_decodes("decoded logits", &model, &rows, &full, [(0, 8), (8, 9), (9, 10)]);
}
