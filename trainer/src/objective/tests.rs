//! The gradient of the whole objective against finite differences of its value.

use super::*;
use crate::{
    loss::LossValues,
    optim::{Gradients, UpdateRules, projection_gradient},
};
use burn::module::Param;
use burn::tensor::TensorData;
use retie_checkpoint::ModelSource;
use retie_config::{
    BlockwiseConfig, ConvertConfig, CrossEntropyConfig, DistillConfig, Divergence, EarlyExitConfig, ExitCrossEntropy,
    ExitDistillConfig, ExitReference, ExitWeights, HiddenConfig, HiddenDistance, Init, Sharing,
};
use retie_convert::{OutputFiles, SourceModel, convert};
use retie_model::{NamedMapper, kernels::f32_slice, map_named, mix, update_value};
use std::{collections::BTreeSet, path::Path};

/// Every kind of term; the references of the exits do not move with the student, so that
/// differences see no other path.
fn losses() -> Vec<LossTerm> {
    let distill = ExitDistillConfig {
        from: vec![ExitReference::Teacher],
        cross_entropy: ExitCrossEntropy::Keep,
        divergence: Divergence::ReverseKl,
        temperature: 2.0,
    };
    vec![
        LossTerm::new(0.3, CrossEntropyConfig { label_smoothing: 0.1, z_loss: 1e-3 }),
        LossTerm::new(0.7, DistillConfig { divergence: Divergence::Jsd { beta: 0.5 }, temperature: 1.5 }),
        LossTerm::new(0.8, EarlyExitConfig { weights: ExitWeights::Weighted, distill: Some(distill), sample: false }),
        LossTerm::new(0.5, HiddenConfig { distance: HiddenDistance::Cosine, ..HiddenConfig::default() }),
        LossTerm::new(0.4, BlockwiseConfig {}),
    ]
}

struct Case {
    student: CausalLm,
    objective: Objective,
    batch: Batch,
}

impl Case {
    fn new(recompute: bool) -> Self {
        Self::with(&losses(), recompute)
    }

    fn with(losses: &[LossTerm], recompute: bool) -> Self {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/demo-model");
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("student");
        let source = ModelSource::open(base.to_str().unwrap()).unwrap();
        let conversion = ConvertConfig {
            recursions: Some(2),
            sharing: Some(Sharing::MiddleCycle),
            lora_rank: Some(4),
            share_norms: false,
            ..ConvertConfig::new("base".to_owned(), Init::Average, to.clone())
        };
        let conversion = conversion.validate().unwrap();
        let files = OutputFiles { files: source.companions.clone(), ..OutputFiles::default() };
        let model = SourceModel { tensors: source.tensors.as_ref(), config: &source.config };
        convert(model, conversion.conversion().unwrap(), None, &files, &to, &mut |_| {}).unwrap();
        let converted = ModelSource::open(to.to_str().unwrap()).unwrap();
        let device = Device::flex();
        let load = |source: &ModelSource, device: &Device| {
            CausalLm::load(&source.config, source.tensors.as_ref(), device).unwrap()
        };
        let stacks = Stacks {
            student: converted.config.share_map(),
            teacher_depths: Some(source.config.num_hidden_layers),
            widths: (converted.config.hidden_size, Some(source.config.hidden_size)),
        };
        let config = serde_json::from_str(r#"{"lr": 1e-3}"#).unwrap();
        let rules = UpdateRules::new(&config);
        let width = source.config.hidden_size;
        let count = Requirements::from_losses(losses, &stacks).num_projections;
        let projections = Projections::new(count, [width; 2], &rules, &device);
        let teacher = Some(TeacherSource::Model(Box::new(load(&source, &device))));
        let objective = Objective::new(losses, teacher, stacks, recompute, projections);
        let tokens: Vec<u32> = (0..33).map(|i| (i * 97 + 11) % 2048).collect();
        let batch = Batch {
            pieces: vec![16; 2],
            indices: vec![0, 1],
            row_lengths: vec![16; 2],
            rows: 2,
            sequence_length: 16,
            inputs: tokens[..32].to_vec(),
            targets: tokens[1..].to_vec(),
            learnt: None,
        };
        Self { student: load(&converted, &device.autodiff()), objective, batch }
    }

    fn backward(&self, student: &CausalLm) -> (LossValues, Gradients) {
        self.backward_of(student, [(&self.batch, 1.0)])
    }

    /// Losses and gradients of several batches, each with its share.
    fn backward_of<'a>(
        &self,
        student: &CausalLm,
        batches: impl IntoIterator<Item = (&'a Batch, f64)>,
    ) -> (LossValues, Gradients) {
        self.backward_drawn(student, batches, 0)
    }

    /// The same where sequences draw from `draw`.
    fn backward_drawn<'a>(
        &self,
        student: &CausalLm,
        batches: impl IntoIterator<Item = (&'a Batch, f64)>,
        draw: u64,
    ) -> (LossValues, Gradients) {
        let mut sums = StepSums::default();
        for (batch, share) in batches {
            let micro_batch = MicroBatch { batch, step: 1, share, draw, telemetry: false };
            self.objective.backward(student, micro_batch, SelectionRule::Causal, &mut sums).unwrap();
        }
        (sums.losses, sums.grads)
    }
}

/// Adds a multiple of a flat tensor to one parameter.
struct Move<'a> {
    name: &'a str,
    by: Tensor<1>,
}

