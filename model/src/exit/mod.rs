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
//! | `beside` | the same in a pass over rows of several recursions |

mod beside;
mod pass;
mod pending;
mod policy;
mod rule;
mod signals;

pub(crate) use beside::BesideWaiting;
pub(crate) use pass::{ExitCall, ExitPass};
pub(crate) use pending::Pending;
pub use rule::ExitRule;

use crate::causal_lm::CausalLm;
use retie_config::{ExitRuleKind, KvSharing, SkippedKv, StepConfig, StepMechanism};

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
        self.check_steps_of_exits(kv)?;
        if self.token_choice().is_some() {
            return Err("its router chooses recursion counts before the loop".to_owned());
        }
        match (self.kv_sharing(), kv) {
            (KvSharing::RecursionWise, kv) if self.router().is_some() && kv != SkippedKv::Skip => {
                Err(format!("its recursions hold the tokens that the router selects: the policy is `skip`, not `{kv}`"))
            }
            (KvSharing::Shared, SkippedKv::Shared) => Ok(()),
            (KvSharing::Shared, _) => Err(format!("with `kv_sharing: shared` the policy is `shared`, not `{kv}`")),
            (KvSharing::RecursionWise, SkippedKv::Shared) => {
                Err("the policy `shared` needs `kv_sharing: shared`".to_owned())
            }
            (KvSharing::RecursionWise, _) => Ok(()),
            (KvSharing::Hybrid, _) => Err("`kv_sharing: hybrid` has no policy for skipped recursions".to_owned()),
        }
    }

    /// Checks that an exit rule has what it reads.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_exit_rule(&self, kind: ExitRuleKind) -> Result<(), String> {
        let has_router = || self.expert_choice().is_some() && !self.model.routers.is_empty();
        match kind {
            ExitRuleKind::Router if !has_router() => {
                Err("the rule `router` needs an expert-choice router with weights".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Checks that tokens can leave the loop with the steps of its recursions.
    fn check_steps_of_exits(&self, kv: SkippedKv) -> Result<(), String> {
        if let Some(found) = self.mechanism(|mechanism| !mechanism.leaves_early()) {
            return Err(not_local(found));
        }
        match self.mechanism(|mechanism| !mechanism.is_local()) {
            Some(name) if kv == SkippedKv::Recompute => Err(format!(
                "the mechanism `{name}` (`recursion.steps`) reads earlier recursions of a token, which are not kept for tokens that wait: the policy is not `{kv}`"
            )),
            _ => Ok(()),
        }
    }

    /// Checks that the steps of the recursions are local to a token in a recursion.
    ///
    /// # Errors
    /// The mechanism that is not.
    pub(crate) fn check_local_steps(&self) -> Result<(), String> {
        self.mechanism(|mechanism| !mechanism.is_local()).map_or(Ok(()), |name| Err(not_local(name)))
    }

    /// Name of the first mechanism for which `is` holds.
    fn mechanism(&self, is: impl Fn(&dyn StepMechanism) -> bool) -> Option<&'static str> {
        let rows = self.config().recursion.iter().flat_map(|recursion| &recursion.steps);
        Some(rows.flat_map(StepConfig::mechanisms).find(|mechanism| is(mechanism.parameters()))?.name())
    }

    /// Default policy for the keys and values of skipped recursions.
    #[must_use]
    pub fn default_skipped_kv(&self) -> SkippedKv {
        match self.kv_sharing() {
            KvSharing::Shared => SkippedKv::Shared,
            KvSharing::RecursionWise if self.router().is_some() => SkippedKv::Skip,
            KvSharing::RecursionWise => SkippedKv::Propagate,
            // Those of the first recursion, as for tokens that a router drops.
            KvSharing::Hybrid => SkippedKv::Latest,
        }
    }
}

fn not_local(name: &str) -> String {
    format!("the mechanism `{name}` (`recursion.steps`) reads other tokens or recursions of them")
}
