//! One recursion of a routed model: score the tokens that are under way, run the block over those that are chosen, put them back.
//!
//! Training, prefill and decode are this one path. They differ in who chooses ([`Choice`]) and in whether there is a cache.

use super::{choose, lots, network::scores, token_choice::Entry};
use crate::{
    block::Rows,
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, Layout, Merge, Segment, f32_slice},
    kv::{KeysValues, Kv},
    rope::RopeAngles,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use retie_config::{ExpertChoiceConfig, KvStrategy, RouterConfig, TokenChoiceConfig};
use std::{ops::Range, sync::Arc};

/// Who goes through a recursion.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Choice {
    /// As in inference: tokens whose logit is above the threshold, or the depth that each token chooses. Causal, whatever else is in the
    /// batch.
    #[default]
    Threshold,
    /// The same, but some tokens go through every recursion: in training, while a model gets used to tokens that leave early. Of routers
    /// that have each token choose its depth.
    Warmup(FullDepth),
    /// The highest of each sequence, one capacity a recursion. A token's choice depends on later tokens: for training, and for
    /// comparison. It needs whole sequences: no cache, no shared prefix.
    TopK(Vec<f64>),
    /// These rows, in every recursion that is run: what was chosen before.
    Given(Arc<[usize]>),
}

/// Tokens that go through every recursion whatever their router says: drawn by the token, its position and the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FullDepth {
    /// Part of the tokens.
    pub part: f64,
    /// The step.
    pub step: u64,
}

/// What passes from recursion to recursion of one forward pass.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    pub(super) choice: Choice,
    /// Rows that went through the last recursion; all if `None`.
    pub(super) alive: Option<Arc<[usize]>>,
    pub(super) decisions: Vec<Decision>,
    /// Where each token chooses its depth: what that was chosen from.
    pub(super) entry: Option<Entry>,
    /// Rows that go through every recursion.
    pub(super) full_depth: Arc<[bool]>,
    /// Of routers without weights, logits row by row.
    lots: Option<Arc<[f32]>>,
    /// The logits of [`Routing::alive`] for the next recursion of such routers, where they are known.
    drawn: Option<Vec<f32>>,
    /// What the first recursion made of every row, depth by depth, where later ones ask for it and no cache has it.
    first: Vec<KeysValues>,
}

/// What the router of one recursion did.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Which recursion.
    pub recursion: usize,
    /// Rows that it had before it, ascending.
    pub alive: Arc<[usize]>,
    /// Their logits `u`, `[n, 1]`, or `[n, R]` where each token chooses its depth, before the first recursion; in the graph of the forward
    /// pass, if it has one. `None` where there was no row, or nothing left to choose.
    pub logits: Option<Tensor<2>>,
    /// Those of the auxiliary router, `[n, 1]`, if there is one; in a graph that does not reach the model's body.
    pub auxiliary: Option<Tensor<2>>,
    /// The rows of `alive` that it chose, ascending.
    pub chosen: Arc<[usize]>,
    /// Beside logits of depths, the last recursion that the router chose for each row: without those that a warm-up sends on.
    pub own: Option<Arc<[usize]>>,
}

impl Decision {
    /// The logits of [`Decision::alive`], row by row.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        self.logits.as_ref().map_or_else(Vec::new, values)
    }

    /// Those of the auxiliary router.
    #[must_use]
    pub fn auxiliary_values(&self) -> Vec<f32> {
        self.auxiliary.as_ref().map_or_else(Vec::new, values)
    }

    /// What thresholds are of: the logits of the auxiliary router where there is one.
    #[must_use]
    pub fn causal_values(&self) -> Vec<f32> {
        self.auxiliary.as_ref().or(self.logits.as_ref()).map_or_else(Vec::new, values)
    }

    /// Of a recursion that no token reached.
    pub(super) fn of_nobody(recursion: usize) -> Self {
        let nobody: Arc<[usize]> = Arc::default();
        Self { recursion, alive: nobody.clone(), logits: None, auxiliary: None, chosen: nobody, own: None }
    }

    /// For each row of [`Decision::alive`], whether it was chosen.
    #[must_use]
    pub fn mask(&self) -> Vec<bool> {
        let mut chosen = self.chosen.iter().peekable();
        self.alive.iter().map(|row| chosen.next_if_eq(&row).is_some()).collect()
    }
}

