//! Hidden states of the source on their way through its layers, in the order of tied groups.
//!
//! A group of `cycle` has depths that lie far apart. Instead of keeping the moments of every depth
//! until its group is complete, as many streams of hidden states are kept as a group has depths:
//! one pass over the source leaves a copy before each layer that another group's does not lead up
//! to, and then the groups are visited one after the other, each stream going on by one layer (and
//! through the layers after it that no depth stands for). For `sequence` there is one stream, and
//! no pass before.

use super::context::Context;
use crate::ConvertError;
use retie_config::{LayerIndex, Stack};
use std::collections::BTreeMap;

/// Hidden states `[M, D]` before some layers of the source.
pub(super) struct Streams {
    before: BTreeMap<usize, Vec<f32>>,
    /// How often each layer will still be asked for.
    uses: Vec<usize>,
}

/// The source layers of the depths, in the order of their groups.
fn group_order(stack: &Stack) -> impl Iterator<Item = usize> {
    let map = stack.map();
    let depths = (0..map.num_layers()).flat_map(|layer| map.depths_of(LayerIndex(layer)));
    depths.map(|depth| stack.sources()[depth.0])
}

/// Layers that are asked for before the one that leads up to them, so that hidden states before
/// them have to be there from the start.
fn entries(stack: &Stack) -> Vec<usize> {
    let mut visited = vec![false; stack.num_source_layers()];
    let mut entries = Vec::new();
    for layer in group_order(stack) {
        // The nearest layer before that any depth stands for leads up to this one.
        let leads = (0..layer).rev().find(|before| stack.sources().contains(before));
        if !visited[layer] && leads.is_none_or(|before| !visited[before]) {
            entries.push(layer);
        }
        visited[layer] = true;
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
        let stack = &context.plan.stack;
        let mut uses = vec![0; stack.num_source_layers()];
        stack.sources().iter().for_each(|layer| uses[*layer] += 1);
        let mut before = BTreeMap::new();
        let (mut hidden, mut at) = (context.embed(&context.calibration.train)?, 0);
        for entry in entries(stack) {
            hidden = context.source_hidden(hidden, at, entry)?;
            at = entry;
            before.insert(entry, hidden.clone());
        }
        Ok(Self { before, uses })
    }

    /// Takes the hidden states before `layer`.
    ///
    /// # Panics
    /// When layers are not taken in [`group_order`] or what comes after one was not put there.
    pub fn take(&mut self, layer: LayerIndex) -> Vec<f32> {
        let uses = &mut self.uses[layer.0];
        *uses -= 1;
        let hidden = if *uses > 0 { self.before.get(&layer.0).cloned() } else { self.before.remove(&layer.0) };
        match hidden {
            Some(hidden) => hidden,
            None => unreachable!("layer {layer} is taken before its predecessor ran"),
        }
    }

    /// The next layer after `layer` that will be asked for and is not there, if `layer` leads up to
    /// it.
    fn next(&self, layer: LayerIndex) -> Option<usize> {
        let next =
            (layer.0 + 1..self.uses.len()).find(|next| self.uses[*next] > 0 || self.before.contains_key(next))?;
        (!self.before.contains_key(&next)).then_some(next)
    }

    /// Whether what comes after `layer` will be asked for.
    pub fn goes_on(&self, layer: LayerIndex) -> bool {
        self.next(layer).is_some()
    }

    /// Goes on with the hidden states after `layer`.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn put(&mut self, context: &Context<'_>, layer: LayerIndex, hidden: Vec<f32>) -> Result<(), ConvertError> {
        if let Some(next) = self.next(layer) {
            let hidden = context.source_hidden(hidden, layer.0 + 1, next)?;
            self.before.insert(next, hidden);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Pattern, RemainderPolicy, Sharing};

    #[test]
    fn a_cycle_has_an_entry_for_each_recursion_and_a_sequence_has_one() {
        let starts = |n, r, sharing, fit| {
            entries(&Stack::new(n, r, &Pattern::new(sharing, None, None, None).unwrap(), fit).unwrap())
        };
        assert_eq!(starts(6, 2, Sharing::Cycle, None), [0, 3]);
        assert_eq!(starts(6, 3, Sharing::Cycle, None), [0, 2, 4]);
        assert_eq!(starts(8, 2, Sharing::MiddleCycle, None), [0, 4]);
        assert_eq!(starts(8, 2, Sharing::MiddleSequence, None), [0]);
        assert_eq!(starts(6, 2, Sharing::Sequence, None), [0]);
        // 0 1 | 3 4 | 6 7 run, 2 and 5 do not.
        assert_eq!(starts(8, 3, Sharing::Cycle, Some(RemainderPolicy::Drop)), [0, 3, 6]);
        assert_eq!(starts(8, 3, Sharing::Sequence, Some(RemainderPolicy::Drop)), [0]);
        assert_eq!(starts(5, 2, Sharing::Sequence, Some(RemainderPolicy::Repeat)), [0]);
        let map = Stack::new(6, 3, &Pattern::Map(vec![0, 1, 0, 2, 2, 0]), None).unwrap();
        assert_eq!(entries(&map), [0, 2, 5]);
    }
}
