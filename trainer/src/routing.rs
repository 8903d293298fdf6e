//! Training a model with routers: who goes through a recursion in a step, and thresholds for the models that are written.

use crate::{TrainError, loss::Asked};
use burn::module::Module;
use retie_checkpoint::{ModelSource, router_tensors, share_map};
use retie_config::{ModelConfig, RouterConfig, TrainConfig, UptrainConfig};
use retie_data::TokenDataset;
use retie_model::{CausalLm, Choice, calibrate};

/// Refuses settings of routers for a model without.
///
/// # Errors
/// [`TrainError::NoRouter`].
pub fn check(config: &UptrainConfig, student: &ModelSource) -> Result<(), TrainError> {
    let trained = !router_tensors(&student.config).is_empty();
    let losses = config
        .losses
        .iter()
        .filter(|loss| loss.needs_router() && !trained)
        .map(|loss| format!("losses: {}", loss.name()));
    let warmup = config
        .train
        .capacity_warmup_steps
        .filter(|_| !is_routed(&student.config))
        .map(|_| "train.capacity_warmup_steps".to_owned());
    let keys: Vec<String> = losses.chain(warmup).collect();
    if keys.is_empty() { Ok(()) } else { Err(TrainError::NoRouter { model: student.spec.clone(), keys }) }
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

/// Who goes through a recursion in step `step`: the highest of each sequence, as many as the capacity of the step says.
pub fn choice(student: &CausalLm, step: u64, train: &TrainConfig) -> Choice {
    let warmup_steps = train.capacity_warmup_steps.unwrap_or(0);
    student.router().map_or(Choice::Threshold, |router| Choice::TopK(router.capacities_at(step, warmup_steps)))
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
    let batches = heldout.heldout_batches(train.batch_size, Some(train.eval_sequences))?;
    let mut pieces = Vec::new();
    for batch in batches {
        let batch = batch?;
        let mut rest = batch.inputs.as_slice();
        pieces.extend(batch.pieces.iter().map(|piece| rest.split_off(..*piece).unwrap_or_default().to_vec()));
    }
    Ok(calibrate(model, &pieces))
}

/// Part of the tokens that goes through each recursion of `config`, in training; 1 without routers.
pub fn capacity(config: &ModelConfig, recursion: Option<usize>) -> f64 {
    let router = config.recursion.as_ref().and_then(|recursion| recursion.router.as_ref());
    match (router, recursion) {
        (Some(RouterConfig::ExpertChoice(router)), Some(r)) => router.capacities.get(r).copied().unwrap_or(1.0),
        _ => 1.0,
    }
}
