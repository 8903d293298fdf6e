//! `select`: each looped layer is the first source layer of its group, whole.

use super::{InitMethod, one_each};
use retie_config::Init;

pub(super) const SELECT: InitMethod = InitMethod {
    init: Init::Select,
    sources: |block, _seed| one_each(block.groups.iter().filter_map(|group| group.first().copied())),
};
