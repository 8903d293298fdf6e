//! Training of routed models: the tokens that go through a recursion in a step, biases of token
//! choice, thresholds for the models that are written, and what routers do with a held-out text.

use crate::{
    TrainError,
    log::HeldoutRouting,
    objective::{layout, positions, token_ids},
};
use burn::module::Module;
use retie_collective::Collective;
use retie_config::{RouterWarmup, TrainConfig, TrainingSelection};
use retie_data::TokenDataset;
use retie_model::{CausalLm, FullRecursionWarmup, RoutingSums, SelectionRule, calibrate};

/// The tokens that go through a recursion in step `step`: the highest of each sequence, as many as
/// the capacity of the step says; or those that choose to, and those that the warm-up sends through
/// all.
pub fn selection_rule(student: &CausalLm, step: u64, train: &TrainConfig) -> SelectionRule {
    let Some(router) = student.router() else { return SelectionRule::Causal };
    let warmup = RouterWarmup {
        capacity_steps: train.capacity_warmup_steps.unwrap_or(0),
        full_recursion_steps: train.full_recursion_warmup_steps.unwrap_or(0),
    };
    match router.spec().training_selection(step, warmup) {
        TrainingSelection::Causal => SelectionRule::Causal,
        TrainingSelection::FullRecursion(part) => SelectionRule::Warmup(FullRecursionWarmup { part, step }),
        TrainingSelection::TopK(capacities) => SelectionRule::TopK(capacities),
    }
}

/// Makes the counts those of all ranks, of which each has added its part of the batches.
pub fn sum(sums: &mut RoutingSums, ranks: &dyn Collective) {
    if ranks.world() == 1 {
        return;
    }
    let RoutingSums { tokens, recursion_counts, positions, judged, loads, probabilities } = sums;
    // A rank without a batch has counted nothing, and one with shorter pieces of text has seen
    // fewer positions.
    let window = positions.first().map_or(0, Vec::len);
    let mut lens = [recursion_counts.len(), positions.len(), window, judged.len(), loads.len(), probabilities.len()];
    ranks.max(&mut lens);
    recursion_counts.resize(lens[0], 0);
    positions.resize(lens[1], Vec::new());
    positions.iter_mut().for_each(|counts| counts.resize(lens[2], 0));
    judged.resize(lens[3], [0; 2]);
    loads.resize(lens[4], 0);
    probabilities.resize(lens[5], 0.0);
    let counts = std::iter::once(tokens).chain(recursion_counts).chain(positions.iter_mut().flatten());
    let counts: Vec<&mut usize> = counts.chain(judged.iter_mut().flatten()).chain(loads).collect();
    // f64 holds whole numbers exactly.
    let mut values: Vec<f64> = counts.iter().map(|count| **count as f64).chain(probabilities.iter().copied()).collect();
    ranks.all_reduce_f64(&mut values);
    let (of_counts, of_probabilities) = values.split_at(counts.len());
    counts.into_iter().zip(of_counts).for_each(|(count, sum)| *count = *sum as usize);
    probabilities.copy_from_slice(of_probabilities);
}

/// Moves the biases of token choice after a step in which the routers did what `sums` say.
pub fn balance(model: &mut CausalLm, sums: &RoutingSums, train: &TrainConfig) {
    let (Some(router), Some(rate)) = (model.token_choice(), train.loss_free_balancing) else { return };
    let biases = sums.balanced(router.biases.as_deref(), rate);
    model.set_biases(biases);
}

/// `model` without a graph, and with thresholds that take its capacities of the held-out rows that
/// are measured on. Without routers or without a held-out text its thresholds stay what they are.
///
/// # Errors
/// When the rows cannot be had.
pub fn for_inference(
    model: &CausalLm,
    heldout: Option<&TokenDataset>,
    train: &TrainConfig,
) -> Result<CausalLm, TrainError> {
    let model = model.valid();
    let (Some(heldout), Some(_)) = (heldout, model.router()) else { return Ok(model) };
    let mut pieces = Vec::new();
    for batch in heldout.heldout_batches(train.batch_size, Some(train.eval_sequences))? {
        let batch = batch?;
        let mut rest = batch.inputs.as_slice();
        pieces.extend(batch.pieces.iter().map(|piece| rest.split_off(..*piece).unwrap_or_default().to_vec()));
    }
    Ok(calibrate(model, &pieces))
}

/// What the routers of `model` do with the held-out rows that are measured on, of which each rank
/// runs a part; nothing without routers or without a held-out text.
///
/// # Errors
/// When the rows cannot be had.
pub fn heldout(
    model: &CausalLm,
    heldout: Option<&TokenDataset>,
    train: &TrainConfig,
    ranks: &dyn Collective,
) -> Result<Option<HeldoutRouting>, TrainError> {
    let (Some(heldout), Some(router)) = (heldout, model.router()) else { return Ok(None) };
    let ahead = model.expert_choice().map(|router| SelectionRule::TopK(router.capacities.clone()));
    let mut sums = RoutingSums::default();
    let mut same = 0;
    let batches = heldout.heldout_batches(train.batch_size, Some(train.eval_sequences))?;
    for batch in batches.skip(ranks.rank()).step_by(ranks.world()) {
        let batch = batch?;
        let run = |rule| model.forward_routed(token_ids(&batch, &model.device()), layout(&batch), rule).1;
        let causal = run(SelectionRule::Causal);
        sums.add(causal.decisions(), router, &positions(&batch));
        if let Some(ahead) = &ahead {
            let num_rows = batch.inputs.len();
            let counts =
                causal.recursion_counts(num_rows).into_iter().zip(run(ahead.clone()).recursion_counts(num_rows));
            same += counts.filter(|(causal, ahead)| causal == ahead).count();
        }
    }
    sum(&mut sums, ranks);
    let same_recursions = ahead.map(|_| ranks.total(same as f64) / sums.tokens.max(1) as f64);
    Ok(Some(HeldoutRouting { inference: sums.statistics(), same_recursions }))
}
