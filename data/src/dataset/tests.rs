//! Datasets of files: the stream, its cache, its parts, its rows.

use super::*;
use crate::options::TextFile;
use crate::tokenizer::tests::tiny;

const END: u32 = 0;

struct Files {
    folder: tempfile::TempDir,
    options: DatasetOptions,
}

fn file(path: PathBuf) -> TextFile {
    TextFile { path, text_field: "text".to_owned() }
}

/// Four documents, one of them empty, in two files.
fn files(sequence_length: usize) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let paths = vec![folder.path().join("a.jsonl"), folder.path().join("b.txt")];
    fs_err::write(&paths[0], "{\"text\": \"row 1\"}\n{\"text\": \"\"}\n{\"text\": \"and a row 2\"}\n").unwrap();
    fs_err::write(&paths[1], "a whole file\n").unwrap();
    let options = DatasetOptions {
        files: paths.into_iter().map(file).collect(),
        split: Split::All,
        sequence_length,
        packing: Packing::Plain,
        conversations: None,
        eos_token_id: END,
        cache_dir: Some(folder.path().join("cache")),
    };
    Files { folder, options }
}

fn build(options: &DatasetOptions) -> Result<TokenDataset, DataError> {
    TokenDataset::build(options, &tiny(), &mut |_| ())
}

fn stream(dataset: &TokenDataset) -> Vec<u32> {
    let mut out = Vec::new();
    dataset.stream.copy_into(0..dataset.num_tokens(), &mut out).unwrap();
    out
}

#[test]
fn the_stream_is_each_document_with_an_end_of_text_token() {
    let files = files(4);
    let dataset = build(&files.options).unwrap();
    let mut expected = Vec::new();
    for text in ["row 1", "and a row 2", "a whole file\n"] {
        expected.extend(tiny().encode_start(text).unwrap());
        expected.push(END);
    }
    assert_eq!(stream(&dataset), expected);
    assert_eq!((dataset.num_documents(), dataset.num_empty_documents()), (3, 1));
    assert_eq!(dataset.num_rows() * 4 + dataset.num_unused_tokens() + 1, expected.len());
    let batch = dataset.batch(&[1, 0]).unwrap();
    assert_eq!(batch.inputs, [&expected[4..8], &expected[0..4]].concat());
    assert_eq!(batch.targets, [&expected[5..9], &expected[1..5]].concat());
}

#[test]
fn the_token_that_ends_documents_does_not_also_begin_them() {
    let files = files(4);
    let bos = tiny().bos_token().unwrap();
    assert_ne!(bos, END);
    let dataset = build(&DatasetOptions { eos_token_id: bos, ..files.options.clone() }).unwrap();
    let mut expected = Vec::new();
    for text in ["row 1", "and a row 2", "a whole file\n"] {
        expected.extend(tiny().encode(text).unwrap());
        expected.push(bos);
    }
    assert_eq!(stream(&dataset), expected);
}

#[test]
fn a_document_with_a_token_that_the_model_has_no_row_for_is_named() {
    let files = files(4);
    let special = tiny().token(401).unwrap();
    let path = files.folder.path().join("c.jsonl");
    fs_err::write(&path, format!("{{\"text\": \"\"}}\n{{\"text\": \"a\"}}\n{{\"text\": \"b {special}\"}}\n")).unwrap();
    let mut options = files.options.clone();
    options.files.push(file(path));
    build(&options).unwrap();
    let tokenizer = tiny().for_model(401).unwrap();
    let error = TokenDataset::build(&options, &tokenizer, &mut |_| ()).unwrap_err();
    assert!(
        error.to_string().starts_with("document 3 of `") && error.to_string().contains("c.jsonl` cannot"),
        "{error}"
    );
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains(&format!("token `{special}` has the id 401, and the model 401 rows")), "{cause}");
}

