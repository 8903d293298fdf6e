//! Tensors of the routers: `model.routers.{r}.…`, one router a recursion.
//!
//! | tensor | shape | when |
//! |---|---|---|
//! | `up_proj.weight` | `[W, D]` | the network has a hidden layer, of width `W` |
//! | `out_proj.weight` | `[1, D]` or `[1, W]` | the network is not `random` |

use retie_config::{ModelConfig, RouterConfig};

/// Name of a tensor of a recursion's router; `part` is e.g. `out_proj.weight`.
#[must_use]
pub fn router_tensor(recursion: usize, part: &str) -> String {
    format!("model.routers.{recursion}.{part}")
}

/// The routers' tensors that `config` implies, recursion by recursion.
#[must_use]
pub fn router_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let Some(recursion) = &config.recursion else { return Vec::new() };
    let Some(RouterConfig::ExpertChoice(router)) = &recursion.router else { return Vec::new() };
    if !router.network.has_weights() {
        return Vec::new();
    }
    let hidden = config.hidden_size;
    let width = router.network.width(hidden);
    let of = |recursion| {
        let up = width.map(|width| (router_tensor(recursion, "up_proj.weight"), vec![width, hidden]));
        let out = (router_tensor(recursion, "out_proj.weight"), vec![1, width.unwrap_or(hidden)]);
        up.into_iter().chain([out])
    };
    (0..recursion.num_recursions).flat_map(of).collect()
}
