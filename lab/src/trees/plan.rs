//! Charts of a batch of sentences as steps over one table of states.
//!
//! The inside pass makes the cells of all sentences level by level, the outside pass goes back over
//! the same levels. A new row of either pass is a weighted sum over pairs: its splits in the inside
//! pass, the parents and splits that it is a part of in the outside pass.

use super::{chart::Chart, error::TreesError};
use crate::drive::{Schedule, Step, rows_tensor};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData, activation::softmax};

/// Below every score, for places where there is no pair.
const NO_PAIR: f32 = -1e30;

/// Which pairs a step sums up in each of its new rows.
#[derive(Debug)]
pub struct Groups {
    rows: usize,
    /// Most pairs of a row.
    width: usize,
    /// New row of each pair: `[P]`.
    owners: Tensor<1, Int>,
    /// Pair in each place of `[rows, width]`, some pair where there is none: `[rows · width]`.
    slots: Tensor<1, Int>,
    /// 0 in places with a pair and [`NO_PAIR`] in others: `[rows, width]`.
    gaps: Tensor<2>,
    /// Place of each pair in `[rows · width]`: `[P]`.
    places: Tensor<1, Int>,
}

/// A softmax over the pairs of each row, and what it weights.
#[derive(Debug)]
pub struct Mixed {
    /// Weighted sums of the values: `[rows, D]`.
    pub values: Tensor<2>,
    /// Weighted sums of the scores: `[rows, 1]`.
    pub scores: Tensor<2>,
    /// Weight of each pair among those of its row: `[P, 1]`.
    pub weights: Tensor<2>,
}

impl Groups {
    /// Groups by the new row of each pair. Every row has one pair or more.
    fn new(owners: &[usize], rows: usize, device: &Device) -> Self {
        let mut counts = vec![0; rows];
        let mut ranks = Vec::with_capacity(owners.len());
        for owner in owners {
            ranks.push(counts[*owner]);
            counts[*owner] += 1;
        }
        let width = counts.iter().copied().max().unwrap_or(0);
        let (mut slots, mut gaps) = (vec![0; rows * width], vec![NO_PAIR; rows * width]);
        let mut places = Vec::with_capacity(owners.len());
        for (pair, (owner, rank)) in owners.iter().zip(ranks).enumerate() {
            let place = owner * width + rank;
            (slots[place], gaps[place]) = (pair, 0.0);
            places.push(place);
        }
        Self {
            rows,
            width,
            owners: rows_tensor(owners, device),
            slots: rows_tensor(&slots, device),
            gaps: Tensor::from_data(TensorData::new(gaps, [rows, width]), device),
            places: rows_tensor(&places, device),
        }
    }

    /// The rows of `states [rows, D]` for each pair: `[P, D]`.
    #[must_use]
    pub fn of_pairs(&self, states: Tensor<2>) -> Tensor<2> {
        states.select(0, self.owners.clone())
    }

    /// Softmax of `scores [P, 1]` over the pairs of each row, and the sums of `values [P, D]` and
    /// scores that it weights. The order of pairs makes no difference.
    #[must_use]
    pub fn mix(&self, scores: Tensor<2>, values: Tensor<2>) -> Mixed {
        if self.width == 1 {
            // A pair a row, which need not be in the order of the rows.
            let take = |x: Tensor<2>| x.select(0, self.slots.clone());
            let weights = scores.ones_like();
            return Mixed { values: take(values), scores: take(scores), weights };
        }
        let [_, width] = values.dims();
        let padded = scores.select(0, self.slots.clone()).reshape([self.rows, self.width]);
        let weights = softmax(padded.clone() + self.gaps.clone(), 1); // [rows, width]
        let scores = (weights.clone() * padded).sum_dim(1);
        let weights = weights.reshape([self.rows * self.width, 1]).select(0, self.places.clone()); // [P, 1]
        let sums = Tensor::zeros([self.rows, width], &values.device());
        let weighted = values * weights.clone();
        let values = sums.select_assign(0, self.owners.clone(), weighted, IndexingUpdateOp::Add);
        Mixed { values, scores, weights }
    }
}

