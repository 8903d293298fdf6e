//! Early exits: sequences whose tokens leave the loop when an exit rule says so, or after a number
//! of recursions.
//!
//! Every token has the exits of its request, those of the prompt too. So a text is what the model
//! computes in one pass over it under the same rule and policy, however it is batched.

use crate::{Engine, EngineError, Request, sequence::Sequence};
use retie_config::SkippedKv;
use retie_model::{ExitLimit, ExitRule, NewTokens, RowExits};

/// Exits of an engine.
#[derive(Clone, Debug)]
pub struct ExitOptions {
    /// Rule that thresholds of requests apply to; without one tokens leave by their recursion
    /// counts alone.
    pub rule: Option<ExitRule>,
    /// Policy for the keys and values of skipped recursions.
    pub kv: SkippedKv,
}

impl Engine {
    /// Lets tokens leave the loop early.
    ///
    /// # Errors
    /// When the model has no exits, or not with this rule or policy; or when the engine speculates.
    ///
    /// # Panics
    /// When sequences have been admitted.
    pub fn with_exits(mut self, options: ExitOptions) -> Result<Self, EngineError> {
        assert!(self.is_idle(), "an engine gets its exits before its sequences");
        if self.speculation.is_some() {
            let reason = "drafts are verified by the whole stack (speculation)".to_owned();
            return Err(EngineError::NoExits { reason });
        }
        let rule = options.rule.as_ref().map_or(Ok(()), |rule| self.model.check_exit_rule(rule.kind()));
        rule.and(self.model.check_exits(options.kv)).map_err(|reason| EngineError::NoExits { reason })?;
        self.make_cache_for(options.kv);
        self.exits = Some(options);
        Ok(self)
    }

    /// Refuses exits that the engine does not have.
    pub(crate) fn check_exits(&self, request: &Request) -> Result<(), EngineError> {
        let Request { max_recursions, exit_threshold, .. } = request;
        let num_recursions = self.model.share_map().num_recursions();
        if let Some(found) = max_recursions {
            if !(1..=num_recursions).contains(found) {
                let expected = format!("1 to {num_recursions}, the recursions of the model");
                return Err(EngineError::OutOfRange { name: "max_recursions", found: found.to_string(), expected });
            }
            // The whole stack needs no exits.
            if self.exits.is_none() && *found < num_recursions {
                return Err(EngineError::ExitsOff { name: "max_recursions" });
            }
        }
        let has_rule = self.exits.as_ref().is_some_and(|exits| exits.rule.is_some());
        match exit_threshold {
            Some(_) if !has_rule => Err(EngineError::ExitsOff { name: "exit_threshold" }),
            Some(found) if found.is_nan() => {
                let expected = "a number".to_owned();
                Err(EngineError::OutOfRange { name: "exit_threshold", found: found.to_string(), expected })
            }
            _ => Ok(()),
        }
    }
}

/// Exits of the rows of `batch`, which are tokens of `sequences`, by slot.
pub(crate) fn row_exits<'a>(
    options: &'a ExitOptions,
    sequences: &[Option<Sequence>],
    batch: &[NewTokens],
) -> RowExits<'a> {
    let of_sequence = |new: &NewTokens| {
        let limit = sequences[new.slot.index()].as_ref().map_or(ExitLimit::NEVER, |sequence| sequence.exits);
        std::iter::repeat_n(limit, new.tokens)
    };
    let limits = batch.iter().flat_map(of_sequence).collect();
    RowExits { rule: options.rule.as_ref(), kv: options.kv, limits }
}

/// Exits of the tokens of `request`.
pub(crate) fn limit(request: &Request) -> ExitLimit {
    ExitLimit {
        threshold: request.exit_threshold.unwrap_or(f32::INFINITY),
        max_recursions: request.max_recursions.unwrap_or(usize::MAX),
    }
}
