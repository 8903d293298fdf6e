//! One contextual inside-outside layer over the charts of a batch (ReCAT, Hu et al. 2024,
//! <https://arxiv.org/abs/2309.16319>, section 3, and its code,
//! <https://github.com/ant-research/StructuredLM_RTDT>).
//!
//! Inside, for a cell `ij`, its splits `k` and what the layer before makes of it, `p_ij`:
//!
//! ```text
//! ẽ_k  = B(p_ij; [p_ij, e_ik, e_kj])
//! s_k  = ⟨φ_L(e_ik), φ_R(e_kj)⟩ / √c + s_ik + s_kj        w = softmax_k(s_k)
//! e_ij = Σ w_k ẽ_k,   s_ij = Σ w_k s_k,   s = 0 for a token
//! ```
//!
//! Outside, from the sentence with `o = e` and `b = 0` down, for every parent `ij` and split `k`:
//!
//! ```text
//! o'_ik = B(e_ik; [e_ik, e_kj, o_ij])      b'_ik = ⟨ψ_P(o_ij), ψ_R(e_kj)⟩ / √c + b_ij + s_kj
//! o'_kj = B(e_kj; [e_ik, e_kj, o_ij])      b'_kj = ⟨ψ_P(o_ij), ψ_L(e_ik)⟩ / √c + b_ij + s_ik
//! o_x  = Σ softmax(b') o',   b_x = Σ softmax(b') b'        over all parents and splits of x
//! ```
//!
//! Keys, values and scorers of a cell are computed when it is made and read by every pair that it
//! is in. `R` is the number of cells, `L` the number of tokens of all sentences.

use super::{
    block::{Block, KeyValue, Pass, Scorers, product},
    error::TreesError,
    plan::{Groups, Mixed, OutsidePairs, Plan},
};
use crate::drive::{Inputs, drive};
use burn::tensor::Tensor;

/// What a layer makes of a batch. Rows are those of the inside table.
#[derive(Debug)]
pub struct States {
    /// `o`: `[R, D]`.
    pub outside: Tensor<2>,
    /// Weights of the splits, a tensor `[P, 1]` for each inside step.
    pub weights: Vec<Tensor<2>>,
}

/// An inside pass.
#[derive(Debug)]
pub struct Inside<const K: usize> {
    /// All parts of the states: `[R, _]` each.
    pub table: [Tensor<2>; K],
    /// Weights of the splits, a tensor `[P, 1]` for each step.
    pub weights: Vec<Tensor<2>>,
}

/// Makes all cells of a plan from the tokens, whose parts are `start`. `pairs` makes scores `[P,
/// 1]` and values `[P, D]` of the splits of a step, `parts` the parts of the cells that these are
/// mixed into.
///
/// # Errors
/// Parts of another number of rows than the step has.
pub fn inside<const K: usize>(
    plan: &Plan,
    start: [Tensor<2>; K],
    pairs: impl Fn(usize, &Inputs<'_, K>, &Groups) -> [Tensor<2>; 2],
    parts: impl Fn(Tensor<2>, Tensor<2>) -> [Tensor<2>; K],
) -> Result<Inside<K>, TreesError> {
    let mut weights = Vec::with_capacity(plan.inside_groups.len());
    let table = drive(start, &plan.inside, |step, inputs| {
        let groups = &plan.inside_groups[step];
        let [scores, values] = pairs(step, &inputs, groups);
        let Mixed { values, scores, weights: of_step } = groups.mix(scores, values);
        weights.push(of_step);
        parts(values, scores)
    })?;
    Ok(Inside { table, weights })
}

/// A block with the scorers that all layers share.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// Its block.
    pub block: &'a Block,
    /// The scorers of both passes.
    pub scorers: &'a Scorers,
}

/// Parts of an inside state: e, s, φ_L(e), φ_R(e), key, value.
pub(super) type InsideParts = [Tensor<2>; 6];

