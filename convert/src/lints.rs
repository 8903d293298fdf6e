//! Advice of the papers, given where a choice goes against it.
//!
//! Figures: Relaxed Recursive Transformers, Tables F.1 and G.2
//! (<https://arxiv.org/abs/2410.20672>), Gemma 2B with two recursions, mean accuracy over few-shot
//! tasks after 15 billion tokens of uptraining.

use retie_config::{Init, KvSharing, RecursionConfig};

/// Ranks at which the paper's `stepwise` with LoRA is worse than without (128 and 256, not 64 nor
/// 512).
const MIDDLING: std::ops::Range<usize> = 65..512;

/// The remarks on a start.
pub(crate) fn lints(recursion: &RecursionConfig) -> Vec<String> {
    let advice = match (recursion.init, &recursion.lora) {
        (Init::Average, None) => {
            "init `average` without LoRA: in the paper `stepwise` is better without (51.7 against 46.7), `average` with LoRA"
        }
        (Init::Stepwise, Some(lora)) if MIDDLING.contains(&lora.rank) => {
            "init `stepwise` with LoRA of a middling rank: in the paper it is worse than without any (51.7; ranks 64 to 512: 51.8, 49.9, \
             47.8, 50.5), where `average` gains at every rank (52.1, 52.5, 54.2, 55.5)"
        }
        (Init::Stepwise, Some(_)) => {
            "init `stepwise` with LoRA: in the paper `average` is better with LoRA at every rank (52.1 against 51.8 at 64)"
        }
        _ => return Vec::new(),
    };
    vec![advice.to_owned()]
}

/// A remark on LoRA and norms of keys and values that no recursion computes.
pub(crate) fn unused_keys(recursion: &RecursionConfig) -> Option<String> {
    let owned = recursion.lora.is_some() || !recursion.share_norms;
    (recursion.kv_sharing == KvSharing::Shared && owned).then(|| {
        let unused = "what later depths own for `k_proj` and `v_proj` is not used";
        format!("with kv_sharing `shared` only the first recursion makes keys and values: {unused}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{LoraConfig, Sharing};

    #[test]
    fn only_what_goes_against_the_advice_is_remarked_on() {
        let advice = |init, rank: Option<usize>| {
            let lora = rank.map(LoraConfig::uniform);
            lints(&RecursionConfig { lora, ..RecursionConfig::new(2, Sharing::Cycle, init) }).concat()
        };
        assert_eq!((advice(Init::Stepwise, None), advice(Init::Average, Some(64))), (String::new(), String::new()));
        assert_eq!(
            (advice(Init::Calibrated, None), advice(Init::Calibrated, Some(256))),
            (String::new(), String::new())
        );
        assert!(advice(Init::Average, None).contains("`stepwise` is better without"));
        assert!(advice(Init::Stepwise, Some(256)).contains("middling rank"));
        assert!(advice(Init::Stepwise, Some(64)).contains("`average` is better with LoRA"));
    }
}
