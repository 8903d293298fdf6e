//! AdamW whose moments are divided among the ranks: the first stage of ZeRO (Rajbhandari et al.,
//! <https://arxiv.org/abs/1910.02054>).
//!
//! The line of all trained parameters is cut into buckets, and each bucket into as many equal parts as there are ranks; of every bucket a
//! rank owns the part of its number, with the moments of it. A step sums the gradients of a bucket so that each rank has the sum of its
//! part (reduce-scatter), updates the parts that are its own, and gives every rank the new weights (all-gather).

use super::{
    buckets::take,
    layout::{Entry, Layout},
};
use crate::{
    adamw::{AdamW, Moments, Norms},
    collective::Collective,
    gradients::{Gradients, squares},
};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::Tensor,
};
use retie_config::Group;
use retie_model::{
    CausalLm,
    kernels::{f32_slice, f32_slice_mut},
};
use std::{collections::BTreeMap, ops::Range};

/// The own part of the moments.
#[derive(Debug)]
pub struct Shard {
    /// Elements of the own part of a bucket.
    part: usize,
    world: usize,
    /// What of which parameter lies where in the own parts, one after the other.
    segments: Vec<Segment>,
    mean: Vec<f32>,
    square: Vec<f32>,
    /// Parameters that have had a gradient.
    touched: Vec<bool>,
}

/// Elements of a parameter that this rank owns.
#[derive(Debug)]
struct Segment {
    /// Number of the parameter in the layout.
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

/// One of the two running means of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Mean,
    Square,
}

impl Shard {
    /// The part of this rank of `moments`, with buckets of about `bucket` elements.
    pub fn new(layout: &Layout, mut moments: BTreeMap<String, Moments>, ranks: &dyn Collective, bucket: usize) -> Self {
        let (world, rank) = (ranks.world(), ranks.rank());
        let part = bucket.div_ceil(world).min(layout.len().div_ceil(world)).max(1);
        let num_buckets = layout.len().div_ceil(part * world);
        let mut segments = Vec::new();
        for bucket in 0..num_buckets {
            let start = (bucket * world + rank) * part;
            for (index, Entry { range, .. }) in layout.entries().iter().enumerate() {
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
            segments,
            mean: vec![0.0; num_buckets * part],
            square: vec![0.0; num_buckets * part],
            touched: vec![false; layout.entries().len()],
        };
        for (index, entry) in layout.entries().iter().enumerate() {
            let Some(Moments { mean, square }) = moments.remove(&entry.name) else { continue };
            shard.touched[index] = true;
            let (mean, square) = (mean.into_data(), square.into_data());
            for Segment { inner, own, .. } in shard.segments.iter().filter(|segment| segment.index == index) {
                shard.mean[own.clone()].copy_from_slice(&f32_slice(&mean)[inner.clone()]);
                shard.square[own.clone()].copy_from_slice(&f32_slice(&square)[inner.clone()]);
            }
        }
        shard
    }

    /// Sums `grads` over the ranks and keeps the own parts; also gives the squared norm of each parameter's gradient.
    pub fn reduce(
        &self,
        layout: &Layout,
        present: Vec<bool>,
        mut grads: Gradients,
        ranks: &dyn Collective,
    ) -> (OwnGradients, BTreeMap<String, f64>) {
        let mut values = vec![0.0; self.mean.len()];
        let mut parts = values.chunks_exact_mut(self.part);
        let mut whole: Vec<f32> = Vec::with_capacity(self.part * self.world);
        let mut scatter = |whole: &mut Vec<f32>| {
            whole.resize(self.part * self.world, 0.0);
            if let Some(part) = parts.next() {
                ranks.reduce_scatter(whole, part);
            }
            whole.clear();
        };
        for Entry { name, range, .. } in layout.entries() {
            let grad = take(&mut grads, name, range.len());
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
        let mut totals = vec![0.0; layout.entries().len()];
        for Segment { index, own, .. } in &self.segments {
            totals[*index] += squares(&values[own.clone()]);
        }
        ranks.all_reduce_f64(&mut totals);
        let named = layout.entries().iter().zip(&totals).zip(&present).filter(|(_, present)| **present);
        let named = named.map(|((entry, total), _)| (entry.name.clone(), *total)).collect();
        (OwnGradients { values, present }, named)
    }

    /// One step with gradients whose norms are `norms`.
    pub fn step(
        &mut self,
        adamw: &mut AdamW,
        layout: &Layout,
        model: CausalLm,
        grads: &OwnGradients,
        (norms, lr): (Norms, f64),
        ranks: &dyn Collective,
    ) -> CausalLm {
        let scales = adamw.begin_step(norms);
        let mut values = self.own_values(layout, &model);
        for Segment { index, own, .. } in self.segments.iter().filter(|segment| grads.present[segment.index]) {
            let Entry { name, rank, .. } = &layout.entries()[*index];
            let own = own.clone();
            let group = Group::of(name, adamw.share_map());
            adamw.factors(lr, scales.of(group), group, *rank).slices(
                &mut values[own.clone()],
                &grads.values[own.clone()],
                &mut self.mean[own.clone()],
                &mut self.square[own],
            );
        }
        self.touched.iter_mut().zip(&grads.present).for_each(|(touched, present)| *touched |= present);
        let whole = vec![0.0; self.part * self.world];
        model.map(&mut Gather { shard: self, layout, grads, ranks, values, whole, held: None, path: Vec::new() })
    }

    /// The own parts of the weights.
    fn own_values(&self, layout: &Layout, model: &CausalLm) -> Vec<f32> {
        let mut values = vec![0.0; self.mean.len()];
        model.for_each_parameter(|name, parameter| {
            let Some(index) = layout.index(name) else { return };
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

    /// Names of the parameters that have moments, and their sizes.
    pub fn names<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = (&'a str, usize)> {
        let touched = layout.entries().iter().zip(&self.touched).filter(|(_, touched)| **touched);
        touched.map(|(entry, _)| (entry.name.as_str(), entry.range.len()))
    }

    /// A moment of a whole parameter, on every rank: the sum of what each owns and zeros.
    pub fn gather(&self, layout: &Layout, name: &str, moment: Moment, ranks: &dyn Collective) -> Vec<f32> {
        let Some(index) = layout.index(name) else { return Vec::new() };
        let own_values = match moment {
            Moment::Mean => &self.mean,
            Moment::Square => &self.square,
        };
        let mut values = vec![0.0; layout.entries()[index].range.len()];
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
    layout: &'a Layout,
    grads: &'a OwnGradients,
    ranks: &'a dyn Collective,
    /// The own parts of the weights.
    values: Vec<f32>,
    /// The bucket `held`.
    whole: Vec<f32>,
    held: Option<usize>,
    path: Vec<String>,
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

impl ModuleMapper for Gather<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(index) = self.layout.index(&self.path.join(".")).filter(|index| self.grads.present[*index]) else {
            return param;
        };
        let (id, value, mapper) = param.consume();
        let device = value.device();
        let plain = device.clone().inner();
        let mut data = value.inner().into_data();
        self.fill(self.layout.entries()[index].range.clone(), f32_slice_mut(&mut data));
        let value = Tensor::from_data(data, &plain);
        let value = if device.is_autodiff() { Tensor::from_inner(value) } else { value };
        Param::from_mapped_value(id, value.require_grad(), mapper)
    }

    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
}
