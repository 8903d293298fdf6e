//! The optimizer over all ranks: the sum of their gradients, clipping, and one update that is the
//! same on each.
//!
//! The arithmetic of an update is an [`UpdateRule`]. It knows parameters by name, shape and group;
//! names and groups come from the model's list of tensors. State is whole on every rank, or divided
//! among them (`sharded`).

mod adamw;
mod buckets;
mod clip;
mod gradients;
mod parameters;
mod projection;
mod rule;
mod sharded;

pub use clip::ClipNorms;
pub use gradients::Gradients;
pub use parameters::freeze;
pub use projection::{Projections, projection_gradient};
pub use rule::{ParameterState, UpdateRule};

use adamw::AdamW;
use buckets::BUCKET;
use burn::{
    module::Param,
    tensor::{Device, Tensor},
};
use clip::clip_factor;
use parameters::{Parameter, ParameterList};
use retie_collective::Collective;
use retie_config::{OptimizerConfig, ParameterGroup};
use retie_model::{CausalLm, NamedMapper, kernels::f32_slice, map_named, update_value};
use rule::{UpdateFactors, apply, zero_state};
use sharded::{OwnGradients, Shard};
use std::collections::BTreeMap;

/// The update rule that `config` asks for: the registry of the rules.
pub fn update_rule(config: &OptimizerConfig) -> Box<dyn UpdateRule> {
    Box::new(AdamW::new(config))
}

/// Content of a checkpoint about its optimizer.
#[derive(Debug, Default)]
pub struct SavedOptimizer {
    /// Updates that were made.
    pub steps: u64,
    /// State by parameter name; none before the first step.
    pub states: BTreeMap<String, ParameterState>,
}

/// An update rule with its state.
#[derive(Debug)]
pub struct Optimizer<'a> {
    rule: Box<dyn UpdateRule>,
    max_grad_norm: f64,
    steps: u64,
    parameters: ParameterList,
    states: States,
    ranks: &'a dyn Collective,
}

/// The state of every parameter that had a gradient.
#[derive(Debug)]
enum States {
    Whole(BTreeMap<String, ParameterState>),
    Sharded(Shard),
}

/// The gradient of a step, summed over all ranks.
#[derive(Debug)]
pub struct Summed {
    share: GradientShare,
    /// Squared norm of the gradient of each parameter, which counts once where layers are shared.
    squares: BTreeMap<String, f64>,
}

#[derive(Debug)]
enum GradientShare {
    All(Gradients),
    Own(OwnGradients),
}

/// One step of a rule over the parameters of a model.
struct Step<'a> {
    rule: &'a dyn UpdateRule,
    max_grad_norm: f64,
    norms: &'a ClipNorms,
    number: u64,
    lr: f64,
}

impl Step<'_> {
    fn factors<'p>(&self, parameter: &'p Parameter) -> UpdateFactors<'p> {
        let norm = parameter.group.map_or(0.0, |group| self.norms.get(group.clip_group()));
        UpdateFactors { parameter, step: self.number, lr: self.lr, clip: clip_factor(norm, self.max_grad_norm) }
    }
}

impl<'a> Optimizer<'a> {
    /// The optimizer of the trained parameters of `model`; with `shard` its state is divided among
    /// the ranks.
    pub fn new(
        config: &OptimizerConfig,
        model: &CausalLm,
        saved: SavedOptimizer,
        shard: bool,
        ranks: &'a dyn Collective,
    ) -> Self {
        let (rule, parameters) = (update_rule(config), ParameterList::for_model(model));
        let states = match shard && ranks.world() > 1 {
            true => States::Sharded(Shard::new(rule.as_ref(), &parameters, saved.states, ranks, BUCKET)),
            false => States::Whole(saved.states),
        };
        Self { rule, max_grad_norm: config.max_grad_norm, steps: saved.steps, parameters, states, ranks }
    }

    /// The sum of the gradients of all ranks.
    pub fn sum(&self, mut grads: Gradients, device: &Device) -> Summed {
        if self.ranks.world() == 1 {
            let squares = grads.squares();
            return Summed { share: GradientShare::All(grads), squares };
        }
        let present = buckets::present(&self.parameters, &grads, self.ranks);
        if let States::Sharded(shard) = &self.states {
            let (own, squares) = shard.reduce(&self.parameters, present, grads, self.ranks);
            return Summed { share: GradientShare::Own(own), squares };
        }
        buckets::all_reduce(&self.parameters, &present, &mut grads, device, self.ranks, BUCKET);
        let squares = grads.squares();
        Summed { share: GradientShare::All(grads), squares }
    }

    /// The norms that gradients are clipped by.
    pub fn norms(&self, grads: &Summed) -> ClipNorms {
        ClipNorms::from_squares(self.group_squares(grads).map(|(group, squares)| (group.clip_group(), squares)))
    }

    /// Norm of the gradient of each group.
    pub fn group_norms(&self, grads: &Summed) -> BTreeMap<ParameterGroup, f64> {
        let mut sums: BTreeMap<ParameterGroup, f64> = BTreeMap::new();
        self.group_squares(grads).for_each(|(group, squares)| *sums.entry(group).or_default() += squares);
        sums.into_iter().map(|(group, sum)| (group, sum.sqrt())).collect()
    }

