//! Recursion over structures: a table of states that grows by a batch of rows a step.
//!
//! A recursive network applies one function to the parts of a whole, to the parts of those, and so
//! on. Written as it is defined it makes one state after another. Here the states of many structures
//! are the rows of one table. A [`Schedule`] says which earlier rows every step reads, and [`drive`]
//! calls the shared function once a step for all rows of the step:
//!
//! * trees that are given: [`Levels::by_height`];
//! * cells of a chart, from short spans to long ones, and back from long ones to short ones: a
//!   [`Schedule`] of steps whose lists are longer than their new rows, since a cell is made of
//!   several pairs of parts.
//!
//! A state may have several parts, e.g. a vector and a score: `K` tables with the same rows.

use burn::tensor::{Device, Int, Tensor};
use thiserror::Error;

/// Why states were not made in steps.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DriveError {
    /// A step reads what is not there yet.
    #[error("step {step} reads row {row}, but {rows} rows are made before it")]
    NotMadeYet {
        /// Number of the step, from 0.
        step: usize,
        /// Row that is read.
        row: usize,
        /// Rows that are there when the step begins.
        rows: usize,
    },
    /// The function made another number of rows than the schedule has.
    #[error("step {step} made {found} rows, expected {expected}")]
    Rows {
        /// Number of the step, from 0.
        step: usize,
        /// Rows of the schedule.
        expected: usize,
        /// Rows that the function made.
        found: usize,
    },
    /// A node has a child that is no node.
    #[error("node {node} has the child {child}, but there are {nodes} nodes")]
    UnknownChild {
        /// Index of the node.
        node: usize,
        /// Index of the child.
        child: usize,
        /// Number of nodes.
        nodes: usize,
    },
    /// A node is its own ancestor.
    #[error("{nodes} nodes are their own ancestors, expected trees")]
    Cycle {
        /// Number of nodes that no order reaches.
        nodes: usize,
    },
}

/// What a step makes, and the earlier rows that it reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows that it adds to the table.
    pub rows: usize,
    /// Lists of earlier rows. What they mean is up to the function, e.g. the left parts and the
    /// right parts. They can have any lengths.
    pub inputs: Vec<Vec<usize>>,
}

/// Steps, in which every row that is read was made before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    first: usize,
    steps: Vec<Step>,
}

impl Schedule {
    /// Steps on a table that starts with `first` rows.
    ///
    /// # Errors
    /// A step that reads a row which is not made before it.
    pub fn new(first: usize, steps: Vec<Step>) -> Result<Self, DriveError> {
        let mut rows = first;
        for (step, Step { rows: new, inputs }) in steps.iter().enumerate() {
            if let Some(row) = inputs.iter().flatten().find(|row| **row >= rows) {
                return Err(DriveError::NotMadeYet { step, row: *row, rows });
            }
            rows += new;
        }
        Ok(Self { first, steps })
    }

    /// Rows that the table starts with.
    #[must_use]
    pub fn first(&self) -> usize {
        self.first
    }

    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Rows of the table after all steps.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.first + self.steps.iter().map(|step| step.rows).sum::<usize>()
    }
}

/// The states that a step reads.
#[derive(Debug)]
pub struct Inputs<'a, const K: usize> {
    table: &'a [Tensor<2>; K],
    lists: Vec<Tensor<1, Int>>,
}

impl<const K: usize> Inputs<'_, K> {
    /// Part number `part` of the states of list number `list`: `[len, D]`.
    ///
    /// # Panics
    /// Where there is no such part or list.
    #[must_use]
    pub fn get(&self, part: usize, list: usize) -> Tensor<2> {
        self.table[part].clone().select(0, self.lists[list].clone())
    }
}

/// A list of rows as a tensor.
pub(crate) fn rows_tensor(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    Tensor::from_ints(rows.as_slice(), device)
}

