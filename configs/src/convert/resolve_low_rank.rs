//! `method: svd`: pairs of factors in place of matrices, under a budget of all weights.

use super::{Conversion, LoraRanks, LoraSpec, Start, resolve::Resolver};
use crate::{Init, Pattern, Sharing};

impl Resolver<'_> {
    /// `method: svd`.
    pub(super) fn factor(&mut self) -> Option<Start> {
        let config = self.config;
        let layers = [
            ("source_layers", config.source_layers.is_some()),
            ("compensation", config.compensation.is_some()),
            ("sharing", config.sharing.is_some()),
            ("prelude", config.prelude.is_some()),
            ("coda", config.coda.is_some()),
            ("map", config.map.is_some()),
            ("fit", config.remainder.is_some()),
            ("tie_across_kinds", config.tie_across_kinds),
        ];
        self.refuse_keys_of_recursion(&layers, "keeps every layer");
        let calibration = self.calibration();
        if config.budget.is_none() {
            let hint = "say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`";
            self.problem("budget", "method `svd` has no budget", hint);
        }
        let lora = LoraSpec::lora(LoraRanks::Alone(config.budget?));
        let pattern = Pattern::Loop { sharing: Sharing::Cycle, prelude: 0, coda: 0 };
        let conversion =
            Conversion { lora: Some(lora), ..Conversion::new(1, pattern, Init::Calibrated, self.target(None)) };
        Some(Start::Fixed { conversion, calibration: Some(calibration?) })
    }
}