    /// Group and squared norm of each gradient, in the order of names.
    fn group_squares(&self, grads: &Summed) -> impl Iterator<Item = (ParameterGroup, f64)> {
        let group = |name: &String| self.parameters.get(name)?.parameter.group;
        grads.squares.iter().filter_map(move |(name, squares)| Some((group(name)?, *squares)))
    }

    /// One step. A parameter without a gradient stays as it is.
    #[must_use]
    pub fn step(&mut self, model: CausalLm, grads: Summed, norms: &ClipNorms, lr: f64) -> CausalLm {
        self.steps += 1;
        let step = Step { rule: self.rule.as_ref(), max_grad_norm: self.max_grad_norm, norms, number: self.steps, lr };
        match (grads.share, &mut self.states) {
            (GradientShare::Own(own), States::Sharded(shard)) => {
                shard.step(&step, &self.parameters, model, &own, self.ranks)
            }
            (GradientShare::All(grads), States::Whole(states)) => {
                map_named(model, &mut Mapper { step, parameters: &self.parameters, states, grads })
            }
            (GradientShare::Own(_), States::Whole(_)) | (GradientShare::All(_), States::Sharded(_)) => {
                unreachable!("gradients are divided as the state is")
            }
        }
    }

    /// The update rule.
    pub fn rule(&self) -> &dyn UpdateRule {
        self.rule.as_ref()
    }

    /// Factors of a tensor that is no parameter of the model, in the step that was made last; its
    /// gradient is clipped by `norm`.
    fn factors_apart<'p>(&self, parameter: &'p Parameter, norm: f64, lr: f64) -> UpdateFactors<'p> {
        UpdateFactors { parameter, step: self.steps, lr, clip: clip_factor(norm, self.max_grad_norm) }
    }

    /// Names of the parameters that have a state, ascending, and their sizes.
    pub fn sizes(&self) -> BTreeMap<String, usize> {
        match &self.states {
            States::Sharded(shard) => shard.sizes(&self.parameters),
            States::Whole(states) => {
                let len = |state: &ParameterState| state.first().map_or(0, |buffer| buffer.dims()[0]);
                states.iter().map(|(name, state)| (name.clone(), len(state))).collect()
            }
        }
    }

    /// A buffer of a parameter of [`Optimizer::sizes`]. Where the state is divided every rank has
    /// to ask for it.
    pub fn buffer(&self, name: &str, buffer: usize) -> Vec<f32> {
        match &self.states {
            States::Sharded(shard) => shard.gather(&self.parameters, name, buffer, self.ranks),
            States::Whole(states) => match states.get(name) {
                Some(state) => f32_slice(&state[buffer].clone().into_data()).to_vec(),
                None => Vec::new(),
            },
        }
    }

    /// Takes part in what another rank reads of the state to write it.
    pub fn assist(&self) {
        if matches!(self.states, States::Sharded(_)) {
            for name in self.sizes().keys() {
                (0..self.rule.buffers().len()).for_each(|buffer| drop(self.buffer(name, buffer)));
            }
        }
    }
}

/// Moves every parameter that has a gradient.
struct Mapper<'a> {
    step: Step<'a>,
    parameters: &'a ParameterList,
    states: &'a mut BTreeMap<String, ParameterState>,
    grads: Gradients,
}

impl NamedMapper for Mapper<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(grad) = self.grads.take(name) else { return param };
        let Some(range) = self.parameters.get(name) else { return param };
        update_value(param, |value| {
            let rule = self.step.rule;
            let state = self.states.remove(name);
            let state = state.unwrap_or_else(|| zero_state(rule, range.range.len(), &grad.device()));
            let (value, state) = apply(rule, value, grad, state, self.step.factors(&range.parameter));
            self.states.insert(name.to_owned(), state);
            value
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_collective::Single;

    #[test]
    fn gradients_are_summed_by_group() {
        let mut parameters = ParameterList::default();
        for (name, group) in
            [("a", ParameterGroup::Shared), ("b", ParameterGroup::Norms), ("c", ParameterGroup::Shared)]
        {
            parameters.push(name, group, vec![1]);
        }
        let config: OptimizerConfig = serde_json::from_str(r#"{"lr": 1e-3}"#).unwrap();
        let optimizer = Optimizer {
            rule: update_rule(&config),
            max_grad_norm: config.max_grad_norm,
            steps: 0,
            parameters,
            states: States::Whole(BTreeMap::new()),
            ranks: &Single,
        };
        let squares = [("a", 9.0), ("b", 4.0), ("c", 16.0)].map(|(name, x)| (name.to_owned(), x)).into();
        let grads = Summed { share: GradientShare::All(Gradients::default()), squares };
        let norms: Vec<_> = optimizer.group_norms(&grads).into_iter().collect();
        assert_eq!(norms, [(ParameterGroup::Shared, 5.0), (ParameterGroup::Norms, 2.0)]);
    }
}
