//! The forward pass, stepped from depth to depth: embeddings, recursions over the rows that a
//! [`TokenSelector`] selects, final norm.
//!
//! Training, gradient checkpointing, the teacher, evaluation, prefill and decode all step this one
//! value. They differ in the rule that selects tokens ([`SelectionRule`]), in the depths whose
//! hidden states they read, and in the presence of a cache.

use crate::{
    cache::KvCache,
    causal_lm::CausalLm,
    exit::{ExitCall, ExitPass, RowExits},
    kernels::{Layout, RowSet},
    kv::FirstRecursionKv,
    recursion::{RecursionCall, SharedKv},
    router::{
        self, ActiveRows, LoopEntry, Origin, Passage, RoutingDecision, RoutingTrace, SelectionRule, TokenSelector,
    },
    row_context::RowContext,
    steps::{CoarseCall, EnteredStates},
    token_ids::TokenIds,
};
use burn::tensor::Tensor;
use std::{ops::Range, sync::Arc};

/// Forward pass in progress.
#[derive(Debug)]
pub struct Forward<'m> {
    model: &'m CausalLm,
    rows: Arc<RowContext>,
    /// `None` if every token goes through every recursion.
    selector: Option<Box<dyn TokenSelector + 'm>>,
    /// Tokens leave the loop early, if asked for.
    exits: Option<Box<ExitPass<'m>>>,
    cache: Option<&'m mut KvCache>,
    /// Hidden states after [`Forward::depth`] depths, `[M, D]`.
    hidden: Tensor<2>,
    depth: usize,
    /// Rows that went through the last recursion; `None` (all rows) before the first.
    active_rows: Option<RowSet>,
    first_kv: FirstRecursionKv,
    entered: EnteredStates,
    trace: RoutingTrace,
}

/// State from which a part of a forward pass runs again over the same selected rows, for gradient
/// checkpointing.
#[derive(Debug)]
pub struct Replay {
    /// Number of depths before the replayed part.
    pub depth: usize,
    /// Hidden states after these depths, `[M, D]`.
    pub hidden: Tensor<2>,
    /// Routing decision of the recursion that begins there, if a router made one.
    pub decision: Option<RoutingDecision>,
    /// [`Forward::loop_entry`] after that decision.
    pub entry: Option<LoopEntry>,
    /// [`Forward::first_recursion_kv`], for a recursion after the first.
    pub first_kv: FirstRecursionKv,
    /// [`Forward::entered_states`] of the recursions before.
    pub entered: EnteredStates,
}

impl CausalLm {
    /// Begins a forward pass over token ids `[M]`, the packed sequences of `layout`.
    #[must_use]
    pub fn begin(&self, ids: impl Into<TokenIds>, layout: Layout, rule: SelectionRule) -> Forward<'_> {
        let ids = ids.into();
        let hidden = self.embed(ids.tensor().clone());
        self.begin_from(hidden, &ids, layout, rule)
    }

    /// Begins a forward pass as [`CausalLm::begin`] does, from the embeddings `hidden [M, D]` of
    /// the ids, which a caller may have made a leaf of the autodiff graph.
    #[must_use]
    pub fn begin_from(&self, hidden: Tensor<2>, ids: &TokenIds, layout: Layout, rule: SelectionRule) -> Forward<'_> {
        let rows = Arc::new(self.row_context(layout));
        let selector = router::selector_of(self, Origin::Tokens { ids, rows: &rows, rule, entry: None });
        self.forward_at(rows, hidden, 0).with_selector(selector)
    }

    /// Resumes a pass over `rows` from `replay`. The pass makes no new selection, so it can run the
    /// recursion of `replay`, but no later one.
    #[must_use]
    pub fn replay(&self, rows: Arc<RowContext>, replay: Replay) -> Forward<'_> {
        let Replay { depth, hidden, decision, entry, first_kv, entered } = replay;
        let forward = Forward { first_kv, entered, ..self.forward_at(rows, hidden, depth) };
        let Some(decision) = decision else { return forward };
        let active_rows = Some(decision.active_rows.clone());
        let selector =
            router::selector_of(self, Origin::Replay { decision: Box::new(decision), entry: entry.map(Box::new) });
        Forward { active_rows, ..forward }.with_selector(selector)
    }

    /// State that leaves a recursion which ends before `depth`, of `rows` if not of all: `left`, or
    /// its fusion with what has left the earlier ones.
    pub(crate) fn fused(
        &self,
        left: Tensor<2>,
        depth: usize,
        (entered, rows): (&EnteredStates, Option<&RowSet>),
    ) -> Tensor<2> {
        let eps = self.config().anatomy.norm_eps as f32;
        match &self.model.depths[depth - 1].step.fuse {
            Some(fuse) => fuse.forward(left, (entered, rows), eps),
            None => left,
        }
    }

    /// A pass over `rows` whose first `depth` depths have left `hidden`. It selects no tokens.
    pub(crate) fn forward_at(&self, rows: Arc<RowContext>, hidden: Tensor<2>, depth: usize) -> Forward<'_> {
        Forward {
            model: self,
            rows,
            selector: None,
            exits: None,
            cache: None,
            hidden,
            depth,
            active_rows: None,
            first_kv: FirstRecursionKv::default(),
            entered: EnteredStates::default(),
            trace: RoutingTrace::default(),
        }
    }
}

