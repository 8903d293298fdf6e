//! Shards that are named as data files: tokens without their text.

use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::options::DatasetOptions;
use crate::shard::{self, Fault, Shards};
use crate::stream::Stream;
use crate::tokenize::DocumentCounts;
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;

/// The stream of the shards that `options` names, in that order. They are read where they lie.
///
/// # Errors
/// One is damaged, or made with another tokenizer, BOS or end-of-text token; all such are named.
pub(crate) fn given(options: &DatasetOptions, tokenizer: &Tokenizer) -> Result<Stream, DataError> {
    let width = Tokens::for_ids_up_to(tokenizer.largest_id()).width();
    let made = super::made(options, tokenizer);
    let (mut shards, mut hasher, mut errors) = (Shards::new(width), Sha256::new(), Vec::new());
    for file in &options.files {
        let path = file.path.clone();
        match shard::open(&path, width, made, &mut hasher)? {
            Ok((shard, _)) => shards.push(shard),
            Err(Fault::Absent) => errors.push(DataError::NotAFile { path, problem: "does not exist" }),
            Err(Fault::Damaged) => errors.push(DataError::DamagedTokens { path }),
            Err(Fault::Other) => errors.push(DataError::OtherTokens { path }),
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(errors.remove(0)),
        _ => return Err(DataError::Files(errors)),
    }
    let mut stream = Stream::on_disk(shards, DocumentCounts::default(), hasher.finalize().into());
    // The counts of a shard include shards that need not be among these.
    let mut num_documents = 0;
    stream.documents(|token| token == options.eos_token_id, |_| num_documents += 1)?;
    stream.num_documents = num_documents;
    Ok(stream)
}
