//! Kind and shape of the routers, as options.

use crate::choice::choice;
use clap::{Args, builder::PossibleValuesParser};
use retie_config::{
    ConfigError, Gating, IntermediateState, KvSharing, RouterConfig, RouterInput, RouterNetwork, RouterSettings,
};
use retie_convert::RouterOptions;

/// Kind and shape of the routers.
#[derive(Debug, Args)]
pub struct RouteFlags {
    /// Whether each recursion chooses its tokens, or each token its number of recursions
    #[arg(long, value_parser = PossibleValuesParser::new(RouterConfig::KINDS))]
    kind: String,
    /// expert_choice only: part of a text's tokens that goes through each recursion, e.g. 1,0.6,0.3
    /// [default: (R-r)/R for recursion r]
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    capacities: Option<Vec<f64>>,
    /// What becomes of a token that goes through: only straight_through and delta start with the
    /// model's logits [default: straight_through]
    #[arg(long, value_parser = PossibleValuesParser::new(Gating::NAMES))]
    gating: Option<String>,
    /// Keys and values that a recursion's tokens attend to: of one another; of all tokens, as the
    /// first recursion made them; or those with its own in their places [default: as MODEL has it]
    #[arg(long, value_name = "SHARING", value_parser = choice::<KvSharing>(KvSharing::NAMES))]
    kv_sharing: Option<KvSharing>,
    /// Layers of a router [default: linear]
    #[arg(long, value_parser = PossibleValuesParser::new(RouterNetwork::NAMES))]
    network: Option<String>,
    /// Whether it reads hidden states as they are, or divided by their root mean square [default:
    /// normalized]
    #[arg(long, value_parser = PossibleValuesParser::new(RouterInput::NAMES))]
    input: Option<String>,
    /// From its output to a score [default: sigmoid, with token_choice softmax]
    #[arg(long, value_parser = ["sigmoid", "tanh", "none", "softmax"])]
    score: Option<String>,
    /// Factor of the score [default: 1 with straight_through, 2 with delta, 0.1 with weighted and
    /// additive; of a softmax R with delta, 1 else]
    #[arg(long)]
    alpha: Option<f64>,
    /// token_choice only: what a token that goes on takes into the next recursion [default: plain]
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(IntermediateState::NAMES))]
    intermediate: Option<String>,
    /// expert_choice only: layers of auxiliary routers, which learn what the others choose, and by
    /// which inference goes [default: none]
    #[arg(long, value_name = "NETWORK", value_parser = ["linear", "mlp", "wide_mlp"])]
    auxiliary: Option<String>,
    /// Seed of the routers' weights
    #[arg(long, default_value_t)]
    seed: u64,
}

impl RouteFlags {
    /// The routers of a model of `num_recursions`.
    ///
    /// # Errors
    /// An option or a value is of another kind.
    pub fn options(self, num_recursions: usize) -> Result<RouterOptions, ConfigError> {
        let Self { kind, kv_sharing, seed, .. } = self;
        let settings = RouterSettings::default()
            .with("capacities", self.capacities)
            .with("gating", self.gating)
            .with("network", self.network)
            .with("input", self.input)
            .with("score", self.score)
            .with("alpha", self.alpha)
            .with("intermediate", self.intermediate)
            .with("auxiliary", self.auxiliary);
        Ok(RouterOptions { router: RouterConfig::from_settings(&kind, num_recursions, settings)?, kv_sharing, seed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::route::Route;
    use clap::{Command, FromArgMatches};

    /// Options of the command, which do not say what a router is.
    const OF_THE_COMMAND: [&str; 3] = ["model", "output", "json"];

    const EXPERT: &str = "expert_choice";
    const TOKEN: &str = "token_choice";

    /// Every option of a router: a value, and the kinds that it is for.
    const SAMPLES: [(&str, &str, &[&str]); 11] = [
        ("kind", "", &[]),
        ("capacities", "1,0.5,0.2", &[EXPERT]),
        ("gating", "delta", &[EXPERT, TOKEN]),
        ("kv_sharing", "shared", &[EXPERT, TOKEN]),
        ("network", "mlp", &[EXPERT, TOKEN]),
        ("input", "raw", &[EXPERT, TOKEN]),
        ("score", "tanh", &[EXPERT]),
        ("alpha", "0.5", &[EXPERT, TOKEN]),
        ("intermediate", "gated", &[TOKEN]),
        ("auxiliary", "mlp", &[EXPERT]),
        ("seed", "7", &[EXPERT, TOKEN]),
    ];

    fn command() -> Command {
        Route::augment_args(Command::new("route").no_binary_name(true))
    }

    fn options(kind: &str, flag: &str) -> Option<RouterOptions> {
        let line = format!("looped -o out --kind {kind} {flag}");
        let matches = command().try_get_matches_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
        Route::from_arg_matches(&matches).unwrap().flags.options(3).ok()
    }

    #[test]
    fn every_option_changes_the_router_or_is_refused() {
        let command = command();
        let ids = command.get_arguments().map(|argument| argument.get_id().as_str());
        let mut options_of_routers: Vec<&str> = ids.filter(|id| !OF_THE_COMMAND.contains(id)).collect();
        options_of_routers.sort_unstable();
        let mut sampled = SAMPLES.map(|(id, ..)| id);
        sampled.sort_unstable();
        assert_eq!(options_of_routers, sampled, "every option of `retie route` has a line in this test");
        let without = |kind: &&'static str| (*kind, options(kind, "").unwrap());
        let without: Vec<_> = RouterConfig::KINDS.iter().map(without).collect();
        for (id, value, kinds) in SAMPLES.iter().filter(|(id, ..)| *id != "kind") {
            let flag = format!("--{} {value}", id.replace('_', "-"));
            for (kind, without) in &without {
                let with = options(kind, &flag);
                assert_eq!(with.is_some(), kinds.contains(kind), "{flag} of {kind}");
                assert_ne!(with.as_ref(), Some(without), "{flag} of {kind}: accepted and ignored");
            }
        }
    }
}
