//! An optimizer whose state is divided among the ranks: the first stage of ZeRO (Rajbhandari et
//! al., <https://arxiv.org/abs/1910.02054>).
//!
//! Parameters are divided as [`Layout`] says. A step sums the gradients of a bucket so that each
//! rank has the sum of its part (reduce-scatter), updates what is its own, and gives every rank the
//! new weights (all-gather).

use super::{
    Step,
    gradients::{Gradients, flat},
    layout::{Layout, Segment},
    parameters::ParameterList,
    rule::{Arithmetic, ParameterState, apply_in_place},
    rules::UpdateRules,
};
use burn::{
    module::Param,
    tensor::{Tensor, TensorData},
};
use retie_collective::Collective;
use retie_model::{
    CausalLm, NamedMapper, NamedVisitor,
    kernels::{f32_slice, f32_slice_mut, read, sum_of_squares},
    map_named, update_value, visit_named,
};
use std::{collections::BTreeMap, ops::Range};

/// The own part of the state.
#[derive(Debug)]
pub struct Shard {
    layout: Layout,
    owned: Vec<Owned>,
    /// Parameters that have had a gradient.
    touched: Vec<bool>,
}

/// What this rank owns of a parameter.
#[derive(Debug)]
struct Owned {
    segment: Segment,
    /// Its buffers, as in [`ParameterState`]; none before the first gradient.
    state: Vec<Vec<f32>>,
}

/// Own parts of the gradient of a step, summed over ranks.
#[derive(Debug)]
pub struct OwnGradients {
    values: Vec<f32>,
    present: Vec<bool>,
}

impl Shard {
    /// The part of this rank of `states`, with buckets of about `bucket` elements.
    pub fn new(
        rules: &UpdateRules,
        parameters: &ParameterList,
        mut states: BTreeMap<String, ParameterState>,
        ranks: &dyn Collective,
        bucket: usize,
    ) -> Self {
        let is_whole = |index: usize| {
            let rule = rules.get(&parameters.ranges()[index].parameter);
            matches!(rule.arithmetic(), Arithmetic::Matrix(_))
        };
        let layout = Layout::new(parameters, is_whole, ranks.world(), bucket);
        let mut owned: Vec<Owned> = layout
            .segments_of(ranks.rank())
            .map(|segment| Owned { segment: segment.clone(), state: Vec::new() })
            .collect();
        let mut touched = vec![false; parameters.ranges().len()];
        for (index, range) in parameters.ranges().iter().enumerate() {
            let Some(state) = states.remove(&range.parameter.name) else { continue };
            touched[index] = true;
            let state: Vec<TensorData> = state.into_iter().map(Tensor::into_data).collect();
            for Owned { segment, state: own } in owned.iter_mut().filter(|owned| owned.segment.index == index) {
                let part = |values: &TensorData| f32_slice(values)[segment.inner.clone()].to_vec();
                *own = state.iter().map(part).collect();
            }
        }
        Self { layout, owned, touched }
    }

    /// Sums `grads` over the ranks and keeps the own parts; also gives the squared norm of each
    /// parameter's gradient.
    pub fn reduce(
        &self,
        parameters: &ParameterList,
        present: Vec<bool>,
        mut grads: Gradients,
        ranks: &dyn Collective,
    ) -> (OwnGradients, BTreeMap<String, f64>) {
        let mut values = vec![0.0; self.layout.own_len()];
        let mut whole = vec![0.0; self.layout.bucket_len()];
        // Gradients that buckets up to now have a part of.
        let mut taken: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for (bucket, segments) in self.layout.buckets().iter().enumerate() {
            whole.fill(0.0);
            let take = |segment: &Segment| {
                Some((segment.index, grads.take(&parameters.ranges()[segment.index].parameter.name)?))
            };
            let (indices, tensors): (Vec<_>, Vec<_>) = segments.iter().filter_map(take).unzip();
            taken.extend(indices.into_iter().zip(read(tensors)));
            for segment in segments {
                let Some(grad) = taken.get(&segment.index) else { continue };
                whole[self.layout.in_bucket(segment)].copy_from_slice(&grad[segment.inner.clone()]);
                if segment.inner.end == parameters.ranges()[segment.index].range.len() {
                    taken.remove(&segment.index);
                }
            }
            ranks.reduce_scatter(&whole, &mut values[self.layout.own_part(bucket)]);
        }
        let mut totals = vec![0.0; parameters.ranges().len()];
        for Segment { index, own, .. } in self.owned.iter().map(|owned| &owned.segment) {
            totals[*index] += sum_of_squares(&values[own.clone()]);
        }
        ranks.all_reduce_f64(&mut totals);
        let named = parameters.ranges().iter().zip(&totals).zip(&present).filter(|(_, present)| **present);
        let named = named.map(|((range, total), _)| (range.parameter.name.clone(), *total)).collect();
        (OwnGradients { values, present }, named)
    }

