//! Tokens of a set of files on disk, so that a second run does not tokenise again, and none has to
//! hold them in memory.
//!
//! They are in a folder `DIR/<key>`. The key is the SHA-256 of everything that the tokens follow
//! from: the contents of the files in their order, the tokenizer, the BOS and end-of-text ids, the
//! text fields, the part of the documents and the version of this code. So a folder is never out of
//! date, and may be deleted at any time. `shard-NNNNN.tokens` ([`crate::shard`]) hold about
//! [`Sizes::shard_tokens`] tokens each, and where in the files they end; `index.json`, written
//! last, counts them. A folder without it, or with a damaged shard, goes on after the shards that
//! are whole.

mod given;
mod index;

pub(crate) use given::given;

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::document::{encoding, generated, task_contents};
use crate::error::DataError;
use crate::options::{DatasetOptions, Progress};
use crate::shard::{self, Made, ShardFacts, Shards};
use crate::stream::Stream;
use crate::tokenize::{Position, Sizes, document_bos, empty_tokens, tokenize};
use crate::tokenizer::{Tokenizer, hex};
use crate::tokens::Tokens;
use crate::whole_file::remove_abandoned;
use index::Index;

/// Goes up whenever the same text would give other tokens or the layout changes.
const FORMAT_VERSION: u32 = 4;

/// Where the stream of these files belongs. Reads the files whole.
pub(crate) fn folder(dir: &Path, options: &DatasetOptions, tokenizer: &Tokenizer) -> Result<PathBuf, DataError> {
    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&FORMAT_VERSION.to_le_bytes());
    field(tokenizer.fingerprint_of_tokens().as_bytes());
    field(format!("{:?}", document_bos(options, tokenizer)).as_bytes());
    field(&options.eos_token_id.to_le_bytes());
    field(format!("{:?}", options.split).as_bytes());
    if let Some(conversations) = &options.conversations {
        field(conversations.key().as_bytes());
    }
    for file in &options.files {
        field(file.text_field.as_bytes());
        field(encoding(&file.path).as_bytes());
        field(&digest_of_file(&file.path)?);
    }
    Ok(dir.join(hex(&hasher.finalize())))
}

fn digest_of_file(path: &Path) -> Result<[u8; 32], DataError> {
    if let Some(spec) = generated(path) {
        return Ok(Sha256::digest(task_contents(&spec?)).into());
    }
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..read]);
    }
}

/// The shards of a folder that are whole, from the first on.
struct Found {
    shards: Shards,
    facts: Vec<ShardFacts>,
    /// Where in the files they end.
    position: Position,
    /// Digest of their tokens.
    hasher: Sha256,
}

impl Found {
    fn look(folder: &Path, width: u32, made: Made<'_>) -> Result<Self, DataError> {
        let (shards, facts) = (Shards::new(width), Vec::new());
        let mut found = Self { shards, facts, position: Position::default(), hasher: Sha256::new() };
        while let Some(shard) = shard::read(folder, found.facts.len(), width, made, &mut found.hasher)? {
            found.position = shard.after;
            found.facts.push(shard.facts());
            found.shards.push(shard);
        }
        Ok(found)
    }
}

fn made<'a>(options: &DatasetOptions, tokenizer: &'a Tokenizer) -> Made<'a> {
    let bos = document_bos(options, tokenizer);
    // Tokens of conversations are no tokens of text: their bits say more than the id.
    let end_of_text = if options.conversations.is_some() { u32::MAX } else { options.eos_token_id };
    Made { tokenizer: tokenizer.fingerprint_of_tokens(), bos, end_of_text }
}

/// The stream of a folder, which is made or gone on with where it is not whole; and whether it was.
pub(crate) fn stream(
    folder: &Path,
    options: &DatasetOptions,
    tokenizer: &Tokenizer,
    sizes: Sizes,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Stream, bool), DataError> {
    let width = empty_tokens(options, tokenizer).width();
    let mut found = Found::look(folder, width, made(options, tokenizer))?;
    let index = Index::load(folder)?;
    let whole = index.as_ref().is_some_and(|index| index.shards == found.facts);
    if !whole {
        if index.is_some() || !found.facts.is_empty() {
            let (shards, tokens) = (found.facts.len(), found.shards.num_tokens());
            tracing::warn!(path = %folder.display(), shards, tokens, "the token cache is not whole and goes on");
        }
        remove_abandoned(folder)?;
        found = go_on(folder, options, tokenizer, sizes, found, progress)?;
        Index { shards: found.facts.clone() }.store(folder)?;
    }
    let Position { documents, .. } = found.position;
    Ok((Stream::on_disk(found.shards, documents, found.hasher.finalize().into()), whole))
}

fn go_on(
    folder: &Path,
    options: &DatasetOptions,
    tokenizer: &Tokenizer,
    sizes: Sizes,
    mut found: Found,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, DataError> {
    let made = made(options, tokenizer);
    let (from, before) = (found.position, found.shards.num_tokens() as u64);
    let mut store = |tokens: &mut Tokens, after: Position, last: bool| -> Result<(), DataError> {
        // The last one is written also where it is empty: it says what follows after the tokens.
        if tokens.len() >= sizes.shard_tokens || (last && after != found.position) {
            let number = found.facts.len();
            shard::write(folder, number, tokens, after, made)?;
            let shard = shard::read(folder, number, tokens.width(), made, &mut found.hasher)?;
            let shard = shard.ok_or_else(|| DataError::Changed { path: shard::path(folder, number) })?;
            found.position = after;
            found.facts.push(shard.facts());
            found.shards.push(shard);
            tokens.clear();
        }
        Ok(())
    };
    tokenize(options, tokenizer, sizes, (from, before), &mut store, progress)?;
    Ok(found)
}

#[cfg(test)]
mod tests;
