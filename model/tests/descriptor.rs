//! Descriptors and latents of earlier chunks, and coarse tokens: where they are the whole
//! attention, sequences of a cache side by side, and the bytes of the cache.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::{Device, Int, Tensor};
use retie_config::{Init, MechanismAt, RecursionConfig, Sharing, steps_with};
use retie_model::{CausalLm, KvCache, NewTokens, Slot, kernels::Layout};
use retie_testing::{VOCAB_SIZE, differences, random_model, values};

/// As in `steps.rs`.
const DECODED: f32 = 2e-5;

fn model(mechanisms: &[&str]) -> CausalLm {
    let added: Vec<MechanismAt> = mechanisms.iter().map(|text| text.parse().unwrap()).collect();
    let recursion = RecursionConfig::new(2, Sharing::Cycle, Init::Average);
    random_model(Some(RecursionConfig { steps: steps_with(&[], &added, 2).unwrap(), ..recursion }))
}

fn text(tokens: usize, step: u32) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * step + i * i / 5 + 3) % VOCAB_SIZE as u32).collect()
}

fn tensor(tokens: &[u32]) -> Tensor<1, Int> {
    let ids: Vec<i32> = tokens.iter().map(|id| id.cast_signed()).collect();
    Tensor::from_ints(ids.as_slice(), &Device::flex())
}

/// Logits of sequences behind one another.
fn packed(model: &CausalLm, texts: &[&[u32]]) -> Vec<f32> {
    let layout = Layout::packed(texts.iter().map(|text| (text.len(), 0..0)));
    values(model.logits(model.forward_packed(tensor(&texts.concat()), layout)))
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    let (max, _) = differences(found, expected);
    assert!(max <= DECODED * scale, "{what}: differs by {max}, the largest is {scale}");
}

#[test]
fn up_to_a_chunk_and_with_every_token_kept_it_is_the_whole_attention() {
    let plain = model(&[]);
    let tokens = text(40, 7);
    let expected = packed(&plain, &[&tokens]);
    for pool in ["centre", "mean", "nearest"] {
        let long = model(&[&format!("descriptor:chunk=40,ratio=8,stride=5,sinks=8,pool={pool}")]);
        assert_eq!(packed(&long, &[&tokens]), expected, "bit for bit");
        let every = model(&[&format!("descriptor:chunk=8,ratio=1,sinks=3,pool={pool}")]);
        assert_close(pool, &packed(&every, &[&tokens]), &expected);
        let some = model(&[&format!("descriptor:chunk=8,ratio=2,pool={pool}")]);
        let found = packed(&some, &[&tokens]);
        assert_eq!(found[..8 * VOCAB_SIZE], expected[..8 * VOCAB_SIZE], "the first chunk");
        assert!(differences(&found, &expected).0 > 1e-2, "{pool}: later chunks differ");
    }
}

/// A sequence in its slot and the tokens that the cache has.
struct Reader<'a> {
    slot: Slot,
    tokens: &'a [u32],
    read: usize,
}

