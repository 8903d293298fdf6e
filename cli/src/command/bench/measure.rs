//! Timings of `retie bench` in seconds: the median of several rounds after one warm-up round.

use crate::model::TextModel;
use anyhow::{anyhow, ensure};
use burn::tensor::{Device, Distribution, Int, Tensor};
use retie_engine::{Engine, EngineOptions, Request, StopConditions};
use retie_model::{CausalLm, kernels::linear};
use std::time::Instant;

/// Seconds of prefill and of decoding.
#[derive(Clone, Copy, Debug)]
pub struct Generated {
    pub prefill: f64,
    pub decode: f64,
}

/// Median seconds of `rounds` calls of `f`, after one warm-up call.
fn median(rounds: usize, mut f: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    f()?;
    let seconds = (0..rounds).map(|_| {
        let start = Instant::now();
        f().map(|()| start.elapsed().as_secs_f64())
    });
    seconds.collect::<anyhow::Result<_>>().map(middle)
}

fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Waits until `device` has finished all queued work.
fn finish(device: &Device) -> anyhow::Result<()> {
    device.sync().map_err(|error| anyhow!("the device did not finish: {error:?}"))
}

/// Median seconds of the product `x·Wᵀ`, with `x` `[tokens, in]` and `W` `[out, in]`.
pub fn product(tokens: usize, [out, input]: [usize; 2], device: &Device, rounds: usize) -> anyhow::Result<f64> {
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, device);
    let (x, weight) = (random([tokens, input]), random([out, input]));
    median(rounds, || {
        let product = linear(x.clone(), weight.clone());
        finish(device)?;
        drop(product); // after `finish`: a dropped tensor need not be computed
        Ok(())
    })
}

/// Arbitrary token ids; timings do not depend on their values.
fn ids(model: &TextModel, count: usize) -> Vec<u32> {
    let vocab_size = model.model.config().vocab_size;
    (0..count).map(|i| (i * 7919 % vocab_size) as u32).collect()
}

/// Median seconds of a forward pass with the logits of every token of `batch` sequences.
pub fn forward(model: &TextModel, batch: usize, tokens: usize, rounds: usize) -> anyhow::Result<f64> {
    let ids: Vec<i32> = ids(model, batch * tokens).into_iter().map(|id| id as i32).collect();
    let input = Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device).reshape([batch, tokens]);
    median(rounds, || {
        let logits = model.model.logits(model.model.forward(input.clone(), None));
        finish(&model.device)?;
        drop(logits);
        Ok(())
    })
}

/// Median seconds of prefilling `prompt` tokens and of decoding `new` greedy ones, one at a time.
pub fn generate(model: &TextModel, prompt: usize, new: usize, rounds: usize) -> anyhow::Result<Generated> {
    // Prefill yields the first new token.
    let context = prompt + new + 1;
    let options = EngineOptions { num_slots: 1, context, max_step_tokens: prompt };
    let stop = StopConditions { max_new_tokens: Some(new + 1), ..StopConditions::default() };
    let request = Request { prompt: ids(model, prompt), stop, ..Request::default() };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // One for all rounds: the first records what the others replay.
    let mut engine = Engine::new(model.model.clone(), options)?;
    for _ in 0..=rounds {
        engine.admit(request.clone())?;
        let start = Instant::now();
        engine.step();
        prefill.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        while !engine.is_idle() {
            engine.step();
        }
        decode.push(start.elapsed().as_secs_f64());
    }
    // The first round warms up.
    Ok(Generated { prefill: middle(prefill.split_off(1)), decode: middle(decode.split_off(1)) })
}

