//! Requirements of a loss on a run, beside the student and the text.

use crate::{RouterConfig, RouterNeeds};

/// The tensors that a loss is computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossNeeds {
    /// Logits or hidden states of the student alone.
    Student,
    /// Logits of a teacher, a model or a cache, beside those of the student.
    TeacherLogits {
        /// The teacher's distribution is softmax(logits / temperature).
        temperature: f64,
    },
    /// Hidden states of student and teacher.
    TeacherHidden,
    /// Hidden states of the teacher, on which single depths of the student run: gradients stay
    /// within a depth, and no pass through the student's stack is needed.
    SingleDepths,
    /// Logits of the student's routers.
    Router(RouterNeeds),
}

impl LossNeeds {
    /// Whether there has to be a teacher, or the logits of one.
    #[must_use]
    pub fn teacher(self) -> bool {
        matches!(self, Self::TeacherLogits { .. }) || self.teacher_hidden()
    }

    /// Whether the teacher has to be a model: a cache of logits has no hidden states.
    #[must_use]
    pub fn teacher_hidden(self) -> bool {
        matches!(self, Self::TeacherHidden | Self::SingleDepths)
    }

    /// Whether the student has to have trained routers.
    #[must_use]
    pub fn router(self) -> bool {
        matches!(self, Self::Router(_))
    }

    /// Whether the student's stack need not run.
    #[must_use]
    pub fn is_local(self) -> bool {
        self == Self::SingleDepths
    }

    /// The requirement that `router` lacks; `None` where it will do, or the loss is not about
    /// routers.
    #[must_use]
    pub fn missing_in(self, router: &RouterConfig) -> Option<&'static str> {
        let Self::Router(needs) = self else { return None };
        let expected = match needs {
            RouterNeeds::Any => "a router",
            RouterNeeds::ExpertChoice => "`expert_choice`, whose recursions choose tokens",
            RouterNeeds::TokenChoice => "`token_choice`, whose tokens choose recursion counts",
            RouterNeeds::Auxiliary => "an auxiliary router",
        };
        (!router.spec().meets(needs)).then_some(expected)
    }
}
