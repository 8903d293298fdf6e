//! Caches on disk: what comes back, what goes on, what is refused.

use super::*;
use crate::dataset::TokenDataset;

const VOCAB: usize = 300;

fn meta(vocab_size: usize) -> LogitsMeta {
    let tokens: Vec<u32> = (0..21).collect();
    let dataset = TokenDataset::from_tokens(&tokens, 4).unwrap();
    LogitsMeta {
        schema: LOGITS_SCHEMA,
        teacher: "t".into(),
        teacher_files: vec![("model.safetensors".into(), "00".into())],
        tokenizer: "ff".into(),
        data: dataset.fingerprint(),
        rows: dataset.num_rows(),
        sequence_length: 4,
        vocab_size,
        top_k: 2,
        temperature: 1.0,
        rows_per_shard: 2,
    }
}

/// Row `r` has ids from `10 r` on, with probabilities that differ by token.
fn row(r: usize) -> TopLogits {
    let ids = (0..4).flat_map(|t| [10 * r + t, 200 + t]).map(|id| id as u32).collect();
    let probs = (0..4).flat_map(|t| [0.7 - 0.1 * t as f32, 0.2, 0.1 + 0.1 * t as f32]);
    TopLogits { ids, log_probs: probs.map(f32::ln).collect() }
}

fn write(dir: &Path, meta: &LogitsMeta) -> Vec<usize> {
    let mut writer = LogitsWriter::open(dir, meta.clone()).unwrap();
    let missing = writer.missing();
    for shard in missing.clone() {
        for r in writer.meta().rows_of(shard) {
            writer.push(&row(r));
        }
        writer.finish_shard(shard).unwrap();
    }
    missing
}

#[test]
fn rows_come_back_in_any_order_within_half_a_step() {
    for vocab_size in [VOCAB, 1 << 17] {
        let dir = tempfile::tempdir().unwrap();
        let meta = meta(vocab_size);
        assert_eq!(write(dir.path(), &meta), [0, 1, 2]);
        assert_eq!(meta.bytes_per_token(), if vocab_size == VOCAB { 10 } else { 14 });
        let shard = fs_err::metadata(dir.path().join("shard-00000.logits")).unwrap().len() as usize;
        assert_eq!(shard, HEADER_BYTES + 2 * 4 * meta.bytes_per_token());
        let cache = LogitsCache::open(dir.path()).unwrap();
        let found = cache.rows(&[4, 0, 3]).unwrap();
        let expected: Vec<TopLogits> = [4, 0, 3].into_iter().map(row).collect();
        assert_eq!(found.ids, expected.iter().flat_map(|row| row.ids.clone()).collect::<Vec<_>>());
        let expected = expected.iter().flat_map(|row| row.log_probs.clone());
        // Half a step of 1/2048 for the number, and as much for the sum that it is divided by.
        assert!(found.log_probs.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1.0 / 2048.0));
        let sums = found.log_probs.chunks(3).map(|token| token.iter().map(|x| x.exp()).sum::<f32>());
        assert!(sums.into_iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    }
}

#[test]
fn a_cache_goes_on_with_what_is_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(VOCAB);
    write(dir.path(), &meta);
    let [damaged, gone] = ["shard-00001.logits", "shard-00002.logits"].map(|name| dir.path().join(name));
    let whole = fs_err::read(&damaged).unwrap();
    let mut bytes = whole.clone();
    bytes[HEADER_BYTES + 3] ^= 1;
    fs_err::write(&damaged, bytes).unwrap();
    fs_err::remove_file(&gone).unwrap();
    let error = LogitsCache::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("shard-00001.logits` is damaged") && error.contains("shard-00002.logits"), "{error}");
    assert_eq!(write(dir.path(), &meta), [1, 2]);
    assert_eq!(fs_err::read(&damaged).unwrap(), whole);
    LogitsCache::open(dir.path()).unwrap();
    for length in [0, HEADER_BYTES - 1, whole.len() - 1] {
        fs_err::write(&damaged, &whole[..length]).unwrap();
        assert!(LogitsCache::open(dir.path()).is_err(), "{length} bytes");
    }
}

#[test]
fn a_cache_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(VOCAB);
    write(dir.path(), &meta);
    let other = LogitsMeta { teacher_files: Vec::new(), top_k: 3, ..meta.clone() };
    let error = LogitsWriter::open(dir.path(), other).unwrap_err();
    let DataError::OtherLogits { differences, .. } = &error else { panic!("{error}") };
    assert_eq!(differences, &["teacher_files", "top_k"]);
    let cache = LogitsCache::open(dir.path()).unwrap();
    let tokens: Vec<u32> = (0..21).collect();
    let rows = |length| TokenDataset::from_tokens(&tokens, length).unwrap().into();
    cache.check_rows(&rows(4)).unwrap();
    assert!(cache.check_rows(&rows(2)).is_err());
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(LogitsCache::open(empty.path()), Err(DataError::NoLogits { .. })));
    fs_err::write(empty.path().join(META_FILE), "{\"schema\": 2}").unwrap();
    assert!(matches!(LogitsCache::open(empty.path()), Err(DataError::BadLogits { .. })));
}
