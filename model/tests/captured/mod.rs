//! Captured passes beside the same passes without capture, on one device: the same bits.

use crate::device;
use burn::tensor::{Device, Int, Tensor, TensorData};
use retie_config::{Init, KvSharing, LoraConfig, ModelConfig, RecursionConfig, Sharing};
use retie_model::{
    CapturedDecoding, CapturedForward, CausalLm, KvCache, NewTokens, SelectionRule, Slot, States,
    kernels::{self, Execution, Layout, REPLAY, RowSet, replays, with_launches},
};
use retie_testing::{Golden, RandomWeights, tiny_llama, values};

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn upload(ids: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    Tensor::from_ints(ids.as_slice(), device)
}

/// The most probable token.
fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id as u32)
}

/// A sequence that is decoded greedily, with capture or without.
struct Text<'m> {
    model: &'m CausalLm,
    captured: Option<CapturedDecoding>,
    cache: KvCache,
    slot: Slot,
    /// Logits of every row that was read.
    logits: Vec<Vec<f32>>,
    /// Launches of every captured step.
    launches: Vec<usize>,
}

impl<'m> Text<'m> {
    fn new(model: &'m CausalLm, captured: Option<CapturedDecoding>, capacity: usize) -> Self {
        let mut cache = KvCache::new(model.config(), 1, capacity, &model.device());
        let slot = cache.admit().unwrap();
        Self { model, captured, cache, slot, logits: Vec::new(), launches: Vec::new() }
    }

    /// Reads a prompt, never captured.
    fn read(&mut self, ids: &[u32]) {
        let new = [NewTokens { slot: self.slot, tokens: ids.len() }];
        let (hidden, _) = self.model.forward_cached(upload(ids, &self.model.device()), &new, &mut self.cache);
        let logits = values(self.model.logits(hidden));
        self.logits.extend(logits.chunks(self.model.config().vocab_size).map(<[f32]>::to_vec));
    }

    /// Decodes tokens, each the most probable one after the last.
    fn decode(&mut self, count: usize) {
        for _ in 0..count {
            let id = greedy(self.logits.last().unwrap());
            let new = NewTokens { slot: self.slot, tokens: 1 };
            match &mut self.captured {
                Some(captured) => {
                    let step = || captured.step(id, new, &mut self.cache).expect("the step is captured");
                    let (logits, launches) = with_launches(&self.model.device(), Execution::Real, step);
                    let launches = launches.expect("a device with kernels");
                    assert_eq!(launches[REPLAY], 1);
                    self.launches.push(launches.values().sum());
                    self.logits.push(values(logits));
                }
                None => self.read(&[id]),
            }
        }
    }

    /// The same sequence behind `tokens` of its tokens in another cache.
    fn moved(self, capacity: usize, tokens: &[u32]) -> Self {
        let mut text = Self::new(self.model, self.captured, capacity);
        text.read(tokens);
        text.logits.splice(0..0, self.logits);
        text.launches = self.launches;
        text
    }

    fn bits(&self) -> Vec<Vec<u32>> {
        self.logits.iter().cloned().map(bits).collect()
    }
}

/// Both ways through `f`.
fn both(model: &CausalLm, f: impl Fn(Option<CapturedDecoding>) -> Vec<Vec<u32>>) {
    let captured = CapturedDecoding::new(model).expect("the device captures");
    assert_eq!(f(Some(captured)), f(None));
}

fn load(config: &ModelConfig) -> CausalLm {
    CausalLm::load(config, &RandomWeights::new(config), &device()).unwrap()
}

/// A prelude, three recursions and a coda with LoRA, over grouped queries.
fn recursive(kv_sharing: KvSharing) -> ModelConfig {
    let recursion = RecursionConfig {
        prelude: Some(2),
        coda: Some(1),
        lora: Some(LoraConfig::uniform(2)),
        kv_sharing,
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    };
    ModelConfig { recursion: Some(recursion), ..tiny_llama() }
}

