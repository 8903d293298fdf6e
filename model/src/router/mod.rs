//! Mixture-of-Recursions: routers that choose, for every token, through how many recursions it goes
//! (<https://arxiv.org/abs/2507.10524>, §2.2).
//!
//! Tokens that a recursion does not choose are not computed: the block runs over the gathered rows of the others, at their original
//! positions, and its attention sees those rows alone.
//!
//! | file | what |
//! |---|---|
//! | `network` | from a hidden state to logits and scores |
//! | `lots` | the same drawn, as a baseline |
//! | `choose` | which tokens a recursion chooses |
//! | `forward` | a recursion over them |
//! | `token_choice` | a recursion over the tokens whose own choice it is |
//! | `calibrate` | thresholds for given capacities |
//! | `losses` | what is asked of the logits in training |
//! | `statistics` | what routers do, counted |

mod calibrate;
mod choose;
mod forward;
mod losses;
mod lots;
mod network;
mod statistics;
mod token_choice;

pub use calibrate::calibrate;
pub use forward::{Choice, Decision, FullDepth, Routing};
pub use losses::{RouterLoss, balancing, binary_cross_entropy, decisiveness, z_loss};
pub use network::Router;
pub use statistics::{DepthChoice, RoutingStatistics, RoutingSums};
pub use token_choice::Entry;