impl Routing {
    /// Routing as `choice` says, from the first recursion on.
    #[must_use]
    pub fn new(choice: Choice) -> Self {
        Self { choice, ..Self::default() }
    }

    /// The recursion that `decision` is of, again: the same rows before it, the same rows through it. `entry` is
    /// [`Routing::entry`] of the pass that it was of.
    #[must_use]
    pub fn again(decision: &Decision, entry: Option<Entry>) -> Self {
        Self {
            choice: Choice::Given(decision.chosen.clone()),
            alive: Some(decision.alive.clone()),
            drawn: Some(decision.values()),
            entry,
            ..Self::default()
        }
    }

    /// The same with keys and values of [`Routing::first_keys_values`].
    #[must_use]
    pub fn with_first(self, first: Vec<KeysValues>) -> Self {
        Self { first, ..self }
    }

    /// Keys and values that the first recursion made, depth by depth, where later recursions read them and there is no cache.
    #[must_use]
    pub fn first_keys_values(&self) -> &[KeysValues] {
        &self.first
    }

    /// Where each token chooses its depth, what that was chosen from.
    #[must_use]
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// The decisions so far, in order.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// The decisions, in order.
    #[must_use]
    pub fn into_decisions(self) -> Vec<Decision> {
        self.decisions
    }

    /// The `outputs` logits of each of the rows `alive`, of routers without weights, `[n, outputs]`.
    pub(super) fn drawn(&mut self, alive: &[usize], outputs: usize, device: &Device) -> Tensor<2> {
        let of_row = |row: &usize| *row * outputs..(row + 1) * outputs;
        let values = self.drawn.take().or_else(|| {
            self.lots.as_ref().map(|lots| alive.iter().flat_map(|row| lots[of_row(row)].iter().copied()).collect())
        });
        let Some(values) = values else { unreachable!("lots are drawn before a forward pass") };
        Tensor::from_data(TensorData::new(values, [alive.len(), outputs]), device)
    }

    /// How many recursions each of `num_rows` rows went through.
    #[must_use]
    pub fn depths(&self, num_rows: usize) -> Vec<usize> {
        let mut depths = vec![0; num_rows];
        for row in self.decisions.iter().flat_map(|decision| decision.chosen.iter()) {
            depths[*row] += 1;
        }
        depths
    }
}

impl CausalLm {
    /// The router's configuration, if there is one.
    #[must_use]
    pub fn router(&self) -> Option<&RouterConfig> {
        self.plan.config.recursion.as_ref()?.router.as_ref()
    }

    /// The same of recursions that choose their tokens.
    #[must_use]
    pub fn expert_choice(&self) -> Option<&ExpertChoiceConfig> {
        match self.router()? {
            RouterConfig::ExpertChoice(router) => Some(router),
            RouterConfig::TokenChoice(_) => None,
        }
    }

    /// The same of tokens that choose their depth.
    #[must_use]
    pub fn token_choice(&self) -> Option<&TokenChoiceConfig> {
        match self.router()? {
            RouterConfig::TokenChoice(router) => Some(router),
            RouterConfig::ExpertChoice(_) => None,
        }
    }

    /// Replaces the thresholds of recursions that choose their tokens; other models stay as they are.
    pub fn set_thresholds(&mut self, thresholds: Vec<Option<f64>>) {
        if let Some(RouterConfig::ExpertChoice(router)) = self.router_mut() {
            router.thresholds = Some(thresholds);
        }
    }

    /// Replaces the biases of tokens that choose their depth; other models stay as they are.
    pub fn set_biases(&mut self, biases: Vec<f32>) {
        if let Some(RouterConfig::TokenChoice(router)) = self.router_mut() {
            router.biases = Some(biases);
        }
    }

    fn router_mut(&mut self) -> Option<&mut RouterConfig> {
        Arc::make_mut(&mut self.plan).config.recursion.as_mut()?.router.as_mut()
    }

