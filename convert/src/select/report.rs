//! Report of a selection, part of `convert.json`, shown as text.

use retie_config::SelectBy;
use retie_report::number::grouped;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};

/// Candidates for a loop that are shown.
const SHOWN: usize = 5;

/// Source layers that were chosen by measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectionReport {
    /// Budget as it was asked for.
    pub budget: String,
    /// Budget in parameters.
    pub allowed_parameters: usize,
    /// Tokens on which the KL to the source was measured.
    pub tokens: usize,
    /// What these are.
    #[serde(default)]
    pub select_by: SelectBy,
    /// Source layers that are kept, ascending.
    pub kept: Vec<usize>,
    /// Source layers that are removed, in the order of removal.
    pub removed: Vec<RemovedLayer>,
    /// KL of the kept layers to the source, nats per token, before compensation.
    pub kl: f64,
    /// Blocks of kept layers that were tried as a loop, from the best one on; the first is looped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loops: Vec<LoopCandidate>,
}

/// A source layer that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovedLayer {
    /// Its number.
    pub layer: usize,
    /// KL to the source without it and those before it, nats per token.
    pub kl: f64,
}

/// A block that was tried as a loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoopCandidate {
    /// Its source layers.
    pub layers: Vec<usize>,
    /// Residual gate of the recursions after the first.
    pub gate: f32,
    /// KL to the source, nats per token, before compensation.
    pub kl: f64,
}

impl Display for SelectionReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let list = |layers: &[usize]| layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        writeln!(
            f,
            "{} of {} layers kept within {} parameters ({}), by the KL to the source on {} tokens{}",
            self.kept.len(),
            self.kept.len() + self.removed.len(),
            grouped(self.allowed_parameters as u64),
            self.budget,
            grouped(self.tokens as u64),
            if self.select_by == SelectBy::Copying { ", part of them of repeated text" } else { "" }
        )?;
        writeln!(f, "kept: {}", list(&self.kept))?;
        writeln!(f, "\n{:>7} {:>8}", "removed", "KL")?;
        for RemovedLayer { layer, kl } in &self.removed {
            writeln!(f, "{layer:>7} {kl:>8.4}")?;
        }
        if !self.loops.is_empty() {
            writeln!(f, "\n{:>8} {:>5}  looped layers", "KL", "gate")?;
            writeln!(f, "{:>8.4} {:>5}  none", self.kl, "–")?;
        }
        for LoopCandidate { layers, gate, kl } in self.loops.iter().take(SHOWN) {
            writeln!(f, "{kl:>8.4} {gate:>5}  {}", list(layers))?;
        }
        Ok(())
    }
}
