//! Measured cost of routing: bytes of the KV cache and operations of a forward pass, counted while
//! it runs, beside the formulas of [`ModelConfig::cost`](retie_config::ModelConfig::cost) for the
//! fractions of tokens that the recursions selected.

use burn::tensor::{Int, Tensor};
use retie_model::{CausalLm, KvCache, kernels::counted};
use serde::Serialize;
use std::fmt;

/// Cost of windows that were read into a cache, with thresholds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutedCost {
    /// KV sharing of the model.
    pub kv: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens of each window.
    pub tokens: usize,
    /// Bytes of keys and values.
    pub cache_bytes: Beside,
    /// Operations of layers and routers, without the head.
    pub operations: Beside,
    /// Operations of the head, which every token goes through.
    pub head_operations: f64,
}

/// A measured count beside its formulas.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Beside {
    /// Bytes allocated or operations executed.
    pub measured: f64,
    /// Formula for the measured fractions of selected tokens.
    pub formula: f64,
    /// Formula for a model in which every token goes through every recursion.
    pub full_recursion: f64,
}

/// Reads `windows`, all of one length, as a batch. `None` without routers or windows.
pub fn measure_cost(model: &CausalLm, windows: &[&[u32]]) -> Option<RoutedCost> {
    let (config, device) = (model.config(), model.device());
    let recursion = config.recursion.as_ref()?;
    recursion.router.as_ref()?;
    let tokens = windows.first()?.len();
    let ids: Vec<i32> = windows.iter().copied().flatten().map(|id| *id as i32).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device).reshape([windows.len(), tokens]);
    let mut cache = KvCache::for_batch(config, windows.len(), tokens, &device);
    let ((_, trace), done) = counted(|| model.forward_traced(ids, Some(&mut cache)));
    let full = config.full_recursion_cost(tokens);
    let count = windows.len() as f64;
    let comparison =
        |measured: f64, full_recursion: f64| Beside { measured, formula: 0.0, full_recursion: full_recursion * count };
    let mut cache_bytes = comparison(cache.bytes() as f64, full.cache_bytes);
    let mut operations = comparison(done.total() as f64, full.layers());
    for window in 0..windows.len() {
        let rows = window * tokens..(window + 1) * tokens;
        let count_in_window = |selected: &[usize]| selected.iter().filter(|row| rows.contains(row)).count();
        let shares: Vec<f64> =
            trace.decisions().iter().map(|d| count_in_window(d.selected_rows.host()) as f64 / tokens as f64).collect();
        let cost = config.cost(tokens, Some(&shares));
        cache_bytes.formula += cost.cache_bytes;
        operations.formula += cost.layers();
    }
    let kv = recursion.kv_sharing.name().to_owned();
    let head_operations = full.head * count;
    Some(RoutedCost { kv, windows: windows.len(), tokens, cache_bytes, operations, head_operations })
}

impl Beside {
    fn row(self, unit: f64) -> String {
        let Self { measured, formula, full_recursion } = self;
        let [a, b, c] = [measured, formula, full_recursion].map(|x| format!("{:.2}", x / unit));
        let share = 100.0 * measured / full_recursion;
        format!("{a:>10} {b:>10} {c:>10} {share:>9.1} %")
    }
}

impl fmt::Display for RoutedCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kv, windows, tokens, .. } = self;
        writeln!(f, "{windows} windows of {tokens} tokens in a cache, kv {kv}")?;
        writeln!(f, "{:<22} {:>10} {:>10} {:>10} {:>11}", "", "measured", "formula", "full", "of full")?;
        writeln!(f, "{:<22} {}", "keys and values, MB", self.cache_bytes.row(1e6))?;
        write!(f, "{:<22} {}", "operations, GFLOP", self.operations.row(1e9))
    }
}
