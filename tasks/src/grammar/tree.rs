//! `tree`: traversals of a binary tree, and `reduce`: the same program, stopped after a number of
//! steps (Zhang et al. 2024, <https://arxiv.org/abs/2401.12947>, as described there).

use super::{Grammar, LETTERS, LONGEST, Reader, Task};
use crate::{Example, Random, example::Symbols};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TREE: Task = Task {
    name: "tree",
    variants: &["inorder", "preorder", "postorder"],
    about: "values of a binary tree in the order of a traversal",
    grammar: "tree := . | ( letter tree tree )     letter, left, right\n\
              inorder: left, letter, right; preorder: letter, left, right; postorder: left, right, letter\n\
              length: letters; the left subtree of n letters has 0 to n - 1 of them, each as likely\n\
              depth: height, the most letters on a way down\n\
              edge case: every letter but the last has one subtree, left or right\n\
              shortcut k: subtrees below k letters are copied as they are written (preorder)",
    keys: &[],
    build: |variant, _| Ok(Arc::new(Traversal { order: Order::named(variant) })),
};

pub(super) const REDUCE: Task = Task {
    name: "reduce",
    variants: &["1", "2", "3", "4", "5", "6", "7", "8", "all"],
    about: "the inorder traversal after some steps, with the calls that are left",
    grammar: "tree := . | ( letter tree tree )\n\
              a step replaces every UNROLL [ ( v l r ) ] by UNROLL [ l ] v UNROLL [ r ], and UNROLL [ . ] by nothing\n\
              the problem is a tree t, the answer UNROLL [ t ] after the steps; `all` leaves no call\n\
              length, depth and edge case: those of `tree`\n\
              shortcut k: k steps, where the task has more",
    keys: &[],
    build: |variant, _| Ok(Arc::new(Reduce { steps: variant.parse().ok() })),
};

const END: &str = ".";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Pre,
    In,
    Post,
}

impl Order {
    fn named(variant: &str) -> Self {
        match variant {
            "preorder" => Self::Pre,
            "postorder" => Self::Post,
            _ => Self::In,
        }
    }
}

/// A node with its subtrees, as indices of a list.
#[derive(Clone, Copy, Debug)]
struct Node {
    letter: &'static str,
    left: Option<u32>,
    right: Option<u32>,
}

/// A random tree of `length` letters; its root is the last node.
fn random_tree(length: usize, edge: bool, random: &mut Random, nodes: &mut Vec<Node>) -> Option<u32> {
    if length == 0 {
        return None;
    }
    let num_left = match edge {
        true => (length - 1) * (random.bits() & 1) as usize,
        false => random.below(length),
    };
    let letter = *random.choose(&LETTERS);
    let left = random_tree(num_left, edge, random, nodes);
    let right = random_tree(length - 1 - num_left, edge, random, nodes);
    nodes.push(Node { letter, left, right });
    Some(nodes.len() as u32 - 1)
}

/// Writes a tree whose root is at `depth`; returns the depth of its lowest letter.
fn write_tree(nodes: &[Node], root: Option<u32>, depth: usize, out: &mut Symbols) -> usize {
    let Some(Node { letter, left, right }) = root.map(|root| nodes[root as usize]) else {
        out.push(END, depth);
        return depth - 1;
    };
    out.push("(", depth);
    out.push(letter, depth);
    let lowest = write_tree(nodes, left, depth + 1, out).max(write_tree(nodes, right, depth + 1, out));
    out.push(")", depth);
    lowest
}

#[derive(Debug)]
struct Traversal {
    order: Order,
}

impl Traversal {
    fn write_letters(&self, nodes: &[Node], root: Option<u32>, depth: usize, out: &mut Symbols) {
        let Some(Node { letter, left, right }) = root.map(|root| nodes[root as usize]) else { return };
        if self.order == Order::Pre {
            out.push(letter, depth);
        }
        self.write_letters(nodes, left, depth + 1, out);
        if self.order == Order::In {
            out.push(letter, depth);
        }
        self.write_letters(nodes, right, depth + 1, out);
        if self.order == Order::Post {
            out.push(letter, depth);
        }
    }

