//! Resolution of a recursion, as MSRNet runs one network over several scales
//! (<https://arxiv.org/abs/2511.12810>), for one dimension and causal as in SpiralFormer
//! (<https://arxiv.org/abs/2602.11698>): the recursion runs over *coarse tokens*, the means `z_j`
//! of `factor` consecutive tokens, and a token gets what it has added to the last coarse token that
//! is complete:
//!
//! ```text
//! z_j = mean of x_i, i = j·factor … j·factor + factor − 1
//! y_i = x_i + (F(z) − z)_{⌊(i + 1)/factor⌋ − 1}
//! ```
//!
//! Tokens before the end of the first coarse token get nothing. A coarse token has the position of
//! its last token. A recursion at factor `g` has a `g`-th of the keys and of the operations.

use super::*;
use crate::KvSharing;
use serde::Serializer;

/// Parameters of `resolution`; in a table it is the number `factor` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolutionConfig {
    /// Tokens of a coarse token; 1 is a recursion as it is.
    pub factor: usize,
}

/// Largest factor.
const MOST: usize = 256;

pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mechanism>, D::Error> {
    let factor = Option::<usize>::deserialize(deserializer)?;
    Ok(factor.map(|factor| Mechanism::Resolution(ResolutionConfig { factor })))
}

pub(super) fn write<S: Serializer>(resolution: &Option<Mechanism>, serializer: S) -> Result<S::Ok, S::Error> {
    match resolution {
        Some(Mechanism::Resolution(ResolutionConfig { factor })) => factor.serialize(serializer),
        other => other.serialize(serializer),
    }
}

impl StepConfig {
    /// Tokens of a coarse token of the recursion; 1 if it runs over tokens.
    #[must_use]
    pub fn factor(&self) -> usize {
        match &self.resolution {
            Some(Mechanism::Resolution(ResolutionConfig { factor })) => *factor,
            _ => 1,
        }
    }
}

impl StepMechanism for ResolutionConfig {
    fn slot(&self) -> Slot {
        Slot::Resolution
    }

    fn is_local(&self) -> bool {
        false
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=MOST).contains(&self.factor) {
            problems.push(format!("`factor` is {}, expected 1 to {MOST}", self.factor));
        }
        if let Err(error) = place.map.exits() {
            problems.push(format!("{error}, expected recursions that do, such as those of `cycle`"));
        }
        if let Some(window) = place.window() {
            problems.push(format!("depths see a window of {window} tokens, expected full attention"));
        }
        if place.recursion.kv_sharing != KvSharing::RecursionWise {
            let found = place.recursion.kv_sharing;
            problems.push(format!("the model has `kv_sharing: {found}`, expected `recursion_wise`"));
        }
        if let Some(router) = &place.recursion.router {
            let kind = router.kind();
            problems.push(format!(
                "the model has `{kind}` routers, expected none: a coarse token stands for neighbouring tokens, and routers leave some out"
            ));
        }
        problems
    }

    fn keeps_logits(&self) -> bool {
        self.factor == 1
    }

    fn state(&self, place: &Place<'_>) -> usize {
        let begins = self.factor > 1 && place.begins_pass();
        // The tokens of a coarse token, and what the last complete one got.
        if begins { (self.factor + 1) * place.model.hidden_size } else { 0 }
    }
}
