//! Early exits that requests ask for: `retie.max_recursions` and `retie.exit_risk`.

use super::{fields::Fields, refusal::Refusal};
use crate::{ServeError, ServedExits};
use retie_config::ExitCalibration;
use retie_engine::ExitOptions;
use retie_model::CausalLm;
use serde_json::{Value, json};

/// Early exits of the served model.
#[derive(Debug)]
pub struct Exits {
    /// The exits, or why no token leaves early.
    served: Result<ServedExits, String>,
    /// Recursions of the model.
    num_recursions: usize,
    /// Number of the rule from which on tokens leave, for requests that name no risk.
    default_threshold: Option<f32>,
}

/// Exits of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AskedExits {
    /// Most recursions of a token.
    pub max_recursions: Option<usize>,
    /// Number of the rule from which on tokens leave.
    pub threshold: Option<f32>,
}

impl Exits {
    /// Exits of `model`, with a risk for requests that name none.
    ///
    /// # Errors
    /// There is no threshold for this risk.
    pub fn new(model: &CausalLm, served: Option<&ServedExits>, risk: Option<f64>) -> Result<Self, ServeError> {
        let served = served.cloned().ok_or_else(|| match model.check_exits(model.default_skipped_kv()) {
            Err(reason) => reason,
            Ok(()) => "it is served without".to_owned(),
        });
        let num_recursions = model.share_map().num_recursions();
        let mut exits = Self { served, num_recursions, default_threshold: None };
        if let Some(found) = risk {
            let wrong = |expected| ServeError::ExitRisk { found, expected };
            let calibration = exits.calibration().map_err(|reason| wrong(format!("none: {reason}")))?;
            exits.default_threshold = Some(calibration.number(found).map_err(wrong)?);
        }
        Ok(exits)
    }

    /// Rule and policy, if tokens leave early.
    pub fn options(&self) -> Option<&ExitOptions> {
        self.served.as_ref().ok().map(|served| &served.options)
    }

    /// The calibration, or why there is none.
    fn calibration(&self) -> Result<&ExitCalibration, String> {
        let served = self.served.as_ref().map_err(|reason| format!("no token of this model leaves early: {reason}"))?;
        let none = || "this model has no calibrated exits; `retie calibrate MODEL --text FILE` makes them".to_owned();
        served.calibration.as_ref().ok_or_else(none)
    }

    /// Takes the fields of a request's object `retie`.
    ///
    /// # Errors
    /// A value has the wrong type or is out of its range, or tokens do not leave early.
    pub fn take(&self, own: &mut Fields) -> Result<AskedExits, Refusal> {
        let max_recursions = own.integer_in("max_recursions", 1, self.num_recursions)?;
        if let (Some(_), Err(reason)) = (max_recursions.filter(|most| *most < self.num_recursions), &self.served) {
            let reason = format!("no token of this model leaves early: {reason}");
            return Err(not_served("retie.max_recursions", &reason));
        }
        Ok(AskedExits { max_recursions, threshold: self.threshold(own)? })
    }

    fn threshold(&self, own: &mut Fields) -> Result<Option<f32>, Refusal> {
        const NAME: &str = "exit_risk";
        let Some(value) = own.take(NAME) else { return Ok(self.default_threshold) };
        let Some(level) = value.as_f64() else { return Err(own.wrong(NAME, &value, "a number")) };
        // No risk is no early exit.
        if level == 0.0 {
            return Ok(None);
        }
        let calibration = self.calibration().map_err(|reason| not_served("retie.exit_risk", &reason))?;
        calibration.number(level).map(Some).map_err(|expected| own.wrong(NAME, &value, &expected))
    }

    /// What `/v1/models` says of them: `null` if no token leaves early.
    pub fn to_json(&self) -> Value {
        let Ok(ServedExits { options, calibration }) = &self.served else { return Value::Null };
        let thresholds = calibration.iter().flat_map(|calibration| &calibration.thresholds);
        let level = |threshold: &retie_config::ExitThreshold| {
            json!({
                "risk": threshold.risk.name(),
                "level": threshold.level,
                "mean_recursions": threshold.mean_recursions,
            })
        };
        json!({
            "kv_policy": options.kv.name(),
            "rule": options.rule.as_ref().map(|rule| rule.kind().name()),
            "levels": thresholds.map(level).collect::<Vec<_>>(),
        })
    }
}

fn not_served(param: &str, reason: &str) -> Refusal {
    Refusal::of_field(param, format!("`{param}` cannot be served: {reason}"))
}
