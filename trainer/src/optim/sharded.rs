//! An optimizer whose state is divided among the ranks: the first stage of ZeRO (Rajbhandari et
//! al., <https://arxiv.org/abs/1910.02054>).
//!
//! The line of all trained parameters is cut into buckets, and each bucket into as many equal parts
//! as there are ranks; of every bucket a rank owns the part of its number, with the state of it. A
//! step sums the gradients of a bucket so that each rank has the sum of its part (reduce-scatter),
//! updates the parts that are its own, and gives every rank the new weights (all-gather).

use super::{
    Step,
    buckets::take,
    gradients::Gradients,
    parameters::{ParameterList, ParameterRange},
    rule::{ParameterState, UpdateRule},
};
use burn::{
    module::Param,
    tensor::{Tensor, TensorData},
};
use retie_collective::Collective;
use retie_model::{
    CausalLm, NamedMapper,
    kernels::{f32_slice, f32_slice_mut, sum_of_squares},
    map_named, update_value,
};
use std::{collections::BTreeMap, ops::Range};

/// The own part of the state.
#[derive(Debug)]
pub struct Shard {
    /// Elements of the own part of a bucket.
    part: usize,
    world: usize,
    num_buckets: usize,
    /// What of which parameter lies where in the own parts, one after the other.
    segments: Vec<Segment>,
    /// Own parts of each buffer of the rule.
    buffers: Vec<Vec<f32>>,
    /// Parameters that have had a gradient.
    touched: Vec<bool>,
}