/// What the outside pass reads of a pair besides the state of the parent.
#[derive(Debug)]
pub struct OutsidePairs {
    /// Row of the part itself in the inside table: `[P]`.
    pub part: Tensor<1, Int>,
    /// Row of the other part in the inside table: `[P]`.
    pub other: Tensor<1, Int>,
    /// 0 where the part is the left one and 1 where it is the right one: `[P]`.
    pub side: Tensor<1, Int>,
    /// 1 where the part is the left one and 0 where it is the right one: `[P]`.
    pub other_side: Tensor<1, Int>,
    /// Row of the other part in `[left; right]`, a table of the scorers of the left parts above one
    /// of those of the right parts, by the side of the other part: `[P]`.
    pub other_scored: Tensor<1, Int>,
}

/// The steps of both passes.
#[derive(Debug)]
pub struct Plan {
    /// From tokens to sentences. Each step has two lists of its inputs: left parts and right parts.
    pub inside: Schedule,
    /// Pairs of each inside step.
    pub inside_groups: Vec<Groups>,
    /// From sentences to tokens; its first rows are the sentences. Each step has one list of its
    /// inputs: parents.
    pub outside: Schedule,
    /// Pairs of each outside step.
    pub outside_groups: Vec<Groups>,
    /// What else each outside step reads.
    pub outside_pairs: Vec<OutsidePairs>,
    /// Rows of the whole sentences in the inside table: `[S]`.
    pub roots: Tensor<1, Int>,
    /// Row in the outside table of each row of the inside table: `[rows]`.
    pub outside_rows: Tensor<1, Int>,
    /// Row in the inside table of each cell of each sentence.
    rows: Vec<Vec<usize>>,
    /// First pair of each inside row behind the tokens, among the pairs of all steps.
    first_pairs: Vec<usize>,
}

/// A cell of a sentence of the batch.
type Place = (usize, usize);

impl Plan {
    /// The plan of a batch. Tokens of all sentences are the first rows of the inside table, in
    /// their order.
    ///
    /// # Errors
    /// Cells that are read before they are made, which no chart has.
    pub fn new(charts: &[Chart], device: &Device) -> Result<Self, TreesError> {
        let levels = by_level(charts);
        let mut rows: Vec<Vec<usize>> = charts.iter().map(|chart| vec![0; chart.cells().len()]).collect();
        for (row, (sentence, cell)) in levels.iter().flatten().enumerate() {
            rows[*sentence][*cell] = row;
        }
        let (inside, inside_groups, first_pairs) = inside(charts, &levels, &rows, device)?;
        let roots: Vec<usize> = rows.iter().filter_map(|rows| rows.last().copied()).collect();
        let (order, outside_rows) = outside_order(&levels, &rows, &roots);
        let made = Outside { charts, rows: &rows, outside_rows: &outside_rows };
        let (outside, outside_groups, outside_pairs) = made.steps(&order, device)?;
        Ok(Self {
            inside,
            inside_groups,
            outside,
            outside_groups,
            outside_pairs,
            roots: rows_tensor(&roots, device),
            outside_rows: rows_tensor(&outside_rows, device),
            rows,
            first_pairs,
        })
    }

    /// Row of each cell of sentence number `sentence` in the inside table.
    #[must_use]
    pub fn rows(&self, sentence: usize) -> &[usize] {
        &self.rows[sentence]
    }

    /// Index of the first pair of the cell in row `row` among the pairs of all inside steps. The
    /// pairs of a cell follow one another in the order of its splits.
    #[must_use]
    pub fn first_pair(&self, row: usize) -> usize {
        self.first_pairs[row - self.inside.first()]
    }
}

/// Cells by level.
fn by_level(charts: &[Chart]) -> Vec<Vec<Place>> {
    let mut levels: Vec<Vec<Place>> = Vec::new();
    for (sentence, chart) in charts.iter().enumerate() {
        for (index, cell) in chart.cells().iter().enumerate() {
            if levels.len() <= cell.level {
                levels.resize_with(cell.level + 1, Vec::new);
            }
            levels[cell.level].push((sentence, index));
        }
    }
    levels
}

