//! The loop of an engine that runs a recursive stack part by part: hidden states of the tokens
//! on their way, and the passes over them.

use crate::{
    exits::ExitOptions,
    pipeline::{Asked, Pipeline, Rows, Unit},
    scheduler::{ExitTrace, Scheduler},
};
use burn::tensor::Tensor;
use retie_model::{
    BlockPass, CausalLm, ExitRule, InRecursion, KvCache, LoopParts, NewTokens, RoutedRows, Slot, Span, TokenIds,
    kernels,
};

/// State of the loop between steps.
#[derive(Debug)]
pub(crate) struct Looped {
    parts: LoopParts,
    pub scheduler: Scheduler,
    /// Forced exits of new tokens, if there are any.
    pub trace: Option<ExitTrace>,
    pub pipeline: Pipeline,
    /// Hidden states of the rows in the loop, and of those that have left it; `None` for no rows.
    in_loop: Option<Tensor<2>>,
    left: Option<Tensor<2>>,
    /// What a router keeps of the rows in the loop; `None` for no rows, and without a router.
    routed: Option<RoutedRows>,
}

/// What the passes of a step run on.
pub(crate) struct Passes<'a> {
    pub model: &'a CausalLm,
    pub cache: &'a mut KvCache,
    /// Exits of requests, if tokens have any.
    pub exits: Option<&'a ExitOptions>,
}

/// Tokens that have been read to the end of the stack, by sequence and position.
pub(crate) struct Finished {
    pub read: Vec<NewTokens>,
    /// Recursion count of each.
    pub counts: Vec<usize>,
    /// Hidden states after the final norm, `[M, D]`.
    pub hidden: Tensor<2>,
}

impl Looped {
    pub fn new(parts: LoopParts, scheduler: Scheduler, trace: Option<ExitTrace>) -> Self {
        let pipeline = Pipeline::new(scheduler, parts.recursions.len());
        Self { parts, scheduler, trace, pipeline, in_loop: None, left: None, routed: None }
    }

    /// Runs the depths before the loop over tokens that start, `ids [M]`.
    pub fn start(&mut self, model: &CausalLm, ids: &TokenIds, units: Vec<Unit>, cache: &mut KvCache) {
        let spans: Vec<Span> = units.iter().map(|unit| unit.span).collect();
        let x = model.run_part(model.embed(ids.tensor().clone()), self.parts.before.clone(), &spans, cache);
        let mut selects = Vec::new();
        if model.router().is_some() {
            let tokens: Vec<InRecursion> = spans.iter().map(|span| InRecursion { recursion: 0, span: *span }).collect();
            let (of_new, kept) = model.select_in_loop(&x, &tokens, &RoutedRows::new(ids), cache);
            selects = of_new;
            self.routed = Some(match self.routed.take() {
                Some(others) => kept.joined(others),
                None => kept,
            });
        }
        let num_others = self.in_loop.as_ref().map_or(0, num_rows);
        self.in_loop = joined(Some(x), self.in_loop.take());
        self.pipeline.start(units);
        if !selects.is_empty() {
            selects.extend(std::iter::repeat_n(true, num_others));
            self.keep_selected(&selects);
        }
    }

    /// Lets the rows in the loop leave that the router does not select.
    fn keep_selected(&mut self, selects: &[bool]) {
        let Rows { stay, leave } = self.pipeline.selected(selects);
        let Some(all) = self.in_loop.take() else { return };
        self.left = joined(self.left.take(), chosen(&all, &leave));
        self.in_loop = chosen(&all, &stay);
        self.routed = self.routed.take().and_then(|kept| kept.chosen(&stay));
    }

    /// Runs one pass over the shared block, in phase as many as it takes until nobody is in the
    /// loop; then the depths after it for those who have left it and are `wanted`. `None` if there
    /// are none.
    pub fn advance(&mut self, passes: &mut Passes<'_>, wanted: impl Fn(Slot) -> bool) -> Option<Finished> {
        loop {
            self.pass(passes);
            if !self.pipeline.waits() {
                break;
            }
        }
        let (units, Rows { stay, leave }) = self.pipeline.take(|unit| wanted(unit.span.slot));
        let left = self.left.take()?;
        self.left = chosen(&left, &stay);
        let x = chosen(&left, &leave)?;
        let spans = whole_spans(&units);
        let x = passes.model.run_part(x, self.parts.after.clone(), &spans, passes.cache);
        let read = spans.into_iter().map(|Span { slot, tokens, .. }| NewTokens { slot, tokens }).collect();
        let counts = units.iter().flat_map(|unit| std::iter::repeat_n(unit.done, unit.span.tokens)).collect();
        Some(Finished { read, counts, hidden: passes.model.norm(x) })
    }