/// Elements of a parameter that this rank owns.
#[derive(Debug)]
struct Segment {
    /// Number of the parameter in the list.
    index: usize,
    /// In the parameter.
    inner: Range<usize>,
    /// In the own parts.
    own: Range<usize>,
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
        rule: &dyn UpdateRule,
        parameters: &ParameterList,
        mut states: BTreeMap<String, ParameterState>,
        ranks: &dyn Collective,
        bucket: usize,
    ) -> Self {
        let (world, rank) = (ranks.world(), ranks.rank());
        let part = bucket.div_ceil(world).min(parameters.len().div_ceil(world)).max(1);
        let num_buckets = parameters.len().div_ceil(part * world);
        let mut segments = Vec::new();
        for bucket in 0..num_buckets {
            let start = (bucket * world + rank) * part;
            for (index, ParameterRange { range, .. }) in parameters.ranges().iter().enumerate() {
                let (from, to) = (range.start.max(start), range.end.min(start + part));
                if from < to {
                    let own = bucket * part;
                    segments.push(Segment {
                        index,
                        inner: from - range.start..to - range.start,
                        own: own + from - start..own + to - start,
                    });
                }
            }
        }
        let mut shard = Self {
            part,
            world,
            num_buckets,
            segments,
            buffers: vec![vec![0.0; num_buckets * part]; rule.buffers().len()],
            touched: vec![false; parameters.ranges().len()],
        };
        for (index, range) in parameters.ranges().iter().enumerate() {
            let Some(state) = states.remove(&range.parameter.name) else { continue };
            shard.touched[index] = true;
            let state: Vec<TensorData> = state.into_iter().map(Tensor::into_data).collect();
            for Segment { inner, own, .. } in shard.segments.iter().filter(|segment| segment.index == index) {
                for (buffer, values) in shard.buffers.iter_mut().zip(&state) {
                    buffer[own.clone()].copy_from_slice(&f32_slice(values)[inner.clone()]);
                }
            }
        }
        shard
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
        let mut values = vec![0.0; self.len()];
        let mut parts = values.chunks_exact_mut(self.part);
        let mut whole: Vec<f32> = Vec::with_capacity(self.part * self.world);
        let mut scatter = |whole: &mut Vec<f32>| {
            whole.resize(self.part * self.world, 0.0);
            if let Some(part) = parts.next() {
                ranks.reduce_scatter(whole, part);
            }
            whole.clear();
        };
        for ParameterRange { parameter, range } in parameters.ranges() {
            let grad = take(&mut grads, &parameter.name, range.len());
            let mut rest = f32_slice(&grad);
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(self.part * self.world - whole.len()));
                whole.extend_from_slice(now);
                rest = later;
                if whole.len() == self.part * self.world {
                    scatter(&mut whole);
                }
            }
        }
        if !whole.is_empty() {
            scatter(&mut whole);
        }
        let mut totals = vec![0.0; parameters.ranges().len()];
        for Segment { index, own, .. } in &self.segments {
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
        for Segment { index, own, .. } in self.segments.iter().filter(|segment| grads.present[segment.index]) {
            let mut state: Vec<&mut [f32]> = self.buffers.iter_mut().map(|buffer| &mut buffer[own.clone()]).collect();
            let factors = step.factors(&parameters.ranges()[*index].parameter);
            step.rule.update(&mut values[own.clone()], &grads.values[own.clone()], &mut state, factors);
        }
        self.touched.iter_mut().zip(&grads.present).for_each(|(touched, present)| *touched |= present);
        let whole = vec![0.0; self.part * self.world];
        map_named(model, &mut Gather { shard: self, parameters, grads, ranks, values, whole, held: None })
    }

    /// The own parts of the weights.
    fn own_values(&self, parameters: &ParameterList, model: &CausalLm) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        model.for_each_parameter(|name, parameter| {
            let Some(index) = parameters.index(name) else { return };
            let mut segments = self.segments.iter().filter(|segment| segment.index == index).peekable();
            if segments.peek().is_some() {
                let all = parameter.values();
                segments.for_each(|Segment { inner, own, .. }| {
                    values[own.clone()].copy_from_slice(&all[inner.clone()]);
                });
            }
        });
        values
    }

    /// Elements of the own parts.
    fn len(&self) -> usize {
        self.part * self.num_buckets
    }

    /// Names of the parameters that have a state, ascending, and their sizes.
    pub fn sizes(&self, parameters: &ParameterList) -> BTreeMap<String, usize> {
        let touched = parameters.ranges().iter().zip(&self.touched).filter(|(_, touched)| **touched);
        touched.map(|(range, _)| (range.parameter.name.clone(), range.range.len())).collect()
    }

    /// A buffer of a whole parameter, on every rank: the sum of what each owns and zeros.
    pub fn gather(&self, parameters: &ParameterList, name: &str, buffer: usize, ranks: &dyn Collective) -> Vec<f32> {
        let Some(index) = parameters.index(name) else { return Vec::new() };
        let own_values = &self.buffers[buffer];
        let mut values = vec![0.0; parameters.ranges()[index].range.len()];
        for Segment { inner, own, .. } in self.segments.iter().filter(|segment| segment.index == index) {
            values[inner.clone()].copy_from_slice(&own_values[own.clone()]);
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
    /// The bucket `held`.
    whole: Vec<f32>,
    held: Option<usize>,
}

impl Gather<'_> {
    fn fill(&mut self, range: Range<usize>, values: &mut [f32]) {
        let (part, size) = (self.shard.part, self.whole.len());
        let mut at = range.start;
        while at < range.end {
            let bucket = at / size;
            if self.held != Some(bucket) {
                self.ranks.all_gather(&self.values[bucket * part..][..part], &mut self.whole);
                self.held = Some(bucket);
            }
            let to = range.end.min((bucket + 1) * size);
            values[at - range.start..to - range.start]
                .copy_from_slice(&self.whole[at - bucket * size..to - bucket * size]);
            at = to;
        }
    }
}

impl NamedMapper for Gather<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let index = self.parameters.index(name).filter(|index| self.grads.present[*index]);
        let Some(index) = index else { return param };
        update_value(param, |value| {
            let device = value.device();
            let mut data = value.into_data();
            self.fill(self.parameters.ranges()[index].range.clone(), f32_slice_mut(&mut data));
            Tensor::from_data(data, &device)
        })
    }
}
