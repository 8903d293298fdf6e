//! Training a model with routers: who goes through a recursion in a step, biases of depths, thresholds for the models that are written,
//! and what routers do with a held-out text.

use crate::{
    TrainError,
    collective::Collective,
    event::HeldoutRouting,
    loss::Asked,
    objective::{layout, positions, token_ids},
};
use burn::module::Module;
use retie_checkpoint::{ModelSource, share_map};
use retie_config::{ModelConfig, RouterConfig, TokenChoiceConfig, TrainConfig, UptrainConfig};
use retie_data::TokenDataset;
use retie_model::{CausalLm, Choice, FullDepth, RoutingSums, calibrate};

/// Refuses settings of routers for a model without, or with routers of another kind.
///
/// # Errors
/// [`TrainError::NoRouter`], [`TrainError::Loss`] or [`TrainError::OtherRouter`].
pub fn check(config: &UptrainConfig, student: &ModelSource) -> Result<(), TrainError> {
    let router = student.config.recursion.as_ref().and_then(|recursion| recursion.router.as_ref());
    let trained = router.is_some_and(|router| router.network().has_weights());
    let losses = config
        .losses
        .iter()
        .filter(|loss| loss.needs_router() && !trained)
        .map(|loss| format!("losses: {}", loss.name()));
    let train = &config.train;
    // For which kind each is; lots are chosen from as what is learned.
    let settings = [
        ("train.capacity_warmup_steps", train.capacity_warmup_steps.is_some(), "expert_choice"),
        ("train.depth_warmup_steps", train.depth_warmup_steps.is_some(), "token_choice"),
        ("train.loss_free_balancing", train.loss_free_balancing.is_some(), "token_choice"),
    ];
    let settings: Vec<_> = settings.into_iter().filter(|(_, given, _)| *given).collect();
    let without = settings.iter().filter(|_| router.is_none()).map(|(key, ..)| (*key).to_owned());
    let keys: Vec<String> = losses.chain(without).collect();
    if !keys.is_empty() {
        return Err(TrainError::NoRouter { model: student.spec.clone(), keys });
    }
    let Some(router) = router else { return Ok(()) };
    for loss in &config.losses {
        if let Some(expected) = loss.missing_in(router) {
            let reason = format!("`{}` is routed with `{}`, expected {expected}", student.spec, router.kind());
            let hint = "leave it out, or take a model with other routers";
            return Err(TrainError::Loss { loss: loss.name(), reason, hint });
        }
    }
    match settings.into_iter().find(|(.., kind)| *kind != router.kind()) {
        Some((key, _, expected)) => {
            Err(TrainError::OtherRouter { key, model: student.spec.clone(), found: router.kind(), expected })
        }
        None => Ok(()),
    }
}

/// Refuses losses of hidden states within a recursion of a routed model: only the tokens that go through have any.
///
/// # Errors
/// [`TrainError::Loss`].
pub fn check_states(student: &ModelSource, teacher: Option<&ModelSource>, asked: &Asked) -> Result<(), TrainError> {
    let student = (student, asked.ends());
    let teacher = teacher.map(|teacher| (teacher, asked.teacher_states.iter().copied().collect::<Vec<_>>()));
    for (source, states) in std::iter::once(student).chain(teacher).filter(|(source, _)| is_routed(&source.config)) {
        let ends: Vec<usize> = share_map(&source.config)?.passes().iter().map(|pass| pass.end).collect();
        if let Some(state) = states.iter().find(|state| !ends.contains(state)) {
            return Err(TrainError::Loss {
                loss: "hidden",
                reason: format!(
                    "after depth {} of `{}` only the tokens of a recursion have a hidden state",
                    state - 1,
                    source.spec
                ),
                hint: "compare the last depths of recursions, or unshared ones",
            });
        }
    }
    Ok(())
}

fn is_routed(config: &ModelConfig) -> bool {
    config.recursion.as_ref().is_some_and(|recursion| recursion.router.is_some())
}

/// Who goes through a recursion in step `step`: the highest of each sequence, as many as the capacity of the step says; or who chooses to,
/// and those whom the warm-up sends through all.
pub fn choice(student: &CausalLm, step: u64, train: &TrainConfig) -> Choice {
    match student.router() {
        None => Choice::Threshold,
        Some(RouterConfig::ExpertChoice(router)) => {
            Choice::TopK(router.capacities_at(step, train.capacity_warmup_steps.unwrap_or(0)))
        }
        Some(RouterConfig::TokenChoice(_)) => {
            match TokenChoiceConfig::full_depth_at(step, train.depth_warmup_steps.unwrap_or(0)) {
                0.0 => Choice::Threshold,
                part => Choice::Warmup(FullDepth { part, step }),
            }
        }
    }
}

