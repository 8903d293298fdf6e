//! The local fit of each block to the teacher's, which has no parameters.

use super::{LossNeeds, LossParameters};
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossKind::Blockwise`]: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockwiseConfig {}

impl LossParameters for BlockwiseConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::SingleDepths
    }
}
