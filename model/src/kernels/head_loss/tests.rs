//! Head loss against plain operations, known values and finite differences. Values of torch are in
//! `model/tests/losses.rs`.

use super::{
    CrossEntropyTerm, DistillTerm, Head, HeadInput, HeadTerms, Readout, Teacher, TopProbs, compare_rows, cpu, plain,
};
use crate::kernels::{f32_slice, head_loss, top_probs};
use burn::tensor::{Device, Tensor, TensorData};
use retie_config::Divergence;

const DIVERGENCES: [Divergence; 6] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 0.1 },
    Divergence::Tvd,
    Divergence::SkewKl { alpha: 0.1 },
];

fn random(shape: [usize; 2], seed: u64) -> Tensor<2> {
    crate::kernels::tests::random(shape, seed).inner()
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    f32_slice(&tensor.into_data()).to_vec()
}

fn distill(divergence: Divergence, temperature: f32) -> HeadTerms {
    HeadTerms { teacher: Some(DistillTerm { weight: 1.0, divergence, temperature }), ..HeadTerms::default() }
}

/// `rows` as logits: hidden states under an identity head.
fn logits<const R: usize>(rows: [[f32; 3]; R]) -> HeadInput {
    let device = Device::flex();
    let hidden = Tensor::from_data(TensorData::new(rows.concat(), [R, 3]), &device);
    HeadInput { hidden, head: Tensor::eye(3, &device).into() }
}

fn divergence(student: &HeadInput, teacher: &HeadInput, kind: Divergence) -> (f64, Tensor<2>) {
    let [rows, _] = student.hidden.dims();
    let readout = Readout { hidden: student.hidden.clone(), terms: distill(kind, 1.0) };
    let teacher = Teacher::Model(Box::new(teacher.clone()));
    let mut loss = head_loss(student.head.clone(), &[readout], Some(&teacher), &vec![0; rows]);
    let loss = loss.readouts.pop().unwrap();
    (loss.values.teacher.unwrap(), loss.grad_hidden)
}

#[test]
fn host_and_plain_operations_agree() {
    // Three times 16 lanes and a tail. Plain operations sum rows of 52 by parts; 53 is prime.
    for vocab_size in [53, 52] {
        host_and_plain_operations_agree_on(vocab_size);
    }
}

fn host_and_plain_operations_agree_on(vocab_size: usize) {
    // Chunks of 16 rows leave a last one of 9.
    let (weight, hidden, early) = (random([vocab_size, 9], 17), random([41, 9], 16), random([41, 9], 15));
    let capped = Head { weight: random([vocab_size, 5], 19), softcap: Some(3.0) };
    let model = HeadInput { hidden: random([41, 5], 18), head: capped };
    let targets: Vec<u32> = (0..41).map(|i| (i * 7) % vocab_size as u32).collect();
    for kind in DIVERGENCES {
        let of_model = |temperature| (temperature, Teacher::Model(Box::new(model.clone())));
        let of_top = |temperature, k, p| (temperature, Teacher::Top(top_probs(&model, k, p, temperature)));
        for (temperature, teacher) in
            [of_model(1.0), of_model(2.5), of_top(1.0, 7, None), of_top(2.5, 1, None), of_top(1.0, 20, Some(0.4))]
        {
            let cross_entropy = CrossEntropyTerm { weight: 0.3, label_smoothing: 0.1, z_loss: 0.01 };
            let last = HeadTerms { cross_entropy, ..distill(kind, temperature) };
            let exit = HeadTerms { last: last.teacher, ..last };
            let only_last = HeadTerms { teacher: None, ..exit };
            let readouts = [(&early, exit), (&hidden, only_last), (&hidden, last)]
                .map(|(hidden, terms)| Readout { hidden: hidden.clone(), terms });
            let chunks = super::Chunks { tokens: 41, rows: 16 };
            let head = Head { weight: weight.clone(), softcap: (temperature > 1.0).then_some(2.0) };
            let host =
                cpu::head_loss(&head, &readouts, Some(&teacher), &targets, chunks).read(&readouts, chunks.tokens);
            let plain =
                plain::head_loss(&head, &readouts, Some(&teacher), &targets, chunks).read(&readouts, chunks.tokens);
            let close = |what: &str, a: Tensor<2>, b: Tensor<2>| {
                // Gradients of a mean over 41 tokens are below 1; both sides sum 53 products in
                // f32.
                let max = (a - b).abs().max().into_scalar::<f32>();
                assert!(max < 1e-6, "{kind:?} at {temperature}: gradient of {what} differs by {max}");
            };
            close("the head", host.grad_weight, plain.grad_weight);
            for (host, plain) in host.readouts.into_iter().zip(plain.readouts) {
                let (a, b) = (host.values, plain.values);
                for (a, b) in [
                    (a.nll, b.nll),
                    (a.cross_entropy, b.cross_entropy),
                    (a.z_loss, b.z_loss),
                    (a.teacher.unwrap_or(0.0), b.teacher.unwrap_or(0.0)),
                    (a.last.unwrap_or(0.0), b.last.unwrap_or(0.0)),
                ] {
                    assert!((a - b).abs() < 2e-6 * a.abs().max(1.0), "{kind:?} at {temperature}: {a} and {b}");
                }
                close("the hidden states", host.grad_hidden, plain.grad_hidden);
            }
        }
    }
}

