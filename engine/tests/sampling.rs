//! Logits processors compared with those of `transformers` (`golden/make_logits_processors.py`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retie_engine::{Sampling, sampling::History};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Golden {
    prompt: Vec<u32>,
    generated: Vec<u32>,
    logits: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    sampling: Values,
    /// Processed logits; `None` for a removed token.
    logits: Vec<Option<f32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
}

impl Values {
    fn sampling(&self) -> Sampling {
        let neutral = Sampling { temperature: 1.0, ..Sampling::default() };
        Sampling {
            temperature: self.temperature.unwrap_or(neutral.temperature),
            top_k: self.top_k.unwrap_or(neutral.top_k),
            top_p: self.top_p.unwrap_or(neutral.top_p),
            min_p: self.min_p.unwrap_or(neutral.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(neutral.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(neutral.frequency_penalty),
            seed: 0,
        }
    }
}

#[test]
fn processed_logits_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/logits_processors.json");
    let golden: Golden = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    let mut history = History::new(&golden.prompt);
    golden.generated.iter().for_each(|token| history.push(*token));
    for Case { sampling, logits: expected } in &golden.cases {
        let mut logits = golden.logits.clone();
        sampling.sampling().process(&mut logits, &history);
        for (token, (found, expected)) in logits.iter().zip(expected).enumerate() {
            let expected = expected.unwrap_or(f32::NEG_INFINITY);
            // Tolerance: one rounding of f32 for each of at most four products and differences.
            let near = found == &expected || (found - expected).abs() <= 4.0 * f32::EPSILON * expected.abs();
            assert!(near, "{sampling:?}: token {token} has {found}, expected {expected}");
        }
    }
}