impl NamedMapper for Move<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if name != self.name {
            return param;
        }
        update_value(param, |value| {
            let by = self.by.clone().reshape(value.dims());
            value + by
        })
    }
}

#[test]
fn gradients_are_finite_differences_of_the_loss_with_one_graph_and_with_many() {
    for recompute in [false, true] {
        let case = Case::new(recompute);
        let (losses, mut grads) = case.backward(&case.student);
        let names: Vec<&str> = losses.terms.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["blockwise", "cross_entropy", "distill", "exit_1_cross_entropy", "exit_1_teacher", "hidden", "z_loss"]
        );
        // The first layer, a shared one, what one depth owns, the final norm, the embeddings.
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
            "model.depths.2.mlp.up_proj.lora_B.weight",
            "model.depths.1.input_layernorm.weight",
            "model.norm.weight",
            "model.embed_tokens.weight",
        ] {
            let grad = grads.take(name).unwrap();
            let norm = f32_slice(&grad.clone().into_data()).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            // Along the gradient the loss, about 6 nats, changes by 4e-3 and is rounded at 1e-6;
            // the third order is less.
            let step = 2e-3 / norm;
            let at = |by: f64| {
                let by = grad.clone() * (by / norm);
                let student = map_named(case.student.clone(), &mut Move { name, by });
                case.backward(&student).0.loss
            };
            let quotient = (at(step) - at(-step)) / (2.0 * step);
            assert!((quotient - norm).abs() < 1e-2 * norm, "{name}: {norm} and {quotient}");
        }
    }
}

#[test]
fn a_learned_map_begins_as_none_and_has_the_gradient_of_finite_differences() {
    for distance in [HiddenDistance::Mse, HiddenDistance::Cosine] {
        let plain = HiddenConfig { distance, ..HiddenConfig::default() };
        let mapped = HiddenConfig { projection: true, ..plain.clone() };
        let [plain, mut case] = [plain, mapped].map(|config| Case::with(&[LossTerm::new(0.5, config)], false));
        let (losses, mut grads) = case.backward(&case.student);
        assert_eq!(losses, plain.backward(&plain.student).0, "the identity is exact");
        let grad = grads.take(&projection_gradient(1)).unwrap();
        let norm = f64::from(grad.clone().square().sum().into_scalar::<f32>()).sqrt();
        let step = 1e-3 / norm;
        let weight = case.objective.projections().weight(1).unwrap();
        let mut at = |by: f64| {
            let by = (grad.clone() * (by / norm)).reshape(weight.dims());
            case.objective.projections_mut().shift(1, by.clone());
            let loss = case.backward(&case.student).0.loss;
            case.objective.projections_mut().shift(1, -by);
            loss
        };
        let quotient = (at(step) - at(-step)) / (2.0 * step);
        assert!((quotient - norm).abs() < 1e-2 * norm, "{distance:?}: {norm} and {quotient}");
        // The student's gradient goes through the map.
        let name = "model.layers.1.mlp.down_proj.weight";
        let by = Tensor::from_data(
            TensorData::new(
                (0..weight.shape().num_elements()).map(|i| (i % 7) as f32 / 50.0).collect::<Vec<_>>(),
                weight.dims(),
            ),
            &Device::flex(),
        );
        case.objective.projections_mut().shift(1, by);
        let grad = case.backward(&case.student).1.take(name).unwrap();
        let norm = f64::from(grad.clone().square().sum().into_scalar::<f32>()).sqrt();
        let at = |by: f64| {
            let by = grad.clone() * (by / norm);
            case.backward(&map_named(case.student.clone(), &mut Move { name, by })).0.loss
        };
        let step = 1e-3 / norm;
        let quotient = (at(step) - at(-step)) / (2.0 * step);
        assert!((quotient - norm).abs() < 1e-2 * norm, "{distance:?}, student: {norm} and {quotient}");
    }
}

