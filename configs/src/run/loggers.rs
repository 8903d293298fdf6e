//! Places for the rows of a run beside `metrics.jsonl`.

use serde::{Deserialize, Serialize};

/// Calls the macro `$with` with the list of the loggers that write files: the module and the
/// variant of [`LoggerKind`](crate::LoggerKind), which is also the trainer's type.
///
/// The list stands once: configurations and the trainer's dispatch are both made from it.
#[macro_export]
macro_rules! for_each_file_logger {
    ($with:ident) => {
        $with! {
            /// `metrics.csv`.
            csv => Csv,
            /// Event files of TensorBoard, in `tensorboard/`.
            tensorboard => Tensorboard,
        }
    };
}

macro_rules! define_kinds {
    ($($(#[$doc:meta])* $module:ident => $variant:ident,)+) => {
        /// A further place for the rows of a run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum LoggerKind {
            /// Bars or lines on stderr.
            Console,
            $($(#[$doc])* $variant,)+
        }
    };
}
for_each_file_logger!(define_kinds);
