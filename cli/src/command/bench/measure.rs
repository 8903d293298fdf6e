//! The measurements: each gives seconds, the median of several rounds after one that warms up.

use crate::model::TextModel;
use anyhow::anyhow;
use burn::tensor::{Device, Distribution, Int, Tensor};
use retie_config::RouterConfig;
use retie_model::{CausalLm, KvCache, Routing, Sampler, Sampling, kernels::linear};
use std::time::Instant;

/// Seconds of prompt and of decoding.
#[derive(Clone, Copy, Debug)]
pub struct Generated {
    pub prefill: f64,
    pub decode: f64,
}

/// The median of `rounds` calls of `f`, after one that does not count.
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

/// Waits for `tensor`.
fn wait<const D: usize>(tensor: Tensor<D>) {
    let _ = tensor.into_data();
}

/// Waits for all that `device` was asked to do.
fn finish(device: &Device) -> anyhow::Result<()> {
    device.sync().map_err(|error| anyhow!("the device did not finish: {error:?}"))
}

/// `x·Wᵀ` of `tokens` rows and a weight `[out, in]`.
pub fn product(tokens: usize, [out, input]: [usize; 2], device: &Device, rounds: usize) -> anyhow::Result<f64> {
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, device);
    let (x, weight) = (random([tokens, input]), random([out, input]));
    median(rounds, || {
        let product = linear(x.clone(), weight.clone());
        finish(device)?;
        drop(product); // only now: what nobody holds need not be computed
        Ok(())
    })
}

/// Ids that are as good as any other for the time they take.
fn ids(model: &TextModel, count: usize) -> Vec<u32> {
    let vocab_size = model.model.config().vocab_size;
    (0..count).map(|i| (i * 7919 % vocab_size) as u32).collect()
}

/// Logits of every token of a batch.
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

/// A prompt of `prompt` tokens, then `new` greedy ones, one at a time.
pub fn generate(model: &TextModel, prompt: usize, new: usize, rounds: usize) -> Generated {
    let mut greedy = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0, seed: 0 });
    let prompt_ids = ids(model, prompt);
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..=rounds {
        let mut cache = KvCache::new(model.model.config(), 1, prompt + new, &model.device);
        let start = Instant::now();
        let mut next = greedy.next(&model.next_logits(&prompt_ids, &mut cache));
        prefill.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..new {
            next = greedy.next(&model.next_logits(&[next], &mut cache));
        }
        decode.push(start.elapsed().as_secs_f64());
    }
    // The first round warms up.
    Generated { prefill: middle(prefill.split_off(1)), decode: middle(decode.split_off(1)) }
}

/// Decoding of given tokens in a batch.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub seconds: f64,
    /// Of the cache at the end.
    pub cache_bytes: usize,
    /// Part of the decoded tokens that each recursion took.
    pub shares: Vec<f64>,
}

/// `rows` of one length, token by token after their first `prompt`, by the model as it is and at full depth; the two take turns.
pub fn decode(model: &CausalLm, rows: &[&[u32]], prompt: usize, rounds: usize) -> [Decoded; 2] {
    let models = [model.clone(), full_depth(model)];
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..=rounds {
        for (found, model) in found.iter_mut().zip(&models) {
            found.push(decode_once(model, rows, prompt));
        }
    }
    found.map(|mut rounds| {
        // The first round warms up.
        let seconds = middle(rounds.iter().skip(1).map(|decoded| decoded.seconds).collect());
        Decoded { seconds, ..rounds.remove(0) }
    })
}

/// The same weights with every token through every recursion.
fn full_depth(model: &CausalLm) -> CausalLm {
    let mut model = model.clone();
    let num_recursions = model.share_map().num_recursions();
    match model.router() {
        Some(RouterConfig::ExpertChoice(_)) => model.set_thresholds(vec![None; num_recursions]),
        Some(RouterConfig::TokenChoice(_)) => {
            // Above every score.
            let bias = |depth| if depth + 1 == num_recursions { f32::MAX } else { 0.0 };
            model.set_biases((0..num_recursions).map(bias).collect());
        }
        None => {}
    }
    model
}

fn decode_once(model: &CausalLm, rows: &[&[u32]], prompt: usize) -> Decoded {
    let (batch, length, device) = (rows.len(), rows.first().map_or(0, |row| row.len()), model.device());
    let ids = |from: usize, to: usize| {
        let ids: Vec<i32> = rows.iter().flat_map(|row| &row[from..to]).map(|id| *id as i32).collect();
        Tensor::<1, Int>::from_ints(ids.as_slice(), &device).reshape([batch, to - from])
    };
    let mut cache = KvCache::new(model.config(), batch, length, &device);
    wait(model.forward(ids(0, prompt), Some(&mut cache)));
    let mut taken = vec![0; model.share_map().num_recursions()];
    let start = Instant::now();
    for at in prompt..length {
        let mut routing = Routing::default();
        let hidden = model.forward_with(ids(at, at + 1), Some(&mut cache), &mut routing);
        wait(model.logits(hidden));
        routing.decisions().iter().for_each(|decision| taken[decision.recursion] += decision.chosen.len());
    }
    let tokens = (batch * (length - prompt)) as f64;
    Decoded {
        seconds: start.elapsed().as_secs_f64(),
        cache_bytes: cache.bytes(),
        shares: taken.into_iter().map(|taken| taken as f64 / tokens).collect(),
    }
}
