//! Early exits on documents: what exits cost against the whole stack, and thresholds that keep the
//! risk within a level ([`calibrate_exits`]).
//!
//! | file | contents |
//! |---|---|
//! | `document` | a document through the whole stack, through each exit, and as it is served |
//! | `probe` | the linear probe's fit |
//! | `curve` | risk and mean recursion count of a rule over its thresholds |
//! | `calibrate` | the calibration: fit, thresholds, realised risk |

mod calibrate;
mod curve;
mod document;
mod probe;

pub use calibrate::{
    Beginning, ExitReport, ExitSettings, ExitTexts, LevelReport, PolicyReport, Realised, RuleReport, WriteOwn,
    calibrate_exits,
};
