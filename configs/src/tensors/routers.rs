//! Tensors of the routers: `model.routers.{r}.…`, one router per recursion, or a single one (`r` =
//! 0) under token choice; and `model.auxiliary_routers.{r}.…`, one per recursion, if inference uses
//! them.
//!
//! | tensor | shape | when |
//! |---|---|---|
//! | `up_proj.weight` | `[W, D]` | the network has a hidden layer, of width `W` |
//! | `out_proj.weight` | `[O, D]` or `[O, W]` | the network is not `random` |
//!
//! `O` is 1, or the number of recursion counts to select from.
//!
//! The output layer starts at zero with gating `delta`, so that under a sigmoid with `alpha: 2`
//! every gate is exactly 1. It also starts at zero under token choice with a gating that keeps the
//! output of the block, so that all counts score alike and every token goes through all recursions.
//! Otherwise, and in hidden layers, weights are drawn from `N(0, initializer_range²)`, as in the
//! reference implementation.

use super::{TensorInit, TensorList, TensorOwner, TensorPart, TensorRole};
use crate::{ModelConfig, RouterNetworks};

/// The purpose of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouterKind {
    /// Scores tokens for the recursions.
    Main,
    /// Predicts what a top-k router selects.
    Auxiliary,
}

impl RouterKind {
    /// Every kind, in the order of the checkpoint.
    pub const ALL: [Self; 2] = [Self::Main, Self::Auxiliary];
}

/// Standard deviation of new weights where `config.json` has no `initializer_range`: the default of
/// transformers.
const INITIALIZER_RANGE: f64 = 0.02;

impl ModelConfig {
    /// Number of routers of a kind that have weights.
    #[must_use]
    pub fn num_routers(&self, kind: RouterKind) -> usize {
        self.routers_of_kind(kind).map_or(0, |(routers, _)| routers.count)
    }

    pub(super) fn add_routers(&self, list: &mut TensorList<'_>) {
        for kind in RouterKind::ALL {
            let Some((RouterNetworks { count, outputs, network }, output_init)) = self.routers_of_kind(kind) else {
                continue;
            };
            let (hidden, width) = (self.hidden_size, network.width(self.hidden_size));
            for owner in (0..count).map(|index| TensorOwner::Router(kind, index)) {
                if let Some(width) = width {
                    let init = self.drawn();
                    list.add(owner, TensorRole::RouterUp, TensorPart::Weight, &[width, hidden], init);
                }
                let shape = [outputs, width.unwrap_or(hidden)];
                list.add(owner, TensorRole::RouterOut, TensorPart::Weight, &shape, output_init);
            }
        }
    }

    /// Start of weights that are drawn.
    pub(crate) fn drawn(&self) -> TensorInit {
        let std = self.other.get("initializer_range").and_then(serde_json::Value::as_f64).unwrap_or(INITIALIZER_RANGE);
        TensorInit::Normal { std }
    }

    /// Routers of a kind that have weights, and the initial values of their output layers.
    fn routers_of_kind(&self, kind: RouterKind) -> Option<(RouterNetworks, TensorInit)> {
        let recursion = self.recursion.as_ref()?;
        let router = recursion.router.as_ref()?.spec();
        let (routers, starts_at_zero) = match kind {
            RouterKind::Main => (router.routers(recursion.num_recursions), router.starts_at_zero()),
            RouterKind::Auxiliary => (router.auxiliary_routers(recursion.num_recursions)?, false),
        };
        let output_init = if starts_at_zero { TensorInit::Constant(0.0) } else { self.drawn() };
        routers.network.has_weights().then_some((routers, output_init))
    }
}
