//! The teacher of a run, and whether its losses need one.

use super::{Packing, UptrainConfig, check_text};
use crate::{LossTerm, document::Checks};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The teacher: a model, or logits of one that `retie cache-logits` has cached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// A Hugging Face folder, a `.gguf` file, or a hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A folder that `retie cache-logits` wrote for the training text; no model is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<PathBuf>,
}

impl UptrainConfig {
    pub(super) fn check_teacher(&self, checks: &mut Checks) {
        let needed = self.losses.iter().find(|term| term.needs().teacher()).map(LossTerm::name);
        match (&self.teacher, needed) {
            (None, Some(loss)) => {
                checks
                    .problem("teacher", format!("loss `{loss}` needs a teacher, and `teacher` is missing"))
                    .also(&["losses"])
                    .hint("`teacher: {model: …}` names the model to distil from, e.g. the unconverted original");
            }
            (Some(_), None) => {
                checks
                    .problem("teacher", "`teacher` is given, but no loss uses one")
                    .also(&["losses"])
                    .hint("add a `distill` loss or remove `teacher`");
            }
            _ => {}
        }
        check_text("student.model", &self.student.model, checks);
        let Some(TeacherConfig { model, logits }) = &self.teacher else { return };
        match (model, logits) {
            (Some(model), None) => check_text("teacher.model", model, checks),
            (None, Some(logits)) => {
                check_text("teacher.logits", &logits.to_string_lossy(), checks);
                if self.data.packing == Packing::BestFit {
                    checks
                        .problem(
                            "teacher.logits",
                            "`teacher.logits` is for sequences of one length, `best_fit` makes others",
                        )
                        .also(&["data.packing"])
                        .hint("name the model in `teacher.model`, or take `data.packing: documents`");
                }
                if let Some(loss) = self.losses.iter().find(|loss| loss.needs().teacher_hidden()) {
                    let message =
                        format!("loss `{}` needs the teacher's hidden states, `teacher.logits` has none", loss.name());
                    checks
                        .problem("teacher.logits", message)
                        .also(&["losses"])
                        .hint("name the model in `teacher.model`");
                }
            }
            _ => {
                checks
                    .problem("teacher", "`teacher` is one of `model` and `logits`")
                    .also(&["teacher.model", "teacher.logits"]);
            }
        }
    }
}
