//! Depths that differ in kind: one sees a window of the text, or rotates queries and keys in
//! another way, than the next.
//!
//! Weights that were trained for one kind are tied with those of another only when asked for. Each
//! depth keeps its own kind.

use crate::ConvertError;
use retie_config::{Depth, LayerIndex, ModelConfig, Pattern, ShareMap, Sharing, dividing_recursions};

/// The stored layers whose depths are not all of one kind.
pub(crate) fn mixed_layers(config: &ModelConfig, map: &ShareMap) -> Vec<LayerIndex> {
    let kind = |depth: &Depth| config.anatomy.depths[depth.0];
    let is_mixed = |layer: &LayerIndex| map.depths_of(*layer).windows(2).any(|pair| kind(&pair[0]) != kind(&pair[1]));
    (0..map.num_layers()).map(LayerIndex).filter(is_mixed).collect()
}

/// Refuses a map that ties depths of several kinds.
pub(crate) fn check(config: &ModelConfig, map: &ShareMap) -> Result<(), ConvertError> {
    let Some(layer) = mixed_layers(config, map).first().copied() else { return Ok(()) };
    let depths = map.depths_of(layer);
    let describe =
        |depth: &Depth| format!("depth {depth} ({})", config.anatomy.describe(config.anatomy.depths[depth.0]));
    let first = config.anatomy.depths[depths[0].0];
    let other = depths.iter().find(|depth| config.anatomy.depths[depth.0] != first).unwrap_or(&depths[0]);
    Err(ConvertError::MixedKinds {
        sharing: map.sharing(),
        num_recursions: map.num_recursions(),
        layer,
        depths: [describe(&depths[0]), describe(other)],
        fits: fits(config, map.num_recursions()),
    })
}

/// What ties depths of one kind only: `` `cycle` with 3 ``, …, and if none of these has the
/// `wanted` recursions a loop with them.
fn fits(config: &ModelConfig, wanted: usize) -> Vec<String> {
    let num_depths = config.num_hidden_layers;
    let recursions = |sharing: Sharing| {
        let fits = dividing_recursions(num_depths, sharing).into_iter().filter(move |recursions| {
            *recursions > 1
                && ShareMap::new(num_depths, *recursions, sharing)
                    .is_ok_and(|map| mixed_layers(config, &map).is_empty())
        });
        let numbers: Vec<String> = fits.map(|recursions| recursions.to_string()).collect();
        (!numbers.is_empty()).then(|| format!("`{sharing}` with {}", numbers.join(", ")))
    };
    let has_wanted = Sharing::ALL.into_iter().any(|sharing| {
        ShareMap::new(num_depths, wanted, sharing).is_ok_and(|map| mixed_layers(config, &map).is_empty())
    });
    let between = (!has_wanted).then(|| between(config, wanted)).flatten();
    Sharing::ALL.into_iter().filter_map(recursions).chain(between).collect()
}

/// The longest loop whose layers each serve one kind, as far in the middle as it fits.
fn between(config: &ModelConfig, recursions: usize) -> Option<String> {
    let num_depths = config.num_hidden_layers;
    let mut loops = (2..num_depths).flat_map(|unshared| {
        // From the middle outwards.
        let mut preludes: Vec<usize> = (0..=unshared).collect();
        preludes.sort_by_key(|prelude| (2 * prelude).abs_diff(unshared));
        preludes.into_iter().map(move |prelude| (prelude, unshared - prelude))
    });
    let named = |(prelude, coda): (usize, usize)| {
        [Sharing::Cycle, Sharing::Sequence].into_iter().find_map(|sharing| {
            let pattern = Pattern::new(sharing, Some(prelude), Some(coda), None).ok()?;
            let map = ShareMap::lay(&pattern, num_depths, recursions).ok()?;
            mixed_layers(config, &map)
                .is_empty()
                .then(|| format!("`{sharing}` with {recursions}, `prelude` {prelude} and `coda` {coda}"))
        })
    };
    loops.find_map(named)
}

/// What the report says of layers that serve several kinds of depths.
pub(crate) fn note(config: &ModelConfig, map: &ShareMap) -> Option<String> {
    let layers: Vec<String> = mixed_layers(config, map).iter().map(ToString::to_string).collect();
    (!layers.is_empty()).then(|| {
        format!(
            "depths of different kinds share layers {}: each depth keeps its own window and rotation, with weights that were \
             trained for several",
            layers.join(", ")
        )
    })
}
