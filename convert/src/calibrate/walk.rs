//! Hidden states of the source on their way through the layers, in the order of tied groups.
//!
//! A group of `cycle` has depths that lie far apart. Instead of keeping the moments of every depth until its group is complete, as many
//! streams of hidden states are kept as a group has depths: one pass over the source leaves a copy before each depth that another
//! group's does not lead up to, and then the groups are visited one after the other, each stream going on by one depth.
//! For `sequence` there is one stream, and no pass before.

use super::context::Context;
use crate::ConvertError;
use retie_config::{LayerIndex, ShareMap};
use std::collections::BTreeMap;

/// Hidden states `[M, D]` before some depths.
pub(super) struct Streams {
    before: BTreeMap<usize, Vec<f32>>,
    /// Depths that were taken.
    taken: Vec<bool>,
}

/// The depths in the order of their groups.
pub(super) fn group_order(map: &ShareMap) -> impl Iterator<Item = usize> {
    (0..map.num_layers()).flat_map(|layer| map.depths_of(LayerIndex(layer))).map(|depth| depth.0)
}

/// Depths whose predecessor comes later in that order, so that hidden states before them have to be there from the start.
fn entries(map: &ShareMap) -> Vec<usize> {
    let mut visited = vec![false; map.num_depths()];
    let mut entries = Vec::new();
    for depth in group_order(map) {
        if depth == 0 || !visited[depth - 1] {
            entries.push(depth);
        }
        visited[depth] = true;
    }
    entries.sort_unstable();
    entries
}

impl Streams {
    /// Runs the source up to the last entry.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn start(context: &Context<'_>) -> Result<Self, ConvertError> {
        let map = &context.plan.map;
        let entries = entries(map);
        let mut before = BTreeMap::new();
        let mut hidden = context.embed(&context.calibration.fit)?;
        for depth in 0..=entries.last().copied().unwrap_or(0) {
            if entries.contains(&depth) {
                before.insert(depth, hidden.clone());
            }
            if entries.last() != Some(&depth) {
                hidden = context.run(context.source_run(depth, None), &hidden, &mut |_| {})?;
            }
        }
        Ok(Self { before, taken: vec![false; map.num_depths()] })
    }

    /// Takes the hidden states before `depth`.
    ///
    /// # Panics
    /// When depths are not taken in [`group_order`] or what comes after one was not put there.
    pub fn take(&mut self, depth: usize) -> Vec<f32> {
        self.taken[depth] = true;
        match self.before.remove(&depth) {
            Some(hidden) => hidden,
            None => unreachable!("depth {depth} is taken before its predecessor ran"),
        }
    }

    /// Whether the hidden states before `depth` will be asked for.
    pub fn wants(&self, depth: usize) -> bool {
        self.taken.get(depth) == Some(&false) && !self.before.contains_key(&depth)
    }

    /// Puts them there.
    pub fn put(&mut self, depth: usize, hidden: Vec<f32>) {
        if self.wants(depth) {
            self.before.insert(depth, hidden);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::Sharing;

    #[test]
    fn a_cycle_has_an_entry_for_each_recursion_and_a_sequence_has_one() {
        let entries = |n, r, sharing| entries(&ShareMap::new(n, r, sharing).unwrap());
        assert_eq!(entries(6, 2, Sharing::Cycle), [0, 3]);
        assert_eq!(entries(6, 3, Sharing::Cycle), [0, 2, 4]);
        assert_eq!(entries(8, 2, Sharing::MiddleCycle), [0, 4]);
        assert_eq!(entries(8, 2, Sharing::MiddleSequence), [0]);
        assert_eq!(entries(6, 2, Sharing::Sequence), [0]);
    }
}