#[test]
fn tokens_whose_probability_underflows_on_both_sides_add_nothing() {
    let (student, teacher) = (logits([[300.0, 0.0, 299.0]]), logits([[299.0, 1.0, 300.0]]));
    let chunks = super::Chunks { tokens: 1, rows: 1 };
    for kind in DIVERGENCES {
        let readouts = [Readout { hidden: student.hidden.clone(), terms: distill(kind, 1.0) }];
        let model = Teacher::Model(Box::new(teacher.clone()));
        let host = cpu::head_loss(&student.head, &readouts, Some(&model), &[0], chunks).read(&readouts, 1);
        let plain = plain::head_loss(&student.head, &readouts, Some(&model), &[0], chunks).read(&readouts, 1);
        let [host, plain] = [host, plain].map(|mut found| found.readouts.pop().unwrap());
        let (a, b) = (host.values.teacher.unwrap(), plain.values.teacher.unwrap());
        assert!(a > 0.0 && (a - b).abs() < 2e-6 * a.max(1.0), "{kind:?}: {a} and {b}");
        let apart = floats((host.grad_hidden - plain.grad_hidden).abs());
        // Numbers around 300 are 3e-5 apart in f32, gradients 0.2 at most.
        assert!(apart.iter().all(|by| *by < 5e-6), "{kind:?}: gradients differ by {apart:?}");
    }
}

#[test]
fn the_agreement_with_a_teacher_is_forward_kl_row_by_row() {
    let (weight, hidden) = (random([53, 9], 17), random([41, 9], 16));
    let capped = Head { weight: random([53, 5], 19), softcap: Some(3.0) };
    let teacher = HeadInput { hidden: random([41, 5], 18), head: capped };
    let input = HeadInput { hidden, head: weight.into() };
    let chunks = super::Chunks { tokens: 41, rows: 16 };
    let (host, same) = cpu::agreement(&input, &teacher, chunks);
    let (plain, same_in_plain) = plain::agreement(&input, &teacher, chunks);
    assert_eq!(same, same_in_plain);
    assert!(same.contains(&true) && same.contains(&false), "{same:?}");
    for (host, plain) in host.iter().zip(plain) {
        assert!((host - plain).abs() < 2e-6 * plain.max(1.0), "{host} and {plain}"); // sums of 53 products in f32
    }
    let (kl, _) = divergence(&input, &teacher, Divergence::ForwardKl);
    let mean = host.iter().map(|kl| f64::from(*kl)).sum::<f64>() / 41.0;
    assert!((mean - kl).abs() < 1e-6, "{mean} and {kl}");
    assert_eq!(cpu::agreement(&input, &input, chunks), (vec![0.0; 41], vec![true; 41]));
}