type InsideSteps = (Schedule, Vec<Groups>, Vec<usize>);

fn inside(
    charts: &[Chart],
    levels: &[Vec<Place>],
    rows: &[Vec<usize>],
    device: &Device,
) -> Result<InsideSteps, TreesError> {
    let (mut steps, mut groups) = (Vec::new(), Vec::new());
    let (mut first_pairs, mut pairs) = (Vec::new(), 0);
    for level in levels.iter().skip(1) {
        let (mut left, mut right, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, (sentence, cell)) in level.iter().enumerate() {
            first_pairs.push(pairs + owners.len());
            for (l, r) in &charts[*sentence].cells()[*cell].splits {
                left.push(rows[*sentence][*l]);
                right.push(rows[*sentence][*r]);
                owners.push(owner);
            }
        }
        pairs += owners.len();
        groups.push(Groups::new(&owners, level.len(), device));
        steps.push(Step { rows: level.len(), inputs: vec![left, right] });
    }
    let first = levels.first().map_or(0, Vec::len);
    Ok((Schedule::new(first, steps)?, groups, first_pairs))
}

/// Cells of each outside step, from high levels to low ones without the whole sentences, and the
/// outside row of each inside row.
fn outside_order(levels: &[Vec<Place>], rows: &[Vec<usize>], roots: &[usize]) -> (Vec<Vec<Place>>, Vec<usize>) {
    let mut outside_rows = vec![usize::MAX; levels.iter().map(Vec::len).sum()];
    roots.iter().enumerate().for_each(|(row, root)| outside_rows[*root] = row);
    let mut next = roots.len();
    let mut order = Vec::new();
    for level in levels.iter().rev() {
        let mut cells = level.clone();
        cells.retain(|(sentence, cell)| outside_rows[rows[*sentence][*cell]] == usize::MAX);
        for (sentence, cell) in &cells {
            outside_rows[rows[*sentence][*cell]] = next;
            next += 1;
        }
        if !cells.is_empty() {
            order.push(cells);
        }
    }
    (order, outside_rows)
}

/// A pair from below: the parent, the other part, and whether the part is the left one.
type FromBelow = (usize, usize, bool);

struct Outside<'a> {
    charts: &'a [Chart],
    rows: &'a [Vec<usize>],
    outside_rows: &'a [usize],
}