impl<'m> Forward<'m> {
    fn with_selector(self, selector: Option<Box<dyn TokenSelector + 'm>>) -> Self {
        Self { selector, ..self }
    }

    /// Adds a cache. `layout` must continue its sequences.
    #[must_use]
    pub fn with_cache(self, cache: &'m mut KvCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// Lets tokens leave the loop early. The model must pass [`CausalLm::check_exits`].
    ///
    /// # Panics
    /// When there is not one limit for each row.
    #[must_use]
    pub fn with_exits(self, exits: RowExits<'m>) -> Self {
        assert_eq!(exits.limits.len(), self.rows.num_rows(), "limits, one for each row");
        Self { exits: Some(Box::new(ExitPass::new(exits))), ..self }
    }

    /// Runs the stack up to `depth` depths in all; depths that have run do not run again.
    ///
    /// # Panics
    /// When the stack has fewer depths, or `depth` lies within a recursion of a routed model, or
    /// within one over coarse tokens.
    pub fn advance_to(&mut self, depth: usize) {
        let model = self.model;
        let num_depths = model.share_map().num_depths();
        assert!(depth <= num_depths, "depth {depth} of a stack of {num_depths}");
        for pass in model.share_map().passes() {
            let part = pass.start.max(self.depth)..pass.end.min(depth);
            if !part.is_empty() {
                self.run_pass(&pass, part);
            }
        }
    }

    /// Number of depths that have run.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Hidden states after [`Forward::depth`] depths, `[M, D]`, before the final norm.
    #[must_use]
    pub fn hidden(&self) -> &Tensor<2> {
        &self.hidden
    }

    /// Context of the rows of the pass.
    #[must_use]
    pub fn rows(&self) -> &Arc<RowContext> {
        &self.rows
    }

    /// Routing trace of the recursions so far.
    #[must_use]
    pub fn trace(&self) -> &RoutingTrace {
        &self.trace
    }

    /// Loop entry of token choice, once the tokens have selected their recursion counts.
    #[must_use]
    pub fn loop_entry(&self) -> Option<&LoopEntry> {
        self.selector.as_ref()?.entry()
    }

    /// Keys and values of the first recursion, if later ones read them and there is no cache.
    #[must_use]
    pub fn first_recursion_kv(&self) -> &FirstRecursionKv {
        &self.first_kv
    }

    /// Hidden states that entered the recursions so far, if later ones read them.
    #[must_use]
    pub fn entered_states(&self) -> &EnteredStates {
        &self.entered
    }

    /// Runs the rest of the stack. Returns hidden states after the final norm, `[M, D]`, and the
    /// routing trace.
    #[must_use]
    pub fn finish(self) -> (Tensor<2>, RoutingTrace) {
        self.read_out()
    }

    /// Early exit of every token after the first `recursions` recursions: later ones are skipped,
    /// the layers after the loop run. The result is that of [`Forward::finish`].
    ///
    /// # Panics
    /// When the stack has no such exit, and when later recursions have run already.
    #[must_use]
    pub fn exit_after(mut self, recursions: usize) -> (Tensor<2>, RoutingTrace) {
        self.skip_from(recursions);
        self.read_out()
    }

    /// Runs the first `recursions` recursions and skips the later ones, up to the layers after the
    /// loop.
    ///
    /// # Panics
    /// As [`Forward::exit_after`].
    fn skip_from(&mut self, recursions: usize) {
        let exits = match self.model.share_map().exits() {
            Ok(exits) => exits,
            Err(error) => panic!("{error}"),
        };
        self.advance_to(exits.end(recursions));
        assert_eq!(self.depth, exits.end(recursions), "an exit before recursions that have run");
        self.depth = exits.coda().start;
    }

    /// Runs the rest of the stack and the final norm.
    fn read_out(mut self) -> (Tensor<2>, RoutingTrace) {
        self.advance_to(self.model.share_map().num_depths());
        (self.model.norm(self.hidden), self.trace)
    }

    /// Runs `part` of the depths of a pass.
    fn run_pass(&mut self, pass: &Range<usize>, part: Range<usize>) {
        let model = self.model;
        let recursion = model.share_map().depths()[part.start].recursion;
        let plain = self.selector.is_none() && !model.kv_sharing().reads_first_recursion();
        if let Some(recursion) = recursion.filter(|_| part.start == pass.start) {
            self.feed_back(recursion, pass.start);
        }
        self.depth = part.end;
        if let Some((recursion, mut exits)) = recursion.and_then(|recursion| Some((recursion, self.exits.take()?))) {
            assert_eq!(part, *pass, "recursion {recursion} of a pass with exits runs as a whole");
            if let Some(mut selector) = self.selector.take() {
                let before = self.hidden.clone();
                self.run_routed(recursion, part, selector.as_mut());
                let states = [&before, &self.hidden];
                let rows = self.active_rows.take();
                self.active_rows = rows.map(|rows| exits.retain(model, recursion + 1, rows, states));
                (self.selector, self.exits) = (Some(selector), Some(exits));
                return;
            }
            let (first_kv, cache) = (&mut self.first_kv, self.cache.as_deref_mut());
            let entered = &self.entered;
            let call = ExitCall { model, recursion, depths: part, rows: &self.rows, first_kv, cache, entered };
            let (hidden, decision) = exits.run(self.hidden.clone(), call);
            self.hidden = hidden;
            self.trace.push(decision);
            self.exits = Some(exits);
            return;
        }
        let ends = recursion.is_some() && part.end == pass.end;
        let factor = model.model.depths[pass.start].step.factor;
        if let Some(recursion) = recursion.filter(|_| factor > 1) {
            assert_eq!(part, *pass, "recursion {recursion} over coarse tokens runs as a whole");
            let call = CoarseCall { recursion, depths: part, rows: &self.rows, factor };
            let coarse = model.run_coarse(self.hidden.clone(), call, self.cache.as_deref_mut());
            self.hidden = model.fused(coarse, pass.end, (&self.entered, None));
            return;
        }
        match (recursion.filter(|_| !plain), self.selector.take()) {
            (Some(recursion), Some(mut selector)) => {
                assert_eq!(part, *pass, "recursion {recursion} of a routed model runs as a whole");
                self.run_routed(recursion, part, selector.as_mut());
                self.selector = Some(selector);
            }
            (Some(recursion), None) => {
                let selected_rows = (0..self.rows.num_rows()).collect();
                let call = RecursionCall { recursion, depths: part, rows: &self.rows, selected_rows };
                let kv = SharedKv { first: &mut self.first_kv, cache: self.cache.as_deref_mut() };
                self.hidden = model.run_recursion(self.hidden.clone(), &call, kv);
            }
            (None, selector) => {
                self.selector = selector;
                let x = self.hidden.clone();
                self.hidden = match self.cache.as_deref_mut() {
                    Some(cache) => model.run_cached_depths(x, part, &self.rows, cache),
                    None => model.run_depths(x, part, &self.rows),
                };
            }
        }
        if ends {
            self.hidden = model.fused(self.hidden.clone(), pass.end, (&self.entered, None));
        }
    }

    /// Dense feedback into the input of a recursion that begins at `depth`, and what later
    /// recursions and exits read of it.
    fn feed_back(&mut self, recursion: usize, depth: usize) {
        let depths = &self.model.model.depths;
        if depths.iter().any(|depth| depth.step.reads_entered()) {
            self.entered.insert(recursion, depth, self.hidden.clone());
            if let Some(factors) = &depths[depth].step.dense {
                self.hidden = self.entered.feed_back(self.hidden.clone(), recursion, &factors.val());
            }
        }
    }

    /// Runs a recursion over the rows that `selector` selects among the active rows, and merges its
    /// output into the hidden states.
    fn run_routed(&mut self, recursion: usize, depths: Range<usize>, selector: &mut (dyn TokenSelector + 'm)) {
        let (model, x) = (self.model, self.hidden.clone());
        let rows = self.rows.clone();
        let active_rows = self.active_rows.take().unwrap_or_else(|| (0..rows.num_rows()).collect());
        let active = ActiveRows::new(x.clone(), active_rows.clone());
        let decision = match active_rows.is_empty() {
            true => RoutingDecision::without_rows(recursion),
            false => selector.select(&active, recursion, rows.layout.segments()),
        };
        let selected_rows = decision.selected_rows.clone();
        let call = RecursionCall { recursion, depths, rows: &rows, selected_rows: selected_rows.clone() };
        let kv = SharedKv { first: &mut self.first_kv, cache: self.cache.as_deref_mut() };
        if selected_rows.is_empty() {
            model.skip_recursion(&call, kv);
        } else {
            let entering = active.select(&selected_rows);
            let leaving = model.run_recursion(entering.clone(), &call, kv);
            self.hidden = selector.merge(Passage { all: x, entering, leaving }, &decision);
        }
        self.active_rows = Some(selected_rows);
        self.trace.push(decision);
    }
}
