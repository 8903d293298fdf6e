//! Routers (Mixture-of-Recursions, §2.2, <https://arxiv.org/abs/2507.10524>): selection of the
//! tokens that go through a recursion, and merging of its output.
//!
//! Rows that a recursion does not select are not computed: the block runs over the gathered
//! selected rows, at their original positions.
//!
//! | file | contents |
//! |---|---|
//! | `selector` | interface of a token selector |
//! | `registry` | the selector of each kind of router |
//! | `expert_choice` | selector of expert choice |
//! | `top_k`, `threshold` | its rules in training and at inference |
//! | `token_choice`, `loop_entry` | selector of token choice, and its state across recursions |
//! | `in_loop` | decisions on tokens that go through the loop at their own pace |
//! | `random` | logits of random routers; warm-up of token choice |
//! | `network` | from hidden states to logits and scores |
//! | `trace` | routing trace of a forward pass |
//! | `calibrate` | thresholds for given capacities |
//! | `losses` | losses on router logits |
//! | `statistics` | routing statistics |

mod calibrate;
mod expert_choice;
mod in_loop;
mod loop_entry;
mod losses;
mod network;
#[cfg(test)]
mod on_device;
mod random;
mod registry;
mod selector;
mod statistics;
mod threshold;
mod token_choice;
mod top_k;
mod trace;

pub use calibrate::calibrate;
pub use in_loop::RoutedRows;
pub use loop_entry::LoopEntry;
pub use losses::{RouterLoss, balancing, binary_cross_entropy, decisiveness, z_loss};
pub use network::Router;
pub use random::mix;
pub(crate) use registry::selector as selector_of;
pub(crate) use selector::{ActiveRows, Origin, Passage, TokenSelector};
pub use selector::{FullRecursionWarmup, SelectionRule};
pub use statistics::{RoutingStatistics, RoutingSums, TokenChoiceStatistics};
pub use trace::{Logits, RoutingDecision, RoutingTrace};
