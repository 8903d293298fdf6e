//! The first layers of the source (inside the unshared ends).

use super::{InitMethod, one_each};
use retie_config::Init;

pub(super) const LOWER: InitMethod = InitMethod {
    init: Init::Lower,
    sources: |block, _seed| one_each(block.candidates[..block.groups.len()].iter().copied()),
};
