//! The optimizer over all ranks: the sum of their gradients, and one update that is the same on each.

mod buckets;
mod layout;
mod sharded;

pub use sharded::Moment;

use crate::{
    adamw::{AdamW, Moments, Norms},
    collective::Collective,
    gradients::Gradients,
};
use buckets::BUCKET;
use burn::tensor::Device;
use layout::Layout;
use retie_model::{CausalLm, kernels::f32_slice};
use sharded::{OwnGradients, Shard};
use std::collections::BTreeMap;

/// AdamW with its state, whole on every rank or divided among them.
#[derive(Debug)]
pub struct Optimizer<'a> {
    adamw: AdamW,
    layout: Layout,
    /// The own part of the moments; `None`: `adamw` has them all.
    shard: Option<Shard>,
    ranks: &'a dyn Collective,
}

/// The gradient of a step, summed over all ranks.
#[derive(Debug)]
pub struct Summed {
    part: Part,
    /// Squared norm of the gradient of each parameter, which is counted once where layers are shared.
    pub squares: BTreeMap<String, f64>,
}

#[derive(Debug)]
enum Part {
    All(Gradients),
    Own(OwnGradients),
}

impl<'a> Optimizer<'a> {
    /// `adamw` for the trained parameters of `model`; with `shard` its moments are divided among the ranks.
    pub fn new(mut adamw: AdamW, model: &CausalLm, shard: bool, ranks: &'a dyn Collective) -> Self {
        let layout = Layout::of(model);
        let shard = (shard && ranks.world() > 1).then(|| Shard::new(&layout, adamw.take_moments(), ranks, BUCKET));
        Self { adamw, layout, shard, ranks }
    }

    /// The sum of the gradients of all ranks.
    pub fn sum(&self, mut grads: Gradients, device: &Device) -> Summed {
        if self.ranks.world() == 1 {
            let squares = grads.squares();
            return Summed { part: Part::All(grads), squares };
        }
        let present = buckets::present(&self.layout, &grads, self.ranks);
        if let Some(shard) = &self.shard {
            let (own, squares) = shard.reduce(&self.layout, present, grads, self.ranks);
            return Summed { part: Part::Own(own), squares };
        }
        buckets::all_reduce(&self.layout, &present, &mut grads, device, self.ranks, BUCKET);
        let squares = grads.squares();
        Summed { part: Part::All(grads), squares }
    }

    /// One step with gradients whose norms are `norms`.
    #[must_use]
    pub fn step(&mut self, model: CausalLm, grads: Summed, norms: Norms, lr: f64) -> CausalLm {
        match (grads.part, &mut self.shard) {
            (Part::Own(own), Some(shard)) => {
                shard.step(&mut self.adamw, &self.layout, model, &own, (norms, lr), self.ranks)
            }
            (Part::All(grads), _) => self.adamw.step(model, grads, norms, lr),
            (Part::Own(_), None) => unreachable!("only a divided optimizer makes parts"),
        }
    }

    /// Names of the parameters that have moments, ascending, and their sizes.
    pub fn moments(&self) -> BTreeMap<String, usize> {
        match &self.shard {
            Some(shard) => shard.names(&self.layout).map(|(name, len)| (name.to_owned(), len)).collect(),
            None => self.adamw.moments().iter().map(|(name, m)| (name.clone(), m.mean.dims()[0])).collect(),
        }
    }

    /// A moment of a parameter of [`Optimizer::moments`]. Where they are divided every rank has to ask for it.
    pub fn moment(&self, name: &str, moment: Moment) -> Vec<f32> {
        if let Some(shard) = &self.shard {
            return shard.gather(&self.layout, name, moment, self.ranks);
        }
        let Some(moments) = self.adamw.moments().get(name) else { return Vec::new() };
        let Moments { mean, square } = moments;
        let tensor = match moment {
            Moment::Mean => mean,
            Moment::Square => square,
        };
        f32_slice(&tensor.clone().into_data()).to_vec()
    }

    /// Takes part in what another rank reads of the moments to write them.
    pub fn assist(&self) {
        if self.shard.is_some() {
            for name in self.moments().keys() {
                for moment in [Moment::Mean, Moment::Square] {
                    drop(self.moment(name, moment));
                }
            }
        }
    }
}
