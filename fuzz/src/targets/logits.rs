//! A cache of a teacher's distributions: `logits.json`, and one shard. The input is the first up to
//! a byte 0, then the second.

use super::Target;
use crate::Workdir;
use retie_data::logits::LogitsCache;

pub const LOGITS: Target = Target { name: "logits", files: &["logits.json", "shard-00000.logits"], run: logits };

fn logits(input: &[u8], dir: &Workdir) {
    let end = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
    let (meta, shard) = input.split_at(end);
    let mut shard = shard.get(1..).unwrap_or_default().to_vec();
    fix_digest(&mut shard);
    dir.write("logits.json", meta);
    dir.write("shard-00000.logits", &shard);
    let Ok(cache) = LogitsCache::open(dir.path()) else { return };
    for row in 0..cache.meta().rows.min(64) {
        _ = cache.read(&[row], |ids, log_probs| assert_eq!(ids.len() + 1, log_probs.len()));
    }
}

/// Bytes of a shard before its digest, and of the digest.
const FACTS_BYTES: usize = 8 + 8 + 8;
const DIGEST_BYTES: usize = 32;

/// A digest that fits lets what stands after it through.
fn fix_digest(shard: &mut [u8]) {
    use sha2::{Digest, Sha256};
    if shard.len() < FACTS_BYTES + DIGEST_BYTES {
        return;
    }
    let (before, after) = shard.split_at_mut(FACTS_BYTES + DIGEST_BYTES);
    before[FACTS_BYTES..].copy_from_slice(&Sha256::digest(&*after));
}
