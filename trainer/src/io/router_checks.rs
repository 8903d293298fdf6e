//! Router settings of a run against the routers of its student.

use crate::{
    TrainError,
    loss::{Requirements, Stacks},
};
use retie_checkpoint::ModelSource;
use retie_config::{KvSharing, LossTerm, ModelConfig, UptrainConfig};

/// Refuses settings of routers for a model without, or with routers of another kind.
///
/// # Errors
/// [`TrainError::NoRouter`], [`TrainError::Loss`] or [`TrainError::OtherRouter`].
pub fn check_routers(config: &UptrainConfig, student: &ModelSource) -> Result<(), TrainError> {
    let recursion = student.config.recursion.as_ref();
    let shares = recursion.is_some_and(|recursion| recursion.kv_sharing == KvSharing::Shared);
    if let Some(loss) = config.losses.iter().find(|loss| shares && loss.needs().is_local()) {
        let reason = format!(
            "`{}` has `kv_sharing: shared`: later recursions have no keys and values of their own",
            student.spec
        );
        let hint = "leave it out: it runs every depth by itself";
        return Err(TrainError::Loss { loss: loss.name(), reason, hint });
    }
    if let Some(loss) = config.losses.iter().find(|loss| is_coarse(&student.config) && loss.needs().is_local()) {
        let reason = format!("`{}` has a `resolution`: its recursions do not run over tokens", student.spec);
        let hint = "leave it out: it runs every depth by itself";
        return Err(TrainError::Loss { loss: loss.name(), reason, hint });
    }
    let router = recursion.and_then(|recursion| recursion.router.as_ref());
    let trained = router.is_some_and(|router| router.network().has_weights());
    let losses = config
        .losses
        .iter()
        .filter(|loss| loss.needs().router() && !trained)
        .map(|loss| format!("losses: {}", loss.name()));
    let train = &config.train;
    // For which kind each is; lots are chosen from as what is learned.
    let settings = [
        ("train.capacity_warmup_steps", train.capacity_warmup_steps.is_some(), "expert_choice"),
        ("train.full_recursion_warmup_steps", train.full_recursion_warmup_steps.is_some(), "token_choice"),
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
        if let Some(expected) = loss.needs().missing_in(router) {
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

/// Refuses losses of hidden states within a recursion of a routed model: only the tokens that go
/// through have any.
///
/// # Errors
/// [`TrainError::Loss`].
pub fn check_states(
    student: &ModelSource,
    teacher: Option<&ModelSource>,
    losses: &[LossTerm],
    stacks: &Stacks,
) -> Result<(), TrainError> {
    for loss in losses {
        let required = Requirements::from_losses(std::slice::from_ref(loss), stacks);
        let student = (student, required.ends());
        let teacher = teacher.map(|teacher| (teacher, required.teacher_hidden.iter().copied().collect()));
        for (source, states) in [Some(student), teacher].into_iter().flatten() {
            check_states_of(source, &states, loss)?;
        }
    }
    Ok(())
}

fn check_states_of(source: &ModelSource, states: &[usize], loss: &LossTerm) -> Result<(), TrainError> {
    if !is_routed(&source.config) && !is_coarse(&source.config) {
        return Ok(());
    }
    let ends: Vec<usize> = source.config.share_map().passes().iter().map(|pass| pass.end).collect();
    match states.iter().find(|state| !ends.contains(state)) {
        None => Ok(()),
        Some(state) => Err(TrainError::Loss {
            loss: loss.name(),
            reason: format!(
                "after depth {} of `{}` only the tokens of a recursion have a hidden state",
                state - 1,
                source.spec
            ),
            hint: "compare the last depths of recursions, or unshared ones",
        }),
    }
}

/// Whether recursions run over coarse tokens.
fn is_coarse(config: &ModelConfig) -> bool {
    let mut rows = config.recursion.iter().flat_map(|recursion| &recursion.steps);
    rows.any(|step| step.factor() > 1)
}

fn is_routed(config: &ModelConfig) -> bool {
    config.recursion.as_ref().is_some_and(|recursion| recursion.router.is_some())
}
