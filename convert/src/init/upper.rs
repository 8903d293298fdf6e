//! The last layers of the source (inside the unshared ends).

use super::{InitMethod, one_each};
use retie_config::Init;

pub(super) const UPPER: InitMethod = InitMethod {
    init: Init::Upper,
    sources: |block, _seed| one_each(block.candidates[block.candidates.len() - block.groups.len()..].iter().copied()),
};
