//! Removal of layers, one after another, each time the one whose loss changes the model least.
//!
//! Greedy by the KL to the source. What a removal costs changes slowly while others go, so that
//! after the first round only the [`CANDIDATES`] cheapest of the round before are measured. At the
//! end layers are exchanged: one more is removed and the best of the removed ones is put back, as
//! long as that helps.

use super::{report::RemovedLayer, trial::Trial};
use crate::{ConvertError, Phase, Progress};

/// Layers that are measured in a round after the first.
const CANDIDATES: usize = 6;

/// Most exchanges at the end.
const EXCHANGES: usize = 3;

/// Kept layers, with the hidden states on their way through them.
pub(super) struct Kept<'t, 'a> {
    trial: &'t Trial<'a>,
    layers: Vec<usize>,
    /// Hidden states before each kept layer, and after the last.
    states: Vec<Vec<f32>>,
}

/// Kept layers and what removing the others cost.
pub(super) struct Removal<'t, 'a> {
    pub kept: Kept<'t, 'a>,
    /// In the order of removal.
    pub removed: Vec<RemovedLayer>,
    /// KL to the source with all of them removed.
    pub kl: f64,
}

impl<'t, 'a> Kept<'t, 'a> {
    fn all(trial: &'t Trial<'a>) -> Result<Self, ConvertError> {
        let mut kept = Self { trial, layers: (0..trial.num_layers()).collect(), states: Vec::new() };
        kept.states.push(trial.embedded().to_vec());
        kept.run_from(0)?;
        Ok(kept)
    }

    /// Source layers, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Hidden states before the kept layer at `position`; after the last for their number.
    pub fn before(&self, position: usize) -> &[f32] {
        &self.states[position]
    }

    /// KL to the source of `hidden` after it went through the kept layers from `position` on.
    pub fn kl_from(&self, position: usize, mut hidden: Vec<f32>) -> Result<f64, ConvertError> {
        for layer in &self.layers[position..] {
            hidden = self.trial.run(*layer, &hidden)?;
        }
        self.trial.kl(&hidden)
    }

    fn kl_without(&self, position: usize) -> Result<f64, ConvertError> {
        self.kl_from(position + 1, self.states[position].clone())
    }

    fn kl_with(&self, layer: usize) -> Result<f64, ConvertError> {
        let position = self.layers.partition_point(|kept| *kept < layer);
        self.kl_from(position, self.trial.run(layer, &self.states[position])?)
    }

    fn remove(&mut self, position: usize) -> Result<(), ConvertError> {
        self.layers.remove(position);
        self.run_from(position)
    }

    fn put_back(&mut self, layer: usize) -> Result<(), ConvertError> {
        let position = self.layers.partition_point(|kept| *kept < layer);
        self.layers.insert(position, layer);
        self.run_from(position)
    }

    /// Runs the kept layers from `position` on again.
    fn run_from(&mut self, position: usize) -> Result<(), ConvertError> {
        self.states.truncate(position + 1);
        for layer in &self.layers[position..] {
            let next = self.trial.run(*layer, &self.states[self.states.len() - 1])?;
            self.states.push(next);
        }
        Ok(())
    }
}

/// Removes layers until `num_kept` are left.
///
/// # Errors
/// When the source cannot be read.
pub(super) fn remove_layers<'t, 'a>(
    trial: &'t Trial<'a>,
    num_kept: usize,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Removal<'t, 'a>, ConvertError> {
    let total = trial.num_layers() - num_kept;
    let mut kept = Kept::all(trial)?;
    let mut costs = vec![0.0; trial.num_layers()]; // KL without a layer, when it was last measured
    let (mut removed, mut kl) = (Vec::new(), 0.0);
    while kept.layers.len() > num_kept {
        let num_candidates = if removed.is_empty() { kept.layers.len() } else { CANDIDATES };
        let layer = cheapest(&kept, &mut costs, num_candidates)?;
        kl = costs[layer];
        kept.remove(kept.layers.partition_point(|kept| *kept < layer))?;
        removed.push(RemovedLayer { layer, kl });
        let name = format!("model.layers.{layer}");
        progress(Progress { phase: Phase::Remove, done: removed.len(), total, tensor: &name });
    }
    for _ in 0..EXCHANGES {
        if kept.layers.len() < 2 || removed.is_empty() {
            break;
        }
        let gone = cheapest(&kept, &mut costs, CANDIDATES)?;
        kept.remove(kept.layers.partition_point(|kept| *kept < gone))?;
        let mut best = (kl, gone);
        for candidate in &removed {
            let found = kept.kl_with(candidate.layer)?;
            if found < best.0 {
                best = (found, candidate.layer);
            }
        }
        kept.put_back(best.1)?;
        if best.1 == gone {
            break;
        }
        kl = best.0;
        removed.retain(|other| other.layer != best.1);
        removed.push(RemovedLayer { layer: gone, kl });
        tracing::debug!(removed = gone, put_back = best.1, kl, "exchanged");
    }
    Ok(Removal { kept, removed, kl })
}

/// Measures the layers that were the cheapest when last measured; gives the cheapest of them.
fn cheapest(kept: &Kept<'_, '_>, costs: &mut [f64], num_candidates: usize) -> Result<usize, ConvertError> {
    let mut positions: Vec<usize> = (0..kept.layers.len()).collect();
    positions.sort_by(|x, y| costs[kept.layers[*x]].total_cmp(&costs[kept.layers[*y]]));
    positions.truncate(num_candidates);
    let mut best = kept.layers[positions[0]];
    let mut least = f64::INFINITY;
    for position in positions {
        let (layer, found) = (kept.layers[position], kept.kl_without(position)?);
        costs[layer] = found;
        if found < least {
            (best, least) = (layer, found);
        }
    }
    Ok(best)
}
