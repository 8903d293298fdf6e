//! Head losses against torch in f64: every divergence at two temperatures, label smoothing, z-loss,
//! an early exit.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::Device;
use retie_config::Divergence;
use retie_model::kernels::{
    CrossEntropyTerm, DistillTerm, HeadInput, HeadTerms, HeadValues, Readout, Teacher, agreement, head_loss,
};
use retie_testing::{Golden, differences, values};

#[test]
fn values_and_gradients_of_the_head_losses_are_those_of_torch() {
    let golden = Golden::named("losses");
    let device = Device::flex();
    let tensor = |name: &str| golden.tensor::<2>(name, &device);
    let targets: Vec<u32> = golden.ints("targets").0.iter().map(|t| *t as u32).collect();
    let teacher = HeadInput { hidden: tensor("teacher.hidden"), head: tensor("teacher.head").into() };
    let teacher = Teacher::Model(Box::new(teacher));
    for (name, divergence) in [
        ("forward_kl", Divergence::ForwardKl),
        ("reverse_kl", Divergence::ReverseKl),
        ("jsd", Divergence::Jsd { beta: 0.25 }),
        ("tvd", Divergence::Tvd),
        ("skew_kl", Divergence::SkewKl { alpha: 0.1 }),
    ] {
        for temperature in [1.0f32, 2.0] {
            let key = format!("{name}.t{temperature}");
            let cross_entropy = CrossEntropyTerm { weight: 0.3, label_smoothing: 0.1, z_loss: 0.01 };
            let distill = |weight| Some(DistillTerm { weight, divergence, temperature });
            let last = HeadTerms { cross_entropy, teacher: distill(0.7), last: None };
            let exit = HeadTerms { last: distill(0.4), ..last };
            let readouts = [("exit", "exit", exit), ("last", "student", last)];
            let inputs =
                readouts.map(|(_, hidden, terms)| Readout { hidden: tensor(&format!("{hidden}.hidden")), terms });
            let found = head_loss(tensor("head").into(), &inputs, Some(&teacher), &targets);
            // Values of up to 20 nats² and gradients below 1, sums of 50 products: a few roundings
            // of f32.
            for ((column, hidden, _), found) in readouts.iter().zip(found.readouts) {
                let HeadValues { nll, cross_entropy, z_loss, teacher, last } = found.values;
                let found_values = [nll, cross_entropy, z_loss, teacher.unwrap(), last.unwrap_or(0.0)];
                for (found, expected) in found_values.iter().zip(golden.floats(&format!("{key}.{column}"))) {
                    let expected = f64::from(expected);
                    assert!((found - expected).abs() < 4e-6 * expected.max(1.0), "{key}: {found} and {expected}");
                }
                let expected = golden.floats(&format!("{key}.grad.{hidden}"));
                let (max, _) = differences(&values(found.grad_hidden), &expected);
                assert!(max < 2e-6, "{key}: gradient of {hidden} differs by {max}");
            }
            let (max, _) = differences(&values(found.grad_weight), &golden.floats(&format!("{key}.grad.head")));
            assert!(max < 4e-6, "{key}: gradient of the head differs by {max}");
        }
    }
}

#[test]
fn the_agreement_with_a_teacher_is_that_of_torch() {
    let golden = Golden::named("losses");
    let device = Device::flex();
    let tensor = |name: &str| golden.tensor::<2>(name, &device);
    let input = HeadInput { hidden: tensor("student.hidden"), head: tensor("head").into() };
    let teacher = HeadInput { hidden: tensor("teacher.hidden"), head: tensor("teacher.head").into() };
    let (kl, _) = agreement(&input, &teacher);
    let mean = kl.iter().sum::<f32>() / kl.len() as f32;
    let expected = golden.floats("forward_kl.t1.last")[3];
    assert!((mean - expected).abs() < 4e-6 * expected.max(1.0), "{mean} and {expected}");
}