#[test]
fn documents_that_share_rows_have_the_loss_and_the_gradient_that_they_have_alone() {
    let case = Case::new(false);
    let pieces = vec![5, 11, 16];
    let packed = Batch { pieces: pieces.clone(), ..case.batch.clone() };
    let mut start = 0;
    let alone = pieces.iter().map(|piece| {
        let part = |tokens: &[u32]| tokens[start..start + piece].to_vec();
        let (inputs, targets) = (part(&packed.inputs), part(&packed.targets));
        start += piece;
        let (pieces, indices) = (vec![*piece], vec![0]);
        (
            Batch {
                inputs,
                targets,
                learnt: None,
                pieces,
                indices,
                row_lengths: vec![*piece],
                rows: 1,
                sequence_length: *piece,
            },
            *piece as f64 / 32.0,
        )
    });
    let alone: Vec<(Batch, f64)> = alone.collect();
    let (of_packed, mut packed_grads) = case.backward_of(&case.student, [(&packed, 1.0)]);
    let (of_alone, mut alone_grads) =
        case.backward_of(&case.student, alone.iter().map(|(batch, share)| (batch, *share)));
    let (of_plain, _) = case.backward(&case.student);
    // f32 throughout, summed in another order.
    assert!((of_packed.loss - of_alone.loss).abs() < 1e-5, "{} and {}", of_packed.loss, of_alone.loss);
    assert!((of_packed.loss - of_plain.loss).abs() > 1e-3, "nothing is hidden: {}", of_plain.loss);
    for name in ["model.layers.1.self_attn.k_proj.weight", "model.depths.1.input_layernorm.weight"] {
        let norm = |x: Tensor<1>| f64::from(x.square().sum().into_scalar::<f32>()).sqrt();
        let (packed, alone) = (packed_grads.take(name).unwrap(), alone_grads.take(name).unwrap());
        assert!(norm(packed - alone.clone()) < 1e-4 * norm(alone), "{name}");
    }
}

#[test]
fn targets_that_are_learnt_and_those_that_are_not_make_the_whole_loss_and_gradient_together() {
    let case = Case::new(false);
    let is_answer = |index: &usize| (3..9).contains(index) || *index >= 20;
    let part = |learnt: &dyn Fn(&usize) -> bool| Batch {
        learnt: Some((0..32).map(|index| learnt(&index)).collect()),
        ..case.batch.clone()
    };
    let (answers, rest) = (part(&is_answer), part(&|index| !is_answer(index)));
    let share = |batch: &Batch| batch.num_learnt() as f64 / 32.0;
    assert_eq!((answers.num_learnt(), rest.num_learnt()), (18, 14));
    let whole = case.backward(&case.student);
    let (of_answers, _) = case.backward_of(&case.student, [(&answers, 1.0)]);
    let (of_parts, mut parts) = case.backward_of(&case.student, [(&answers, share(&answers)), (&rest, share(&rest))]);
    assert!((of_answers.loss - whole.0.loss).abs() > 1e-4, "{}", of_answers.loss);
    let (of_whole, mut whole) = whole;
    // Losses of hidden states and of logits, summed in f32 in another order.
    assert!((of_parts.loss - of_whole.loss).abs() < 1e-5, "{} and {}", of_parts.loss, of_whole.loss);
    let norm = |x: Tensor<1>| f64::from(x.square().sum().into_scalar::<f32>()).sqrt();
    for name in ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.k_proj.weight"] {
        let (parts, whole) = (parts.take(name).unwrap(), whole.take(name).unwrap());
        assert!(norm(parts - whole.clone()) < 1e-4 * norm(whole), "{name}");
    }
}

