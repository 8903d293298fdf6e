//! The optimizer over all ranks: the sum of their gradients, clipping, and one update that is the
//! same on each.
//!
//! The arithmetic of an update is an [`UpdateRule`](rule::UpdateRule). It knows parameters by name,
//! shape and group; names and groups come from the model's list of tensors. State is whole on every
//! rank, or divided among them (`sharded`).

mod adamw;
mod average;
mod buckets;
mod clip;
mod gradients;
mod layout;
mod muon;
mod parameters;
mod projection;
mod rule;
mod rules;
mod sharded;

pub use average::AVERAGE;
pub use clip::ClipNorms;
pub use gradients::Gradients;
pub use parameters::{Parameter, set_trained};
pub use projection::{Projections, projection_gradient};
pub use rule::ParameterState;
pub use rules::UpdateRules;

use average::{Motion, RunAverage};
use buckets::BUCKET;
use burn::{
    module::Param,
    tensor::{Device, Tensor, TensorData},
};
use clip::clip_factor;
use parameters::ParameterList;
use retie_collective::Collective;
use retie_config::{GroupsConfig, ParameterGroup, UptrainConfig};
use retie_model::{
    CausalLm, NamedMapper,
    kernels::{f32_slice, updates_together},
    map_named, update_value,
};
use rule::{UpdateFactors, apply, zero_state};
use sharded::{OwnGradients, Shard};
use std::collections::BTreeMap;

/// Content of a checkpoint about its optimizer.
#[derive(Debug, Default)]
pub struct SavedOptimizer {
    /// Updates that were made.
    pub steps: u64,
    /// State by parameter name; none before the first step.
    pub states: BTreeMap<String, ParameterState>,
}

/// The update rules of a run with their state.
#[derive(Debug)]
pub struct Optimizer<'a> {
    rules: UpdateRules,
    groups: GroupsConfig,
    max_grad_norm: f64,
    average: Option<RunAverage>,
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

/// One step over the parameters of a model.
struct Step<'a> {
    rules: &'a UpdateRules,
    groups: &'a GroupsConfig,
    /// Motion of the averages, if there are any.
    motion: Option<Motion>,
    max_grad_norm: f64,
    norms: &'a ClipNorms,
    number: u64,
    lr: f64,
}

impl Step<'_> {
    fn factors<'p>(&self, parameter: &'p Parameter) -> UpdateFactors<'p> {
        let norm = parameter.group.map_or(0.0, |group| self.norms.get(group.clip_group()));
        let frozen = parameter.group.map_or(0, |group| self.groups.get(group).freeze_until);
        let step = self.number.saturating_sub(frozen).max(1);
        UpdateFactors { parameter, step, lr: self.lr, clip: clip_factor(norm, self.max_grad_norm) }
    }
}

impl<'a> Optimizer<'a> {
    /// The optimizer of the trained parameters of `model`; with `train.shard_optimizer` its state
    /// is divided among the ranks.
    pub fn new(config: &UptrainConfig, model: &CausalLm, saved: SavedOptimizer, ranks: &'a dyn Collective) -> Self {
        let UptrainConfig { optimizer, train, .. } = config;
        let (rules, parameters) = (UpdateRules::new(optimizer), ParameterList::for_model(model, &optimizer.groups));
        let mut states = saved.states;
        states.retain(|name, _| parameters.get(name).is_some());
        match train.average {
            Some(_) => begin_averages(model, &rules, &parameters, &mut states),
            None => drop_averages(&rules, &parameters, &mut states),
        }
        let states = match train.shard_optimizer && ranks.world() > 1 {
            true => States::Sharded(Shard::new(&rules, &parameters, states, ranks, BUCKET)),
            false => States::Whole(states),
        };
        Self {
            rules,
            groups: optimizer.groups.clone(),
            max_grad_norm: optimizer.max_grad_norm,
            average: train.average.map(|average| RunAverage { average, num_updates: config.num_steps() }),
            steps: saved.steps,
            parameters,
            states,
            ranks,
        }
    }

    /// `model` with gradients for the groups whose frozen start is over.
    pub fn thaw(&self, model: CausalLm) -> CausalLm {
        let is_due = |group: &ParameterGroup| self.steps > 0 && self.groups.get(*group).freeze_until == self.steps;
        if ParameterGroup::ALL.iter().any(is_due) { set_trained(model, &self.groups, self.steps) } else { model }
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
        let step = Step {
            rules: &self.rules,
            groups: &self.groups,
            motion: self.average.map(|average| average.motion_at(self.steps)),
            max_grad_norm: self.max_grad_norm,
            norms,
            number: self.steps,
            lr,
        };
        match (grads.share, &mut self.states) {
            (GradientShare::Own(own), States::Sharded(shard)) => {
                shard.step(&step, &self.parameters, model, &own, self.ranks)
            }
            (GradientShare::All(grads), States::Whole(states)) => {
                let (device, has_average) = (model.device(), step.motion.is_some());
                let mut mapper = Mapper { step, parameters: &self.parameters, states, grads };
                // An average reads the weights as soon as they are updated.
                match has_average {
                    true => map_named(model, &mut mapper),
                    false => updates_together(&device, || map_named(model, &mut mapper)),
                }
            }
            (GradientShare::Own(_), States::Whole(_)) | (GradientShare::All(_), States::Sharded(_)) => {
                unreachable!("gradients are divided as the state is")
            }
        }
    }

