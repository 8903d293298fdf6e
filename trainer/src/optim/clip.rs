//! Gradient clipping by global norm, as `torch.nn.utils.clip_grad_norm_`: one norm for each
//! [`ClipGroup`].

use retie_config::ClipGroup;
use std::collections::BTreeMap;

/// Added to the norm before it divides, as torch does.
const CLIP_EPS: f64 = 1e-6;

/// L2 norms of the gradients of a step.
#[derive(Clone, Debug, Default)]
pub struct ClipNorms(BTreeMap<ClipGroup, f64>);

impl ClipNorms {
    /// From squared norms of single parameters.
    pub fn from_squares(squares: impl Iterator<Item = (ClipGroup, f64)>) -> Self {
        let mut sums: BTreeMap<ClipGroup, f64> = BTreeMap::new();
        squares.for_each(|(group, squares)| *sums.entry(group).or_default() += squares);
        Self(sums.into_iter().map(|(group, sum)| (group, sum.sqrt())).collect())
    }

    /// The norm of a group; 0 where it has no gradient.
    pub fn get(&self, group: ClipGroup) -> f64 {
        self.0.get(&group).copied().unwrap_or(0.0)
    }

    /// The model's norm, or that of another group if it is not finite: such a step is not to be
    /// made.
    pub fn reported(&self) -> f64 {
        let others = self.0.iter().filter(|(group, _)| **group != ClipGroup::Model);
        let bad = others.map(|(_, norm)| *norm).find(|norm| !norm.is_finite());
        bad.unwrap_or_else(|| self.get(ClipGroup::Model))
    }
}

/// Factor that scales gradients of norm `norm` down to `max_norm`, if they are larger.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    (max_norm / (norm + CLIP_EPS)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_routers_do_not_change_the_norm_that_clips_the_model() {
        let norms = |auxiliary: f64| {
            let squares = [(ClipGroup::Model, 9.0), (ClipGroup::AuxiliaryRouters, auxiliary), (ClipGroup::Model, 16.0)];
            ClipNorms::from_squares(squares.into_iter())
        };
        assert_eq!((norms(4.0).get(ClipGroup::Model), norms(4.0).get(ClipGroup::AuxiliaryRouters)), (5.0, 2.0));
        assert_eq!(norms(4.0).reported(), 5.0);
        assert!(norms(f64::NAN).reported().is_nan());
        assert_eq!(ClipNorms::default().reported(), 0.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
    }
}
