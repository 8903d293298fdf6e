//! Weights of the depths that the rows of a pass belong to: of one depth, or of several depths that
//! run the same layer, each over consecutive rows of its own.

use burn::tensor::Tensor;

/// The `T` of the depth, or of the depth of each group of consecutive rows.
#[derive(Clone, Debug)]
pub(crate) enum AtDepths<'a, T> {
    /// All rows belong to one depth.
    One(&'a T),
    /// Each with its number of rows, in their order.
    Several(Vec<(&'a T, usize)>),
}

impl<'a, T> AtDepths<'a, T> {
    /// A part of each `T`.
    pub fn part<U>(&self, part: impl Fn(&'a T) -> &'a U) -> AtDepths<'a, U> {
        match self {
            Self::One(own) => AtDepths::One(part(own)),
            Self::Several(groups) => AtDepths::Several(groups.iter().map(|(own, rows)| (part(own), *rows)).collect()),
        }
    }

    /// The `T` of all rows; `None` for rows of several depths.
    pub fn one(&self) -> Option<&'a T> {
        match self {
            Self::One(own) => Some(own),
            Self::Several(_) => None,
        }
    }

    /// The `T` of the first rows.
    pub fn first(&self) -> AtDepths<'a, T> {
        match self {
            Self::One(own) => AtDepths::One(own),
            Self::Several(groups) => AtDepths::One(groups[0].0),
        }
    }

    /// True if the `T` of a depth has a property.
    pub fn any(&self, has: impl Fn(&T) -> bool) -> bool {
        match self {
            Self::One(own) => has(own),
            Self::Several(groups) => groups.iter().any(|(own, _)| has(own)),
        }
    }

    /// `x [M, n]` with `f` applied to the rows of each depth → `[M, m]`.
    pub fn each(&self, x: Tensor<2>, f: impl Fn(&'a T, Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        self.each_of([x], |own, [x]| f(own, x))
    }

    /// `f` applied to the rows of each depth of several tensors `[M, n]` → `[M, m]`.
    pub fn each_of<const N: usize>(
        &self,
        all: [Tensor<2>; N],
        f: impl Fn(&'a T, [Tensor<2>; N]) -> Tensor<2>,
    ) -> Tensor<2> {
        let groups = match self {
            Self::One(own) => return f(own, all),
            Self::Several(groups) => groups,
        };
        let mut start = 0;
        let parts = groups.iter().map(|(own, rows)| {
            let part = all.each_ref().map(|x| x.clone().narrow(0, start, *rows));
            start += rows;
            f(own, part)
        });
        Tensor::cat(parts.collect(), 0)
    }
}