    /// Draws what has to be drawn for the rows of a forward pass over `ids [M]`: what routers without weights go by, and who goes through
    /// every recursion. Other models need nothing.
    pub fn draw_lots(&self, ids: &Tensor<1, Int>, rows: &Rows, routing: &mut Routing) {
        let Some(router) = self.router() else { return };
        let (_, positions) = rows.layout.positions();
        if !router.network().has_weights() {
            let outputs = self.token_choice().map_or(1, |_| self.plan.share_map.num_recursions());
            routing.lots = Some(lots::draw(ids, &positions, outputs));
        }
        if let Choice::Warmup(full) = &routing.choice {
            routing.full_depth = lots::full_depth(ids, &positions, *full);
        }
    }

    /// Runs the depths of one of [`ShareMap::passes`](retie_config::ShareMap::passes) over hidden states `[M, D]`: with a router, of
    /// the rows that it chooses.
    #[must_use]
    pub fn run_pass(
        &self,
        x: Tensor<2>,
        depths: Range<usize>,
        rows: &Rows,
        routing: &mut Routing,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let recursion = self.plan.share_map.depths()[depths.start].recursion;
        match (self.router(), recursion) {
            (Some(RouterConfig::ExpertChoice(router)), Some(recursion)) => {
                self.run_recursion(x, recursion, depths, rows, router, routing, cache)
            }
            (Some(RouterConfig::TokenChoice(router)), Some(recursion)) => {
                self.run_chosen_depth(x, recursion, depths, rows, router, routing, cache)
            }
            _ => self.run_depths(x, depths, rows, cache),
        }
    }

    /// Runs some depths, pass by pass; of a routed model, whole recursions.
    #[must_use]
    pub fn run_passes(
        &self,
        mut x: Tensor<2>,
        depths: Range<usize>,
        rows: &Rows,
        routing: &mut Routing,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        for pass in self.plan.share_map.passes() {
            let part = pass.start.max(depths.start)..pass.end.min(depths.end);
            if !part.is_empty() {
                x = self.run_pass(x, part, rows, routing, cache.as_deref_mut());
            }
        }
        x
    }

    #[expect(clippy::too_many_arguments, reason = "those of `run_pass`, and what it found out")]
    fn run_recursion(
        &self,
        x: Tensor<2>,
        recursion: usize,
        depths: Range<usize>,
        rows: &Rows,
        router: &ExpertChoiceConfig,
        routing: &mut Routing,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let [num_rows, _] = x.dims();
        let before = routing.alive.take().unwrap_or_else(|| (0..num_rows).collect());
        if before.is_empty() {
            self.leave_out(depths, num_rows, routing, cache);
            routing.decisions.push(Decision::of_nobody(recursion));
            routing.alive = Some(before);
            return x;
        }
        let alive = if before.len() == num_rows { x.clone() } else { kernels::gather(x.clone(), &before) };
        let logits = match self.model.routers.get(recursion) {
            Some(network) => network.logits(alive.clone(), router.input), // [n, 1]
            None => routing.drawn(&before, 1, &x.device()),
        };
        let auxiliary = self.model.auxiliary_routers.get(recursion);
        let auxiliary = auxiliary.map(|network| network.logits(alive.clone().detach(), router.input)); // [n, 1]
        let chosen: Arc<[usize]> = match &routing.choice {
            Choice::Given(rows) => rows.clone(),
            Choice::TopK(capacities) => {
                choose::highest(&before, &values(&logits), rows.layout.segments(), capacities[recursion]).into()
            }
            Choice::Threshold | Choice::Warmup(_) => {
                let logits = values(auxiliary.as_ref().unwrap_or(&logits));
                choose::above(&before, &logits, router.threshold(recursion)).into()
            }
        };
        let x = if chosen.is_empty() {
            self.leave_out(depths, num_rows, routing, cache);
            x
        } else {
            let gate = scores(logits.clone(), router.score, router.alpha);
            let (entering, gate) = if chosen.len() == before.len() {
                (alive, gate)
            } else {
                let among = positions(&before, &chosen);
                (kernels::gather(x.clone(), &chosen), kernels::gather(gate, &among))
            };
            let left = self.run_chosen(entering, recursion, depths, rows, &chosen, routing, cache);
            kernels::merge(x, left, gate, Merge { rows: chosen.clone(), gating: router.gating })
        };
        let decision =
            Decision { recursion, alive: before, logits: Some(logits), auxiliary, chosen: chosen.clone(), own: None };
        routing.decisions.push(decision);
        routing.alive = Some(chosen);
        x
    }