const PROMPT: [u32; 7] = [3, 17, 5, 44, 9, 9, 21];

/// Fifty tokens, the first half in a cache that is full then, the others in a larger one.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn decoded_tokens_have_the_same_bits_across_a_growth_of_the_cache() {
    for config in [tiny_llama(), recursive(KvSharing::RecursionWise)] {
        let model = load(&config);
        both(&model, |captured| {
            let mut text = Text::new(&model, captured, PROMPT.len() + 25);
            text.read(&PROMPT);
            text.decode(25);
            let last = text.logits.len() - 1;
            let ids: Vec<u32> = text.logits[PROMPT.len() - 1..last].iter().map(|logits| greedy(logits)).collect();
            let mut text = text.moved(64, &[&PROMPT, ids.as_slice()].concat());
            text.decode(25);
            let recorded = text.launches.iter().enumerate().filter(|(_, launches)| **launches > 1);
            let recorded: Vec<usize> = recorded.map(|(token, _)| token).collect();
            assert!(text.launches.is_empty() || recorded == [0, 25], "one for each cache: {recorded:?}");
            text.bits()
        });
    }
}

/// A cache whose sequence is cut back, and one that a second sequence takes over.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn caches_that_are_cropped_and_reused_are_captured_once() {
    for kv_sharing in [KvSharing::RecursionWise, KvSharing::Shared, KvSharing::Hybrid] {
        let model = load(&recursive(kv_sharing));
        both(&model, |captured| {
            let mut text = Text::new(&model, captured, 40);
            text.read(&PROMPT);
            text.decode(6);
            text.cache.crop(text.slot, 9);
            text.read(&[1, 2, 3]);
            text.decode(5);
            text.cache.evict(text.slot);
            text.slot = text.cache.admit().unwrap();
            text.read(&[50, 2, 31]);
            text.decode(6);
            assert!(text.launches.iter().skip(1).all(|launches| *launches == 1), "{:?}", text.launches);
            text.bits()
        });
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn every_family_decodes_the_same_bits() {
    let names =
        ["tied", "dora", "extras", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox", "olmo2"];
    for name in names {
        let golden = Golden::named(name);
        let model = load(&golden.config());
        let prompt = golden.rows()[0][..4].to_vec();
        both(&model, |captured| {
            let mut text = Text::new(&model, captured, 16);
            text.read(&prompt);
            text.decode(4);
            text.bits()
        });
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn what_is_not_captured_is_said_and_done_otherwise() {
    let device = device();
    for name in ["routed_mlp", "steps_a"] {
        let golden = Golden::named(name);
        let model = CausalLm::load(&golden.config(), &golden, &device).unwrap();
        assert!(CapturedDecoding::new(&model).is_none() && CapturedForward::new(&model).is_none(), "{name}");
    }
    let model = load(&tiny_llama());
    let mut captured = CapturedDecoding::new(&model).unwrap();
    let mut cache = KvCache::for_batch(model.config(), 2, 8, &device);
    let slots: Vec<Slot> = cache.slots().collect();
    for new in [NewTokens { slot: slots[1], tokens: 1 }, NewTokens { slot: slots[0], tokens: 2 }] {
        assert!(captured.step(1, new, &mut cache).is_none(), "{new:?}");
        assert_eq!(cache.len(new.slot), 0);
    }
    kernels::set_capture(kernels::Capture::Off);
    let is_off = CapturedDecoding::new(&model).is_none() && CapturedForward::new(&model).is_none();
    kernels::set_capture(kernels::Capture::Auto);
    assert!(is_off);
}

/// An upload cannot be recorded. What was launched beside it did not run, and the buffers that it
/// would have written are as before for whoever writes them next.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_refused_recording_leaves_caches_usable() {
    let device = device();
    let tensor = |rows: usize, first: f32| {
        let all = (0..rows * 3).map(|i| first + i as f32).collect::<Vec<f32>>();
        Tensor::<2>::from_data(TensorData::new(all, [rows, 3]), &device)
    };
    let (buffers, rows) = ([tensor(4, 0.0), tensor(4, 100.0)], [tensor(1, 50.0), tensor(1, 150.0)]);
    let at = |row: i32| {
        let row = Tensor::<1, Int>::from_ints([row], &device);
        RowSet::on_device(row.clone(), row, [1].into())
    };
    let (second, third) = (at(1), at(2));
    let refused = kernels::capture(&device, || {
        let written = kernels::write_keys_values_at(buffers.clone(), rows.clone(), &second);
        (written, tensor(1, 1.0))
    });
    let error = refused.unwrap_err().to_string();
    assert!(error.starts_with("the device did not record the work: "), "{error}");
    let written = kernels::write_keys_values_at(buffers.clone(), rows.clone(), &third).map(values);
    let expected = |first: f32| {
        let mut all: Vec<f32> = (0..12).map(|i| first + i as f32).collect();
        for row in [1, 2] {
            all.splice(3 * row..3 * row + 3, (0..3).map(|i| first + 50.0 + i as f32));
        }
        all
    };
    assert_eq!(written, [expected(0.0), expected(100.0)]);
    // The next recording is made.
    let captured = kernels::capture(&device, || kernels::write_keys_values_at(buffers.clone(), rows.clone(), &second));
    let captured = captured.unwrap();
    assert_eq!(captured.num_kernels(), 1);
    assert_eq!(captured.replay().unwrap().clone().map(values), [expected(0.0), expected(100.0)]);
}

/// Whole sequences, and rows of several documents, which move from batch to batch.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn states_of_whole_sequences_have_the_same_bits_over_several_batches() {
    let device = device();
    let golden = |name: &str| {
        let golden = Golden::named(name);
        CausalLm::load(&golden.config(), &golden, &device).unwrap()
    };
    for model in [load(&tiny_llama()), load(&recursive(KvSharing::Shared)), golden("gemma3"), golden("qwen3")] {
        let (rows, tokens, depths) = (3, 12, model.share_map().num_depths());
        let mut captured = CapturedForward::new(&model).unwrap();
        let pieces = [vec![12, 5, 7, 3, 9], vec![1, 11, 12, 6, 6], vec![12, 2, 10, 8, 4], vec![4, 8, 4, 8, 12]];
        let packed = pieces.iter().map(|pieces| Layout::packed_in_rows(pieces, tokens));
        let whole = std::iter::repeat_n(Layout::batch(rows, tokens), 4);
        for (batch, layout) in whole.chain(packed).enumerate() {
            let vocab_size = model.config().vocab_size;
            let ids: Vec<u32> = (0..rows * tokens).map(|i| ((i * i + 31 * batch) % vocab_size) as u32).collect();
            let ends = [1, depths];
            let before = replays().count;
            let found = captured.run(&ids, &layout, &ends, true);
            // The first batch of a shape runs as always.
            assert_eq!(found.is_some(), batch % 4 > 0, "batch {batch}");
            assert_eq!(replays().count - before, usize::from(batch % 4 > 0));
            let Some(States { after, last }) = found else { continue };
            let pass = model.begin(upload(&ids, &device), layout, SelectionRule::Causal);
            let expected = States::of(pass, &ends, true);
            let all = |after: Vec<Tensor<2>>, last: Option<Tensor<2>>| {
                after.into_iter().chain(last).map(|state| bits(values(state))).collect::<Vec<_>>()
            };
            assert_eq!(all(after, last), all(expected.after, expected.last), "batch {batch}");
        }
        let other = Layout::batch(1, tokens);
        assert!(captured.run(&vec![0; tokens], &other, &[depths], true).is_none(), "another shape, for the first time");
        let ragged = Layout::packed([(5, 0..0), (3, 0..0)]);
        assert!((0..2).all(|_| captured.run(&[0; 8], &ragged, &[depths], true).is_none()), "unequal lengths");
    }
}
