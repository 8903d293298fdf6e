//! Routers: the `router` of a recursion gives each token its own recursion count
//! (Mixture-of-Recursions, §2.2, <https://arxiv.org/abs/2507.10524>).
//!
//! With `expert_choice`, recursion `r` (0-based) reads the tokens that went through recursion
//! `r − 1`. Its router scores each of them from its hidden state, `u = router(x)`,
//! `p = α·score(u)`, and the selected ones go through the block; the others keep their hidden
//! state. With `token_choice` one router reads each token before the first recursion and decides
//! its recursion count.

mod choices;
mod expert_choice;
mod settings;
mod spec;
mod token_choice;

pub use choices::{Gating, IntermediateState, RouterInput, RouterNetwork, RouterScore, TokenChoiceScore};
pub use expert_choice::ExpertChoiceConfig;
pub use settings::{RouterSettings, SettingValue};
pub use spec::{RouterNeeds, RouterNetworks, RouterSpec, RouterWarmup, TrainingSelection};
pub use token_choice::TokenChoiceConfig;

use crate::{ConfigError, RecursionConfig, Sharing};
use serde::{Deserialize, Serialize};

/// Calls the macro `$with` with the list of all kinds of routers. An entry is the kind's name in
/// configurations and on the command line, its variant of [`RouterConfig`](crate::RouterConfig) and
/// the struct of its parameters.
///
/// The list stands once: configurations and the model's selectors are both made from it.
#[macro_export]
macro_rules! for_each_router {
    ($with:ident) => {
        $with! {
            /// Expert choice: each recursion selects its tokens.
            expert_choice => ExpertChoice(ExpertChoiceConfig),
            /// Token choice: each token selects its recursion count.
            token_choice => TokenChoice(TokenChoiceConfig),
        }
    };
}