    /// Runs `depths` over the rows `chosen` of a forward pass, whose hidden states are `x [k, D]`. They see what the model's strategy of
    /// keys and values says.
    #[expect(clippy::too_many_arguments, reason = "those of `run_pass`, and what was chosen")]
    pub(super) fn run_chosen(
        &self,
        x: Tensor<2>,
        recursion: usize,
        depths: Range<usize>,
        rows: &Rows,
        chosen: &Arc<[usize]>,
        routing: &mut Routing,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        match self.router().map_or(KvStrategy::RecursionWise, RouterConfig::kv) {
            KvStrategy::RecursionWise => self.run_among(x, recursion, depths, rows, chosen, cache),
            _ if recursion == 0 => self.run_first(x, depths, rows, routing, cache),
            kv => self.run_before_all(x, depths, rows, chosen, kv, &routing.first, cache),
        }
    }

    /// As [`CausalLm::run_chosen`]: the rows see one another.
    fn run_among(
        &self,
        mut x: Tensor<2>,
        recursion: usize,
        depths: Range<usize>,
        rows: &Rows,
        chosen: &[usize],
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let Some(cache) = cache else {
            if chosen.len() == rows.layout.num_rows() {
                return self.run_depths(x, depths, rows, None);
            }
            return self.run_depths(x, depths, &rows.only(chosen, among(&rows.layout, chosen)), None);
        };
        let counts = counts(&rows.layout, chosen);
        let Some((runs, layout)) = cache.make_room(recursion, depths.clone(), &counts) else {
            return self.run_depths(x, depths, rows, Some(cache));
        };
        let rows = rows.only(chosen, layout);
        for depth in depths {
            let slot = Some(cache.slot_for(depth, &runs));
            x = self.run_depth(x, depth, &rows, Kv::Own { slot, kept: None });
        }
        cache.advance_recursion(recursion, &counts);
        x
    }

    /// The first recursion of every row, whose keys and values later ones read: from the cache, or as they are left in `routing`.
    fn run_first(
        &self,
        mut x: Tensor<2>,
        depths: Range<usize>,
        rows: &Rows,
        routing: &mut Routing,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let keep = cache.is_none() || self.router().is_some_and(|router| router.kv() == KvStrategy::Hybrid);
        routing.first.clear();
        for depth in depths {
            let slot = cache.as_deref_mut().map(|cache| cache.slot(depth, rows.layout.num_rows()));
            let kept = keep.then_some(&mut routing.first);
            x = self.run_depth(x, depth, rows, Kv::Own { slot, kept });
        }
        x
    }

    /// As [`CausalLm::run_chosen`] of a later recursion: the rows see all tokens, as the first recursion made them or with what this one
    /// makes in their places.
    #[expect(clippy::too_many_arguments, reason = "those of `run_chosen`, and what the first recursion made")]
    fn run_before_all(
        &self,
        mut x: Tensor<2>,
        depths: Range<usize>,
        rows: &Rows,
        chosen: &Arc<[usize]>,
        strategy: KvStrategy,
        first: &[KeysValues],
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let num_rows = rows.layout.num_rows();
        let some = (chosen.len() < num_rows).then(|| rows.only(chosen, before_all(&rows.layout, chosen)));
        let rows = some.as_ref().unwrap_or(rows);
        let start = depths.start;
        for depth in depths {
            let kv = match (strategy, cache.as_deref_mut()) {
                (KvStrategy::Shared, Some(cache)) => Kv::Given(cache.buffers(self.first_depth(depth))),
                (KvStrategy::Shared, None) => Kv::Given(first[depth - start].clone()),
                (_, cache) => {
                    let slot = cache.map(|cache| cache.slot(depth, num_rows));
                    Kv::Over { first: first[depth - start].clone(), rows: chosen.clone(), slot }
                }
            };
            x = self.run_depth(x, depth, rows, kv);
        }
        x
    }

    /// The first depth that runs the layer of `depth`.
    fn first_depth(&self, depth: usize) -> usize {
        let plan = self.plan.share_map.depths();
        plan.iter().position(|step| step.layer == plan[depth].layer).unwrap_or(depth)
    }

