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
        top_p: None,
        temperature: 1.0,
        rows_per_shard: 2,
    }
}

/// Ids, and the logarithms of their probabilities and of the rest's.
type Token = (Vec<u32>, Vec<f32>);

/// Row `r` has ids from `10 r` on, with probabilities that differ by token; with `top_p` every
/// other token has one id.
fn row(meta: &LogitsMeta, r: usize) -> Vec<Token> {
    let token = |t: usize| {
        let count = if meta.top_p.is_some() && t % 2 == 1 { 1 } else { 2 };
        let probs = &[0.7 - 0.1 * t as f32, 0.2][..count];
        let rest = 1.0 - probs.iter().sum::<f32>();
        let ids = [10 * r + t, 200 + t][..count].iter().map(|id| *id as u32).collect();
        (ids, probs.iter().chain([&rest]).map(|p| p.ln()).collect())
    };
    (0..4).map(token).collect()
}

fn write(dir: &Path, meta: &LogitsMeta) -> Vec<usize> {
    let mut writer = LogitsWriter::open(dir, meta.clone()).unwrap();
    let missing = writer.missing();
    for shard in missing.clone() {
        for r in writer.meta().rows_of(shard) {
            row(meta, r).iter().for_each(|(ids, log_probs)| writer.push(ids, log_probs));
        }
        writer.finish_shard(shard).unwrap();
    }
    missing
}

fn read(dir: &Path, rows: &[usize]) -> Vec<Token> {
    let mut found = Vec::new();
    let cache = LogitsCache::open(dir).unwrap();
    cache.read(rows, |ids, log_probs| found.push((ids.to_vec(), log_probs.to_vec()))).unwrap();
    found
}

#[test]
fn rows_come_back_in_any_order_within_half_a_step() {
    // With `top_p` half of the tokens have one id, and all have its number; a row has an end.
    let cases = [(VOCAB, None, 10, 80), (1 << 17, None, 14, 112), (VOCAB, Some(0.6), 12, 96 - 4 * 4 + 16)];
    for (vocab_size, top_p, bytes_per_token, shard_bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        let meta = LogitsMeta { top_p, ..meta(vocab_size) };
        assert_eq!(write(dir.path(), &meta), [0, 1, 2]);
        assert_eq!(meta.bytes_per_token(), bytes_per_token);
        let size = |shard: usize| fs_err::metadata(meta.shard_path(dir.path(), shard)).unwrap().len();
        assert_eq!(size(0), HEADER_BYTES as u64 + shard_bytes);
        let writer = LogitsWriter::open(dir.path(), meta.clone()).unwrap();
        assert_eq!(writer.payload_bytes().unwrap(), (0..3).map(size).sum::<u64>() - 3 * HEADER_BYTES as u64);
        let expected: Vec<Token> = [4, 0, 3].into_iter().flat_map(|r| row(&meta, r)).collect();
        for ((found_ids, found), (ids, log_probs)) in read(dir.path(), &[4, 0, 3]).iter().zip(&expected) {
            assert_eq!((found_ids, found.len()), (ids, log_probs.len()));
            // Half a step of 1/2048 for the number, and as much for the sum that it is divided by.
            assert!(found.iter().zip(log_probs).all(|(a, b)| (a - b).abs() < 1.0 / 2048.0));
            assert!((found.iter().map(|x| x.exp()).sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }
}

#[test]
fn a_cache_goes_on_with_what_is_missing_or_damaged() {
    goes_on(&meta(VOCAB));
    goes_on(&LogitsMeta { top_p: Some(0.6), ..meta(VOCAB) });
}

fn goes_on(meta: &LogitsMeta) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), meta);
    let [damaged, gone] = ["shard-00001.logits", "shard-00002.logits"].map(|name| dir.path().join(name));
    let whole = fs_err::read(&damaged).unwrap();
    let mut bytes = whole.clone();
    bytes[HEADER_BYTES + 3] ^= 1;
    fs_err::write(&damaged, bytes).unwrap();
    fs_err::remove_file(&gone).unwrap();
    let error = LogitsCache::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("shard-00001.logits` is damaged") && error.contains("shard-00002.logits"), "{error}");
    assert_eq!(write(dir.path(), meta), [1, 2]);
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
    let other = LogitsMeta { teacher_files: Vec::new(), top_k: 3, top_p: Some(0.9), ..meta.clone() };
    let error = LogitsWriter::open(dir.path(), other).unwrap_err();
    let DataError::OtherLogits { differences, .. } = &error else { panic!("{error}") };
    assert_eq!(differences, &["teacher_files", "top_k", "top_p"]);
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

#[test]
fn logits_that_are_not_numbers_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(VOCAB);
    let mut writer = LogitsWriter::open(dir.path(), meta.clone()).unwrap();
    for r in meta.rows_of(1) {
        for (ids, mut log_probs) in row(&meta, r) {
            log_probs[0] = f32::NAN;
            writer.push(&ids, &log_probs);
        }
    }
    let message = writer.finish_shard(1).unwrap_err().to_string();
    assert!(message.starts_with("the teacher's logits for rows 2 to 3 are not numbers"), "{message}");
    assert_eq!(writer.missing(), [0, 1, 2]);
}

#[test]
fn a_description_that_promises_more_than_there_is_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let open = |meta: &LogitsMeta| {
        fs_err::write(dir.path().join(META_FILE), serde_json::to_vec(meta).unwrap()).unwrap();
        LogitsCache::open(dir.path()).unwrap_err().to_string()
    };
    fs_err::write(dir.path().join("shard-00000.logits"), [0; 200]).unwrap();
    for top_p in [None, Some(0.5)] {
        let meta = LogitsMeta { top_p, rows_per_shard: 1, ..meta(VOCAB) };
        let many = open(&LogitsMeta { rows: 1 << 40, ..meta.clone() });
        assert!(many.contains("shard-00000.logits` is damaged") && many.contains("and perhaps others"), "{many}");
        assert!(many.len() < 10_000);
        open(&LogitsMeta { rows: 1 << 40, rows_per_shard: 1 << 40, ..meta.clone() });
        for impossible in [
            LogitsMeta { rows: usize::MAX, ..meta.clone() },
            LogitsMeta { sequence_length: usize::MAX / 2, ..meta.clone() },
            LogitsMeta { rows_per_shard: usize::MAX, ..meta.clone() },
        ] {
            let message = open(&impossible);
            assert!(message.contains("its sizes are impossible"), "{message}");
        }
    }
}