impl Layer<'_> {
    /// Runs both passes. `tokens [L, D]` are the inside states of the tokens, `before [R, D]` what
    /// the layer before makes of each cell.
    ///
    /// # Errors
    /// A plan of other tokens.
    pub fn forward(&self, plan: &Plan, tokens: Tensor<2>, before: Tensor<2>) -> Result<States, TreesError> {
        let [found, _] = tokens.dims();
        if found != plan.inside.first() {
            return Err(TreesError::States { len: plan.inside.first(), found });
        }
        let inside = self.inside(plan, tokens, before)?;
        let outside = self.outside(plan, &inside.table)?;
        Ok(States { outside, weights: inside.weights })
    }

    fn inside_parts(&self, e: Tensor<2>, s: Tensor<2>) -> InsideParts {
        let left = self.scorers.inside_left.forward(e.clone());
        let right = self.scorers.inside_right.forward(e.clone());
        let KeyValue { key, value } = self.block.key_value(e.clone());
        [e, s, left, right, key, value]
    }

    /// The inside pass of [`Layer::forward`].
    pub(super) fn inside(&self, plan: &Plan, tokens: Tensor<2>, before: Tensor<2>) -> Result<Inside<6>, TreesError> {
        let [first, _] = tokens.dims();
        let no_scores = Tensor::zeros([first, 1], &tokens.device());
        let start = self.inside_parts(tokens, no_scores);
        let roles = self.block.roles(Pass::Inside);
        let firsts: Vec<usize> = plan
            .inside
            .steps()
            .iter()
            .scan(first, |row, step| {
                let start = *row;
                *row += step.rows;
                Some(start)
            })
            .collect();
        let pairs = |step: usize, inputs: &Inputs<'_, 6>, groups: &Groups| {
            let cells = before.clone().narrow(0, firsts[step], plan.inside.steps()[step].rows);
            let query = self.block.query(cells.clone()) + roles.query(0);
            let above = roles.set(self.block.key_value(cells.clone()), 0);
            let above = KeyValue { key: groups.of_pairs(above.key), value: groups.of_pairs(above.value) };
            let part = |list| KeyValue { key: inputs.get(4, list), value: inputs.get(5, list) };
            let context = [above, roles.set(part(0), 1), roles.set(part(1), 2)];
            let values = self.block.forward(groups.of_pairs(cells), groups.of_pairs(query), context);
            let scores = product(inputs.get(2, 0), inputs.get(3, 1)) + inputs.get(1, 0) + inputs.get(1, 1);
            [scores, values]
        };
        inside(plan, start, pairs, |e, s| self.inside_parts(e, s))
    }

    /// Parts of an outside state: o, b, ψ_P(o), key, value.
    fn outside_parts(&self, o: Tensor<2>, b: Tensor<2>) -> [Tensor<2>; 5] {
        let parent = self.scorers.outside_parent.forward(o.clone());
        let KeyValue { key, value } = self.block.key_value(o.clone());
        [o, b, parent, key, value]
    }

    /// The outside pass over the states of the inside pass: `o`, `[R, D]`.
    pub(super) fn outside(&self, plan: &Plan, inside: &InsideParts) -> Result<Tensor<2>, TreesError> {
        let [e, s, _, _, key, value] = inside;
        let rows = |x: &Tensor<2>, rows: &Tensor<1, burn::tensor::Int>| x.clone().select(0, rows.clone());
        let roots = rows(e, &plan.roots);
        let start = self.outside_parts(roots.clone(), roots.slice([0..plan.outside.first(), 0..1]).zeros_like());
        let roles = self.block.roles(Pass::Outside);
        let queries = self.block.query(e.clone());
        let left = self.scorers.outside_left.forward(e.clone());
        let right = self.scorers.outside_right.forward(e.clone());
        let scored = Tensor::cat(vec![left, right], 0); // [2·R, c]
        let [o, ..] = drive(start, &plan.outside, |step, inputs| {
            let OutsidePairs { part, other, side, other_side, other_scored } = &plan.outside_pairs[step];
            let query = rows(&queries, part) + roles.queries(side.clone());
            let cells = |at| KeyValue { key: rows(key, at), value: rows(value, at) };
            let above = KeyValue { key: inputs.get(3, 0), value: inputs.get(4, 0) };
            let context = [
                roles.set_each(cells(part), side.clone()),
                roles.set_each(cells(other), other_side.clone()),
                roles.set(above, 2),
            ];
            let values = self.block.forward(rows(e, part), query, context);
            let scores = product(inputs.get(2, 0), rows(&scored, other_scored)) + inputs.get(1, 0) + rows(s, other);
            let Mixed { values, scores, .. } = plan.outside_groups[step].mix(scores, values);
            self.outside_parts(values, scores)
        })?;
        Ok(rows(&o, &plan.outside_rows))
    }
}