#[test]
fn the_second_build_comes_from_the_cache_and_is_the_same() {
    let mut files = files(4);
    let first = build(&files.options).unwrap();
    let second = build(&files.options).unwrap();
    assert_eq!((first.from_cache(), second.from_cache()), (false, true));
    assert_eq!((stream(&first), first.fingerprint()), (stream(&second), second.fingerprint()));
    assert_eq!(second.num_empty_documents(), 1);
    // Another sequence length cuts the same tokens.
    files.options.sequence_length = 3;
    assert!(build(&files.options).unwrap().from_cache());
    // Other text, field, end-of-text token or order does not.
    fs_err::write(&files.options.files[1].path, "another file\n").unwrap();
    assert!(!build(&files.options).unwrap().from_cache());
    files.options.eos_token_id = 1;
    assert!(!build(&files.options).unwrap().from_cache());
    files.options.files.reverse();
    assert!(!build(&files.options).unwrap().from_cache());
    assert!(build(&files.options).unwrap().from_cache());
    files.options.cache_dir = None;
    assert!(!build(&files.options).unwrap().from_cache());
}

#[test]
fn the_tokens_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let row = |index: usize| format!("{{\"text\": \"row {index} {}\"}}\n", "some text ".repeat(index % 50));
    fs_err::write(&path, (0..2000).map(row).collect::<String>()).unwrap();
    let options = DatasetOptions { files: vec![file(path)], cache_dir: None, ..files(8).options };
    let of_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| build(&options).unwrap())
    };
    assert_eq!(stream(&of_threads(1)), stream(&of_threads(4)));
}

#[test]
fn progress_ends_with_everything_done_and_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let row = format!("{{\"text\": \"{}\"}}\n", "text ".repeat(1000));
    fs_err::write(&path, row.repeat(900)).unwrap();
    let bytes_total = row.len() as u64 * 900;
    let options = DatasetOptions { files: vec![file(path)], ..files(8).options };
    let mut seen = Vec::new();
    let dataset = TokenDataset::build(&options, &tiny(), &mut |progress| seen.push(progress)).unwrap();
    assert_eq!(seen.len(), 3, "4.5 MB of text in chunks of 2 MiB");
    assert!(seen.is_sorted_by_key(|progress| progress.bytes_done));
    let tokens = dataset.num_tokens() as u64;
    assert_eq!(seen.last(), Some(&Progress { bytes_done: bytes_total, bytes_total, tokens }));
}

#[test]
fn the_fingerprint_tells_text_sequence_length_and_packing_apart() {
    let files = files(4);
    let dataset = build(&files.options).unwrap();
    assert_eq!(build(&files.options).unwrap().fingerprint(), dataset.fingerprint());
    let shorter = DatasetOptions { sequence_length: 3, ..files.options.clone() };
    let masked = DatasetOptions { packing: Packing::Documents, ..files.options.clone() };
    let best_fit = DatasetOptions { packing: Packing::BestFit, ..files.options.clone() };
    let all = [files.options.clone(), shorter, masked, best_fit].map(|options| build(&options).unwrap().fingerprint());
    assert!((0..4).all(|a| (0..a).all(|b| all[a] != all[b])), "{all:?}");
}

#[test]
fn bad_data_is_an_error_and_leaves_no_cache() {
    let files = files(1000);
    let message = build(&DatasetOptions { cache_dir: None, ..files.options.clone() }).unwrap_err().to_string();
    assert!(message.contains("expected at least 1001, one row of sequence length 1000"), "{message}");
    let bad_id = DatasetOptions { eos_token_id: 9999, ..files.options.clone() };
    assert!(matches!(build(&bad_id), Err(DataError::NoSuchToken { id: 9999, .. })));
    let zero = DatasetOptions { sequence_length: 0, cache_dir: None, ..files.options.clone() };
    assert!(matches!(build(&zero), Err(DataError::TooSmall { name: "sequence_length", .. })));
    fs_err::write(&files.options.files[1].path, b"\xff").unwrap();
    assert!(matches!(build(&files.options), Err(DataError::NotUtf8 { .. })));
    assert!(!files.folder.path().join("cache").exists());
}

