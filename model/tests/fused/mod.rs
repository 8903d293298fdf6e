//! Sizes that a kernel may get wrong: rows that are no multiple of anything, more rows and columns
//! than a group of threads, grouped heads, windows, soft caps. And every kernel gives the same bits
//! every time.

mod head;
mod rows;

use crate::{compare, device, random, tolerances};
use burn::tensor::{Device, Int, Tensor};
use retie_config::{Activation, Divergence, Gating};
use retie_model::kernels::{
    self, AdamWStep, CrossEntropyTerm, DistillTerm, Execution, Grid, HeadInput, HeadTerms, Layout, LinearPart, Merge,
    QkvAttention, Readout, RowCopy, Scoring, Teacher, head_loss, kernels_of, updates_together, with_launches,
};
use retie_model::{CausalLm, KvCache};
use retie_testing::{Golden, ids, values};

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn norms_and_activations_of_uneven_sizes_agree_with_the_cpu() {
    let (device, pointwise) = (device(), tolerances().pointwise);
    for (rows, width) in [(1, 1), (3, 128), (17, 131), (33, 576), (270, 7)] {
        compare("rms_norm", pointwise, &device, &[&[rows, width], &[1, width]], |x: Vec<Tensor<2>>| {
            kernels::rms_norm(x[0].clone(), x[1].clone().reshape([width]), 1e-5)
        });
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            compare("gated", pointwise, &device, &[&[rows, width], &[rows, width]], |x: Vec<Tensor<2>>| {
                kernels::gated(x[0].clone() * 4.0, x[1].clone(), activation)
            });
        }
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn linears_of_many_rows_agree_with_the_cpu() {
    let (device, product) = (device(), tolerances().product);
    // 384 and 640 rows are divided into pieces, 301 is not.
    for rows in [5, 301, 384, 640] {
        compare("linear", product, &device, &[&[rows, 24], &[50, 24]], |x: Vec<Tensor<2>>| {
            kernels::linear(x[0].clone(), x[1].clone())
        });
        let shapes: [&[usize]; 4] = [&[rows, 24], &[50, 24], &[4, 24], &[50, 4]];
        compare("linear_merged", product, &device, &shapes, |x: Vec<Tensor<2>>| {
            kernels::linear_merged(x[0].clone(), x[1].clone(), x[2].clone(), x[3].clone())
        });
        let shapes: [&[usize]; 5] = [&[rows, 24], &[rows, 24], &[50, 24], &[4, 24], &[50, 4]];
        compare("gated_linear_merged", product, &device, &shapes, |x: Vec<Tensor<2>>| {
            let (weight, a, b) = (x[2].clone(), x[3].clone(), x[4].clone());
            kernels::gated_linear_merged(x[0].clone(), x[1].clone(), Activation::Silu, weight, a, b)
        });
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn partial_rotary_embeddings_agree_with_the_cpu() {
    let (device, pointwise) = (device(), tolerances().pointwise);
    for half in [4, 2] {
        compare("rope", pointwise, &device, &[&[3, 7, 3, 8]], |x: Vec<Tensor<4>>| {
            let angles = Tensor::<2>::from_data(random(&[7, half], 5), &x[0].device().inner());
            kernels::rope(x[0].clone(), angles.clone().cos(), angles.sin())
        });
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn attention_of_grouped_heads_and_uneven_lengths_agrees_with_the_cpu() {
    let (device, product) = (device(), tolerances().product);
    let plain = Scoring::plain(8);
    for (batch, tokens, heads, kv_heads, scoring) in [
        (1, 1, 9, 3, plain),
        (3, 13, 9, 3, plain),
        (2, 150, 4, 4, plain),
        (2, 33, 6, 1, Scoring { window: Some(5), ..plain }),
        (2, 33, 4, 2, Scoring { softcap: Some(0.7), ..plain }),
        (1, 140, 4, 2, Scoring { softcap: Some(2.0), window: Some(131), ..plain }),
    ] {
        let rows = batch * tokens;
        let shapes: [&[usize]; 3] = [&[rows, heads, 8], &[rows, kv_heads, 8], &[rows, kv_heads, 8]];
        compare("attention", product, &device, &shapes, |x: Vec<Tensor<3>>| {
            let layout = Layout::batch(batch, tokens);
            kernels::attention(x[0].clone(), x[1].clone(), x[2].clone(), &layout, scoring)
        });
    }
}

/// Projections, rotary embedding and attention, as one where the device has kernels for it.
fn attention_of(x: &Tensor<2>, qkv: &[LinearPart; 3], how: QkvAttention<'_>) -> Tensor<2> {
    if let Some(out) = kernels::qkv_attention(x, qkv, how) {
        return out;
    }
    assert_eq!(x.device().inner(), Device::flex(), "the device has kernels for it");
    let ([rows, _], QkvAttention { heads: [heads, kv_heads], angles: [cos, sin], layout, scoring }) = (x.dims(), how);
    let [q, k, v] = qkv.each_ref().map(|part| through(x, part));
    let [positions, _] = cos.dims();
    let rotated = |x: Tensor<2>, heads| {
        let x = x.reshape([rows / positions, positions, heads, 8]);
        kernels::rope(x, cos.clone(), sin.clone()).reshape([rows, heads, 8])
    };
    let v = v.reshape([rows, kv_heads, 8]);
    kernels::attention(rotated(q, heads), rotated(k, kv_heads), v, layout, scoring).reshape([rows, heads * 8])
}

fn through(x: &Tensor<2>, LinearPart { weight, lora }: &LinearPart) -> Tensor<2> {
    match lora.clone() {
        Some([a, b]) => kernels::linear_merged(x.clone(), weight.clone(), a, b),
        None => kernels::linear(x.clone(), weight.clone()),
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn attention_from_its_projections_on_agrees_with_the_cpu() {
    let (device, product) = (device(), tolerances().product);
    let scoring = Scoring { window: Some(9), ..Scoring::plain(8) };
    // Plain sequences; packed documents, whose positions begin anew, with and without a window.
    let runs = [4, 9, 13, 6, 7];
    for (layout, positions, scoring) in [
        (Layout::batch(3, 13), 13, Scoring::plain(8)),
        (Layout::packed_in_rows(&runs, 13), 39, Scoring::plain(8)),
        (Layout::packed_in_rows(&runs, 13), 39, scoring),
    ] {
        for with_lora in [false, true] {
            let mut shapes: Vec<&[usize]> = vec![&[39, 24], &[48, 24], &[16, 24], &[16, 24]];
            if with_lora {
                shapes.extend([&[4, 24][..], &[48, 4], &[4, 24], &[16, 4], &[4, 24], &[16, 4]]);
            }
            compare("attention from its projections on", product, &device, &shapes, |x: Vec<Tensor<2>>| {
                let angles = Tensor::<2>::from_data(random(&[positions, 4], 5), &x[0].device().inner());
                let angles = [angles.clone().cos(), angles.sin()];
                let part = |i: usize| LinearPart {
                    // Smaller, or the softmax would choose one key and amplify the rounding.
                    weight: x[1 + i].clone() * 0.2,
                    lora: with_lora.then(|| [x[4 + 2 * i].clone() * 0.2, x[5 + 2 * i].clone() * 0.2]),
                };
                let how = QkvAttention { heads: [6, 2], angles: angles.each_ref(), layout: &layout, scoring };
                attention_of(&x[0], &[part(0), part(1), part(2)], how)
            });
        }
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn gate_and_up_as_one_agree_with_the_cpu() {
    let (device, product) = (device(), tolerances().product);
    for (activation, with_lora) in
        [(Activation::Silu, false), (Activation::Silu, true), (Activation::GeluTanh, true), (Activation::Gelu, false)]
    {
        let mut shapes: Vec<&[usize]> = vec![&[35, 24], &[40, 24], &[40, 24], &[24, 40]];
        if with_lora {
            shapes.extend([&[4, 24][..], &[40, 4], &[4, 24], &[40, 4], &[4, 40], &[24, 4]]);
        }
        compare("gated MLP", product, &device, &shapes, |x: Vec<Tensor<2>>| {
            let part = |i: usize| LinearPart {
                weight: x[1 + i].clone(),
                lora: with_lora.then(|| [x[4 + 2 * i].clone(), x[5 + 2 * i].clone()]),
            };
            let (gate_up, down) = ([part(0), part(1)], part(2));
            kernels::gated_mlp(&x[0], &gate_up, activation, &down).unwrap_or_else(|| {
                assert_eq!(x[0].device().inner(), Device::flex(), "the device has kernels for it");
                let [gate, up] = gate_up.each_ref().map(|part| through(&x[0], part));
                through(&kernels::gated(gate, up, activation), &down)
            })
        });
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn what_decoding_fuses_agrees_with_the_cpu() {
    let (device, product) = (device(), tolerances().product);
    for rows in [1, 3, 8, 9] {
        let results = [&device, &Device::flex()].map(|device| {
            let tensor = |shape: &[usize], seed| Tensor::<2>::from_data(random(shape, seed), device);
            let (x, up) = (tensor(&[rows, 70], 1), tensor(&[rows, 70], 2));
            let (weights, residual) = ([tensor(&[33, 70], 3), tensor(&[5, 70], 4)], tensor(&[rows, 33], 5));
            let onto = kernels::linear_onto(x.clone(), weights[0].clone(), residual.clone());
            let gated = [x.clone(), up];
            let gated = kernels::gated_linear_onto(gated, Activation::Silu, weights[0].clone(), residual);
            let all = kernels::linears(x, weights.to_vec()).into_iter().chain([onto, gated]);
            all.flat_map(values).collect::<Vec<_>>()
        });
        crate::assert_within("linears of few rows", &results[0], &results[1], product);
    }
    // Few rows without a graph meet a weight with one.
    compare("few rows", product, &device, &[&[33, 70]], |x: Vec<Tensor<2>>| {
        let rows = Tensor::<2>::from_data(random(&[3, 70], 1), &x[0].device().inner());
        kernels::linear(rows, x[0].clone())
    });
    for (tokens, kv_len, scoring) in [
        (1, 1, Scoring::plain(8)),
        (1, 300, Scoring::plain(8)),
        (5, 150, Scoring { softcap: Some(0.7), ..Scoring::plain(8) }),
        (2, 150, Scoring { window: Some(20), ..Scoring::plain(8) }),
    ] {
        let grid = Grid { batch: 2, tokens, kv_len, capacity: 310 };
        let results = [&device, &Device::flex()].map(|device| {
            let tensor = |shape: &[usize], seed| Tensor::<3>::from_data(random(shape, seed), device);
            let (q, k, v) = (tensor(&[2 * tokens, 6, 8], 1), tensor(&[700, 2, 8], 2), tensor(&[700, 2, 8], 3));
            values(kernels::attention(q, k, v, &Layout::cached(grid), scoring))
        });
        crate::assert_within("attention to a cache", &results[0], &results[1], product);
    }
    let copies: [&[RowCopy]; 3] =
        [&[RowCopy { rows: 2..5, at: 7 }], &[RowCopy { rows: 0..2, at: 3 }, RowCopy { rows: 4..5, at: 0 }], &[]];
    for copies in copies {
        let results = [&device, &Device::flex()].map(|device| {
            let tensor = |rows, seed| Tensor::<2>::from_data(random(&[rows, 13], seed), device);
            let buffers = [tensor(12, 1), tensor(12, 2)];
            kernels::write_keys_values(buffers, [tensor(5, 3), tensor(5, 4)], &copies.into()).map(values)
        });
        assert_eq!(results[0], results[1], "{copies:?}");
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn the_rows_of_an_embedding_are_summed_as_on_the_cpu() {
    let device = device();
    let ids: Vec<u32> = (0..200).map(|i| i * i % 23).collect();
    let sums = [&device, &Device::flex()].map(|device| {
        let tensor = |shape: &[usize], seed| Tensor::<2>::from_data(random(shape, seed), device);
        values(kernels_of(device).add_rows(tensor(&[23, 133], 1), &ids, tensor(&[200, 133], 2)))
    });
    crate::assert_within("add_rows", &sums[0], &sums[1], tolerances().pointwise);
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_step_of_adamw_and_the_norms_agree_with_the_cpu() {
    let device = device();
    let step =
        AdamWStep { beta1: 0.9, beta2: 0.95, eps: 1e-8, step_size: 1e-2, inverse_root: 3.0, keep: 0.999, clip: 0.5 };
    // More vectors than a launch takes.
    let sizes: Vec<usize> = (0..600).map(|i| [1, 127, 8193, 20_000][i % 4] + i).collect();
    let results = [&device, &Device::flex()].map(|device| {
        let vector = |count, seed| Tensor::<1>::from_data(random(&[count], seed), device);
        let mut vectors: Vec<Tensor<1>> = sizes.iter().map(|size| vector(*size, 7)).collect();
        let norms = kernels_of(device).squared_norms(&mut vectors.iter_mut().collect::<Vec<_>>());
        let update = |size: &usize| {
            let means = [vector(*size, 3), vector(*size, 4).abs()];
            kernels::adamw(vector(*size, 1), vector(*size, 2), means, step)
        };
        let updated = updates_together(device, || sizes.iter().map(update).collect::<Vec<_>>());
        let alone = sizes[..3].iter().map(update);
        let updated: Vec<_> = updated.into_iter().chain(alone).map(|of_one| of_one.map(values).concat()).collect();
        (norms.iter().map(|norm| *norm as f32).collect::<Vec<_>>(), updated.concat())
    });
    let [(norms, updated), (expected_norms, expected)] = results;
    crate::assert_within("norms", &norms, &expected_norms, tolerances().pointwise);
    crate::assert_within("adamw", &updated, &expected, tolerances().pointwise);
}

/// Of SmolLM2's 30 depths a token takes 10 launches each, and a few for embedding, norm and head:
/// 320 are allowed.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_decoded_token_takes_few_launches() {
    const OF_A_DEPTH: usize = 10;
    const OTHERS: usize = 20;
    let device = device();
    let golden = Golden::named("gqa");
    let model = CausalLm::load(&golden.config(), &golden, &device).unwrap();
    let mut cache = KvCache::for_batch(model.config(), 1, 8, &device);
    let mut decode = |tokens: &[u32]| {
        let count = || values(model.logits(model.forward(ids(&[tokens.to_vec()], &device), Some(&mut cache))));
        with_launches(&device, Execution::Real, count).1.unwrap()
    };
    let _ = decode(&[1, 2, 3]);
    let first = decode(&[4]);
    let second = decode(&[5]);
    assert_eq!(first, second);
    let (total, depths) = (second.values().sum::<usize>(), model.config().num_hidden_layers);
    eprintln!("{total} launches of {depths} depths: {second:#?}");
    assert!(total <= OF_A_DEPTH * depths + OTHERS, "{total} launches of {depths} depths");
}

/// Gradients and values of everything above, as bits.
fn all(device: &Device) -> Vec<u32> {
    let graph = device.clone().autodiff();
    let leaf = |shape: &[usize], seed| Tensor::<2>::from_data(random(shape, seed), &graph).require_grad();
    let (x, w, a, b) = (leaf(&[390, 24], 1), leaf(&[24, 24], 2), leaf(&[4, 24], 3), leaf(&[24, 4], 4));
    let normed = kernels::rms_norm(x.clone(), w.clone().narrow(0, 0, 1).reshape([24]), 1e-5);
    let y = kernels::linear_merged(normed, w.clone(), a.clone(), b.clone());
    let heads = y.clone().reshape([390, 3, 8]);
    let kv = y.clone().narrow(1, 0, 8).reshape([390, 1, 8]);
    let mixed = kernels::attention(heads, kv.clone(), kv, &Layout::batch(3, 130), Scoring::plain(8));
    let y = kernels::gated_linear(mixed.reshape([390, 24]), y, Activation::Silu, w.clone());
    let gate = y.clone().narrow(1, 3, 1).narrow(0, 0, 2);
    let two = kernels::gather(y.clone(), &[1, 320].into());
    let y = kernels::merge(y, two, gate, Merge { rows: [5, 9].into(), gating: Gating::Delta });
    let mut grads = y.clone().sum().backward();
    let grads = [x, w, a, b].map(|leaf| values(leaf.grad_remove(&mut grads).expect("a leaf has a gradient")));
    let inner = |shape: &[usize], seed| Tensor::<2>::from_data(random(shape, seed), device);
    let term = DistillTerm { weight: 0.7, divergence: Divergence::Jsd { beta: 0.3 }, temperature: 1.5 };
    let terms = HeadTerms {
        cross_entropy: CrossEntropyTerm { weight: 0.3, label_smoothing: 0.1, z_loss: 1e-3 },
        teacher: Some(term),
        last: None,
    };
    let readout = Readout { hidden: inner(&[13, 24], 5), terms };
    let teacher = HeadInput { hidden: inner(&[13, 24], 6), head: inner(&[300, 24], 7).into() };
    let targets: Vec<u32> = (0..13).collect();
    let top = Teacher::Top(kernels::top_probs(&teacher, 20, None, 1.5));
    let losses = [Teacher::Model(Box::new(teacher)), top].map(|teacher| {
        head_loss(inner(&[300, 24], 8).into(), std::slice::from_ref(&readout), Some(&teacher), &targets)
    });
    let ids: Vec<u32> = (0..390).map(|i| i % 7).collect();
    let table = kernels_of(device).add_rows(inner(&[7, 24], 9), &ids, y.clone().inner());
    let picked = kernels::embedding(table.clone(), Tensor::<1, Int>::from_ints([3, 3, 0], device));
    let of_losses = losses.into_iter().flat_map(|loss| {
        let of_readouts = loss.readouts.into_iter().map(|readout| values(readout.grad_hidden));
        of_readouts.chain([values(loss.grad_weight)]).collect::<Vec<_>>()
    });
    let tensors = [values(y.inner()), values(table), values(picked)];
    grads.into_iter().chain(tensors).chain(of_losses).flatten().map(f32::to_bits).collect()
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn every_kernel_gives_the_same_bits_every_time() {
    let device = device();
    let first = all(&device);
    for _ in 0..4 {
        assert!(all(&device) == first, "a second run differs");
    }
}

/// The residual connection before a norm, and the one that a norm stands beside, with the gradients
/// of both outputs, or of one of them.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn norms_in_the_residual_stream_agree_with_the_cpu() {
    let (device, pointwise) = (device(), tolerances().pointwise);
    for (rows, width) in [(9, 1), (17, 131), (33, 576), (270, 7)] {
        let shapes: [&[usize]; 3] = [&[rows, width], &[rows, width], &[1, width]];
        let weight = |x: &[Tensor<2>]| x[2].clone().reshape([width]);
        for part in 0..3 {
            // Both outputs, then each alone; every input stays in the graph.
            let outputs = |[sum, normed]: [Tensor<2>; 2], x: &[Tensor<2>]| match part {
                0 => sum * 2.0 + normed,
                1 => sum + x[2].clone(),
                _ => normed,
            };
            compare("a norm of a sum", pointwise, &device, &shapes, |x: Vec<Tensor<2>>| {
                outputs(kernels::add_rms_norm(x[0].clone(), x[1].clone(), weight(&x), 1e-5), &x)
            });
            compare("a norm beside", pointwise, &device, &shapes, |x: Vec<Tensor<2>>| {
                outputs(kernels::rms_norm_beside(x[0].clone(), weight(&x), 1e-5), &x) * x[1].clone()
            });
        }
    }
}

/// Weights that are not trained are put one below the other at loading: no pass copies them. Rows
/// of five numbers are none that a device binds a buffer from.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn weights_that_are_not_trained_are_stacked_once() {
    let device = device();
    let stacked = |f: &dyn Fn()| {
        let launches = with_launches(&device, Execution::Real, f).1.unwrap();
        launches.iter().filter(|(name, _)| name.starts_with("StackParts")).map(|(_, count)| count).sum::<usize>()
    };
    let golden = Golden::named("gqa");
    let model = CausalLm::load(&golden.config(), &golden, &device).unwrap();
    let rows = vec![(0..30).map(|i| i % 7).collect::<Vec<u32>>()];
    assert_eq!(stacked(&|| drop(values(model.forward(ids(&rows, &device), None)))), 0);
    for (input, copies) in [(64, 0), (5, 1)] {
        let outs = [&device, &Device::flex()].map(|device| {
            let tensor = |shape: &[usize], seed| Tensor::<2>::from_data(random(shape, seed), device);
            let weights = vec![tensor(&[7, input], 1), tensor(&[7, input], 2)];
            let adjoined = kernels_of(device).adjoined(weights.clone());
            for (weight, adjoined) in weights.into_iter().zip(&adjoined) {
                assert_eq!(values(adjoined.clone()), values(weight));
            }
            let part = |weight: &Tensor<2>| LinearPart { weight: weight.clone(), lora: None };
            let (x, gate_up) = (tensor(&[40, input], 3), [part(&adjoined[0]), part(&adjoined[1])]);
            let down = part(&tensor(&[9, 7], 4));
            let joined = kernels::gated_mlp(&x, &gate_up, Activation::Silu, &down);
            if joined.is_some() {
                let again = || drop(kernels::gated_mlp(&x, &gate_up, Activation::Silu, &down));
                assert_eq!(stacked(&again), copies, "rows of {input}");
            }
            let [gate, up] = gate_up.map(|part| through(&x, &part));
            values(joined.unwrap_or_else(|| through(&kernels::gated(gate, up, Activation::Silu), &down)))
        });
        crate::assert_within("gate and up of one buffer", &outs[0], &outs[1], tolerances().product);
    }
}
