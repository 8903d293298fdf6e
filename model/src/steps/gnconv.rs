//! Recursive gated convolution (`retie_config::GnconvConfig`).
//!
//! The depthwise convolution is a sum over its taps of rows gathered from a tensor of all rows that
//! may be read: one row of zeros, the state of the cache, and the new rows. Which rows a tap reads
//! is all that sets sequences apart from pictures ([`Gnconv::forward_over`]).

use super::{StepLoader, nll::Affine};
use crate::{
    cache::DepthCache,
    kernels::{self, Layout, RowCopy, RowSet, Segment},
};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_checkpoint::CheckpointError;
use retie_config::GnconvConfig;

/// Weights of the branch at one depth.
#[derive(Module, Debug)]
pub struct Gnconv {
    pub in_proj: Affine,
    /// One filter for each channel, `weight [S, K]`, with a bias.
    pub conv: Affine,
    pub between: Vec<Affine>,
    pub out_proj: Affine,
    /// `γ`, `[D]`.
    pub scale: Param<Tensor<1>>,
    #[module(skip)]
    pub config: GnconvConfig,
}

/// Factor of the output of the convolution, as in the reference.
const CONVOLVED: f32 = 1.0 / 3.0;

impl Gnconv {
    pub(super) fn load(config: &GnconvConfig, from: &StepLoader<'_>) -> Result<Self, CheckpointError> {
        let affine = |[weight, bias]: [&'static str; 2]| {
            Ok::<_, CheckpointError>(Affine { weight: from.param(weight)?, bias: from.param(bias)? })
        };
        Ok(Self {
            in_proj: affine(["gnconv.in_proj.weight", "gnconv.in_proj.bias"])?,
            conv: affine(["gnconv.conv.weight", "gnconv.conv.bias"])?,
            between: GnconvConfig::BETWEEN.into_iter().take(config.order - 1).map(affine).collect::<Result<_, _>>()?,
            out_proj: affine(["gnconv.out_proj.weight", "gnconv.out_proj.bias"])?,
            scale: from.param("gnconv.scale")?,
            config: config.clone(),
        })
    }

    /// The branch: `x [M, D]` → `[M, D]`. The rows of `layout` are added to the state of `cache`.
    pub(crate) fn forward(&self, x: Tensor<2>, layout: &Layout, cache: Option<&mut DepthCache<'_>>) -> Tensor<2> {
        self.gated(x, |q| self.convolved(q, layout, cache))
    }

    /// The branch over any neighbourhoods: `taps` has for each tap of the filter the row that each
    /// row of `x [M, D]` reads, counted behind one of zeros → `[M, D]`.
    #[must_use]
    pub fn forward_over(&self, x: Tensor<2>, taps: &[RowSet]) -> Tensor<2> {
        self.gated(x, |q| {
            let [_, width] = q.dims();
            let zero = Tensor::zeros([1, width], &q.device());
            self.filtered(&Tensor::cat(vec![zero, q], 0), taps.iter().cloned())
        })
    }

    /// Gates of the rows `x [M, D]`, which `convolve` makes of their projections `q [M, S]`.
    fn gated(&self, x: Tensor<2>, convolve: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let [_, hidden] = x.dims();
        let widths = self.config.widths(hidden);
        let split = self.in_proj.forward(x);
        let mut p = split.clone().narrow(1, 0, widths[0]);
        let q = convolve(split.narrow(1, widths[0], widths.iter().sum()));
        let mut at = 0;
        for (index, width) in widths.iter().enumerate() {
            let gate = q.clone().narrow(1, at, *width);
            at += width;
            p = if index == 0 { p * gate } else { self.between[index - 1].forward(p) * gate };
        }
        self.out_proj.forward(p) * self.scale.val().unsqueeze()
    }

    /// Depthwise convolution: the sum over its taps of the rows of `all [R, S]` that they read.
    fn filtered(&self, all: &Tensor<2>, taps: impl Iterator<Item = RowSet>) -> Tensor<2> {
        self.conv.depthwise(all, taps) * CONVOLVED
    }

    /// Causal depthwise convolution of each sequence: `q [M, S]` → `[M, S]`.
    fn convolved(&self, q: Tensor<2>, layout: &Layout, cache: Option<&mut DepthCache<'_>>) -> Tensor<2> {
        let [_, width] = q.dims();
        let (kernel, device) = (self.config.kernel, q.device());
        let held = kernel - 1;
        let zero = Tensor::zeros([1, width], &device);
        let state = cache.as_ref().and_then(|cache| cache.state());
        let num_state = state.as_ref().map_or(0, |state| state.dims()[0]);
        let capacity = cache.as_ref().map(|cache| cache.capacity());
        let parts = [Some(zero), state, Some(q)].into_iter().flatten().collect();
        let all = Tensor::cat(parts, 0);
        let first_new = 1 + num_state;
        // Row of a token of a segment by its position, in `all`.
        let source = |segment: &Segment, position: isize| {
            let Ok(position) = usize::try_from(position) else { return 0 };
            let start = segment.num_keys() - segment.queries.len();
            match (capacity, position.checked_sub(start)) {
                (Some(_), Some(index)) => first_new + segment.queries.start + index,
                (Some(capacity), None) => 1 + segment.keys.start / capacity * held + held + position - start,
                (None, _) => match position.checked_sub(segment.prefix.len()) {
                    None => first_new + segment.prefix.start + position,
                    Some(index) => first_new + segment.keys.start + index,
                },
            }
        };
        let tap = |tap: usize| {
            let lag = (held - tap) as isize;
            let rows = |segment| Segment::positions(segment).map(move |at| source(segment, at as isize - lag));
            layout.segments().iter().flat_map(rows).collect()
        };
        let sum = self.filtered(&all, (0..kernel).map(tap));
        if let (Some(cache), Some(capacity)) = (cache, capacity)
            && held > 0
        {
            let mut rows = Vec::new();
            let mut copies = Vec::new();
            for segment in layout.segments() {
                let end = segment.num_keys() as isize;
                let from = rows.len();
                rows.extend((0..held as isize).map(|index| source(segment, end - held as isize + index)));
                copies.push(RowCopy { rows: from..rows.len(), at: segment.keys.start / capacity * held });
            }
            cache.write_state(kernels::gather(all, &rows.into()), &copies.into());
        }
        sum
    }
}