/// Makes all rows of a schedule. `start` has its first rows, `[first, D]` in each of the `K` parts;
/// `compose` gets the number of a step with its inputs and makes its new rows, `[rows, D]` a part.
/// Gradients flow through all of it.
///
/// # Errors
/// A step whose function made another number of rows than the schedule has.
///
/// # Panics
/// Where a part changes its width.
pub fn drive<const K: usize>(
    start: [Tensor<2>; K],
    schedule: &Schedule,
    mut compose: impl FnMut(usize, Inputs<'_, K>) -> [Tensor<2>; K],
) -> Result<[Tensor<2>; K], DriveError> {
    let mut table = start;
    for (step, Step { rows, inputs }) in schedule.steps.iter().enumerate() {
        let Some(device) = table.first().map(Tensor::device) else { break };
        let lists = inputs.iter().map(|list| rows_tensor(list, &device)).collect();
        let new = compose(step, Inputs { table: &table, lists });
        for part in &new {
            let [found, _] = part.dims();
            if found != *rows {
                return Err(DriveError::Rows { step, expected: *rows, found });
            }
        }
        let mut new = new.into_iter();
        table = table.map(|part| match new.next() {
            Some(rows) => Tensor::cat(vec![part, rows], 0),
            None => part,
        });
    }
    Ok(table)
}

/// Trees as a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Its first rows are the nodes without children, in their order. A step has nodes of one
    /// height and one number of children; list `c` of its inputs has their children number `c`.
    pub schedule: Schedule,
    /// Row of each node.
    pub rows: Vec<usize>,
    /// Nodes of each step, in the order of their rows.
    pub nodes: Vec<Vec<usize>>,
}

impl Levels {
    /// The steps of trees that are given: `children` has the children of every node, which may stand
    /// before or after it. A child may have several parents.
    ///
    /// # Errors
    /// A child that is no node, and nodes that are their own ancestors.
    pub fn by_height(children: &[Vec<usize>]) -> Result<Self, DriveError> {
        let heights = heights(children)?;
        let mut order: Vec<usize> = (0..children.len()).collect();
        order.sort_by_key(|node| (heights[*node], children[*node].len()));
        let mut rows = vec![0; children.len()];
        order.iter().enumerate().for_each(|(row, node)| rows[*node] = row);
        let first = heights.iter().filter(|height| **height == 0).count();
        let (mut steps, mut nodes) = (Vec::new(), Vec::new());
        for group in
            order[first..].chunk_by(|a, b| heights[*a] == heights[*b] && children[*a].len() == children[*b].len())
        {
            let arity = group.first().map_or(0, |node| children[*node].len());
            let inputs = (0..arity).map(|c| group.iter().map(|node| rows[children[*node][c]]).collect());
            steps.push(Step { rows: group.len(), inputs: inputs.collect() });
            nodes.push(group.to_vec());
        }
        Ok(Self { schedule: Schedule::new(first, steps)?, rows, nodes })
    }
}