impl Outside<'_> {
    /// What each cell of each sentence is a part of.
    fn parents(&self) -> Vec<Vec<Vec<FromBelow>>> {
        let of_chart = |chart: &Chart| {
            let mut parents = vec![Vec::new(); chart.cells().len()];
            for (parent, cell) in chart.cells().iter().enumerate() {
                for (left, right) in &cell.splits {
                    parents[*left].push((parent, *right, true));
                    parents[*right].push((parent, *left, false));
                }
            }
            parents
        };
        self.charts.iter().map(of_chart).collect()
    }

    fn steps(
        &self,
        order: &[Vec<Place>],
        device: &Device,
    ) -> Result<(Schedule, Vec<Groups>, Vec<OutsidePairs>), TreesError> {
        let parents = self.parents();
        let all = self.outside_rows.len();
        let (mut steps, mut groups, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
        for cells in order {
            let (mut owners, mut above) = (Vec::new(), Vec::new());
            let (mut part, mut other, mut side) = (Vec::new(), Vec::new(), Vec::new());
            for (owner, (sentence, cell)) in cells.iter().enumerate() {
                let rows = &self.rows[*sentence];
                for (parent, sibling, is_left) in &parents[*sentence][*cell] {
                    owners.push(owner);
                    above.push(self.outside_rows[rows[*parent]]);
                    part.push(rows[*cell]);
                    other.push(rows[*sibling]);
                    side.push(usize::from(!is_left));
                }
            }
            let other_side: Vec<usize> = side.iter().map(|side| 1 - side).collect();
            let scored: Vec<usize> = other.iter().zip(&other_side).map(|(row, side)| row + side * all).collect();
            pairs.push(OutsidePairs {
                part: rows_tensor(&part, device),
                other: rows_tensor(&other, device),
                side: rows_tensor(&side, device),
                other_side: rows_tensor(&other_side, device),
                other_scored: rows_tensor(&scored, device),
            });
            groups.push(Groups::new(&owners, cells.len(), device));
            steps.push(Step { rows: cells.len(), inputs: vec![above] });
        }
        Ok((Schedule::new(self.charts.len(), steps)?, groups, pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor<const R: usize, const C: usize>(values: [[f32; C]; R]) -> Tensor<2> {
        Tensor::from_floats(values, &Device::flex())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    #[test]
    fn pairs_of_a_row_are_mixed_by_a_softmax_in_any_order() {
        let (ln2, ln3) = (2_f32.ln(), 3_f32.ln());
        // Row 0 has the scores ln 2 and 0, row 1 the scores 0, ln 3 and 0.
        let mixed = |order: [usize; 5]| {
            let pairs = [(0, ln2, 3.0), (0, 0.0, 6.0), (1, 0.0, 5.0), (1, ln3, 10.0), (1, 0.0, 15.0)];
            let pairs = order.map(|pair| pairs[pair]);
            let groups = Groups::new(&pairs.map(|(row, _, _)| row), 2, &Device::flex());
            let mixed = groups.mix(tensor(pairs.map(|(_, score, _)| [score])), tensor(pairs.map(|(_, _, v)| [v, -v])));
            (values(mixed.values), values(mixed.scores), values(mixed.weights))
        };
        // 1e-6: a few roundings of f32.
        let close = |found: &[f32], expected: &[f32]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6);
        let (sums, scores, weights) = mixed([0, 1, 2, 3, 4]);
        assert!(close(&sums, &[4.0, -4.0, 10.0, -10.0]), "{sums:?}");
        assert!(close(&scores, &[ln2 * 2.0 / 3.0, ln3 * 3.0 / 5.0]), "{scores:?}");
        assert!(close(&weights, &[2.0 / 3.0, 1.0 / 3.0, 0.2, 0.6, 0.2]), "{weights:?}");
        let (sums, _, weights) = mixed([3, 1, 4, 2, 0]);
        assert!(close(&sums, &[4.0, -4.0, 10.0, -10.0]), "{sums:?}");
        assert!(close(&weights, &[0.6, 1.0 / 3.0, 0.2, 0.2, 2.0 / 3.0]), "{weights:?}");
    }

    #[test]
    fn one_pair_a_row_is_taken_as_it_is() {
        let groups = Groups::new(&[1, 0], 2, &Device::flex());
        let mixed = groups.mix(tensor([[0.5], [-3.0]]), tensor([[1.0], [2.0]]));
        assert_eq!(values(mixed.values), [2.0, 1.0]);
        assert_eq!(values(mixed.scores), [-3.0, 0.5]);
        assert_eq!(values(mixed.weights), [1.0, 1.0]);
    }

    #[test]
    fn both_passes_have_every_cell_and_every_split_once() {
        let charts = [(vec![2.0, 0.0, 1.0, 5.0, 3.0], 2), (vec![0.0], 2), (vec![1.0, 0.0, 3.0], 1)]
            .map(|(scores, window)| Chart::new(&scores, window).unwrap());
        let plan = Plan::new(&charts, &Device::flex()).unwrap();
        let cells: usize = charts.iter().map(|chart| chart.cells().len()).sum();
        let splits: usize = charts.iter().map(Chart::num_splits).sum();
        let pairs = |schedule: &Schedule| schedule.steps().iter().map(|step| step.inputs[0].len()).sum::<usize>();
        assert_eq!((plan.inside.first(), plan.outside.first()), (6 + 2 + 4, 3));
        assert_eq!((plan.inside.rows(), plan.outside.rows()), (cells, cells));
        assert_eq!((pairs(&plan.inside), pairs(&plan.outside)), (splits, 2 * splits));
        let mut rows: Vec<i32> = plan.outside_rows.into_data().iter::<i32>().collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..cells as i32).collect::<Vec<_>>());
    }
}
