//! What routing saves: bytes of a cache and operations of a forward pass, counted while it runs, beside the formulas of
//! [`ModelConfig::cost`](retie_config::ModelConfig::cost) for the shares that were taken.

use burn::tensor::{Int, Tensor};
use retie_model::{CausalLm, KvCache, Routing, kernels::counted};
use serde::Serialize;
use std::fmt;

/// Of windows that were read into a cache, with thresholds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutedCost {
    /// What the tokens of a recursion attend to.
    pub kv: String,
    /// Windows.
    pub windows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Keys and values.
    pub cache_bytes: Beside,
    /// Multiplications and additions of the layers and routers, without the head.
    pub operations: Beside,
    /// Operations of the head, which every token pays for its logits.
    pub head_operations: f64,
}

/// A count and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Beside {
    /// Allocated, or done.
    pub measured: f64,
    /// By formula, for the shares that were taken.
    pub formula: f64,
    /// By formula, where every token goes through every recursion.
    pub full_depth: f64,
}

/// Reads `windows`, of one length, as a batch; `None` without routers or windows.
pub fn measure_cost(model: &CausalLm, windows: &[&[u32]]) -> Option<RoutedCost> {
    let (config, device) = (model.config(), model.device());
    let router = config.recursion.as_ref()?.router.as_ref()?;
    let tokens = windows.first()?.len();
    let ids: Vec<i32> = windows.iter().copied().flatten().map(|id| *id as i32).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device).reshape([windows.len(), tokens]);
    let mut cache = KvCache::new(config, windows.len(), tokens, &device);
    let mut routing = Routing::default();
    let (_, done) = counted(|| model.forward_with(ids, Some(&mut cache), &mut routing));
    let full = config.cost(tokens, None).ok()?;
    let count = windows.len() as f64;
    let of_windows = |measured: f64, full_depth: f64| Beside { measured, formula: 0.0, full_depth: full_depth * count };
    let mut cache_bytes = of_windows(cache.bytes() as f64, full.cache_bytes);
    let mut operations = of_windows(done.total() as f64, full.linear + full.attention);
    for window in 0..windows.len() {
        let rows = window * tokens..(window + 1) * tokens;
        let taken = |chosen: &[usize]| chosen.iter().filter(|row| rows.contains(row)).count();
        let shares: Vec<f64> = routing.decisions().iter().map(|d| taken(&d.chosen) as f64 / tokens as f64).collect();
        let cost = config.cost(tokens, Some(&shares)).ok()?;
        cache_bytes.formula += cost.cache_bytes;
        operations.formula += cost.linear + cost.attention;
    }
    let kv = router.kv().name().to_owned();
    let head_operations = full.head * count;
    Some(RoutedCost { kv, windows: windows.len(), tokens, cache_bytes, operations, head_operations })
}

impl Beside {
    fn row(self, unit: f64) -> String {
        let Self { measured, formula, full_depth } = self;
        let [a, b, c] = [measured, formula, full_depth].map(|x| format!("{:.2}", x / unit));
        let share = 100.0 * measured / full_depth;
        format!("{a:>10} {b:>10} {c:>10} {share:>9.1} %")
    }
}

impl fmt::Display for RoutedCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kv, windows, tokens, .. } = self;
        writeln!(f, "{windows} windows of {tokens} tokens in a cache, kv {kv}")?;
        writeln!(f, "{:<22} {:>10} {:>10} {:>10} {:>11}", "", "measured", "formula", "full depth", "of full")?;
        writeln!(f, "{:<22} {}", "keys and values, MB", self.cache_bytes.row(1e6))?;
        write!(f, "{:<22} {}", "operations, GFLOP", self.operations.row(1e9))
    }
}
