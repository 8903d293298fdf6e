//! Distillation from the top of a teacher's distributions: loss and gradient beside those of the
//! whole distribution, on the demo model and a student made from it.
//!
//! `RETIE_TEACHER`, `RETIE_STUDENT` and `RETIE_TEXT` (JSON lines) name others: with `--nocapture`
//! that is the table of docs/results/uptraining.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::ModelSource;
use retie_config::Divergence;
use retie_data::{Tokenizer, documents};
use retie_model::{
    CausalLm, WeightDtype,
    kernels::{DistillTerm, HeadInput, HeadTerms, Readout, Teacher, TopProbs, head_loss, top_probs},
};
use std::path::{Path, PathBuf};

const TOKENS: usize = 1024;
/// Tokens of a sequence, where the context of the models allows.
const LENGTH: usize = 512;

/// The kept tokens alone, as if there were no others: their probabilities divided by their sum.
fn renormalised(top: &TopProbs) -> TopProbs {
    let mut alone = TopProbs::default();
    for (ids, log_probs) in top.rows() {
        let kept = log_probs[..ids.len()].iter().map(|log_prob| f64::from(*log_prob).exp()).sum::<f64>().ln();
        let log_probs = log_probs[..ids.len()].iter().map(|log_prob| log_prob - kept as f32);
        alone.push(ids, &log_probs.chain([f32::MIN_POSITIVE.ln()]).collect::<Vec<_>>());
    }
    alone
}

#[test]
fn a_larger_top_has_a_loss_and_a_gradient_nearer_to_the_teachers() {
    let dir = tempfile::tempdir().unwrap();
    let var = |name: &str, small: &dyn Fn() -> String| std::env::var(name).unwrap_or_else(|_| small());
    let demo = |name: &str| support::assets().join(name).display().to_string();
    let teacher = var("RETIE_TEACHER", &|| demo("demo-model"));
    let student = var("RETIE_STUDENT", &|| support::config(dir.path()).student.model);
    let text = PathBuf::from(var("RETIE_TEXT", &|| demo("demo-text/heldout.jsonl")));
    let source = ModelSource::open(&teacher).unwrap();
    let length = LENGTH.min(source.config.max_position_embeddings);
    let tokenizer = Tokenizer::from_bytes(source.tokenizer_json().unwrap(), Path::new(&teacher)).unwrap();
    let mut ids = Vec::new();
    for document in documents(&text, "text").unwrap() {
        ids.extend(tokenizer.encode(&document.unwrap().text).unwrap());
        if ids.len() > TOKENS {
            break;
        }
    }
    let targets = ids[1..=TOKENS].to_vec();
    let inputs: Vec<i32> = ids[..TOKENS].iter().map(|id| *id as i32).collect();
    let device = Device::flex();
    let read = |source: &ModelSource| {
        let model = CausalLm::load_with(&source.config, source.tensors.as_ref(), &device, WeightDtype::F32).unwrap();
        let ids = Tensor::<1, Int>::from_ints(inputs.as_slice(), &device).reshape([TOKENS / length, length]);
        HeadInput { hidden: model.forward(ids, None), head: model.head() }
    };
    let (teacher, student) = (read(&source), read(&ModelSource::open(&student).unwrap()));
    let run = |teacher: Teacher| {
        let term = DistillTerm { weight: 1.0, divergence: Divergence::ForwardKl, temperature: 1.0 };
        let terms = HeadTerms { teacher: Some(term), ..HeadTerms::default() };
        let readout = Readout { hidden: student.hidden.clone(), terms };
        let loss = head_loss(student.head.clone(), &[readout], Some(&teacher), &targets).readouts.remove(0);
        (loss.values.teacher.unwrap(), loss.grad_hidden)
    };
    let norm = |x: Tensor<2>| f64::from(x.square().sum().into_scalar::<f32>()).sqrt();
    let (exact, grad) = run(Teacher::Model(Box::new(teacher.clone())));
    eprintln!("forward KL {exact:.4} over {TOKENS} tokens");
    eprintln!(
        "| `k`, `p` | bytes of a token | kept mass | loss | gradient | loss, renormalised | gradient, renormalised |"
    );
    let row = |k: usize, top_p: Option<f64>| {
        let top = top_probs(&teacher, k, top_p, 1.0);
        let kept = top.rows().map(|(ids, _)| ids.len()).sum::<usize>() as f64 / TOKENS as f64;
        let rest =
            top.rows().map(|(ids, log_probs)| f64::from(log_probs[ids.len()]).exp()).sum::<f64>() / TOKENS as f64;
        let compare = |top: TopProbs| {
            let (value, of_top) = run(Teacher::Top(top));
            (value / exact - 1.0, norm(of_top - grad.clone()) / norm(grad.clone()))
        };
        let ((loss, of_grad), (alone, alone_grad)) = (compare(top.clone()), compare(renormalised(&top)));
        eprintln!(
            "| {k}{} | {:.0} | {:.3} | {:+.1} % | {:.1} % | {:+.1} % | {:.1} % |",
            top_p.map_or(String::new(), |p| format!(", {p}")),
            4.0 * kept + if top_p.is_some() { 4.0 } else { 2.0 },
            1.0 - rest,
            100.0 * loss,
            100.0 * of_grad,
            100.0 * alone,
            100.0 * alone_grad
        );
        if exact < 1.0 {
            // Measured, for students near their teacher.
            assert!(of_grad < alone_grad, "one outcome for the rest is nearer than none: {of_grad} and {alone_grad}");
        }
        (-loss, of_grad)
    };
    // A finer partition of the outcomes has a larger KL, at most that of all tokens.
    let nearer = |errors: &[(f64, f64)]| {
        assert!(errors.windows(2).all(|pair| pair[1].0 < pair[0].0 && pair[1].1 < pair[0].1), "{errors:?}");
        assert!(errors[0].0 < 1.0 && errors.last().unwrap().0 > 0.0, "{errors:?}");
    };
    nearer(&[8, 16, 32, 64, 128, 256].map(|k| row(k, None)));
    nearer(&[0.5, 0.8, 0.9, 0.95].map(|p| row(256, Some(p))));
}