    /// One step of every parameter that has a gradient.
    pub fn step(
        &mut self,
        step: &Step<'_>,
        parameters: &ParameterList,
        model: CausalLm,
        grads: &OwnGradients,
        ranks: &dyn Collective,
    ) -> CausalLm {
        let mut values = self.own_values(parameters, &model);
        let device = model.device().inner();
        for Owned { segment: Segment { index, own, .. }, state } in &mut self.owned {
            let parameter = &parameters.ranges()[*index].parameter;
            let (rule, value) = (step.rules.get(parameter), &mut values[own.clone()]);
            if grads.present[*index] {
                if state.is_empty() {
                    *state = vec![vec![0.0; own.len()]; rule.buffers().len()];
                    state.extend(step.motion.map(|_| value.to_vec()));
                }
                let buffers = &mut state[..rule.buffers().len()];
                let gradient = &grads.values[own.clone()];
                apply_in_place(rule, value, gradient, buffers, step.factors(parameter), &device);
            }
            if let (Some(motion), Some(average)) = (step.motion, state.last_mut()) {
                motion.apply_in_place(average, value);
            }
        }
        self.touched.iter_mut().zip(&grads.present).for_each(|(touched, present)| *touched |= present);
        let gathered = vec![false; self.layout.buckets().len()];
        let pending = BTreeMap::new();
        map_named(model, &mut Gather { shard: self, parameters, grads, ranks, values, gathered, pending })
    }

    /// The own parts of the weights, in one transfer.
    fn own_values(&self, parameters: &ParameterList, model: &CausalLm) -> Vec<f32> {
        struct OwnParts<'a> {
            shard: &'a Shard,
            parameters: &'a ParameterList,
            places: Vec<Range<usize>>,
            parts: Vec<Tensor<1>>,
        }
        impl NamedVisitor for OwnParts<'_> {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                let Some(index) = self.parameters.index(name) else { return };
                let own = self.shard.owned.iter().map(|owned| &owned.segment);
                for Segment { inner, own, .. } in own.filter(|segment| segment.index == index) {
                    self.parts.push(flat(param.val().inner()).slice([inner.clone()]));
                    self.places.push(own.clone());
                }
            }
        }
        let mut own = OwnParts { shard: self, parameters, places: Vec::new(), parts: Vec::new() };
        visit_named(model, &mut own);
        let mut values = vec![0.0; self.layout.own_len()];
        for (place, part) in own.places.into_iter().zip(read(own.parts)) {
            values[place].copy_from_slice(&part);
        }
        values
    }

    /// Names of the parameters that have a state, ascending, and their sizes.
    pub fn sizes(&self, parameters: &ParameterList) -> BTreeMap<String, usize> {
        let touched = parameters.ranges().iter().zip(&self.touched).filter(|(_, touched)| **touched);
        touched.map(|(range, _)| (range.parameter.name.clone(), range.range.len())).collect()
    }

    /// A buffer of a whole parameter, on every rank: the sum of what each owns and zeros.
    pub fn gather(&self, parameters: &ParameterList, name: &str, buffer: usize, ranks: &dyn Collective) -> Vec<f32> {
        let Some(index) = parameters.index(name) else { return Vec::new() };
        let mut values = vec![0.0; parameters.ranges()[index].range.len()];
        for Owned { segment, state } in self.owned.iter().filter(|owned| owned.segment.index == index) {
            if let Some(own) = state.get(buffer) {
                values[segment.inner.clone()].copy_from_slice(own);
            }
        }
        ranks.all_reduce(&mut values);
        values
    }
}

/// Puts the new weights of all ranks into a model.
struct Gather<'a> {
    shard: &'a Shard,
    parameters: &'a ParameterList,
    grads: &'a OwnGradients,
    ranks: &'a dyn Collective,
    /// The own parts of the weights.
    values: Vec<f32>,
    /// Buckets whose weights all ranks have.
    gathered: Vec<bool>,
    /// New weights of parameters whose turn has not come.
    pending: BTreeMap<usize, Vec<f32>>,
}

impl Gather<'_> {
    /// The new weights of a parameter.
    fn take(&mut self, index: usize) -> Vec<f32> {
        let layout = &self.shard.layout;
        let mut whole = vec![0.0; layout.bucket_len()];
        for bucket in layout.buckets_of(index) {
            if std::mem::replace(&mut self.gathered[bucket], true) {
                continue;
            }
            self.ranks.all_gather(&self.values[layout.own_part(bucket)], &mut whole);
            for segment in layout.buckets()[bucket].iter().filter(|segment| self.grads.present[segment.index]) {
                let len = self.parameters.ranges()[segment.index].range.len();
                let values = self.pending.entry(segment.index).or_insert_with(|| vec![0.0; len]);
                values[segment.inner.clone()].copy_from_slice(&whole[layout.in_bucket(segment)]);
            }
        }
        self.pending.remove(&index).unwrap_or_default()
    }
}

impl NamedMapper for Gather<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let index = self.parameters.index(name).filter(|index| self.grads.present[*index]);
        let Some(index) = index else { return param };
        update_value(param, |value| {
            let device = value.device();
            let mut data = value.into_data();
            f32_slice_mut(&mut data).copy_from_slice(&self.take(index));
            Tensor::from_data(data, &device)
        })
    }
}