macro_rules! define_kinds {
    ($($(#[$doc:meta])* $name:ident => $variant:ident($parameters:ident),)+) => {
        /// Kind of router with its parameters.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RouterConfig {
            $($(#[$doc])* $variant($parameters),)+
        }

        impl RouterConfig {
            /// Name of every kind.
            pub const KINDS: &'static [&'static str] = &[$(stringify!($name)),+];

            /// Name of its kind.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => stringify!($name),)+ }
            }

            /// Interface of its kind.
            #[must_use]
            pub fn spec(&self) -> &dyn RouterSpec {
                match self { $(Self::$variant(config) => config,)+ }
            }

            /// Mutable form of [`RouterConfig::spec`].
            pub fn spec_mut(&mut self) -> &mut dyn RouterSpec {
                match self { $(Self::$variant(config) => config,)+ }
            }

            /// A new router of this kind for `num_recursions` recursions, with defaults for the
            /// settings that are not given.
            ///
            /// # Errors
            /// When there is no such kind, a value is none of its setting, or settings are of other
            /// kinds (all of them in one error).
            pub fn from_settings(
                kind: &str,
                num_recursions: usize,
                mut settings: RouterSettings,
            ) -> Result<Self, ConfigError> {
                let found = match kind {
                    $(stringify!($name) => {
                        $parameters::from_settings(num_recursions, &mut settings).map(Self::$variant)
                    })+
                    _ => Err(format!("no kind of router, expected one of {}", Self::KINDS.join(", "))),
                };
                let kind = || kind.to_owned();
                let router = found.map_err(|problem| ConfigError::RouterSetting { kind: kind(), problem })?;
                match settings.left() {
                    keys if keys.is_empty() => Ok(router),
                    keys => Err(ConfigError::RouterSettings { kind: kind(), keys }),
                }
            }
        }
    };
}
for_each_router!(define_kinds);

impl RouterConfig {
    /// Parameters of expert choice; `None` for another kind.
    #[must_use]
    pub fn as_expert_choice(&self) -> Option<&ExpertChoiceConfig> {
        if let Self::ExpertChoice(config) = self { Some(config) } else { None }
    }

    /// Parameters of token choice; `None` for another kind.
    #[must_use]
    pub fn as_token_choice(&self) -> Option<&TokenChoiceConfig> {
        if let Self::TokenChoice(config) = self { Some(config) } else { None }
    }

    /// Network of the routers.
    #[must_use]
    pub fn network(&self) -> RouterNetwork {
        self.spec().network()
    }

    /// Combination of a selected token's hidden state with the block's output.
    #[must_use]
    pub fn gating(&self) -> Gating {
        self.spec().gating()
    }

    /// True if recursion `recursion` selects every token in inference.
    #[must_use]
    pub fn takes_all(&self, recursion: usize) -> bool {
        self.spec().takes_all(recursion)
    }

    /// Every problem of the router in a model with `recursion`.
    #[must_use]
    pub fn problems(&self, recursion: &RecursionConfig) -> Vec<String> {
        let RecursionConfig { num_recursions, sharing, .. } = recursion;
        let mut problems = Vec::new();
        if !matches!(sharing, Sharing::Cycle | Sharing::MiddleCycle) {
            problems
                .push(format!("`{sharing}` has no loop that a token could leave, expected `cycle` or `middle_cycle`"));
        }
        if *num_recursions < 2 {
            problems.push(format!("{num_recursions} recursion leaves nothing to choose, expected at least 2"));
        }
        self.spec().add_problems(recursion, &mut problems);
        problems
    }

    pub(crate) fn check(&self, recursion: &RecursionConfig) -> Result<(), ConfigError> {
        let problems = self.problems(recursion);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::BadRouter { problems }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, KvSharing};

    fn recursion(num_recursions: usize, sharing: Sharing) -> RecursionConfig {
        RecursionConfig::new(num_recursions, sharing, Init::Average)
    }

    fn config(capacities: &[f64]) -> ExpertChoiceConfig {
        ExpertChoiceConfig { capacities: capacities.to_vec(), ..ExpertChoiceConfig::new(capacities.len()) }
    }

    /// Expected values: the reference implementation run on these inputs.
    #[test]
    fn warm_up_and_numbers_of_tokens_are_those_of_the_reference() {
        let found: Vec<f64> = (1..=5).map(|t| config(&[1.0 / 3.0]).capacities_at(t, 4)[0]).collect();
        let expected = [0.902_368_927_1, 0.666_666_666_7, 0.430_964_406_3, 1.0 / 3.0, 1.0 / 3.0];
        // The expected values have ten digits.
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-10), "{found:?}");
        assert_eq!(config(&[0.25]).capacities_at(1, 0), [0.25]);
        for (num_recursions, length, expected) in [
            (3, 2048, vec![2048, 1365, 682]),
            (4, 2048, vec![2048, 1536, 1024, 512]),
            (3, 100, vec![100, 66, 33]),
            (4, 7, vec![7, 5, 3, 1]),
            (3, 1, vec![1, 1, 1]),
        ] {
            let capacities = ExpertChoiceConfig::default_capacities(num_recursions);
            let found: Vec<usize> = capacities.into_iter().map(|c| ExpertChoiceConfig::tokens(c, length)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn every_problem_is_named() {
        let config = RouterConfig::ExpertChoice(ExpertChoiceConfig {
            alpha: 0.0,
            thresholds: Some(vec![None, Some(f64::NAN)]),
            ..config(&[1.0, 0.2, 0.5, 0.0])
        });
        insta::assert_snapshot!(config.check(&recursion(3, Sharing::Sequence)).unwrap_err(), @"
        the router cannot be used:
          `sequence` has no loop that a token could leave, expected `cycle` or `middle_cycle`
          4 capacities for 3 recursions, expected one for each
          the capacity of recursion 3 is `0`, expected above 0, up to 1
          the capacity rises from `0.2` to `0.5` at recursion 2: a recursion chooses among the tokens of the one before
          `alpha` is `0`, expected a finite number above 0
          2 thresholds for 3 recursions, expected one for each
          a threshold is `NaN`, expected a finite number of f32 or null
        ");
        let thirds = RouterConfig::ExpertChoice(self::config(&[1.0, 0.5]));
        assert!(thirds.check(&recursion(2, Sharing::Cycle)).is_ok());
    }

    #[test]
    fn kv_sharing_needs_every_token_in_the_first_recursion() {
        let router = |kv_sharing, capacities: &[f64], thresholds| {
            let config = ExpertChoiceConfig { thresholds, ..config(capacities) };
            let recursion = RecursionConfig { kv_sharing, ..recursion(2, Sharing::Cycle) };
            RouterConfig::ExpertChoice(config).problems(&recursion)
        };
        for kv in [KvSharing::Shared, KvSharing::Hybrid] {
            assert_eq!(router(kv, &[1.0, 0.5], Some(vec![None, Some(0.1)])), Vec::<String>::new());
            let problems = router(kv, &[0.75, 0.5], Some(vec![Some(0.25), None]));
            let start = "the capacity of recursion 0 is `0.75`, expected 1: with kv_sharing `";
            assert!(problems[0].starts_with(start), "{problems:?}");
            assert!(problems[1].starts_with("the threshold of recursion 0 is `0.25`, expected null: "), "{problems:?}");
        }
        assert_eq!(router(KvSharing::RecursionWise, &[0.75, 0.5], None), Vec::<String>::new());
    }

    #[test]
    fn every_problem_of_a_token_choice_is_named() {
        let config = RouterConfig::TokenChoice(TokenChoiceConfig {
            alpha: f64::INFINITY,
            gating: Gating::Additive,
            intermediate: IntermediateState::Gated,
            biases: Some(vec![0.0, f32::NAN]),
            ..TokenChoiceConfig::default()
        });
        insta::assert_snapshot!(config.check(&recursion(1, Sharing::MiddleSequence)).unwrap_err(), @"
        the router cannot be used:
          `middle_sequence` has no loop that a token could leave, expected `cycle` or `middle_cycle`
          1 recursion leaves nothing to choose, expected at least 2
          `alpha` is `inf`, expected a finite number above 0
          gating `additive` has no gate that `intermediate: gated` could be
          2 biases for 1 recursions, expected one for each
          a bias is `NaN`, expected a finite number
        ");
        assert!(RouterConfig::TokenChoice(TokenChoiceConfig::default()).check(&recursion(3, Sharing::Cycle)).is_ok());
    }

    #[test]
    fn an_auxiliary_router_needs_routers_with_weights() {
        let config = |network, auxiliary| {
            let config = ExpertChoiceConfig { network, auxiliary: Some(auxiliary), ..config(&[1.0, 0.5]) };
            RouterConfig::ExpertChoice(config).problems(&recursion(2, Sharing::Cycle))
        };
        assert_eq!(config(RouterNetwork::Linear, RouterNetwork::Mlp), Vec::<String>::new());
        assert_eq!(
            config(RouterNetwork::Random, RouterNetwork::Random),
            [
                "`auxiliary` is `random`, expected a network that learns",
                "`auxiliary` predicts what a router chooses, and `random` chooses at random"
            ]
        );
    }

    #[test]
    fn options_of_another_kind_are_not_known() {
        for (kind, key, value) in [
            ("token_choice", "capacities", "[1.0, 0.5]"),
            ("token_choice", "thresholds", "[null, 0.5]"),
            ("expert_choice", "biases", "[0.0, 0.5]"),
            ("expert_choice", "intermediate", "\"plain\""),
        ] {
            let router = match kind {
                "token_choice" => RouterConfig::TokenChoice(TokenChoiceConfig::default()),
                _ => RouterConfig::ExpertChoice(config(&[1.0, 0.5])),
            };
            let mut json = serde_json::to_value(&router).unwrap();
            json[kind][key] = serde_json::from_str(value).unwrap();
            let error = serde_json::from_value::<RouterConfig>(json).unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown field `{key}`")), "{error}");
        }
    }

    #[test]
    fn every_kind_has_defaults_and_refuses_settings_of_others() {
        for kind in RouterConfig::KINDS {
            let router = RouterConfig::from_settings(kind, 3, RouterSettings::default()).unwrap();
            assert_eq!((router.kind(), router.problems(&recursion(3, Sharing::Cycle))), (*kind, vec![]));
            let json = serde_json::to_value(&router).unwrap();
            assert!(json.get(kind).is_some(), "{json}");
        }
        let settings = RouterSettings::default().with("capacities", Some(vec![1.0, 0.5])).with("alpha", Some(0.5));
        let router = RouterConfig::from_settings("expert_choice", 2, settings.clone()).unwrap();
        let expected = ExpertChoiceConfig {
            input: RouterInput::Normalized,
            gating: Gating::StraightThrough,
            alpha: 0.5,
            ..config(&[1.0, 0.5])
        };
        assert_eq!(router, RouterConfig::ExpertChoice(expected));
        let refused = |kind, settings| RouterConfig::from_settings(kind, 2, settings).unwrap_err().to_string();
        let others = settings.with("auxiliary", Some("mlp".to_owned()));
        insta::assert_snapshot!(refused("token_choice", others), @"
        `token_choice` has no setting `capacities`, `auxiliary`
        hint: leave it out, or name another kind
        ");
        let score = RouterSettings::default().with("score", Some("tanh".to_owned()));
        insta::assert_snapshot!(refused("token_choice", score), @"`token_choice`: unknown score of recursion counts `tanh`, expected one of softmax, sigmoid");
        let unknown = refused("lots", RouterSettings::default());
        assert_eq!(unknown, format!("`lots`: no kind of router, expected one of {}", RouterConfig::KINDS.join(", ")));
    }

    #[test]
    fn a_capacity_of_one_has_no_threshold_and_others_have_zero_until_they_are_calibrated() {
        let mut config = config(&[1.0, 0.5]);
        assert_eq!([config.threshold(0), config.threshold(1)], [None, Some(0.0)]);
        config.thresholds = Some(vec![None, Some(-0.75)]);
        assert_eq!([config.threshold(0), config.threshold(1)], [None, Some(-0.75)]);
    }

    #[test]
    fn it_is_an_object_with_the_name_of_its_kind() {
        let router = RouterConfig::ExpertChoice(config(&[1.0, 0.5]));
        let json = serde_json::to_value(&router).unwrap();
        assert_eq!(
            json.to_string(),
            r#"{"expert_choice":{"network":"linear","input":"raw","score":"sigmoid","alpha":0.1,"gating":"weighted","capacities":[1.0,0.5]}}"#
        );
        assert_eq!(serde_json::from_value::<RouterConfig>(json).unwrap(), router);
        let error = "hard".parse::<Gating>().unwrap_err();
        assert_eq!(error, "unknown gating `hard`, expected one of straight_through, delta, weighted, additive");
    }
}