/// Makes the counts those of all ranks, of which each has added its part of the batches.
pub fn sum(sums: &mut RoutingSums, ranks: &dyn Collective) {
    if ranks.world() == 1 {
        return;
    }
    let RoutingSums { tokens, depths, positions, judged, loads, probabilities } = sums;
    // A rank without a batch has counted nothing, and one with shorter pieces of text has seen fewer positions.
    let window = positions.first().map_or(0, Vec::len);
    let mut lens = [depths.len(), positions.len(), window, judged.len(), loads.len(), probabilities.len()];
    ranks.max(&mut lens);
    depths.resize(lens[0], 0);
    positions.resize(lens[1], Vec::new());
    positions.iter_mut().for_each(|counts| counts.resize(lens[2], 0));
    judged.resize(lens[3], [0; 2]);
    loads.resize(lens[4], 0);
    probabilities.resize(lens[5], 0.0);
    let counts = std::iter::once(tokens).chain(depths).chain(positions.iter_mut().flatten());
    let counts: Vec<&mut usize> = counts.chain(judged.iter_mut().flatten()).chain(loads).collect();
    // f64 holds whole numbers exactly.
    let mut values: Vec<f64> = counts.iter().map(|count| **count as f64).chain(probabilities.iter().copied()).collect();
    ranks.all_reduce_f64(&mut values);
    let (of_counts, of_probabilities) = values.split_at(counts.len());
    counts.into_iter().zip(of_counts).for_each(|(count, sum)| *count = *sum as usize);
    probabilities.copy_from_slice(of_probabilities);
}

/// Moves the biases of the depths that tokens choose, after a step in which the routers did what `sums` say.
pub fn balance(model: &mut CausalLm, sums: &RoutingSums, train: &TrainConfig) {
    let (Some(router), Some(rate)) = (model.token_choice(), train.loss_free_balancing) else { return };
    let biases = sums.balanced(router.biases.as_deref(), rate);
    model.set_biases(biases);
}

/// `model` without a graph, and with thresholds that take its capacities of the held-out rows that are measured on. Without routers
/// or without a held-out text its thresholds stay what they are.
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

/// What the routers of `model` do with the held-out rows that are measured on, of which each rank runs a part; nothing without routers or
/// without a held-out text.
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
    let ahead = model.expert_choice().map(|router| Choice::TopK(router.capacities.clone()));
    let mut sums = RoutingSums::default();
    let mut same = 0;
    let batches = heldout.heldout_batches(train.batch_size, Some(train.eval_sequences))?;
    for batch in batches.skip(ranks.rank()).step_by(ranks.world()) {
        let batch = batch?;
        let run = |choice| model.forward_routed(token_ids(&batch, &model.device()), layout(&batch), choice).1;
        let causal = run(Choice::Threshold);
        sums.add(causal.decisions(), router, &positions(&batch));
        if let Some(ahead) = &ahead {
            let num_rows = batch.inputs.len();
            let depths = causal.depths(num_rows).into_iter().zip(run(ahead.clone()).depths(num_rows));
            same += depths.filter(|(causal, ahead)| causal == ahead).count();
        }
    }
    sum(&mut sums, ranks);
    let same_depth = ahead.map(|_| ranks.total(same as f64) / sums.tokens.max(1) as f64);
    Ok(Some(HeldoutRouting { inference: sums.statistics(), same_depth }))
}

/// Part of the tokens that goes through each recursion of `config`, in training; 1 without routers.
pub fn capacity(config: &ModelConfig, recursion: Option<usize>) -> f64 {
    let Some((recursion, all)) = recursion.zip(config.recursion.as_ref()) else { return 1.0 };
    match &all.router {
        Some(RouterConfig::ExpertChoice(router)) => router.capacities.get(recursion).copied().unwrap_or(1.0),
        Some(router @ RouterConfig::TokenChoice(_)) => router.part(recursion, all.num_recursions).unwrap_or(1.0),
        None => 1.0,
    }
}