#[test]
fn heldout_rows_are_spread_evenly_and_in_order() {
    let tokens: Vec<u32> = (0..101).collect();
    let dataset = TokenDataset::from_tokens(&tokens, 10).unwrap();
    assert_eq!(dataset.heldout_rows(None), (0..10).collect::<Vec<_>>());
    assert_eq!(dataset.heldout_rows(Some(99)), (0..10).collect::<Vec<_>>());
    assert_eq!(dataset.heldout_rows(Some(4)), [0, 2, 5, 7]);
    assert_eq!(dataset.heldout_rows(Some(0)), [0; 0]);
    let batches: Vec<Batch> = dataset.heldout_batches(3, Some(4)).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches, [dataset.batch(&[0, 2, 5]).unwrap(), dataset.batch(&[7]).unwrap()]);
    assert!(dataset.heldout_batches(0, None).is_err());
}

#[test]
fn pieces_of_documents_fill_the_rows() {
    let files = files(4);
    let masked = build(&DatasetOptions { packing: Packing::Documents, ..files.options.clone() }).unwrap();
    let rows: Vec<usize> = (0..masked.num_rows()).collect();
    let batch = masked.batch(&rows).unwrap();
    assert_eq!(batch.pieces.iter().sum::<usize>(), batch.inputs.len());
    let mut start = 0;
    for piece in &batch.pieces {
        let inside = &batch.inputs[start..start + piece - 1];
        assert!(!inside.contains(&END), "{inside:?}");
        start += piece;
        assert!(start % 4 == 0 || batch.inputs[start - 1] == END);
    }
    let plain = build(&files.options).unwrap().batch(&rows).unwrap();
    assert_eq!((&plain.inputs, &plain.targets), (&batch.inputs, &batch.targets));
    assert_eq!(plain.pieces, vec![4; rows.len()]);
    assert!(batch.pieces.len() > rows.len());
}

#[test]
fn best_fit_rows_are_whole_documents_and_as_long_as_they_are() {
    let files = files(12);
    let options = DatasetOptions { packing: Packing::BestFit, ..files.options.clone() };
    let dataset = build(&options).unwrap();
    let documents: Vec<Vec<u32>> = ["row 1", "and a row 2", "a whole file\n"]
        .map(|text| tiny().encode_start(text).unwrap().into_iter().chain([END]).collect())
        .to_vec();
    let rows: Vec<usize> = (0..dataset.num_rows()).collect();
    let batch = dataset.batch(&rows).unwrap();
    assert_eq!(batch.row_lengths.iter().sum::<usize>(), batch.inputs.len());
    assert_eq!((batch.inputs.len(), dataset.num_unused_tokens()), (dataset.num_inputs(), 0));
    assert!(batch.row_lengths.iter().any(|length| *length < 12), "{batch:?}");
    let mut at = 0;
    let mut seen: Vec<Vec<u32>> = Vec::new();
    for piece in &batch.pieces {
        let (inputs, targets) = (&batch.inputs[at..at + piece], &batch.targets[at..at + piece]);
        assert_eq!(inputs[1..], targets[..piece - 1]);
        seen.push([&inputs[..1], targets].concat());
        at += piece;
    }
    seen.sort();
    let mut expected = documents;
    assert!(expected.iter().all(|document| document.len() <= 13), "{expected:?}");
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(dataset.fill(), batch.inputs.len() as f64 / (12 * rows.len()) as f64);
    let by_row: Vec<usize> = batch.row_inputs().map(<[u32]>::len).collect();
    assert_eq!(by_row, batch.row_lengths);
    // From the cache as from memory.
    let memory = build(&DatasetOptions { cache_dir: None, ..options }).unwrap();
    assert_eq!(memory.batch(&rows).unwrap(), batch);
    assert_eq!(memory.fingerprint(), dataset.fingerprint());
}

