//! Folders of tokens: what is read back, what goes on, what counts as not whole.

use super::*;
use crate::options::{Split, TextFile};
use crate::pack::Packing;
use crate::tokenize::DocumentCounts;
use crate::tokenizer::tests::tiny;

/// A few documents are tokenised together, and a shard has 100 tokens or some more.
const SIZES: Sizes = Sizes { chunk_bytes: 64, shard_tokens: 100 };

/// Two files of 60 documents, with some empty ones.
fn options(folder: &Path) -> DatasetOptions {
    let file = |name: &str, rows: std::ops::Range<usize>| {
        let path = folder.join(name);
        let row = |row: usize| match row % 7 {
            3 => "{\"text\": \"\"}\n".to_owned(),
            _ => format!("{{\"text\": \"row {row} {}\"}}\n", "and ".repeat(row % 5)),
        };
        fs_err::write(&path, rows.map(row).collect::<String>()).unwrap();
        TextFile { path, text_field: "text".to_owned() }
    };
    DatasetOptions {
        files: vec![file("a.jsonl", 0..60), file("b.jsonl", 60..120)],
        split: Split::All,
        sequence_length: 4,
        packing: Packing::Plain,
        eos_token_id: 0,
        conversations: None,
        cache_dir: None,
    }
}

fn make(cache: &Path, options: &DatasetOptions) -> (Stream, bool) {
    stream(cache, options, &tiny(), SIZES, &mut |_| ()).unwrap()
}

fn tokens(stream: &Stream) -> Vec<u32> {
    let mut out = Vec::new();
    stream.copy_into(0..stream.num_tokens, &mut out).unwrap();
    out
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs_err::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn tokens_on_disk_are_those_in_memory_across_the_ends_of_shards() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let cache = folder.path().join("cache");
    let (made, was_whole) = make(&cache, &options);
    assert!(!was_whole && files(&cache).len() > 4, "{} files", files(&cache).len());
    let mut whole = Tokens::for_ids_up_to(tiny().largest_id());
    let mut keep = |tokens: &mut Tokens, after: Position, last: bool| {
        if last {
            std::mem::swap(tokens, &mut whole);
            assert_eq!((after.documents.with_text, after.documents.without), (103, 17));
        }
        Ok(())
    };
    tokenize(&options, &tiny(), SIZES, (Position::default(), 0), &mut keep, &mut |_| ()).unwrap();
    let memory = Stream::in_memory(whole, DocumentCounts { with_text: 103, without: 17 });
    assert_eq!(tokens(&made), tokens(&memory));
    assert_eq!((made.digest, made.num_documents), (memory.digest, memory.num_documents));
    for start in [0, 90, 95, 100, 350] {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        made.copy_into(start..start + 120, &mut a).unwrap();
        memory.copy_into(start..start + 120, &mut b).unwrap();
        assert_eq!(a, b);
    }
    let (again, was_whole) = make(&cache, &options);
    assert!(was_whole);
    assert_eq!((again.digest, again.num_empty_documents), (made.digest, 17));
}

#[test]
fn a_folder_goes_on_after_the_shards_that_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let cache = folder.path().join("cache");
    let (made, _) = make(&cache, &options);
    let whole = files(&cache);
    let last = whole.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "tokens")).count() - 1;
    for number in 0..=last {
        let bytes = fs_err::read(shard::path(&cache, number)).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() - 1] ^= 1;
        let mut other_position = bytes.clone();
        other_position[40] ^= 1;
        for damaged in
            [None, Some(&bytes[..20]), Some(&bytes[..bytes.len() - 1]), Some(&changed), Some(&other_position)]
        {
            match damaged {
                None => fs_err::remove_file(shard::path(&cache, number)).unwrap(),
                Some(bytes) => fs_err::write(shard::path(&cache, number), bytes).unwrap(),
            }
            let (stream, was_whole) = make(&cache, &options);
            assert!(!was_whole && stream.digest == made.digest, "shard {number}");
            assert_eq!(files(&cache), whole, "shard {number}");
        }
    }
    // A process that is killed leaves no index.
    fs_err::remove_file(cache.join("index.json")).unwrap();
    fs_err::remove_file(shard::path(&cache, last)).unwrap();
    let mut began = None;
    let mut see = |progress: Progress| began = began.or(Some(progress.tokens));
    let (stream, _) = super::stream(&cache, &options, &tiny(), SIZES, &mut see).unwrap();
    assert!(began.unwrap() > 300, "what is there is not tokenised again");
    assert_eq!((stream.digest, files(&cache)), (made.digest, whole));
}
