//! `init: select` and `method: drop`: source layers that are kept whole, by name or by measurement.

use super::{Compensation, Conversion, InitChoice, Method, SelectionSpace, Start, resolve::Resolver};
use crate::{Budget, DepthExtra, Init, Relax, Stack, TargetSettings};

/// Passes over the looped block, unless another number is asked for.
const RECURSIONS: usize = 2;

/// Keys that a selection decides about itself.
const DECIDED: &str = "the selection decides about it: leave it out, or list `source_layers`";

impl Resolver<'_> {
    /// `method: drop`.
    pub(super) fn drop_layers(&mut self) -> Option<Start> {
        self.refuse_keys_of_recursion(&[], "shares no layer");
        self.selection(1)
    }

    /// Refuses `others` and the keys of a recursion beside a method that has none; `why` says so.
    pub(super) fn refuse_keys_of_recursion(&mut self, others: &[(&'static str, bool)], why: &str) {
        let (config, method) = (self.config, self.config.method);
        let hint = "leave it out, or ask for the method `recurse`";
        let keys = [
            ("init", config.init.is_some()),
            ("recursions", config.recursions.is_some()),
            ("gate", config.gate.is_some()),
            ("relax", config.relax != Relax::Lora),
            ("lora_rank", config.lora_rank.is_some()),
            ("lora_ranks", !config.lora_ranks.is_empty()),
            ("lora_budget", config.lora_budget.is_some()),
            ("lora_from", config.lora_from > 0),
            ("extras", !config.extras.is_empty()),
            ("share_norms", !config.share_norms),
            ("kv_sharing", config.kv_sharing.reads_first_recursion()),
        ];
        for (key, is_given) in keys.iter().chain(others) {
            if *is_given {
                self.problem(key, format!("method `{method}` {why}, so that it takes no `{key}`"), hint);
            }
        }
    }

    /// `init: select`.
    pub(super) fn select(&mut self) -> Option<Start> {
        let config = self.config;
        if config.lora_budget.is_some() {
            let message =
                "init `select` keeps layers whole, so that there is no residual to spread a budget of LoRA by";
            self.problem("lora_budget", message, "give ranks: `lora_rank`, `lora_ranks`");
        }
        if config.kv_sharing.reads_first_recursion() {
            let message = format!("init `select` cannot measure `kv_sharing: {}`", config.kv_sharing);
            self.problem("kv_sharing", message, "leave `kv_sharing` out");
        }
        if config.gate.is_some_and(|gate| !gate.is_finite()) {
            self.problem(
                "gate",
                "`gate` is no finite number",
                "0 leaves the first recursion alone, 1 adds later ones in full",
            );
        }
        match config.recursions {
            Some(0 | 1) => {
                let message = "init `select` needs at least 2 recursions: with 1 no layer is shared";
                self.problem("recursions", message, "`method: drop` removes layers and loops none");
                None
            }
            recursions => self.selection(recursions.unwrap_or(RECURSIONS)),
        }
    }

    /// Refuses the keys of a selection beside another initialisation.
    pub(super) fn refuse_selection_keys(&mut self, init: InitChoice) {
        let config = self.config;
        let hint = "leave it out, or ask for init `select` or method `drop`";
        let keys = [
            ("source_layers", config.source_layers.is_some()),
            ("select_by", config.select_by.is_some()),
            ("compensation", config.compensation.is_some()),
            ("gate", config.gate.is_some()),
        ];
        for (key, is_given) in keys {
            if is_given {
                self.problem(key, format!("init `{init}` takes no `{key}`"), hint);
            }
        }
    }

    fn selection(&mut self, num_recursions: usize) -> Option<Start> {
        let config = self.config;
        let decided = [
            ("sharing", config.sharing.is_some()),
            ("prelude", config.prelude.is_some()),
            ("coda", config.coda.is_some()),
            ("map", config.map.is_some()),
            ("fit", config.remainder.is_some()),
            ("tie_across_kinds", config.tie_across_kinds),
        ];
        for (key, is_given) in decided {
            if is_given {
                self.problem(key, format!("`{key}` is given beside a selection of layers"), DECIDED);
            }
        }
        let calibration = self.calibration();
        let compensation = config.compensation.unwrap_or(match calibration {
            Some(_) => Compensation::LeastSquares,
            None => Compensation::None,
        });
        let lora = match num_recursions {
            1 => None,
            // The first recursion is the model with layers removed.
            _ => self.lora(Some(num_recursions)).map(|lora| crate::LoraSpec { from: lora.from.max(1), ..lora }),
        };
        let mut target = self.target(Some(num_recursions));
        if num_recursions > 1 {
            target.extras.insert(DepthExtra::ResidualScale);
        }
        match (&config.source_layers, config.budget) {
            (Some(_), Some(_)) => {
                let hint = "list the layers, or let them be chosen under the budget";
                self.problem("budget", "both `source_layers` and a `budget` are given", hint);
                None
            }
            (None, None) => {
                let hint = "say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`";
                self.problem("budget", "nothing says how many layers are kept", hint);
                None
            }
            (None, Some(budget)) => self.measured(calibration?, budget, num_recursions, compensation, (lora, target)),
            (Some(layers), None) => {
                if let Some(select_by) = config.select_by {
                    let message = format!("`select_by: {select_by}` is given beside a list of `source_layers`");
                    self.problem("select_by", message, "leave it out, or let the layers be chosen under a `budget`");
                }
                let stack = match Stack::chosen(layers.iter().max().map_or(0, |last| last + 1), layers) {
                    Ok(stack) => stack,
                    Err(error) => {
                        let text = error.to_string();
                        let message = text.lines().next().unwrap_or_default().to_owned();
                        let hint = "kept layers are listed once and ascending, and the layers of one loop again for each recursion";
                        self.problem("source_layers", message, hint);
                        return None;
                    }
                };
                let (found, expected) = (stack.map().num_recursions(), num_recursions);
                if found != expected && (config.recursions.is_some() || config.method == Method::Drop || found == 1) {
                    let message = format!("`source_layers` runs a layer {found} times at most, expected {expected}");
                    self.problem("source_layers", message, "list each layer of a loop once for each recursion");
                    return None;
                }
                let pattern = stack.map().pattern().clone();
                let conversion = Conversion {
                    source_layers: Some(layers.clone()),
                    compensation,
                    gate: config.gate.unwrap_or(0.0),
                    lora,
                    ..Conversion::new(found, pattern, Init::Select, target)
                };
                Some(Start::Fixed { conversion, calibration })
            }
        }
    }

    fn measured(
        &self,
        calibration: super::CalibrationSource,
        budget: Budget,
        num_recursions: usize,
        compensation: Compensation,
        (lora, target): (Option<crate::LoraSpec>, TargetSettings),
    ) -> Option<Start> {
        let (select_by, gate) = (self.config.select_by.unwrap_or_default(), self.config.gate);
        let space = SelectionSpace { num_recursions, budget, select_by, compensation, gate, lora, target };
        Some(Start::Selection { space, calibration })
    }
}
