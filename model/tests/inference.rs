//! Inference beyond the plain batch: bf16 weights and packed sequences.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_model::{CausalLm, KvCache, ModelError, WeightDtype, kernels::Layout};
use retie_testing::{Golden, differences, ids, values};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// f32 sums in two orders, over a few layers of random weights; relative to the largest logit.
const LOGITS: f32 = 2e-5;

/// A golden model as a bf16 checkpoint.
struct InBf16 {
    golden: Golden,
    infos: BTreeMap<String, TensorInfo>,
}

impl InBf16 {
    fn named(name: &str) -> Self {
        let golden = Golden::named(name);
        let info = |name: &str| TensorInfo { dtype: Dtype::BF16, shape: golden.info(name).unwrap().shape.clone() };
        let infos = golden.weight_names().into_iter().map(|name| (name.to_owned(), info(name))).collect();
        Self { golden, infos }
    }

    fn load(&self, dtype: WeightDtype) -> CausalLm {
        CausalLm::load_with(&self.golden.config(), self, &Device::flex(), dtype).unwrap()
    }
}

impl TensorSource for InBf16 {
    fn names(&self) -> Vec<&str> {
        self.golden.names()
    }
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.infos.get(name)
    }
    fn path_of(&self, name: &str) -> &Path {
        self.golden.path_of(name)
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        Ok(narrow(&self.golden.floats(name), Dtype::BF16).into())
    }
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let (max, _) = differences(actual, expected);
    assert!(max <= LOGITS * scale, "{what}: differs by {max}, the largest is {scale}");
}

#[test]
fn bf16_weights_give_the_logits_of_equal_f32_weights() {
    for name in ["gqa", "llama3", "tied", "dora"] {
        let checkpoint = InBf16::named(name);
        let rows = checkpoint.golden.rows();
        let (device, tokens) = (Device::flex(), rows[0].len());
        let logits = |model: &CausalLm| values(model.logits(model.forward(ids(&rows, &device), None)));
        let expected = logits(&checkpoint.load(WeightDtype::F32));
        let narrow = checkpoint.load(WeightDtype::Auto);
        assert_close(name, &logits(&narrow), &expected);
        // The f32 checkpoint, rounded on loading, is the same model.
        let config = checkpoint.golden.config();
        let rounded = CausalLm::load_with(&config, &checkpoint.golden, &device, WeightDtype::Bf16).unwrap();
        let exact = CausalLm::load(&config, &checkpoint.golden, &device).unwrap();
        assert!(differences(&logits(&rounded), &logits(&exact)).0 > 0.0, "{name}: nothing was rounded");

        // Decoding one token at a time uses another kernel.
        let mut cache = KvCache::for_batch(narrow.config(), rows.len(), tokens, &device);
        let vocab_size = config.vocab_size;
        for token in 0..tokens {
            let step: Vec<Vec<u32>> = rows.iter().map(|row| vec![row[token]]).collect();
            let logits = values(narrow.logits(narrow.forward(ids(&step, &device), Some(&mut cache))));
            for (row, logits) in logits.chunks(vocab_size).enumerate() {
                let at = (row * tokens + token) * vocab_size;
                assert_close(name, logits, &expected[at..at + vocab_size]);
            }
        }
    }
}

#[test]
fn bf16_weights_with_gradients_are_refused() {
    let golden = Golden::named("gqa");
    let load = CausalLm::load_with(&golden.config(), &golden, &Device::flex().autodiff(), WeightDtype::Bf16);
    assert!(matches!(load, Err(ModelError::Bf16OnDevice)));
}

#[test]
fn packed_sequences_give_the_logits_of_separate_ones() {
    let golden = Golden::named("gqa");
    let device = Device::flex();
    let model = CausalLm::load(&golden.config(), &golden, &device).unwrap();
    let rows = golden.rows();
    // Two endings of one beginning, and a sequence that has nothing to do with them.
    let beginning = &rows[0][..6];
    let endings = [&rows[0][6..11], &rows[1][2..4]];
    let stranger = &rows[1][..8];
    let packed: Vec<i32> =
        [beginning, endings[0], endings[1], stranger].concat().into_iter().map(|id| id as i32).collect();
    let layout = Layout::packed([(6, 0..0), (5, 0..6), (2, 0..6), (8, 0..0)]);
    let packed = Tensor::<1, Int>::from_ints(packed.as_slice(), &device);
    let hidden = values(model.forward_packed(packed, layout));
    let width = golden.config().hidden_size;
    let alone = |sequence: Vec<u32>| values(model.forward(ids(&[sequence], &device), None));
    let rows = |from: usize, to: usize| &hidden[from * width..to * width];
    let first = alone([beginning, endings[0]].concat());
    assert_close("beginning", rows(0, 6), &first[..6 * width]);
    assert_close("first ending", rows(6, 11), &first[6 * width..]);
    assert_close("second ending", rows(11, 13), &alone([beginning, endings[1]].concat())[6 * width..]);
    assert_close("stranger", rows(13, 21), &alone(stranger.to_vec()));
}