#[test]
fn divergences_have_the_known_values() {
    // Computed in f64 by another implementation, on these logits.
    let student = logits([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]]);
    let teacher = logits([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]);
    for (kind, expected) in [
        (Divergence::ForwardKl, 0.354_796_817_0),
        (Divergence::ReverseKl, 0.373_548_072_1),
        (Divergence::Jsd { beta: 0.5 }, 0.087_741_363_8),
        (Divergence::Tvd, 0.396_378_327_1),
    ] {
        let (value, _) = divergence(&student, &teacher, kind);
        assert!((value - expected).abs() < 1e-7, "{kind:?}: {value} and {expected}"); // one rounding of f32
    }
}

#[test]
fn a_divergence_of_a_model_from_itself_is_zero_and_has_no_gradient() {
    let head = HeadInput { hidden: random([8, 9], 20), head: random([53, 9], 21).into() };
    for kind in DIVERGENCES {
        let (value, grad) = divergence(&head, &head, kind);
        let largest = floats(grad).into_iter().fold(0.0f32, |m, x| m.max(x.abs()));
        match kind {
            // `log m` is rounded, because `m` is a mixture.
            Divergence::Jsd { .. } | Divergence::SkewKl { .. } => {
                assert!(value.abs() < 2e-7 && largest < 2e-7, "{kind:?}: {value}, gradient {largest}");
            }
            _ => assert_eq!((value, largest), (0.0, 0.0), "{kind:?}"),
        }
    }
}

#[test]
fn jsd_is_at_most_ln_2_and_symmetric_at_one_half() {
    let half = Divergence::Jsd { beta: 0.5 };
    let (apart, _) = divergence(&logits([[200.0, 0.0, 0.0]]), &logits([[0.0, 0.0, 200.0]]), half);
    assert!((apart - std::f64::consts::LN_2).abs() < 1e-7, "{apart}");
    let (a, b) = (logits([[1.0, 0.0, -1.0]]), logits([[0.0, 3.0, -1.0]]));
    let ((there, _), (back, _)) = (divergence(&a, &b, half), divergence(&b, &a, half));
    assert!((there - back).abs() < 1e-7 && there > 0.1, "{there} and {back}");
    let quarter = Divergence::Jsd { beta: 0.25 };
    let ((there, _), (back, _)) = (divergence(&a, &b, quarter), divergence(&b, &a, quarter));
    assert!((there - back).abs() > 1e-3, "{there} and {back}");
}

#[test]
fn gradients_are_finite_differences_of_the_values() {
    let teacher = logits([[0.0, 1.0, -1.0]]);
    let base = [1.0f32, 0.25, -1.0];
    // Values are exact to 1e-7, so quotients to 1e-5; the next order of the quotient is below 1e-4.
    let step = 1.0 / 64.0;
    for kind in DIVERGENCES {
        let (_, grad) = divergence(&logits([base]), &teacher, kind);
        for (i, slope) in floats(grad).into_iter().enumerate() {
            let at = |by: f32| {
                let mut row = base;
                row[i] += by;
                divergence(&logits([row]), &teacher, kind).0
            };
            let quotient = (at(step) - at(-step)) / f64::from(2.0 * step);
            assert!((quotient - f64::from(slope)).abs() < 1e-4, "{kind:?}[{i}]: {slope} and {quotient}");
        }
    }
}

fn check(top: &TopProbs, expected: [(&[u32], &[f64]); 2]) {
    assert_eq!(top.rows().count(), 2);
    for ((ids, log_probs), (expected_ids, probs)) in top.rows().zip(expected) {
        assert_eq!((ids, log_probs.len()), (expected_ids, probs.len()));
        for (found, expected) in log_probs.iter().zip(probs) {
            assert!((f64::from(*found) - expected.ln()).abs() < 1e-6, "{found} and {}", expected.ln());
        }
    }
}

