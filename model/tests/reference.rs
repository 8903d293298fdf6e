//! The decoder against `transformers` (values and gradients) on small random models, and DoRA
//! against `peft`. The golden files are by `golden/make_llama.py`, `make_families.py` and
//! `make_dora.py`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use burn::tensor::Device;
use retie_checkpoint::{TensorSource, under_our_names};
use retie_model::{CausalLm, KvCache};
use retie_testing::{Golden, GoldenGradients, NextTokenLoss, assert_gradients, differences, ids, values};

/// Allowed distance from the f64 values of a golden file, relative to that of `transformers` in
/// f32.
const FACTOR: f32 = 3.0;
/// Lower bounds for the distance of `transformers`, relative to the largest logit and to the
/// largest element of a gradient.
const LEAST: [f32; 2] = [1e-6, 3e-6];

struct Case {
    golden: Golden,
    /// Weights under the project's tensor names.
    tensors: Box<dyn TensorSource>,
    rows: Vec<Vec<u32>>,
    vocab_size: usize,
}

fn case(name: &str) -> Case {
    let golden = Golden::named(name);
    let (config, rows) = (golden.config(), golden.rows());
    let tensors = under_our_names(Golden::named(name), &config);
    Case { golden, tensors, rows, vocab_size: config.vocab_size }
}

impl Case {
    fn load(&self, device: &Device) -> CausalLm {
        CausalLm::load(&self.golden.config(), self.tensors.as_ref(), device).unwrap()
    }

    /// Tolerances of the logits and of the gradients.
    fn tolerances(&self) -> [f32; 2] {
        let rounding = self.golden.floats("golden.rounding");
        std::array::from_fn(|at| FACTOR * rounding[at].max(LEAST[at]))
    }
}

fn assert_logits(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let (max, _) = differences(actual, expected);
    assert!(max <= tolerance * scale, "{what}: logits differ by {max}, the largest is {scale}");
}

fn check(name: &str) {
    let case = case(name);
    let [logits, gradients] = case.tolerances();
    let device = Device::flex().autodiff();
    let model = case.load(&device);

    let hidden = model.forward(ids(&case.rows, &device), None);
    assert_logits(name, &values(model.logits(hidden.clone()).inner()), &case.golden.floats("golden.logits"), logits);

    let loss = NextTokenLoss::new(&model, hidden, &case.rows);
    let (nll, expected) = (loss.nll, f64::from(case.golden.floats("golden.loss")[0]));
    assert!((nll - expected).abs() < 1e-5, "{name}: loss {nll} and {expected}");

    let expected = GoldenGradients { golden: &case.golden, prefix: "golden.grad.", tolerance: gradients };
    assert_gradients(&model, loss, expected);
}

#[test]
fn grouped_query_attention_and_tied_embeddings() {
    check("gqa");
}

#[test]
fn llama3_rope_biases_and_an_untied_head() {
    check("llama3");
}

#[test]
fn linear_rope_scaling() {
    check("linear");
}

/// All families except Llama. `golden/make_families.py` made the files and checks that the features
/// that set a family apart change its logits.
const FAMILIES: [&str; 10] =
    ["mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3", "gpt_neox", "gpt_neox_sequential", "olmo2"];

#[test]
fn every_family_has_the_logits_and_gradients_of_transformers() {
    for family in FAMILIES {
        check(family);
    }
}

#[test]
fn tied_layers_with_own_norms_and_lora_sum_their_gradients() {
    check("tied");
}

/// The golden file is by `golden/make_relaxed.py`.
#[test]
fn extras_of_depths_and_their_gradients() {
    check("extras");
}

/// The golden files are by `golden/make_steps.py`.
#[test]
fn mechanisms_of_steps_and_their_gradients() {
    for name in ["steps_a", "steps_b", "steps_c", "steps_d", "steps_e", "steps_f", "steps_g", "steps_h"] {
        check(name);
    }
}

/// Magnitudes differ from the norms that they replace; gradients do not flow through the norms.
#[test]
fn dora_has_the_logits_and_gradients_of_peft() {
    check("dora");
}

#[test]
fn decoding_with_a_cache_equals_the_full_forward() {
    for name in [
        "gqa", "llama3", "tied", "extras", "dora", "steps_a", "steps_b", "steps_c", "steps_d", "steps_e", "steps_f",
        "steps_g", "steps_h",
    ]
    .into_iter()
    .chain(FAMILIES)
    {
        let case = case(name);
        let device = Device::flex();
        let model = case.load(&device);
        let tokens = case.rows[0].len();
        let full = values(model.logits(model.forward(ids(&case.rows, &device), None)));
        let mut cache = KvCache::for_batch(model.config(), case.rows.len(), tokens + 3, &device);
        let mut pieces: Vec<Vec<f32>> = vec![Vec::new(); case.rows.len()];
        let mut start = 0;
        for step in [7usize, 1, 1, 5, 1, 9] {
            let rows: Vec<Vec<u32>> = case.rows.iter().map(|row| row[start..start + step].to_vec()).collect();
            let logits = values(model.logits(model.forward(ids(&rows, &device), Some(&mut cache))));
            for (row, logits) in pieces.iter_mut().zip(logits.chunks(step * case.vocab_size)) {
                row.extend_from_slice(logits);
            }
            start += step;
        }
        assert!(cache.slots().all(|slot| (start, cache.len(slot)) == (tokens, tokens)));
        // Two results, each with its own rounding.
        assert_logits(name, &pieces.concat(), &full, 2.0 * case.tolerances()[0]);
    }
}

#[test]
fn padding_on_the_right_changes_nothing_before_it() {
    let case = case("gqa");
    let device = Device::flex();
    let model = case.load(&device);
    let short: Vec<u32> = case.rows[0][..9].to_vec();
    let alone = values(model.logits(model.forward(ids(std::slice::from_ref(&short), &device), None)));
    let mut padded = short;
    padded.resize(case.rows[1].len(), 0);
    let both = values(model.logits(model.forward(ids(&[padded, case.rows[1].clone()], &device), None)));
    assert_logits("padded", &alone, &both[..alone.len()], case.tolerances()[0]);
}

#[test]
fn a_model_whose_tensors_do_not_fit_its_configuration_is_refused() {
    let case = case("gqa");
    let mut config = case.golden.config();
    config.intermediate_size += 1;
    let error = CausalLm::load(&config, &case.golden, &Device::flex()).unwrap_err().to_string();
    for layer in 0..config.num_hidden_layers {
        assert!(error.contains(&format!("model.layers.{layer}.mlp.up_proj.weight")), "{error}");
    }
}
