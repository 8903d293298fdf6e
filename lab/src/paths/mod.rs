//! Logical queries over an incomplete knowledge graph, answered by networks.
//!
//! [`Pathformer`] is a reconstruction from the abstract of Zhang, Peng, Zheng, Wang, Shi and Ma
//! 2024 (<https://arxiv.org/abs/2406.14880>; no code of theirs is known): the computation tree of a
//! query is cut at its branches into paths, a bidirectional Transformer encodes each path, and what
//! it makes of a path's end stands for that node in the path above.
//!
//! ```text
//! path u →r₁ … →rₙ v:    [E(u) or h_u, R(r₁), …, R(rₙ), (NEG), VAR] + positions
//!                        → h_v, the output at VAR
//! branch v of h¹ … hᵐ:   h_v = mean(Transformer(h¹ … hᵐ)), without positions
//! score of a:            cos(h, E(a)) / τ, the largest over the disjuncts of the query
//! ```
//!
//! [`Links`] is the baseline: an embedding of single facts, fitted to the same facts, and composed
//! over a query in two ways ([`Composition`]).
//!
//! Networks see the facts of `train.txt` alone. What is scored are answers that need a fact that is
//! held out ([`questions`]), each by its rank among the entities that are no answers ([`score`]).

mod baseline;
mod encoder;
mod fit;
mod plan;
mod sample;
mod scores;
mod split;

pub use baseline::{Composition, LinkKind, Links};
pub use encoder::{Pathformer, PathformerConfig};
pub use fit::{FitSettings, fit_links, fit_pathformer};
pub use plan::{Plan, disjuncts};
pub use sample::{Question, TRAINING_TYPES, questions, training_queries};
pub use scores::{Scores, score};
pub use split::Split;