/// Median seconds of a pass over one token of each of `rows` sequences, of `count` passes behind
/// prompts of `prompt` tokens.
pub fn pass(model: &TextModel, rows: usize, prompt: usize, count: usize) -> anyhow::Result<f64> {
    const PROMPT_TOKENS: usize = 512;
    let max_step_tokens = rows + PROMPT_TOKENS;
    // Sequences whose prompts are read first go on while the others are read.
    let new_tokens = count + 1 + (rows * prompt).div_ceil(PROMPT_TOKENS);
    let options = EngineOptions { num_slots: rows, context: prompt + new_tokens, max_step_tokens };
    let mut engine = Engine::new(model.model.clone(), options)?;
    let stop = StopConditions { max_new_tokens: Some(new_tokens), ..StopConditions::default() };
    let tokens = ids(model, prompt + rows);
    for row in 0..rows {
        let prompt = tokens[row..row + prompt].to_vec();
        engine.admit(Request { prompt, stop: stop.clone(), ..Request::default() })?;
    }
    while engine.num_unread_prompt_tokens() > 0 {
        engine.step();
    }
    let seconds = (0..count).map(|_| {
        let start = Instant::now();
        let read = engine.step().len();
        let seconds = start.elapsed().as_secs_f64();
        ensure!(read == rows, "a pass read {read} of {rows} sequences: the others have failed");
        Ok(seconds)
    });
    Ok(middle(seconds.collect::<anyhow::Result<_>>()?))
}

/// Measured decoding of a batch of given tokens.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub seconds: f64,
    /// Bytes of the KV cache at the end.
    pub cache_bytes: usize,
    /// Fraction of the decoded tokens that each recursion selected.
    pub shares: Vec<f64>,
}

/// Decodes the sequences `rows`, all of one length, token by token after their first `prompt`
/// tokens. The result is that of the model as it is, then that of the model with every token
/// through every recursion; the two take turns.
pub fn decode(model: &CausalLm, rows: &[&[u32]], prompt: usize, rounds: usize) -> anyhow::Result<[Decoded; 2]> {
    let models = [model.clone(), full_recursion(model)];
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..=rounds {
        for (found, model) in found.iter_mut().zip(&models) {
            found.push(decode_once(model, rows, prompt)?);
        }
    }
    Ok(found.map(|mut rounds| {
        // The first round warms up.
        let seconds = middle(rounds.iter().skip(1).map(|decoded| decoded.seconds).collect());
        Decoded { seconds, ..rounds.remove(0) }
    }))
}

/// Copy of `model` with the same weights that sends every token through every recursion.
fn full_recursion(model: &CausalLm) -> CausalLm {
    let mut model = model.clone();
    let num_recursions = model.share_map().num_recursions();
    model.change_router(|router| router.spec_mut().select_all(num_recursions));
    model
}

fn decode_once(model: &CausalLm, rows: &[&[u32]], prompt: usize) -> anyhow::Result<Decoded> {
    let (batch, length) = (rows.len(), rows.first().map_or(0, |row| row.len()));
    let options = EngineOptions { num_slots: batch, context: length, max_step_tokens: batch * prompt };
    let mut engine = Engine::new(model.clone(), options)?;
    for row in rows {
        let (prompt, forced) = row.split_at(prompt);
        let stop = StopConditions { max_new_tokens: Some(forced.len()), ..StopConditions::default() };
        let (prompt, forced) = (prompt.to_vec(), forced.to_vec());
        engine.admit(Request { prompt, forced, stop, recursion_counts: true, ..Request::default() })?;
    }
    engine.step();
    let mut taken = vec![0u32; model.share_map().num_recursions()];
    let start = Instant::now();
    while !engine.is_idle() {
        let counts = engine.step().into_iter().flat_map(|progress| progress.recursion_counts);
        counts.for_each(|count| taken[..count].iter_mut().for_each(|taken| *taken += 1));
    }
    let tokens = (batch * (length - prompt)) as f64;
    Ok(Decoded {
        seconds: start.elapsed().as_secs_f64(),
        cache_bytes: engine.cache_bytes(),
        shares: taken.into_iter().map(|taken| f64::from(taken) / tokens).collect(),
    })
}
