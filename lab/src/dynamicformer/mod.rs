//! DynamicFormer (Hashemi, Corominas and Giacchetto, ICLR 2025,
//! <https://arxiv.org/abs/2408.14915>): the logarithm of an intersection number of ψ-classes, from
//! its genus and points, its exponents, and the coefficients of the recursion that defines it.
//!
//! ```text
//! z = Linear(BN(DRA(Linear(g, n))))                         genus and points
//! x_p = DRA(Linear(DRA(Linear(Embedding(d_p)) + Linear(z))))              a point
//! e_m = DRA(Linear(DRA(Linear(i, j, k, log(1 + 100 B^i_jk)) + Linear(z))))      an entry
//! y = MLP(BN(DRA(LePNA(e + Encoder(e)) + LePNA(x + Encoder(x))), z))
//! ```
//!
//! Both sequences are sets: no position is given, so that neither the order of the points nor that
//! of the entries changes anything. Each [`Encoder`] has a memory token; the loss holds the two of
//! a sample against one another ([`cross_correlation`]).
//!
//! Where this differs from the code of the paper's model: attention to the entries has no bias by
//! distance, which would make a sequence of them; padding is left out of the pooling; layers are
//! not dropped (dropout is the same); the deviation of LePNA is that of all elements, so that one
//! point has one; targets have the mean and deviation of those that are fitted.
//!
//! Shapes: `B` samples, `S` spaces (genus and number of points), `M` entries, `P` points, `E`
//! width of elements, `D` width of an encoder.

mod encoder;
mod fit;
mod inputs;
mod network;
mod pooling;

pub use encoder::{Encoded, Encoder};
pub use fit::{FittedFormer, FormerSettings, r_squared};
pub use inputs::Inputs;
pub use network::{DynamicFormer, Output, cross_correlation};
pub use pooling::LePna;

use crate::{DraForm, LabError};

/// Sizes of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicFormerConfig {
    /// Largest exponent that has an embedding.
    pub largest_exponent: usize,
    /// Width of elements, and of what genus and points become.
    pub element_size: usize,
    /// Hidden width of the networks of two layers.
    pub mlp_size: usize,
    /// Width inside the encoders.
    pub hidden_size: usize,
    /// Width of their feed-forward networks.
    pub intermediate_size: usize,
    /// Heads of their attention.
    pub num_attention_heads: usize,
    /// Groups of a head's queries and keys that are of length 1 each.
    pub norm_groups: usize,
    /// Part of the elements that dropout puts to 0.
    pub dropout: f64,
    /// Form of the activation.
    pub form: DraForm,
}

impl DynamicFormerConfig {
    /// The sizes of the paper's model.
    #[must_use]
    pub fn published(form: DraForm) -> Self {
        Self {
            largest_exponent: 54,
            element_size: 64,
            mlp_size: 128,
            hidden_size: 256,
            intermediate_size: 1024,
            num_attention_heads: 4,
            norm_groups: 8,
            dropout: 0.1,
            form,
        }
    }

    /// The same with hidden widths of an eighth to a half, for a fit in minutes on two cores.
    #[must_use]
    pub fn small(form: DraForm) -> Self {
        Self { mlp_size: 64, hidden_size: 64, intermediate_size: 128, ..Self::published(form) }
    }

    /// Refuses sizes that no network has.
    ///
    /// # Errors
    /// A width of 0, heads or groups that do not divide, a dropout outside of 0 to below 1.
    pub fn check(&self) -> Result<(), LabError> {
        let bad = |found: String, expected: &str| Err(LabError::Setting { found, expected: expected.to_owned() });
        let sizes = [self.element_size, self.mlp_size, self.hidden_size, self.intermediate_size];
        if sizes.contains(&0) {
            return bad(format!("a width of 0 in {sizes:?}"), "at least 1");
        }
        let (width, heads, groups) = (self.hidden_size, self.num_attention_heads, self.norm_groups);
        if heads == 0 || groups == 0 || !width.is_multiple_of(heads * groups) {
            return bad(format!("{heads} heads of {groups} groups in a width of {width}"), "a width that they divide");
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => bad(format!("a dropout of {}", self.dropout), "a number from 0 to below 1"),
        }
    }
}
