//! Early exits of single tokens: after each recursion a rule gives every token a number, and a
//! token whose number reaches its threshold leaves the loop. The layers after the loop, the final
//! norm and the head run for every token.
//!
//! The number depends on the token's own hidden states alone, so that tokens of a sequence do not
//! depend on its batch, on the way in which its prompt is read, or on later tokens.
//!
//! | file | contents |
//! |---|---|
//! | `rule`, `signals/` | the rules, one a file |
//! | `pass` | one forward pass whose tokens leave |
//! | `policy` | keys and values of skipped recursions |
//! | `pending` | tokens that a later one makes up for (`recompute`) |

mod pass;
mod pending;
mod policy;
mod rule;
mod signals;

pub(crate) use pass::{ExitCall, ExitPass};
pub(crate) use pending::Pending;
pub use rule::ExitRule;

use crate::causal_lm::CausalLm;
use retie_config::{KvSharing, SkippedKv};

/// When a token leaves the loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitLimit {
    /// It leaves after a recursion in which the rule's number reaches this; infinite for never.
    pub threshold: f32,
    /// It leaves after as many recursions at the latest.
    pub max_recursions: usize,
}

impl ExitLimit {
    /// No early exit.
    pub const NEVER: Self = Self { threshold: f32::INFINITY, max_recursions: usize::MAX };
}

/// Exits of the rows of one forward pass.
#[derive(Clone, Debug)]
pub struct RowExits<'m> {
    /// The rule; `None` if rows leave by their recursion counts alone.
    pub rule: Option<&'m ExitRule>,
    /// Policy for the keys and values of skipped recursions.
    pub kv: SkippedKv,
    /// One for each row.
    pub limits: Vec<ExitLimit>,
}

impl CausalLm {
    /// Checks that tokens can leave the loop early, with the policy `kv`.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_exits(&self, kv: SkippedKv) -> Result<(), String> {
        let exits = self.share_map().exits().map_err(|error| error.to_string())?;
        if exits.num_recursions() < 2 {
            return Err("it has one recursion".to_owned());
        }
        if self.router().is_some() {
            return Err("its router decides which tokens leave the loop".to_owned());
        }
        if self.config().recursion.as_ref().is_some_and(|recursion| !recursion.steps.is_empty()) {
            return Err("the mechanisms of its recursions (`recursion.steps`) need every recursion".to_owned());
        }
        match (self.kv_sharing(), kv) {
            (KvSharing::Shared, SkippedKv::Shared) => Ok(()),
            (KvSharing::Shared, _) => Err(format!("with `kv_sharing: shared` the policy is `shared`, not `{kv}`")),
            (KvSharing::RecursionWise, SkippedKv::Shared) => {
                Err("the policy `shared` needs `kv_sharing: shared`".to_owned())
            }
            (KvSharing::RecursionWise, _) => Ok(()),
            (KvSharing::Hybrid, _) => Err("`kv_sharing: hybrid` has no policy for skipped recursions".to_owned()),
        }
    }

    /// Default policy for the keys and values of skipped recursions.
    #[must_use]
    pub fn default_skipped_kv(&self) -> SkippedKv {
        match self.kv_sharing() {
            KvSharing::Shared => SkippedKv::Shared,
            KvSharing::RecursionWise | KvSharing::Hybrid => SkippedKv::Latest,
        }
    }
}