#[test]
fn files_of_tokens_stand_for_their_text_and_are_checked() {
    let files = files(4);
    let text = build(&files.options).unwrap();
    let folder = text.folder().unwrap().to_owned();
    let shard = folder.join("shard-00000.tokens");
    let options = DatasetOptions { files: vec![file(shard.clone())], cache_dir: None, ..files.options.clone() };
    let tokens = build(&options).unwrap();
    assert_eq!((tokens.fingerprint(), tokens.num_documents()), (text.fingerprint(), 3));
    assert_eq!(tokens.batch(&[1, 0]).unwrap(), text.batch(&[1, 0]).unwrap());
    // Both in a row are a longer stream, with best-fit packing too.
    let copy = files.folder.path().join("copy.TOKENS");
    fs_err::copy(&shard, &copy).unwrap();
    let twice = DatasetOptions { files: vec![file(shard.clone()), file(copy.clone())], ..options.clone() };
    assert_eq!(stream(&build(&twice).unwrap()), stream(&text).repeat(2));
    let packed = build(&DatasetOptions { packing: Packing::BestFit, ..twice }).unwrap();
    assert_eq!(packed.num_inputs(), 2 * (text.num_tokens() - 3));

    let message = |options: &DatasetOptions| build(options).unwrap_err().to_string();
    let with = |files: Vec<TextFile>| DatasetOptions { files, ..options.clone() };
    let other_end = DatasetOptions { eos_token_id: 1, ..options.clone() };
    assert!(message(&other_end).contains("were made with another tokenizer, BOS or end-of-text token\nhint: "));
    let mixed = message(&with(vec![file(shard.clone()), files.options.files[1].clone()]));
    assert!(mixed.contains("b.txt` is text and `") && mixed.contains("expected one kind in a source"), "{mixed}");
    let part = DatasetOptions { split: Split::Train { heldout: 0.5 }, ..options.clone() };
    assert!(message(&part).contains("holds tokens: which documents are held out follows from their text"));
    assert!(matches!(crate::documents(&shard, "text"), Err(DataError::NoText { .. })));
    let bytes = fs_err::read(&shard).unwrap();
    for damaged in [&bytes[..bytes.len() - 1], &bytes[..20], b"no tokens at all"] {
        fs_err::write(&copy, damaged).unwrap();
        assert!(matches!(build(&with(vec![file(copy.clone())])), Err(DataError::DamagedTokens { .. })));
    }
    let all = message(&with(vec![file(copy.clone()), file(files.folder.path().join("absent.tokens"))]));
    assert!(all.contains("absent.tokens` does not exist"), "{all}");
}

#[test]
fn the_parts_hold_every_document_once_and_copies_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let row = |number: usize| format!("{{\"text\": \"row {number}\"}}\n");
    // Each row twice.
    fs_err::write(&path, (0..400).map(|number| row(number % 200)).collect::<String>()).unwrap();
    let options = DatasetOptions { files: vec![file(path)], cache_dir: None, ..files(2).options };
    let documents = |split| {
        let dataset = build(&DatasetOptions { split, ..options.clone() }).unwrap();
        let ids = stream(&dataset);
        let documents: Vec<Vec<u32>> = ids.split(|id| *id == END).map(<[u32]>::to_vec).collect();
        assert_eq!(documents.len() as u64, dataset.num_documents() + 1, "and nothing behind the last end");
        documents[..documents.len() - 1].to_vec()
    };
    let (all, heldout) = (documents(Split::All), documents(Split::Heldout { heldout: 0.2 }));
    let train = documents(Split::Train { heldout: 0.2 });
    assert_eq!(train.len() + heldout.len(), all.len());
    assert!(heldout.iter().all(|document| !train.contains(document)));
    // 40 of 200 expected, with a standard deviation of 5.7: four of those.
    assert!((18..=62).contains(&(heldout.len() / 2)), "{}", heldout.len());
    // A larger fraction takes these and more.
    let more = documents(Split::Heldout { heldout: 0.4 });
    assert!(heldout.iter().all(|document| more.contains(document)) && more.len() > heldout.len());
}

#[test]
fn each_file_has_a_text_field_of_its_own_and_a_part_a_cache_of_its_own() {
    let mut files = files(2);
    fs_err::write(&files.options.files[0].path, "{\"text\": \"row 1\", \"body\": \"row 2\"}\n").unwrap();
    let with = |options: &DatasetOptions| build(options).unwrap();
    let first = with(&files.options);
    files.options.files[0].text_field = "body".to_owned();
    let second = with(&files.options);
    assert!(!second.from_cache() && first.fingerprint() != second.fingerprint());
    let part = DatasetOptions { split: Split::Train { heldout: 1e-9 }, ..files.options.clone() };
    assert!(!with(&part).from_cache() && with(&part).from_cache());
    assert_eq!(with(&part).fingerprint(), second.fingerprint(), "nothing of this is held out");
}
