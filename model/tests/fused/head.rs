//! The losses of the head against a teacher of which only the most probable tokens are cached.

use crate::{assert_within, device, random, tolerances};
use burn::tensor::{Device, Tensor};
use retie_config::Divergence;
use retie_model::kernels::{
    CrossEntropyTerm, DistillTerm, Execution, Head, HeadInput, HeadTerms, Readout, Teacher, TopProbs, head_loss,
    top_probs, with_launches,
};
use retie_testing::values;

const ROWS: usize = 13;
const VOCAB: usize = 301;

fn tensor(shape: &[usize], seed: u64, device: &Device) -> Tensor<2> {
    Tensor::from_data(random(shape, seed), device)
}

/// Top of a teacher's distributions: up to `k` tokens, which have a probability of `p` together.
fn top(k: usize, p: Option<f64>, temperature: f32) -> TopProbs {
    let cpu = Device::flex();
    let teacher = HeadInput { hidden: tensor(&[ROWS, 9], 3, &cpu), head: tensor(&[VOCAB, 9], 4, &cpu).into() };
    top_probs(&teacher, k, p, temperature)
}

/// Values and gradients on `device` of an early exit, which reads the last readout's logits too,
/// and of the last readout.
fn losses(device: &Device, term: DistillTerm, softcap: Option<f32>, top: &TopProbs) -> [Vec<f32>; 2] {
    let cross_entropy = CrossEntropyTerm { weight: 10.0, label_smoothing: 0.1, z_loss: 0.01 };
    let last = HeadTerms { cross_entropy, teacher: Some(term), last: None };
    let exit = HeadTerms { last: Some(term), ..last };
    let readout = |seed, terms| Readout { hidden: tensor(&[ROWS, 16], seed, device) * 0.4, terms };
    let head = Head { weight: tensor(&[VOCAB, 16], 2, device), softcap };
    let targets: Vec<u32> = (0..ROWS as u32).map(|i| i * 7).collect();
    let readouts = [readout(5, exit), readout(1, last)];
    let loss = head_loss(head, &readouts, Some(&Teacher::Top(top.clone())), &targets);
    let (mut numbers, mut grads) = (Vec::new(), values(loss.grad_weight));
    for readout in loss.readouts {
        let found = readout.values;
        numbers.extend([found.nll, found.cross_entropy, found.z_loss, found.teacher.unwrap()].map(|x| x as f32));
        numbers.push(found.last.unwrap_or(0.0) as f32);
        grads.extend(values(readout.grad_hidden));
    }
    [numbers, grads]
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn losses_against_the_kept_top_agree_with_the_cpu() {
    let (device, product) = (device(), tolerances().product);
    for divergence in [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.25 },
        Divergence::Tvd,
        Divergence::SkewKl { alpha: 0.1 },
    ] {
        // One token; rows of unequal numbers; more than the threads of a group; nearly all.
        for (k, p, temperature, softcap) in
            [(1, None, 1.0, None), (60, Some(0.7), 1.0, Some(3.0)), (150, None, 2.0, None), (300, None, 2.0, Some(3.0))]
        {
            let top = top(k, p, temperature);
            // Weights for gradients of about 1, the least that differences are relative to.
            let term = DistillTerm { weight: 30.0, divergence, temperature };
            let [[numbers, grads], [expected_numbers, expected_grads]] =
                [&device, &Device::flex()].map(|device| losses(device, term, softcap, &top));
            let what = format!("{divergence:?}, top {k} at {temperature}");
            assert_within(&format!("{what}, values"), &numbers, &expected_numbers, product);
            assert_within(&format!("{what}, gradients"), &grads, &expected_grads, product);
        }
    }
}

/// The divergence from the kept top is one launch of a readout and chunk.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn the_kept_top_takes_as_many_launches_as_logits_without_their_product() {
    let device = device();
    let term = DistillTerm { weight: 0.7, divergence: Divergence::ForwardKl, temperature: 1.0 };
    let terms = HeadTerms { teacher: Some(term), ..HeadTerms::default() };
    let readout = Readout { hidden: tensor(&[ROWS, 16], 1, &device), terms };
    let model = HeadInput { hidden: tensor(&[ROWS, 9], 3, &device), head: tensor(&[VOCAB, 9], 4, &device).into() };
    let launches = |teacher: Teacher| {
        let head = Head { weight: tensor(&[VOCAB, 16], 2, &device), softcap: None };
        let run = || head_loss(head, std::slice::from_ref(&readout), Some(&teacher), &[0; ROWS]);
        with_launches(&device, Execution::Real, run).1.unwrap().values().sum::<usize>()
    };
    let (of_model, of_top) = (launches(Teacher::Model(Box::new(model))), launches(Teacher::Top(top(20, None, 1.0))));
    assert_eq!(of_top + 1, of_model);
}