/// Height of every node: 0 without children, or one more than that of its highest child.
fn heights(children: &[Vec<usize>]) -> Result<Vec<usize>, DriveError> {
    let nodes = children.len();
    let mut parents = vec![Vec::new(); nodes];
    for (node, children) in children.iter().enumerate() {
        for child in children {
            let Some(parents) = parents.get_mut(*child) else {
                return Err(DriveError::UnknownChild { node, child: *child, nodes });
            };
            parents.push(node);
        }
    }
    let mut waiting: Vec<usize> = children.iter().map(Vec::len).collect();
    let mut heights = vec![0; nodes];
    let mut ready: Vec<usize> = (0..nodes).filter(|node| waiting[*node] == 0).collect();
    let mut done = 0;
    while let Some(node) = ready.pop() {
        done += 1;
        for parent in &parents[node] {
            heights[*parent] = heights[*parent].max(heights[node] + 1);
            waiting[*parent] -= 1;
            if waiting[*parent] == 0 {
                ready.push(*parent);
            }
        }
    }
    match nodes - done {
        0 => Ok(heights),
        nodes => Err(DriveError::Cycle { nodes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[f32]) -> Tensor<2> {
        Tensor::<1>::from_floats(values, &Device::flex()).reshape([values.len(), 1])
    }

    fn values(table: Tensor<2>) -> Vec<f32> {
        table.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn a_step_reads_only_what_was_made_before() {
        let step = |rows, list: &[usize]| Step { rows, inputs: vec![list.to_vec()] };
        let schedule = Schedule::new(2, vec![step(1, &[0, 1]), step(2, &[2, 0])]).unwrap();
        assert_eq!((schedule.first(), schedule.rows(), schedule.steps().len()), (2, 5, 2));
        let error = Schedule::new(2, vec![step(1, &[0, 1]), step(2, &[3])]).unwrap_err();
        assert_eq!(error, DriveError::NotMadeYet { step: 1, row: 3, rows: 3 });
        assert_eq!(error.to_string(), "step 1 reads row 3, but 3 rows are made before it");
    }

    #[test]
    fn rows_of_a_step_are_made_at_once_from_lists_of_any_length() {
        // Fibonacci numbers, and beside them the sum of all rows that a step reads.
        let steps = (2..8).map(|n| Step { rows: 1, inputs: vec![vec![n - 2, n - 1], (0..n).collect()] }).collect();
        let schedule = Schedule::new(2, steps).unwrap();
        let start = [column(&[1.0, 1.0]), column(&[0.0, 0.0])];
        let mut calls = 0;
        let [fibonacci, sums] = drive(start, &schedule, |step, inputs| {
            assert_eq!(step, calls);
            calls += 1;
            [inputs.get(0, 0).sum_dim(0), inputs.get(0, 1).sum_dim(0)]
        })
        .unwrap();
        assert_eq!(values(fibonacci), [1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0]);
        assert_eq!(values(sums), [0.0, 0.0, 2.0, 4.0, 7.0, 12.0, 20.0, 33.0]);
        assert_eq!(calls, 6);
    }

    #[test]
    fn another_number_of_rows_is_refused() {
        let schedule = Schedule::new(2, vec![Step { rows: 2, inputs: vec![vec![0]] }]).unwrap();
        let error = drive([column(&[1.0, 2.0])], &schedule, |_, inputs| [inputs.get(0, 0)]).unwrap_err();
        assert_eq!(error, DriveError::Rows { step: 0, expected: 2, found: 1 });
    }

    #[test]
    fn trees_are_computed_by_height_whatever_the_order_of_their_nodes() {
        // ((1 2) 3 (4)) and (5 6): the value of a node is 10 times the first child and the others.
        let children = [vec![6, 3, 8], vec![], vec![], vec![], vec![], vec![], vec![1, 2], vec![5, 9], vec![4], vec![]];
        let levels = Levels::by_height(&children).unwrap();
        assert_eq!(levels.nodes, [vec![8], vec![6, 7], vec![0]]);
        let leaves = column(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let [table] = drive([leaves], &levels.schedule, |step, inputs| {
            let arity = levels.schedule.steps()[step].inputs.len();
            let first = inputs.get(0, 0).mul_scalar(10.0);
            [(1..arity).fold(first, |sum, child| sum + inputs.get(0, child))]
        })
        .unwrap();
        let table = values(table);
        let of_node = |node: usize| table[levels.rows[node]];
        assert_eq!([8, 6, 7, 0].map(of_node), [40.0, 12.0, 56.0, 163.0]);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let by_height = |children: &[Vec<usize>]| Levels::by_height(children).unwrap_err();
        assert_eq!(by_height(&[vec![1], vec![0]]), DriveError::Cycle { nodes: 2 });
        assert_eq!(by_height(&[vec![2], vec![]]), DriveError::UnknownChild { node: 0, child: 2, nodes: 2 });
    }

    #[test]
    fn gradients_reach_the_first_rows() {
        let device = Device::flex().autodiff();
        let leaves = Tensor::<2>::from_floats([[2.0], [3.0], [5.0]], &device).require_grad();
        // (a·b)·c: the gradient of a leaf is the product of the others.
        let levels = Levels::by_height(&[vec![], vec![], vec![], vec![0, 1], vec![3, 2]]).unwrap();
        let [table] =
            drive([leaves.clone()], &levels.schedule, |_, inputs| [inputs.get(0, 0) * inputs.get(0, 1)]).unwrap();
        let gradients = table.slice([4..5]).sum().backward();
        assert_eq!(values(leaves.grad(&gradients).unwrap()), [15.0, 10.0, 6.0]);
    }
}
