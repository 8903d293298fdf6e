//! Speed of the mechanisms, forward and backward, for `scripts/bench-steps`:
//! `cargo test --release -p retie-model --lib -- --ignored --nocapture steps_in_milliseconds`.

use super::{
    Affine, Descriptors, Generalised, Gnconv, GroupedSoftmax, Nll, Projected, Rg, Slices, StepActivation,
    attend_sliced, coefficients, dense::EnteredStates, hai,
};
use crate::{
    kernels::{Allocator, Layout, Scoring, inject, keep_freed_memory, on_worker},
    norm::Norm,
};
use burn::{
    module::Param,
    tensor::{Device, Distribution, Tensor},
};
use retie_config::{DescriptorConfig, GnconvConfig, Mechanism, RgConfig, SliceOrder, SlicedConfig};
use std::time::Instant;

/// That of the program.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Shapes of SmolLM2-135M, two sequences.
const BATCH: usize = 2;
const TOKENS: usize = 512;
const ROWS: usize = BATCH * TOKENS;
const D: usize = 576;
const F: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD: usize = 64;
const ROUNDS: usize = 9;

fn device() -> Device {
    Device::flex().autodiff()
}

fn random<const R: usize>(shape: [usize; R]) -> Tensor<R> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device()).require_grad()
}

fn weight<const R: usize>(shape: [usize; R]) -> Param<Tensor<R>> {
    let weight = Tensor::random(shape, Distribution::Normal(0.0, 0.02), &device());
    Param::from_tensor(weight)
}

fn affine(input: usize, out: usize) -> Affine {
    Affine { weight: weight([out, input]), bias: weight([out]) }
}

/// Prints the median milliseconds of `f` and of its gradient.
#[allow(clippy::print_stdout)]
fn time<const R: usize>(name: &str, f: impl Fn() -> Tensor<R>) {
    let flat = |y: Tensor<R>| y.reshape([ROWS as i32, -1]);
    let grad = Tensor::<2>::random(flat(f()).dims(), Distribution::Normal(0.0, 1.0), &Device::flex());
    let round = || {
        let start = Instant::now();
        let y = f();
        let forward = start.elapsed().as_secs_f64();
        let gradients = inject(flat(y), grad.clone()).backward();
        let both = start.elapsed().as_secs_f64();
        drop(gradients);
        [forward, both]
    };
    round();
    let rounds: Vec<[f64; 2]> = (0..ROUNDS).map(|_| round()).collect();
    let [forward, both] = [0, 1].map(|index| {
        let mut seconds: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
        seconds.sort_by(f64::total_cmp);
        1e3 * seconds[ROUNDS / 2]
    });
    println!("{{\"step\": \"{name}\", \"forward\": {forward:.3}, \"both\": {both:.3}}}");
}

fn activation(mechanism: &str) -> StepActivation {
    let mechanism: Mechanism = serde_json::from_str(mechanism).unwrap();
    let scalar = || weight([1]);
    let is_snake = mechanism.name() == "snake";
    let other = || (!is_snake).then(scalar);
    StepActivation { a: scalar(), b: other(), c: other(), d: other(), mechanism }
}

#[test]
#[ignore = "prints times; run by scripts/bench-steps"]
fn steps_in_milliseconds() {
    keep_freed_memory();
    on_worker(|| {
        let (x, y) = (random([ROWS, D]), random([ROWS, D]));
        let factors = weight([4]);
        time("coefficients", || coefficients::add(x.clone(), y.clone(), Some(&factors), 0));
        let gamma = weight([D]);
        time("hai", || hai::integrate(x.clone(), y.clone(), &gamma));
        let nll = Nll {
            norm: Norm { weight: weight([D]), bias: Some(weight([D])) },
            up_proj: affine(D, D / 4),
            down_proj: affine(D / 4, D),
            scales: weight([2]),
        };
        time("nll", || nll.forward(x.clone(), 1e-5));
        let (gate, up) = (random([ROWS, F]), random([ROWS, F]));
        for (name, mechanism) in
            [("silu_dra", "\"silu_dra\""), ("dra", "{\"dra\": {\"form\": \"paper\"}}"), ("snake", "\"snake\"")]
        {
            let activation = activation(mechanism);
            time(name, || activation.gated(gate.clone(), up.clone()));
        }
        let mut entered = EnteredStates::default();
        entered.insert(1, 1, y.clone());
        let fuse = GroupedSoftmax { weight: weight([2, D]), bias: weight([2, 4]), scale: weight([D]) };
        time("grouped_softmax", || fuse.forward(x.clone(), (&entered, None), 1e-5));

        let config = GnconvConfig { order: 3, kernel: 16 };
        let widths = config.widths(D);
        let gnconv = Gnconv {
            in_proj: affine(D, 2 * D),
            conv: affine(config.kernel, widths.iter().sum()),
            between: (1..3).map(|k| affine(widths[k - 1], widths[k])).collect(),
            out_proj: affine(D, D),
            scale: weight([D]),
            config,
        };
        let layout = Layout::batch(BATCH, TOKENS);
        time("gnconv", || gnconv.forward(x.clone(), &layout, None));

        let q = random([ROWS, HEADS, HEAD]);
        let (k, v) = (random([ROWS, KV_HEADS, HEAD]), random([ROWS, KV_HEADS, HEAD]));
        let projected = || Projected { q: q.clone(), k: k.clone(), v: v.clone() };
        let scoring = Scoring::plain(HEAD);
        for (name, order) in [("sliced stride", SliceOrder::Stride), ("sliced chunk", SliceOrder::Chunk)] {
            let length = (order == SliceOrder::Chunk).then_some(TOKENS);
            let Some(slices) = Slices::new(&SlicedConfig { groups: 8, order, length }) else { panic!("no slices") };
            let Projected { q, k, v } = projected();
            time(name, || attend_sliced(q.clone(), k.clone(), v.clone(), (&layout, slices), scoring));
        }
        let config: DescriptorConfig = serde_json::from_str("{\"chunk\": 128, \"ratio\": 8}").unwrap();
        let descriptors = Descriptors { config: &config, rope: None, scoring };
        time("descriptor", || descriptors.attend(projected(), &layout));
        let config: RgConfig = serde_json::from_str("{\"stride\": 4, \"latents\": 64}").unwrap();
        let filters = Rg { keys: affine(4, KV_HEADS * HEAD), values: affine(4, KV_HEADS * HEAD) };
        let generalised = Generalised { config: &config, filters: &filters, rope: None, scoring };
        time("rg", || generalised.attend(projected(), &layout));
    });
}
