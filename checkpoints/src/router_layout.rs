//! Tensors of the routers: `model.routers.{r}.…`, one router a recursion, or one for all (`r` is 0) where each token chooses its depth. Beside
//! them `model.auxiliary_routers.{r}.…`, one a recursion, where inference goes by those.
//!
//! | tensor | shape | when |
//! |---|---|---|
//! | `up_proj.weight` | `[W, D]` | the network has a hidden layer, of width `W` |
//! | `out_proj.weight` | `[O, D]` or `[O, W]` | the network is not `random`; `O` is 1, or the number of depths that a token has the choice of |

use retie_config::{ModelConfig, RouterConfig, RouterNetwork};

/// What a router is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterKind {
    /// It chooses.
    Main,
    /// It learns what another chooses.
    Auxiliary,
}

/// Name of a tensor of a router; `part` is e.g. `out_proj.weight`.
#[must_use]
pub fn router_tensor(kind: RouterKind, index: usize, part: &str) -> String {
    let routers = match kind {
        RouterKind::Main => "routers",
        RouterKind::Auxiliary => "auxiliary_routers",
    };
    format!("model.{routers}.{index}.{part}")
}

/// Number of routers with weights.
#[must_use]
pub fn num_routers(kind: RouterKind, config: &ModelConfig) -> usize {
    of(kind, config).map_or(0, |routers| routers.count)
}

/// The routers' tensors that `config` implies, kind by kind, router by router.
#[must_use]
pub fn router_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let tensors = |kind| {
        let routers = of(kind, config).into_iter();
        routers.flat_map(move |Routers { count, outputs, network }| {
            let width = network.width(hidden);
            (0..count).flat_map(move |index| {
                let up = width.map(|width| (router_tensor(kind, index, "up_proj.weight"), vec![width, hidden]));
                let out = (router_tensor(kind, index, "out_proj.weight"), vec![outputs, width.unwrap_or(hidden)]);
                up.into_iter().chain([out])
            })
        })
    };
    tensors(RouterKind::Main).chain(tensors(RouterKind::Auxiliary)).collect()
}

struct Routers {
    count: usize,
    outputs: usize,
    network: RouterNetwork,
}

fn of(kind: RouterKind, config: &ModelConfig) -> Option<Routers> {
    let recursion = config.recursion.as_ref()?;
    let depths = recursion.num_recursions;
    let routers = match (kind, recursion.router.as_ref()?) {
        (RouterKind::Main, RouterConfig::ExpertChoice(router)) => {
            Routers { count: depths, outputs: 1, network: router.network }
        }
        (RouterKind::Main, RouterConfig::TokenChoice(router)) => {
            Routers { count: 1, outputs: depths, network: router.network }
        }
        (RouterKind::Auxiliary, RouterConfig::ExpertChoice(router)) => {
            Routers { count: depths, outputs: 1, network: router.auxiliary? }
        }
        (RouterKind::Auxiliary, RouterConfig::TokenChoice(_)) => return None,
    };
    routers.network.has_weights().then_some(routers)
}
