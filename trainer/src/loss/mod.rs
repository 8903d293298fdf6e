//! Losses, one a file. A loss states its [`Requirements`], and takes its values and gradients when
//! the objective calls it: each method of [`Loss`] is named after the moment at which it runs.
//!
//! [`Loss`] is implemented by the parameter structs of the configuration. Weight, schedule and
//! share of a micro-batch never reach a loss: [`TermScale`] applies them.

mod blockwise;
mod cross_entropy;
mod distill;
mod early_exit;
mod hidden;
mod hidden_states;
mod local_pass;
mod requirements;
mod router;
mod term;
mod values;

pub use hidden_states::HiddenStates;
pub use local_pass::LocalPass;
pub use requirements::{Requirements, TermRequirements};
pub use router::RouterLogits;
pub use term::{ScaledTerm, TermScale};
pub use values::{LossValues, TermValues};

use crate::TrainError;
use retie_config::*;
use retie_model::{RouterLoss, kernels::HeadValues};
use std::{collections::BTreeMap, ops::Range};

/// Values of the readouts that were required, by the number of depths before them.
#[derive(Debug, Default)]
pub struct LogitValues {
    /// Of all sequences of the micro-batch.
    pub of_all: BTreeMap<usize, HeadValues>,
    /// Of the sequences that drew the exit, with the part of the micro-batch's targets that they
    /// have.
    pub drawn: BTreeMap<usize, (f64, HeadValues)>,
}

/// A loss with its parameters. Values and gradients are means over the tokens of a micro-batch,
/// without the weight of the term.
pub trait Loss {
    /// Refuses models that the loss cannot be computed from; before anything is written.
    ///
    /// # Errors
    /// A [`Misfit`].
    fn check(&self, _stacks: &Stacks) -> Result<(), Misfit> {
        Ok(())
    }

    /// Before the forward passes: states the logits and hidden states that the loss reads.
    fn requirements(&self, _stacks: &Stacks, _required: &mut TermRequirements<'_>) {}

    /// After the head: adds the values of the required logits. Their gradients are the head's work.
    fn on_logits(&self, _stacks: &Stacks, _found: &LogitValues, _values: &mut TermValues<'_>) {}

    /// After the forward passes: adds values and gradients of the required hidden states.
    fn on_hidden(&self, _stacks: &Stacks, _states: &mut HiddenStates<'_>, _values: &mut TermValues<'_>) {}

    /// After the forward passes, once for each router: its loss, if the loss is about such routers.
    fn on_router(&self, _router: &RouterLogits<'_>) -> Option<RouterLoss> {
        None
    }

    /// After the teacher's forward pass: runs single depths of the student forward and backward.
    fn local_backward(&self, _stacks: &Stacks, _pass: &mut LocalPass<'_>, _values: &mut TermValues<'_>) {}
}

macro_rules! dispatch {
    ($($(#[$doc:meta])* $name:ident => $variant:ident($parameters:ident),)+) => {
        /// The implementation of a loss of the configuration.
        pub fn loss_for(kind: &LossKind) -> &dyn Loss {
            match kind { $(LossKind::$variant(parameters) => parameters,)+ }
        }
    };
}
retie_config::for_each_loss!(dispatch);

/// Models that a loss cannot be computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    /// The missing part.
    pub reason: String,
    /// The fix.
    pub hint: &'static str,
}

/// Refuses models that one of `losses` cannot be computed from.
///
/// # Errors
/// [`TrainError::Loss`].
pub fn check(losses: &[LossTerm], stacks: &Stacks) -> Result<(), TrainError> {
    losses.iter().try_for_each(|term| {
        let fits = loss_for(&term.kind).check(stacks);
        fits.map_err(|Misfit { reason, hint }| TrainError::Loss { loss: term.name(), reason, hint })
    })
}

/// Shapes of the stacks of student and teacher.
#[derive(Clone, Debug)]
pub struct Stacks {
    /// Layer of each depth of the student.
    pub student: ShareMap,
    /// Depths of the teacher.
    pub teacher_depths: Option<usize>,
    /// Sizes of the hidden states of student and teacher.
    pub widths: (usize, Option<usize>),
}

impl Stacks {
    /// Depths of the student.
    pub fn num_depths(&self) -> usize {
        self.student.num_depths()
    }

    /// Number of the teacher's depths that the first `depth` depths of the student stand for:
    /// `round(depth·N_t/N_s)`.
    fn matching_depth(&self, depth: usize) -> usize {
        let (ours, theirs) = (self.num_depths(), self.teacher_depths.unwrap_or(0));
        (2 * depth * theirs + ours) / (2 * ours)
    }

    /// Refuses a teacher whose hidden states are of another size than the student's.
    fn check_widths(&self, hint: &'static str) -> Result<(), Misfit> {
        let (ours, theirs) = (self.widths.0, self.widths.1.unwrap_or(0));
        if ours == theirs {
            return Ok(());
        }
        let reason = format!("the student's hidden states have {ours} components, the teacher's {theirs}");
        Err(Misfit { reason, hint })
    }

    /// Number of depths in front of the layers after the loop, for each early exit: the ends of all
    /// recursions but the last.
    pub fn exits(&self) -> Vec<usize> {
        let ends = |exits: retie_config::Exits| (1..exits.num_recursions()).map(|r| exits.end(r)).collect();
        self.student.exits().map(ends).unwrap_or_default()
    }

    /// Depths after the loop; none where there are no exits.
    pub fn coda(&self) -> Range<usize> {
        self.student.exits().map(|exits| exits.coda()).unwrap_or_default()
    }
}