    /// The update rules.
    pub fn rules(&self) -> &UpdateRules {
        &self.rules
    }

    /// `model` with the averages of its weights; `None` where no average is kept, or none has
    /// begun. Where the state is divided every rank has to ask for it.
    pub fn averaged(&self, model: &CausalLm) -> Option<CausalLm> {
        self.average.filter(|average| average.has_begun(self.steps))?;
        let names = self.sizes();
        Some(map_named(model.clone(), &mut Averaged { optimizer: self, names }))
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

    /// Names of the buffers of a parameter of [`Optimizer::sizes`].
    pub fn buffers(&self, name: &str) -> Vec<&'static str> {
        let Some(range) = self.parameters.get(name) else { return Vec::new() };
        let rule = self.rules.get(&range.parameter).buffers().iter().copied();
        rule.chain(self.average.map(|_| AVERAGE)).collect()
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
                (0..self.buffers(name).len()).for_each(|buffer| drop(self.buffer(name, buffer)));
            }
        }
    }
}

/// Adds the average to each state that was saved without one: that of the weights from now on.
fn begin_averages(
    model: &CausalLm,
    rules: &UpdateRules,
    parameters: &ParameterList,
    states: &mut BTreeMap<String, ParameterState>,
) {
    model.for_each_parameter(|name, values| {
        let (Some(range), Some(state)) = (parameters.get(name), states.get_mut(name)) else { return };
        let Some(device) = state.first().map(Tensor::device) else { return };
        if state.len() == rules.get(&range.parameter).buffers().len() {
            let values = values.values();
            let len = values.len();
            state.push(Tensor::from_data(TensorData::new(values, [len]), &device));
        }
    });
}

/// Takes away what was saved beside the buffers of the rules.
fn drop_averages(rules: &UpdateRules, parameters: &ParameterList, states: &mut BTreeMap<String, ParameterState>) {
    for (name, state) in states {
        if let Some(range) = parameters.get(name) {
            state.truncate(rules.get(&range.parameter).buffers().len());
        }
    }
}

/// Moves every parameter that has a gradient, and the averages.
struct Mapper<'a> {
    step: Step<'a>,
    parameters: &'a ParameterList,
    states: &'a mut BTreeMap<String, ParameterState>,
    grads: Gradients,
}

impl NamedMapper for Mapper<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(range) = self.parameters.get(name) else { return param };
        let grad = self.grads.take(name);
        let Step { rules, motion, .. } = self.step;
        // Without a gradient an average still moves.
        if grad.is_none() && (motion.is_none() || !self.states.contains_key(name)) {
            return param;
        }
        let state = self.states.remove(name);
        let rule = rules.get(&range.parameter);
        update_value(param, |mut value| {
            let len = range.range.len();
            let mut state = state.unwrap_or_else(|| {
                let mut state = zero_state(rule, len, &value.device());
                state.extend(motion.map(|_| value.clone().reshape([len])));
                state
            });
            let average = motion.and_then(|motion| Some((motion, state.pop()?)));
            if let Some(grad) = grad {
                (value, state) = apply(rule, value, grad, state, self.step.factors(&range.parameter));
            }
            state.extend(average.map(|(motion, average)| motion.apply(average, &value)));
            self.states.insert(name.to_owned(), state);
            value
        })
    }
}

/// Puts averages in the place of weights.
struct Averaged<'a> {
    optimizer: &'a Optimizer<'a>,
    /// Parameters that have one.
    names: BTreeMap<String, usize>,
}

impl NamedMapper for Averaged<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(len) = self.names.get(name) else { return param };
        let Some(last) = self.optimizer.buffers(name).len().checked_sub(1) else { return param };
        update_value(param, |value| {
            let average = TensorData::new(self.optimizer.buffer(name, last), [*len]);
            Tensor::<1>::from_data(average, &value.device()).reshape(value.dims())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_collective::Single;
    use retie_config::OptimizerConfig;

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
            rules: UpdateRules::new(&config),
            groups: config.groups,
            max_grad_norm: config.max_grad_norm,
            average: None,
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
