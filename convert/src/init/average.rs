//! Mean over the tied group: each stored layer is the mean of the source layers at the depths that
//! it replaces (RRT §2.2).

use super::InitMethod;
use retie_config::Init;

pub(super) const AVERAGE: InitMethod =
    InitMethod { init: Init::Average, sources: |block, _seed| block.groups.to_vec() };
