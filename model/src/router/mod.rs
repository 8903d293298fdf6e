//! Mixture-of-Recursions: routers that choose, for every token, through how many recursions it goes
//! (<https://arxiv.org/abs/2507.10524>, §2.2).
//!
//! Tokens that a recursion does not choose are not computed: the block runs over the gathered rows of the others, at their original
//! positions, and its attention sees those rows alone.
//!
//! | file | what |
//! |---|---|
//! | `network` | from a hidden state to a logit and a score |
//! | `lots` | the same drawn, as a baseline |
//! | `choose` | which tokens go through |
//! | `forward` | a recursion over them |
//! | `calibrate` | thresholds for given capacities |
//! | `losses` | what is asked of the logits in training |

mod calibrate;
mod choose;
mod forward;
mod losses;
mod lots;
mod network;

pub use calibrate::calibrate;
pub use forward::{Choice, Decision, Routing};
pub use losses::{RouterLoss, binary_cross_entropy, z_loss};
pub use network::Router;
