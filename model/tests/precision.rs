//! Products in bf16 against `torch.autocast`; the golden file is by `golden/make_precision.py`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::{Device, Tensor};
use retie_config::Precision;
use retie_model::{
    CausalLm,
    kernels::{linear_in_bf16, linear_lora_in_bf16},
};
use retie_testing::{Golden, differences, ids, values};

const NAMES: [&str; 4] = ["x", "weight", "a", "b"];

/// Largest distances from torch and from the unrounded values, relative to the largest element.
fn distances(golden: &Golden, name: &str, found: Tensor<2>) -> [f32; 2] {
    let found = values(found);
    [name.to_owned(), format!("exact.{name}")].map(|name| {
        let expected = golden.floats(&name);
        let scale = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        differences(&found, &expected).0 / scale
    })
}

#[test]
fn a_linear_with_lora_has_the_value_and_gradients_of_autocast() {
    let golden = Golden::named("precision");
    let device = Device::flex().autodiff();
    let inputs = NAMES.map(|name| golden.tensor::<2>(name, &device).require_grad());
    let [x, weight, a, b] = inputs.clone();
    let y = linear_lora_in_bf16(x, weight, a, b);
    let grad = Tensor::from_inner(golden.tensor::<2>("grad", &Device::flex()));
    let mut grads = (y.clone() * grad).sum().backward();
    let found = inputs.map(|input| input.grad_remove(&mut grads).unwrap());
    let named = NAMES.map(|name| format!("grad.{name}"));
    let all = [("y", y.inner())].into_iter().chain(named.iter().map(String::as_str).zip(found));
    for (name, found) in all {
        let [from_torch, from_exact] = distances(&golden, name, found);
        // Another order of the f32 sums changes a few roundings to 8 bits by one bf16 unit; without
        // any rounding the distance is larger.
        assert!(from_torch <= 4e-3, "{name}: {from_torch} from torch");
        assert!(
            from_exact > 1e-3 && from_exact < 2e-2,
            "{name}: {from_exact} from the exact value, nothing is rounded"
        );
    }
}

#[test]
fn small_integers_are_exact_in_bf16_and_a_ninth_bit_is_lost() {
    let device = Device::flex();
    let row = |values: [f32; 2]| Tensor::<2>::from_floats([values], &device);
    let product = |x, w| values(linear_in_bf16(row(x), row(w)))[0];
    assert_eq!(product([3.0, 5.0], [7.0, 11.0]), 76.0);
    assert_eq!(product([257.0, 0.0], [1.0, 1.0]), 256.0); // an input
    assert_eq!(product([128.0, 129.0], [1.0, 1.0]), 256.0); // the result
}

#[test]
fn a_model_in_bf16_is_near_that_in_f32_and_keeps_its_weights() {
    let weights = |model: &CausalLm| {
        let mut all = Vec::new();
        model.for_each_parameter(|_, parameter| all.extend(parameter.values()));
        all
    };
    // A gated stack with LoRA, and one without gates but with biases.
    for name in ["tied", "gpt_neox"] {
        let golden = Golden::named(name);
        let config = golden.config();
        let tensors = retie_checkpoint::under_our_names(Golden::named(name), &config);
        let (flat, shape) = golden.ints("golden.ids");
        let rows: Vec<Vec<u32>> = flat.chunks(shape[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
        let device = Device::flex();
        let model = CausalLm::load(&config, tensors.as_ref(), &device).unwrap();
        let half = model.clone().with_precision(Precision::Bf16);
        assert_eq!(weights(&model), weights(&half), "{name}");
        let logits = |model: &CausalLm| values(model.logits(model.forward(ids(&rows, &device), None)));
        let (exact, rounded) = (golden.floats("golden.logits"), logits(&half));
        let (max, mean) = differences(&rounded, &exact);
        let scale = exact.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // f32 has 16 more bits, so its rounding error times 2¹⁶ is the scale of that of bf16.
        let allowed = 3.0 * 65_536.0 * golden.floats("golden.rounding")[0].max(1e-6);
        assert!(
            (1e-4..0.03).contains(&(mean / f64::from(scale))) && max / scale < allowed,
            "{name}: {max}, {mean} of {scale}"
        );
        assert_eq!(logits(&half.with_precision(Precision::F32)), logits(&model), "{name}");
    }
}