/// Reads some tokens of each sequence in one pass and compares their logits with whole passes.
fn read(model: &CausalLm, cache: &mut KvCache, readers: &mut [Reader<'_>], counts: &[usize]) {
    let new: Vec<&[u32]> = readers.iter().zip(counts).map(|(r, count)| &r.tokens[r.read..r.read + count]).collect();
    let batch: Vec<_> =
        readers.iter().zip(counts).map(|(r, count)| NewTokens { slot: r.slot, tokens: *count }).collect();
    let (hidden, _) = model.forward_cached(tensor(&new.concat()), &batch, cache);
    let logits = values(model.logits(hidden));
    let mut start = 0;
    for (reader, count) in readers.iter_mut().zip(counts) {
        let whole = packed(model, &[&reader.tokens[..reader.read + count]]);
        let found = &logits[start * VOCAB_SIZE..(start + count) * VOCAB_SIZE];
        assert_close("cached", found, &whole[reader.read * VOCAB_SIZE..]);
        reader.read += count;
        start += count;
    }
}

#[test]
fn sequences_in_different_chunks_are_read_in_one_pass() {
    let (long, short) = (text(38, 7), text(38, 11));
    for mechanism in [
        "descriptor:chunk=8,ratio=4,sinks=4",
        "descriptor:chunk=6,ratio=3,stride=2,pool=mean@1",
        "descriptor:chunk=5,ratio=1",
        "rg:stride=2,latents=8",
        "rg:stride=4,latents=16,key_ratio=0.5@1",
        "resolution:factor=5",
        "resolution:factor=6@1",
    ] {
        let model = model(&[mechanism]);
        let mut cache = KvCache::new(model.config(), 3, 38, &Device::flex());
        let (a, b) = (cache.admit().unwrap(), cache.admit().unwrap());
        let mut readers = [Reader { slot: a, tokens: &long, read: 0 }, Reader { slot: b, tokens: &short, read: 0 }];
        // Over the ends of several chunks, to one, of one sequence and of the other.
        for counts in [[21, 1], [3, 7], [1, 1], [1, 16], [1, 1], [4, 6], [7, 6]] {
            read(&model, &mut cache, &mut readers, &counts);
        }
        assert_eq!(readers.map(|reader| reader.read), [38, 38]);
        assert!(cache.can_crop(a, 37) && cache.can_crop(a, 0) && !cache.can_crop(a, 20));
        cache.crop(a, 36);
        let other = [&long[..36], &[1, 2][..]].concat();
        read(&model, &mut cache, &mut [Reader { slot: a, tokens: &other, read: 36 }], &[2]);
        // Another sequence in the place of the second.
        cache.evict(b);
        let mut again = [Reader { slot: cache.admit().unwrap(), tokens: &long, read: 0 }];
        for count in [9, 1, 13] {
            read(&model, &mut cache, &mut again, &[count]);
        }
    }
}

#[test]
fn packed_sequences_are_those_alone() {
    let mechanisms =
        ["descriptor:chunk=6,ratio=3,stride=2", "sliced:groups=3", "sliced:groups=2,order=chunk,length=10"];
    for mechanism in mechanisms.into_iter().chain([
        "gnconv:order=2,kernel=4",
        "rg:stride=2,latents=4",
        "resolution:factor=2@1",
        "resolution:factor=3",
    ]) {
        packed_as_alone(&model(&[mechanism]));
    }
}

fn packed_as_alone(model: &CausalLm) {
    let texts = [text(17, 7), text(3, 5), text(30, 11)];
    let alone: Vec<f32> = texts.iter().flat_map(|text| packed(model, &[text])).collect();
    assert_close("packed", &packed(model, &texts.each_ref().map(Vec::as_slice)), &alone);
    // A continuation behind a prefix that it shares, from within its second chunk.
    let layout = Layout::packed([(9, 0..0), (12, 0..9), (8, 0..9)]);
    let rows = [&texts[2][..9], &texts[2][9..21], &texts[0][..8]].concat();
    let found = values(model.logits(model.forward_packed(tensor(&rows), layout)));
    assert_close("first", &found[..21 * VOCAB_SIZE], &packed(model, &[&texts[2][..21]]));
    let second = packed(model, &[&[&texts[2][..9], &texts[0][..8]].concat()]);
    assert_close("second", &found[21 * VOCAB_SIZE..], &second[9 * VOCAB_SIZE..]);
}

#[test]
fn a_cache_has_the_bytes_of_the_formula() {
    let model = model(&["descriptor:chunk=1024,ratio=8,stride=5,sinks=64"]);
    let plain = random_model(Some(RecursionConfig::new(2, Sharing::Cycle, Init::Average)));
    for tokens in [500usize, 2048, 8192, 32_768] {
        let bytes = |model: &CausalLm| {
            let cache = KvCache::new(model.config(), 2, tokens, &Device::flex());
            assert_eq!(cache.bytes() as f64, 2.0 * model.config().cost(tokens, None).cache_bytes);
            cache.bytes()
        };
        // Of 1,024 tokens every fifth of 128 blocks; of the first chunk none of the 8 of sinks.
        let earlier = tokens.div_ceil(1024) - 1;
        let memory = if earlier == 0 { 0 } else { 64 + 24 + (earlier - 1) * 26 };
        let keys = tokens.min(1024) + memory;
        // Six depths, keys and values of two heads of four numbers in f32.
        assert_eq!(bytes(&model), 2 * 6 * keys * 2 * 8 * 4, "{tokens}");
        if tokens == 32_768 {
            assert!(15 * bytes(&model) <= bytes(&plain), "{} of {}", bytes(&model), bytes(&plain));
        }
    }
}

#[test]
fn up_to_two_chunks_latents_are_not_read_and_behind_them_they_are() {
    let plain = model(&[]);
    let tokens = text(40, 7);
    let expected = packed(&plain, &[&tokens]);
    assert_eq!(packed(&model(&["rg:stride=4,latents=20"]), &[&tokens]), expected, "bit for bit");
    let found = packed(&model(&["rg:stride=2,latents=4"]), &[&tokens]);
    assert_eq!(found[..8 * VOCAB_SIZE], expected[..8 * VOCAB_SIZE], "the first two chunks");
    assert!(differences(&found, &expected).0 > 1e-2, "later ones differ");
    let fewer = packed(&model(&["rg:stride=2,latents=4,key_ratio=0.5"]), &[&tokens]);
    assert!(differences(&found, &fewer).0 > 1e-3, "keys in some channels");
}

#[test]
fn a_cache_of_latents_is_bounded() {
    let model = model(&["rg:stride=4,latents=64"]);
    // Two chunks, and the most latents of any length so far: 64 of the highest level, and what is
    // left of the levels below.
    for (tokens, keys) in
        [(50usize, 50), (128, 128), (192, 16 + 128), (2048, 64 + 128), (8192, 64 + 128), (32_768, 67 + 128)]
    {
        let cache = KvCache::new(model.config(), 2, tokens, &Device::flex());
        assert_eq!(cache.bytes() as f64, 2.0 * model.config().cost(tokens, None).cache_bytes);
        // Six depths, keys and values of two heads of four numbers in f32.
        assert_eq!(cache.bytes(), 2 * 6 * keys * 2 * 8 * 4, "{tokens}");
    }
}

#[test]
fn a_recursion_over_coarse_tokens_caches_these() {
    let model = model(&["resolution:factor=4@1"]);
    for tokens in [3usize, 500, 2048] {
        let cache = KvCache::new(model.config(), 2, tokens, &Device::flex());
        assert_eq!(cache.bytes() as f64, 2.0 * model.config().cost(tokens, None).cache_bytes);
        // Three depths of each recursion; four tokens that wait and what the last coarse one got.
        let keys = 3 * tokens + 3 * (tokens / 4).max(1);
        assert_eq!(cache.bytes(), 2 * 4 * (keys * 2 * 8 + 5 * 16), "{tokens}");
    }
}