    /// Reads a tree and gives its letters; those of subtrees under `cap` letters in preorder.
    fn read(&self, input: &mut Reader<'_>, cap: usize, output: &mut Vec<String>) -> Option<()> {
        if input.peek()? == END {
            return input.expect(END);
        }
        input.expect("(")?;
        let letter = input.next().filter(|letter| LETTERS.contains(letter))?;
        let order = if cap == 0 { Order::Pre } else { self.order };
        let below = cap.saturating_sub(1);
        if order == Order::Pre {
            output.push(letter.to_owned());
        }
        self.read(input, below, output)?;
        if order == Order::In {
            output.push(letter.to_owned());
        }
        self.read(input, below, output)?;
        if order == Order::Post {
            output.push(letter.to_owned());
        }
        input.expect(")")
    }
}

impl Grammar for Traversal {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=8
    }

    fn depth_name(&self) -> &'static str {
        "height"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let mut nodes = Vec::with_capacity(length);
        let root = random_tree(length, edge, random, &mut nodes);
        example.depth = write_tree(&nodes, root, 1, &mut example.input);
        self.write_letters(&nodes, root, 1, &mut example.output);
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let mut reader = Reader { rest: input };
        let mut output = Vec::new();
        self.read(&mut reader, cap.unwrap_or(usize::MAX), &mut output)?;
        reader.rest.is_empty().then_some(output)
    }
}

const UNROLL: &str = "UNROLL";

#[derive(Debug)]
struct Reduce {
    /// `None` for as many as there are.
    steps: Option<usize>,
}

impl Reduce {
    fn write_term(nodes: &[Node], root: Option<u32>, (steps, depth): (usize, usize), out: &mut Symbols) {
        if steps == 0 {
            out.push(UNROLL, depth);
            out.push("[", depth);
            write_tree(nodes, root, depth, out);
            out.push("]", depth);
            return;
        }
        let Some(Node { letter, left, right }) = root.map(|root| nodes[root as usize]) else { return };
        Self::write_term(nodes, left, (steps - 1, depth + 1), out);
        out.push(letter, depth);
        Self::write_term(nodes, right, (steps - 1, depth + 1), out);
    }
}

/// Number of symbols of the tree that `symbols` begin with.
fn tree_length(symbols: &[&str]) -> Option<usize> {
    let mut open = 0_usize;
    for (index, symbol) in symbols.iter().enumerate() {
        match *symbol {
            "(" => open += 1,
            ")" => open = open.checked_sub(1)?,
            _ => {}
        }
        if open == 0 {
            return Some(index + 1);
        }
    }
    None
}

/// The term after a step: letters stay, calls are unfolded. `None` if it is no term.
fn step<'s>(term: &[&'s str]) -> Option<Vec<&'s str>> {
    let mut reduced = Vec::with_capacity(term.len() + 4);
    let mut rest = term;
    while let Some((first, after)) = rest.split_first() {
        if *first != UNROLL {
            reduced.push(LETTERS.contains(first).then_some(*first)?);
            rest = after;
            continue;
        }
        let tree = after.strip_prefix(&["["])?;
        let length = tree_length(tree)?;
        let (tree, after) = tree.split_at(length);
        rest = after.strip_prefix(&["]"])?;
        match tree {
            [END] => {}
            ["(", letter, subtrees @ .., ")"] if LETTERS.contains(letter) => {
                let (left, right) = subtrees.split_at(tree_length(subtrees)?);
                if tree_length(right)? != right.len() {
                    return None;
                }
                let call = |tree: &[&'s str]| [&[UNROLL, "["], tree, &["]"]].concat();
                reduced.extend(call(left));
                reduced.push(letter);
                reduced.extend(call(right));
            }
            _ => return None,
        }
    }
    Some(reduced)
}

impl Grammar for Reduce {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=6
    }

    fn depth_name(&self) -> &'static str {
        "height"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let mut nodes = Vec::with_capacity(length);
        let root = random_tree(length, edge, random, &mut nodes);
        example.depth = write_tree(&nodes, root, 1, &mut example.input);
        Self::write_term(&nodes, root, (self.steps.unwrap_or(usize::MAX), 1), &mut example.output);
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        if tree_length(input)? != input.len() {
            return None;
        }
        let steps = self.steps.unwrap_or(usize::MAX).min(cap.unwrap_or(usize::MAX));
        let mut term = [&[UNROLL, "["], input, &["]"]].concat();
        for _ in 0..steps {
            if !term.contains(&UNROLL) {
                break;
            }
            term = step(&term)?;
        }
        Some(term.into_iter().map(str::to_owned).collect())
    }
}