    /// What is left to do of a recursion that no row goes through: a hybrid cache gets what the first recursion made of them.
    pub(super) fn leave_out(
        &self,
        depths: Range<usize>,
        num_rows: usize,
        routing: &Routing,
        cache: Option<&mut KvCache>,
    ) {
        let hybrid = self.router().is_some_and(|router| router.kv() == KvStrategy::Hybrid);
        if let Some(cache) = cache.filter(|_| hybrid) {
            for (depth, first) in depths.zip(&routing.first) {
                let _ = cache.slot(depth, num_rows).append(first.clone());
            }
        }
    }

    /// Hidden states after the final norm, `[M, D]`, and what the routers did, of sequences that lie behind one another in `ids [M]`.
    pub fn forward_routed(&self, ids: Tensor<1, Int>, layout: Layout, choice: Choice) -> (Tensor<2>, Routing) {
        let mut routing = Routing::new(choice);
        let hidden = self.run(ids, layout, &mut routing, None);
        (hidden, routing)
    }
}

fn values(logits: &Tensor<2>) -> Vec<f32> {
    f32_slice(&logits.clone().into_data()).to_vec()
}

/// Where the ascending `some` stand in the ascending `all`.
pub(super) fn positions(all: &[usize], some: &[usize]) -> Vec<usize> {
    let mut at = 0;
    let position = |row: &usize| {
        at += all[at..].partition_point(|other| other < row);
        at
    };
    some.iter().map(position).collect()
}

/// How many of `chosen` are in each segment.
fn counts(layout: &Layout, chosen: &[usize]) -> Vec<usize> {
    layout.segments().iter().map(|segment| range(chosen, &segment.queries).len()).collect()
}

/// Where the rows of `rows` stand in the ascending `chosen`.
fn range(chosen: &[usize], rows: &Range<usize>) -> Range<usize> {
    let to = |bound: usize| chosen.partition_point(|row| *row < bound);
    to(rows.start)..to(rows.end)
}

/// The layout of an attention in which `chosen` see one another, and those they share as a prefix, without a cache.
fn among(layout: &Layout, chosen: &[usize]) -> Layout {
    let segments = layout.segments().iter().map(|segment| {
        let queries = range(chosen, &segment.queries);
        Segment::last(queries.clone(), range(chosen, &segment.prefix), queries)
    });
    Layout::ragged(segments.filter(|segment| !segment.queries.is_empty()).collect())
}

/// The layout of an attention in which `chosen` see what all rows would see in their place.
fn before_all(layout: &Layout, chosen: &[usize]) -> Layout {
    let segments = layout.segments().iter().filter_map(|segment| {
        let at = range(chosen, &segment.queries);
        (!at.is_empty()).then(|| segment.only(&chosen[at.clone()], at.start))
    });
    Layout::ragged(segments.collect())
}

impl Rows {
    /// The rows `chosen` of these, at their positions, which see what `layout` says.
    fn only(&self, chosen: &[usize], layout: Layout) -> Self {
        let angles = self.angles.iter().map(|RopeAngles { cos, sin }| {
            let [repeat, _] = cos.dims();
            let at: Vec<usize> = chosen.iter().map(|row| row % repeat).collect();
            let take = |x: &Tensor<2>| kernels::gather(x.clone(), &at);
            RopeAngles { cos: take(cos), sin: take(sin) }
        });
        Self { layout, batch: 1, angles: angles.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_rows_of_packed_sequences_see_the_chosen_rows_of_their_prefix() {
        let layout = Layout::packed([(4, 0..0), (2, 0..4), (3, 0..3)]);
        let chosen = [0, 2, 3, 6, 8];
        let found = among(&layout, &chosen);
        let segment = |queries: Range<usize>, prefix| Segment::last(queries.clone(), prefix, queries);
        assert_eq!(found.segments(), [segment(0..3, 0..0), segment(3..5, 0..2)]);
        assert_eq!(counts(&layout, &chosen), [3, 0, 2]);
        assert_eq!(positions(&[0, 2, 3, 6, 8], &[2, 8]), [1, 4]);
        let found = before_all(&layout, &chosen);
        let seen = |i: usize| {
            let segment = &found.segments()[i];
            (segment.queries.clone(), segment.prefix.clone(), segment.keys.clone(), segment.positions().collect())
        };
        assert_eq!(seen(0), (0..3, 0..0, 0..4, vec![0, 2, 3]));
        assert_eq!(seen(1), (3..5, 0..3, 6..9, vec![3, 5]));
    }
}