#[test]
fn the_top_of_a_distribution_is_that_of_its_softmax() {
    let head = logits([[1.0, 3.0, 1.0], [0.0, -1.0, 2.0]]);
    let top = top_probs(&head, 2, None, 2.0);
    let softmax = |row: [f64; 3]| {
        let sum: f64 = row.iter().map(|s| (s / 2.0).exp()).sum();
        row.map(|s| (s / 2.0).exp() / sum)
    };
    // The first of equal logits is taken.
    let (a, b) = (softmax([1.0, 3.0, 1.0]), softmax([0.0, -1.0, 2.0]));
    check(&top, [(&[1, 0], &[a[1], a[0], a[2]]), (&[2, 0], &[b[2], b[0], b[1]])]);
    // The most probable token has 0.58 of the first row and 0.63 of the second; two have 0.79 and
    // 0.86.
    check(&top_probs(&head, 2, Some(0.6), 2.0), [(&[1, 0], &[a[1], a[0], a[2]]), (&[2], &[b[2], b[0] + b[1]])]);
    assert_eq!(top_probs(&head, 3, Some(1.0), 2.0), top_probs(&head, 3, None, 2.0));
    assert_eq!(top_probs(&head, 2, Some(0.9), 2.0), top);
}

#[test]
fn a_kept_top_of_all_tokens_is_the_teacher_and_one_of_few_bounds_its_divergence_from_below() {
    let student = HeadInput { hidden: random([8, 9], 22), head: random([53, 9], 23).into() };
    let model = HeadInput { hidden: random([8, 9], 24), head: random([53, 9], 25).into() };
    for kind in DIVERGENCES {
        let run = |teacher: Teacher| {
            let readout = Readout { hidden: student.hidden.clone(), terms: distill(kind, 1.0) };
            let loss = head_loss(student.head.clone(), &[readout], Some(&teacher), &[0; 8]).readouts.remove(0);
            (loss.values.teacher.unwrap(), loss.grad_hidden)
        };
        let (exact, grad) = run(Teacher::Model(Box::new(model.clone())));
        let top = |k| run(Teacher::Top(top_probs(&model, k, None, 1.0)));
        let (all, grad_of_all) = top(53);
        // 53 probabilities, each rounded once more.
        assert!((all - exact).abs() < 2e-6, "{kind:?}: {all} and {exact}");
        assert!((grad_of_all - grad).abs().max().into_scalar::<f32>() < 1e-5, "{kind:?}");
        let values = [1, 4, 16, 53].map(|k| top(k).0);
        assert!(values.is_sorted_by(|a, b| *a <= b + 1e-6) && values[0] < exact, "{kind:?}: {values:?}");
        let values = [0.1, 0.5, 0.9].map(|p| run(Teacher::Top(top_probs(&model, 53, Some(p), 1.0))).0);
        assert!(values.is_sorted() && values[0] < values[2] && values[2] < exact, "{kind:?}: {values:?}");
    }
}

/// `p = (1/2, 1/4, 1/4)`, `q = (1/4, 1/4, 1/2)`: KL = ½ ln 2 − ¼ ln 2.
#[test]
fn two_rows_have_the_scores_of_their_distributions() {
    let (p, q) = ([2f32.ln() + 3.0, 3.0, 3.0], [0.0, 0.0, 2f32.ln()]);
    let [first, second, kl] = compare_rows(&p, &q, 0);
    let ln2 = std::f32::consts::LN_2;
    // Logits are f32, with an error of 3e-7 at this size.
    for (found, expected) in [(first, ln2), (second, 2.0 * ln2), (kl, 0.25 * ln2)] {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    assert_eq!(compare_rows(&p, &p, 1)[2], 0.0);
}
