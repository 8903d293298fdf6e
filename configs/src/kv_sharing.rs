//! Key-value sharing across recursions (Mixture-of-Recursions, §2.2.2,
//! <https://arxiv.org/abs/2507.10524>): the key `recursion.kv_sharing` of a converted checkpoint's
//! `config.json`.

use crate::{ConfigError, Sharing, named::named};
use serde_json::Value;

named! {
    /// The keys and values that the tokens of a recursion attend to.
    #[derive(Default)]
    KvSharing, "KV sharing" {
        /// Keys and values that the recursion computes from its own tokens ("recursion-wise
        /// caching").
        #[default]
        RecursionWise = "recursion_wise",
        /// Keys and values that the first recursion computed from every token ("recursive
        /// sharing"); later recursions compute none.
        Shared = "shared",
        /// A key and value of every token: the recursion's own if the token goes through it, else
        /// those of the first recursion.
        Hybrid = "hybrid",
    }
}

impl KvSharing {
    /// True if later recursions read keys and values of the first, so that every token has to go
    /// through the first.
    #[must_use]
    pub fn reads_first_recursion(self) -> bool {
        self != Self::RecursionWise
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses models whose recursions do not run the same layers one after the other.
    pub(crate) fn check(self, num_recursions: usize, sharing: Sharing) -> Result<(), ConfigError> {
        if !self.reads_first_recursion() {
            return Ok(());
        }
        if !matches!(sharing, Sharing::Cycle | Sharing::MiddleCycle) {
            let problem = format!("`{sharing}` does not run the block recursion by recursion");
            let hint = "take sharing `cycle` or `middle_cycle`, or `kv_sharing: recursion_wise`";
            return Err(ConfigError::BadKvSharing { kv_sharing: self, problem, hint });
        }
        if num_recursions < 2 {
            let problem = format!("{num_recursions} recursion has no other to share with, expected at least 2");
            let hint = "ask for more recursions, or leave `kv_sharing` out";
            return Err(ConfigError::BadKvSharing { kv_sharing: self, problem, hint });
        }
        Ok(())
    }
}

/// Moves `router.{kind}.kv`, the key of folders written before `recursion.kv_sharing`, to its place
/// in the `recursion` object of a `config.json`.
pub(crate) fn move_from_router(recursion: &mut Value) -> Result<(), String> {
    let kinds = recursion.get_mut("router").and_then(Value::as_object_mut);
    let found = kinds.into_iter().flat_map(|kinds| kinds.iter_mut()).find_map(|(kind, router)| {
        let kv = router.as_object_mut()?.remove("kv")?;
        Some((format!("router.{kind}.kv"), kv))
    });
    let (Some((key, kv)), Some(recursion)) = (found, recursion.as_object_mut()) else { return Ok(()) };
    match recursion.get("kv_sharing") {
        Some(kv_sharing) if *kv_sharing != kv => {
            Err(format!("`kv_sharing` is {kv_sharing}, but `{key}`, its old place, is {kv}: remove `{key}`"))
        }
        _ => {
            recursion.insert("kv_sharing".into(), kv);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, RecursionConfig};
    use serde_json::json;

    /// The `recursion` object of an old folder, with the key in the router.
    fn before(kv: &str) -> Value {
        json!({
            "num_recursions": 3, "sharing": "middle_cycle", "init": "average", "share_norms": true,
            "router": {"expert_choice": {
                "network": "linear", "input": "normalized", "score": "sigmoid", "alpha": 1.0, "gating": "straight_through",
                "capacities": [1.0, 0.6, 0.3], "kv": kv, "thresholds": [null, 0.5, -0.25],
            }},
        })
    }

    #[test]
    fn the_old_key_in_the_router_is_read_and_written_in_its_new_place() {
        for kv in KvSharing::ALL {
            let recursion: RecursionConfig = serde_json::from_value(before(kv.name())).unwrap();
            assert_eq!(recursion.kv_sharing, *kv);
            let written = serde_json::to_value(&recursion).unwrap();
            assert_eq!(written.get("kv_sharing"), (*kv != KvSharing::RecursionWise).then(|| json!(kv)).as_ref());
            assert_eq!(written["router"]["expert_choice"].get("kv"), None);
            assert_eq!(serde_json::from_value::<RecursionConfig>(written).unwrap(), recursion);
        }
    }

    #[test]
    fn two_places_that_disagree_are_refused() {
        let mut both = before("shared");
        both["kv_sharing"] = json!("shared");
        assert_eq!(serde_json::from_value::<RecursionConfig>(both.clone()).unwrap().kv_sharing, KvSharing::Shared);
        both["kv_sharing"] = json!("hybrid");
        assert_eq!(
            serde_json::from_value::<RecursionConfig>(both).unwrap_err().to_string(),
            "`kv_sharing` is \"hybrid\", but `router.expert_choice.kv`, its old place, is \"shared\": \
             remove `router.expert_choice.kv`"
        );
    }

    #[test]
    fn patterns_without_recursions_one_after_the_other_are_refused() {
        let check = |sharing, num_recursions| KvSharing::Shared.check(num_recursions, sharing);
        assert!(check(Sharing::Cycle, 2).is_ok() && check(Sharing::MiddleCycle, 3).is_ok());
        insta::assert_snapshot!(check(Sharing::Sequence, 2).unwrap_err(), @"
        keys and values cannot be shared as `kv_sharing: shared` says: `sequence` does not run the block recursion by recursion
        hint: take sharing `cycle` or `middle_cycle`, or `kv_sharing: recursion_wise`
        ");
        insta::assert_snapshot!(check(Sharing::Cycle, 1).unwrap_err(), @"
        keys and values cannot be shared as `kv_sharing: shared` says: 1 recursion has no other to share with, expected at least 2
        hint: ask for more recursions, or leave `kv_sharing` out
        ");
        for sharing in Sharing::CHOICES {
            assert!(KvSharing::RecursionWise.check(1, sharing).is_ok());
        }
        let plain = RecursionConfig::new(2, Sharing::Cycle, Init::Average);
        assert!(!serde_json::to_string(&plain).unwrap().contains("kv_sharing"));
    }
}
