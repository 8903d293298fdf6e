//! Choice of the block of kept layers that runs again in the recursions after the first.
//!
//! Every run of consecutive kept layers of a length is tried behind gates of [`PROBE`]; for the
//! best one the gates of [`GATES`] are measured, 0 among them. A gate of 0 stays where none lowers
//! the KL: training opens it.

use super::{removal::Kept, report::LoopCandidate, trial::Trial};
use crate::{ConvertError, Phase, Progress};

/// Gate of every candidate.
const PROBE: f32 = 0.2;

/// Further gates of the best candidate.
const GATES: [f32; 4] = [0.1, 0.3, 0.5, 1.0];

/// A block of kept layers that runs again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loop {
    /// Position of its first layer among the kept ones.
    pub first: usize,
    /// Layers of it.
    pub length: usize,
    /// Residual gate of the recursions after the first.
    pub gate: f32,
    /// KL to the source with that gate.
    pub kl: f64,
}

impl Loop {
    /// The source layer of every depth.
    pub fn unroll(&self, kept: &[usize], num_recursions: usize) -> Vec<usize> {
        let (before, from) = kept.split_at(self.first);
        let (block, after) = from.split_at(self.length);
        let again = std::iter::repeat_n(block, num_recursions).flatten();
        before.iter().chain(again).chain(after).copied().collect()
    }

    /// The block by source layers.
    pub fn report(&self, kept: &[usize]) -> LoopCandidate {
        LoopCandidate { layers: kept[self.first..self.first + self.length].to_vec(), gate: self.gate, kl: self.kl }
    }
}

/// Measures blocks of up to `longest` of the kept layers that run `num_recursions` times, with the
/// given gate or that of least KL; gives them from the best one on.
///
/// # Errors
/// When the source cannot be read.
pub(super) fn measure(
    trial: &Trial<'_>,
    kept: &Kept<'_, '_>,
    (longest, num_recursions): (usize, usize),
    gate: Option<f32>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Loop>, ConvertError> {
    let num_kept = kept.layers().len();
    let mut lengths = vec![longest, longest.div_ceil(2)];
    lengths.dedup();
    let blocks: Vec<(usize, usize)> =
        lengths.into_iter().flat_map(|length| (0..=num_kept - length).map(move |first| (first, length))).collect();
    let probe = gate.filter(|gate| *gate != 0.0).unwrap_or(PROBE);
    let mut found = Vec::new();
    for (i, (first, length)) in blocks.iter().enumerate() {
        let candidate = Loop { first: *first, length: *length, gate: probe, kl: 0.0 };
        found.push(candidate.measured(trial, kept, num_recursions)?);
        let name = format!("model.layers.{}", kept.layers()[*first]);
        progress(Progress { phase: Phase::Loop, done: i + 1, total: blocks.len(), tensor: &name });
    }
    found.sort_by(|x, y| x.kl.total_cmp(&y.kl));
    let Some(best) = found.first().copied() else { return Ok(found) };
    let closed = Loop { gate: 0.0, kl: kept.kl_from(num_kept, kept.before(num_kept).to_vec())?, ..best };
    found[0] = match gate {
        Some(0.0) => closed,
        Some(_) => best,
        None => {
            let mut choice = if best.kl < closed.kl { best } else { closed };
            for gate in GATES {
                let other = Loop { gate, ..best }.measured(trial, kept, num_recursions)?;
                if other.kl < choice.kl {
                    choice = other;
                }
            }
            choice
        }
    };
    Ok(found)
}

impl Loop {
    fn measured(self, trial: &Trial<'_>, kept: &Kept<'_, '_>, num_recursions: usize) -> Result<Self, ConvertError> {
        let end = self.first + self.length;
        let mut hidden = kept.before(end).to_vec();
        for _ in 1..num_recursions {
            for layer in &kept.layers()[self.first..end] {
                hidden = trial.run_gated(*layer, self.gate, &hidden)?;
            }
        }
        Ok(Self { kl: kept.kl_from(end, hidden)?, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_listed_once_for_each_recursion() {
        let found = Loop { first: 1, length: 2, gate: 0.2, kl: 0.0 };
        assert_eq!(found.unroll(&[0, 2, 3, 7], 3), [0, 2, 3, 2, 3, 2, 3, 7]);
        assert_eq!(found.report(&[0, 2, 3, 7]).layers, [2, 3]);
    }
}