#[test]
fn blocks_alone_need_no_logits_and_leave_embeddings_and_final_norm_as_they_are() {
    let case = Case::with(&[LossTerm::new(0.5, BlockwiseConfig {})], false);
    let (losses, mut grads) = case.backward(&case.student);
    assert_eq!(losses.cross_entropy, None);
    assert!((losses.loss - 0.5 * losses.terms["blockwise"]).abs() < 1e-12);
    assert!(losses.terms["blockwise"] > 0.01, "averaged layers do not do what the teacher's do");
    let squares = grads.squares();
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        assert!(!squares.contains_key(name), "{name}");
    }
    // Unshared ends are the teacher's own: nothing is left to learn there, beside rounding.
    let norm = |name: &str| squares[name].sqrt();
    let [end, shared] = [0, 1].map(|layer| norm(&format!("model.layers.{layer}.self_attn.q_proj.weight")));
    assert!(end < 1e-3 * shared, "{end} and {shared}");
    // With micro-batches the sum is that of the whole.
    let half = |rows: std::ops::Range<usize>| Batch {
        pieces: vec![16],
        indices: vec![0],
        row_lengths: vec![16],
        rows: 1,
        sequence_length: 16,
        inputs: case.batch.inputs[rows.clone()].to_vec(),
        targets: case.batch.targets[rows].to_vec(),
        learnt: None,
    };
    let halves = [half(0..16), half(16..32)];
    let (of_halves, mut parts) = case.backward_of(&case.student, halves.iter().map(|batch| (batch, 0.5)));
    assert!((of_halves.loss - losses.loss).abs() < 1e-6);
    let (name, norm) = ("model.depths.1.mlp.up_proj.lora_B.weight", |x: Tensor<1>| {
        f64::from(x.square().sum().into_scalar::<f32>()).sqrt()
    });
    let (whole, parts) = (grads.take(name).unwrap(), parts.take(name).unwrap());
    assert!(norm(whole.clone() - parts) < 1e-5 * norm(whole), "{name}");
}

#[test]
fn sequences_that_draw_an_exit_have_its_loss_and_gradient_and_the_others_have_none() {
    let exits = |sample| {
        let distill = ExitDistillConfig {
            from: vec![ExitReference::Final, ExitReference::Teacher],
            cross_entropy: ExitCrossEntropy::Keep,
            divergence: Divergence::ForwardKl,
            temperature: 1.5,
        };
        let weights = ExitWeights::Weighted;
        [LossTerm::new(0.8, EarlyExitConfig { weights, distill: Some(distill), sample })]
    };
    let [drawn, always] = [true, false].map(|sample| Case::with(&exits(sample), false));
    // Of the second sequence some targets are not learnt.
    let batch = Batch { learnt: Some((0..32).map(|index| index < 20).collect()), ..drawn.batch.clone() };
    let norm = |x: &Tensor<1>| f64::from(x.clone().square().sum().into_scalar::<f32>()).sqrt();
    let names = ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "model.embed_tokens.weight"];
    let mut seen = BTreeSet::new();
    for draw in 0..12 {
        let (found, mut grads) = drawn.backward_drawn(&drawn.student, [(&batch, 1.0)], draw);
        // With two recursions an exit has twice its loss, on the part of the targets that drew it.
        let draws = |row: &usize| mix(draw ^ *row as u64).is_multiple_of(2);
        let rows: Vec<usize> = [0, 1].into_iter().filter(draws).collect();
        let parts: Vec<Batch> = rows.iter().map(|row| batch.only(|other| other == *row).0).collect();
        let shares: Vec<f64> = parts.iter().map(|part| 2.0 * part.num_learnt() as f64 / 20.0).collect();
        let (expected, mut expected_grads) = always.backward_of(&always.student, parts.iter().zip(shares));
        seen.insert(rows.len());
        // The same sums in f32, in another order.
        assert!((found.loss - expected.loss).abs() < 1e-5 * expected.loss.max(1.0), "{rows:?}: {found:?} {expected:?}");
        let part = parts.iter().map(|part| part.num_learnt() as f64 / 20.0).sum::<f64>();
        assert!((found.drawn["exit_1_final"] - part).abs() < 1e-12, "{rows:?}: {found:?}");
        assert_eq!(found.columns().contains_key("exit_1_teacher"), !rows.is_empty());
        for name in names {
            match (grads.take(name), expected_grads.take(name)) {
                (Some(found), Some(expected)) => {
                    assert!(norm(&(found - expected.clone())) <= 1e-4 * norm(&expected), "{rows:?}: {name}");
                }
                (Some(found), None) => assert_eq!(norm(&found), 0.0, "{name}: nobody drew the exit"),
                (None, expected) => assert!(expected.is_none(), "{rows:?}: {name}"),
            }
        }
    }
    assert_eq!(seen, BTreeSet::from([0, 1, 2]));
}