    fn pass(&mut self, passes: &mut Passes<'_>) {
        let Some(before) = self.in_loop.take() else { return };
        let Passes { model, cache, exits } = passes;
        // Without exits of requests, those of a trace go by the default policy.
        let kv = exits.map_or_else(|| model.default_skipped_kv(), |exits| exits.kv);
        let (tokens, may_leave) = (self.pipeline.pass(), self.pipeline.may_leave());
        let of = |tokens| BlockPass { parts: &self.parts, tokens, kv, may_leave };
        let asked = self.pipeline.asked();
        let mut after = model.run_block(before.clone(), of(&tokens), cache);
        if let Some(kept) = &self.routed {
            after = model.merge_in_loop([&before, &after], &tokens, kept);
        }
        let rule = exits.and_then(|exits| exits.rule.as_ref());
        let numbers = numbers(model, rule, &asked, [&before, &after]);
        let (Rows { stay, leave }, units) = self.pipeline.passed(&numbers);
        let left = chosen(&after, &leave);
        let early: Vec<InRecursion> = units
            .iter()
            .filter(|unit| unit.done < self.parts.recursions.len())
            .map(|unit| InRecursion { recursion: unit.done, span: unit.span })
            .collect();
        if let Some(left) = left.as_ref().filter(|_| !early.is_empty()) {
            // Those that have gone through all recursions come last.
            let rows = early.iter().map(|tokens| tokens.span.tokens).sum();
            model.leave_block(&left.clone().narrow(0, 0, rows), of(&early), cache);
        }
        self.in_loop = chosen(&after, &stay);
        self.left = joined(self.left.take(), left);
        self.routed = self.routed.take().and_then(|kept| kept.chosen(&stay));
        if let Some((x, kept)) = self.in_loop.as_ref().zip(self.routed.as_ref()) {
            let (selects, kept) = model.select_in_loop(x, &self.pipeline.pass(), kept, cache);
            self.routed = Some(kept);
            self.keep_selected(&selects);
        }
    }

    /// Drops the tokens of a sequence.
    pub fn drop_slot(&mut self, slot: Slot) {
        let [in_loop, left] = self.pipeline.drop_slot(slot);
        self.in_loop = self.in_loop.take().and_then(|x| chosen(&x, &in_loop));
        self.routed = self.routed.take().and_then(|kept| kept.chosen(&in_loop));
        self.left = self.left.take().and_then(|x| chosen(&x, &left));
    }
}

/// The rule's number of each row of a pass, given the states `[M, D]` before and after it; −∞ for
/// rows that it is not asked about.
fn numbers(model: &CausalLm, rule: Option<&ExitRule>, asked: &[Asked], states: [&Tensor<2>; 2]) -> Vec<f32> {
    let mut numbers = vec![f32::NEG_INFINITY; num_rows(states[0])];
    for Asked { recursions, rows } in asked {
        let of_rows = states.map(|x| chosen(x, rows));
        if let (Some(rule), [Some(before), Some(after)]) = (rule, of_rows) {
            let found = rule.numbers(model, *recursions, [before, after]);
            rows.iter().zip(found).for_each(|(row, number)| numbers[*row] = number);
        }
    }
    numbers
}

/// Spans of `units`, which are sorted by sequence and position, with pieces that follow one another
/// put together.
fn whole_spans(units: &[Unit]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for Unit { span, .. } in units {
        let follows = |last: &&mut Span| last.slot == span.slot && last.start + last.tokens == span.start;
        match spans.last_mut().filter(follows) {
            Some(last) => last.tokens += span.tokens,
            None => spans.push(*span),
        }
    }
    spans
}

/// The given rows of `x`; `None` for no rows.
fn chosen(x: &Tensor<2>, rows: &[usize]) -> Option<Tensor<2>> {
    match rows.len() {
        0 => None,
        all if all == num_rows(x) && rows.is_sorted() => Some(x.clone()),
        _ => Some(kernels::gather(x.clone(), &rows.into())),
    }
}

fn num_rows(x: &Tensor<2>) -> usize {
    let [rows, _] = x.dims();
    rows
}

/// Rows of `first`, then those of `second`.
fn joined(first: Option<Tensor<2>>, second: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(Tensor::cat(vec![first, second], 0)),
        (first, second) => first.or(second),
    }
}
