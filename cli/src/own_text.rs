//! Texts that a model writes itself while its tokens leave the loop early: what exits do there is
//! promised by no calibration.

use retie_engine::{Engine, EngineError, EngineOptions, ExitOptions, Request, Sampling, StopConditions};
use retie_eval::Beginning;
use retie_model::CausalLm;
use std::collections::BTreeMap;

/// Sequences that are written at once.
const NUM_SLOTS: usize = 8;

/// What `model` writes after each beginning, drawn at temperature 1 with tokens that leave by
/// `exits` at `threshold`; `seed` is that of the first.
///
/// # Errors
/// When the model has no such exits, or its logits are no numbers.
pub fn write(
    model: &CausalLm,
    exits: ExitOptions,
    threshold: f64,
    beginnings: &[Beginning<'_>],
    seed: u64,
) -> Result<Vec<Vec<u32>>, EngineError> {
    let lengths = beginnings.iter().map(|beginning| beginning.prompt.len() + beginning.new_tokens);
    let context = lengths.max().unwrap_or(1);
    let options = EngineOptions { num_slots: NUM_SLOTS, context, max_step_tokens: NUM_SLOTS * context };
    let mut engine = Engine::new(model.clone(), options)?.with_exits(exits)?;
    let requests = beginnings.iter().zip(seed..).map(|(beginning, seed)| Request {
        prompt: beginning.prompt.to_vec(),
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        stop: StopConditions::for_model(model.config(), Some(beginning.new_tokens)),
        exit_threshold: Some(threshold as f32),
        ..Request::default()
    });
    let (mut waiting, mut indices) = (requests.enumerate(), BTreeMap::new());
    let mut texts = vec![Vec::new(); beginnings.len()];
    loop {
        for (index, request) in waiting.by_ref().take(engine.num_free_slots()) {
            indices.insert(engine.admit(request)?, index);
        }
        if engine.is_idle() {
            return Ok(texts);
        }
        for progress in engine.step() {
            progress.failed.map_or(Ok(()), Err)?;
            if let Some(index) = indices.get(&progress.sequence) {
                texts[*index].extend(progress.token);
            }
        }
    }
}
