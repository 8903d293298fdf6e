//! Texts: lines of JSON, parquet, arrow, compressed files, and the shards of tokenised text.

use super::Target;
use crate::Workdir;
use retie_data::document::conversations;
use retie_data::{
    DataError, DatasetOptions, Documents, Packing, Split, TextFile, TokenDataset, Tokenizer, documents, parquet_rows,
};
use std::{cell::OnceCell, path::Path};

pub const JSONL: Target =
    Target { name: "jsonl", files: &["text.jsonl"], run: |input, dir| read(&dir.write("text.jsonl", input)) };

pub const PARQUET: Target = Target {
    name: "parquet",
    files: &["text.parquet"],
    run: |input, dir| {
        let path = dir.write("text.parquet", input);
        read(&path);
        read_all(conversations(&path, "messages"));
        _ = parquet_rows(&path);
    },
};

pub const ARROW: Target =
    Target { name: "arrow", files: &["text.arrow"], run: |input, dir| read(&dir.write("text.arrow", input)) };

pub const COMPRESSED: Target = Target {
    name: "compressed",
    files: &["text.jsonl.gz", "text.jsonl.zst"],
    run: |input, dir| {
        read(&dir.write("text.jsonl.gz", input));
        read(&dir.write("text.jsonl.zst", input));
    },
};

pub const TOKENS: Target = Target { name: "tokens", files: &["shard-00000.tokens"], run: tokens };

/// A decompressed file may be larger than its bytes by what its format can pack; more of it is not
/// read.
const MOST_TEXT: usize = 4 << 20;

fn read(path: &Path) {
    read_all(documents(path, "text"));
}

fn read_all(documents: Result<Documents, DataError>) {
    let Ok(documents) = documents else { return };
    let mut total = 0;
    for document in documents {
        let Ok(document) = document else { return };
        total += document.text.len();
        if total > MOST_TEXT {
            return;
        }
    }
}

fn tokens(input: &[u8], dir: &Workdir) {
    thread_local! {
        static TOKENIZER: OnceCell<Option<Tokenizer>> = const { OnceCell::new() };
    }
    // A digest that fits lets what stands before and after it through.
    let mut bytes = input.to_vec();
    fix_digest(&mut bytes);
    let path = dir.write("shard-00000.tokens", &bytes);
    let options = DatasetOptions {
        files: vec![TextFile { path, text_field: "text".to_owned() }],
        split: Split::All,
        sequence_length: 4,
        packing: Packing::Plain,
        eos_token_id: 0,
        conversations: None,
        cache_dir: None,
    };
    TOKENIZER.with(|tokenizer| {
        let Some(tokenizer) = tokenizer.get_or_init(super::tokenizer::tiny) else { panic!("the tokenizer") };
        let Ok(dataset) = TokenDataset::build(&options, tokenizer, &mut |_| ()) else { return };
        for row in 0..dataset.num_rows().min(64) {
            _ = dataset.batch(&[row]);
        }
    });
}

/// Bytes of the header before its digest, and of the digest.
const FACTS_BYTES: usize = 8 + 4 + 6 * 8 + 64 + 4 + 4;
const DIGEST_BYTES: usize = 32;

fn fix_digest(bytes: &mut [u8]) {
    use sha2::{Digest, Sha256};
    if bytes.len() < FACTS_BYTES + DIGEST_BYTES {
        return;
    }
    let (before, rest) = bytes.split_at_mut(FACTS_BYTES);
    let (digest, after) = rest.split_at_mut(DIGEST_BYTES);
    digest.copy_from_slice(&Sha256::new().chain_update(before).chain_update(after).finalize());
}
