//! Kind and shape of the routers, as options.

use crate::choice::choice;
use anyhow::bail;
use clap::{Args, ValueEnum};
use retie_config::{
    ExpertChoiceConfig, Gating, IntermediateState, KvSharing, RouterConfig, RouterInput, RouterNetwork, RouterScore,
    TokenChoiceConfig, TokenChoiceScore,
};
use retie_convert::RouterOptions;

/// Kinds of routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    ExpertChoice,
    TokenChoice,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::ExpertChoice => "expert_choice",
            Self::TokenChoice => "token_choice",
        }
    }
}

/// Kind and shape of the routers.
#[derive(Debug, Args)]
pub struct RouteFlags {
    /// Whether each recursion chooses its tokens, or each token its number of recursions
    #[arg(long)]
    kind: Kind,
    /// expert_choice only: part of a text's tokens that goes through each recursion, e.g. 1,0.6,0.3
    /// [default: (R-r)/R for recursion r]
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    capacities: Option<Vec<f64>>,
    /// What becomes of a token that goes through: only straight_through and delta start with the
    /// model's logits
    #[arg(long, default_value_t = Gating::StraightThrough, value_parser = choice::<Gating>(Gating::NAMES))]
    gating: Gating,
    /// Keys and values that a recursion's tokens attend to: of one another; of all tokens, as the
    /// first recursion made them; or those with its own in their places [default: as MODEL has it]
    #[arg(long, value_name = "SHARING", value_parser = choice::<KvSharing>(KvSharing::NAMES))]
    kv_sharing: Option<KvSharing>,
    /// Layers of a router
    #[arg(long, default_value_t = RouterNetwork::Linear, value_parser = choice::<RouterNetwork>(RouterNetwork::NAMES))]
    network: RouterNetwork,
    /// Whether it reads hidden states as they are, or divided by their root mean square
    #[arg(long, default_value_t = RouterInput::Normalized, value_parser = choice::<RouterInput>(RouterInput::NAMES))]
    input: RouterInput,
    /// From its output to a score [default: sigmoid, with token_choice softmax]
    #[arg(long, value_parser = ["sigmoid", "tanh", "none", "softmax"])]
    score: Option<String>,
    /// Factor of the score [default: 1 with straight_through, 2 with delta, 0.1 with weighted and
    /// additive; of a softmax R with delta, 1 else]
    #[arg(long)]
    alpha: Option<f64>,
    /// token_choice only: what a token that goes on takes into the next recursion [default: plain]
    #[arg(long, value_name = "STATE", value_parser = choice::<IntermediateState>(IntermediateState::NAMES))]
    intermediate: Option<IntermediateState>,
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
    /// An option or a value is of the other kind; all of them are listed.
    pub fn options(self, num_recursions: usize) -> anyhow::Result<RouterOptions> {
        let Self { kind, kv_sharing, seed, .. } = self;
        let others = match kind {
            Kind::ExpertChoice => vec![("intermediate", self.intermediate.is_some())],
            Kind::TokenChoice => {
                vec![("capacities", self.capacities.is_some()), ("auxiliary", self.auxiliary.is_some())]
            }
        };
        let others: Vec<_> =
            others.into_iter().filter(|(_, given)| *given).map(|(name, _)| format!("`--{name}`")).collect();
        if !others.is_empty() {
            let verb = if others.len() == 1 { "is no option" } else { "are no options" };
            bail!(
                "{} {verb} of `--kind {}`\nhint: leave it out, or name the other kind",
                others.join(", "),
                kind.name()
            );
        }
        let router = match kind {
            Kind::ExpertChoice => RouterConfig::ExpertChoice(self.expert_choice(num_recursions)?),
            Kind::TokenChoice => RouterConfig::TokenChoice(self.token_choice(num_recursions)?),
        };
        Ok(RouterOptions { router, kv_sharing, seed })
    }

    fn expert_choice(self, num_recursions: usize) -> anyhow::Result<ExpertChoiceConfig> {
        let capacities = self.capacities.unwrap_or_else(|| ExpertChoiceConfig::default_capacities(num_recursions));
        Ok(ExpertChoiceConfig {
            network: self.network,
            input: self.input,
            score: self.score.map_or(Ok(RouterScore::Sigmoid), |name| parsed(&name, self.kind))?,
            alpha: self.alpha.unwrap_or_else(|| self.gating.default_alpha()),
            gating: self.gating,
            capacities,
            auxiliary: self.auxiliary.map(|name| parsed(&name, self.kind)).transpose()?,
            thresholds: None,
        })
    }

    fn token_choice(self, num_recursions: usize) -> anyhow::Result<TokenChoiceConfig> {
        let score = self.score.map_or(Ok(TokenChoiceScore::Softmax), |name| parsed(&name, self.kind))?;
        Ok(TokenChoiceConfig {
            network: self.network,
            input: self.input,
            score,
            alpha: self.alpha.unwrap_or_else(|| score.default_alpha(self.gating, num_recursions)),
            gating: self.gating,
            intermediate: self.intermediate.unwrap_or(IntermediateState::Plain),
            biases: None,
        })
    }
}

/// A choice by its name, which has to be one of routers of `kind`.
fn parsed<T: std::str::FromStr<Err = String>>(name: &str, kind: Kind) -> anyhow::Result<T> {
    name.parse().map_err(|reason: String| anyhow::anyhow!("`--kind {}`: {reason}", kind.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::route::Route;
    use clap::{Command, FromArgMatches};

    /// Options of the command, which do not say what a router is.
    const OF_THE_COMMAND: [&str; 3] = ["model", "output", "json"];

    /// Every option of a router: a value, and the kinds that it is for.
    const SAMPLES: [(&str, &str, &[Kind]); 11] = [
        ("kind", "", &[]),
        ("capacities", "1,0.5,0.2", &[Kind::ExpertChoice]),
        ("gating", "delta", &[Kind::ExpertChoice, Kind::TokenChoice]),
        ("kv_sharing", "shared", &[Kind::ExpertChoice, Kind::TokenChoice]),
        ("network", "mlp", &[Kind::ExpertChoice, Kind::TokenChoice]),
        ("input", "raw", &[Kind::ExpertChoice, Kind::TokenChoice]),
        ("score", "tanh", &[Kind::ExpertChoice]),
        ("alpha", "0.5", &[Kind::ExpertChoice, Kind::TokenChoice]),
        ("intermediate", "gated", &[Kind::TokenChoice]),
        ("auxiliary", "mlp", &[Kind::ExpertChoice]),
        ("seed", "7", &[Kind::ExpertChoice, Kind::TokenChoice]),
    ];

    fn command() -> Command {
        Route::augment_args(Command::new("route").no_binary_name(true))
    }

    fn options(kind: Kind, flag: &str) -> Option<RouterOptions> {
        let line = format!("looped -o out --kind {} {flag}", kind.name());
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
        let [expert, token] = [Kind::ExpertChoice, Kind::TokenChoice].map(|kind| options(kind, "").unwrap());
        assert_ne!(expert.router.kind(), token.router.kind());
        for (id, value, kinds) in SAMPLES.iter().filter(|(id, ..)| *id != "kind") {
            let flag = format!("--{} {value}", id.replace('_', "-"));
            for (kind, without) in [(Kind::ExpertChoice, &expert), (Kind::TokenChoice, &token)] {
                let with = options(kind, &flag);
                assert_eq!(with.is_some(), kinds.contains(&kind), "{flag} of {}", kind.name());
                assert_ne!(with.as_ref(), Some(without), "{flag} of {}: accepted and ignored", kind.name());
            }
        }
    }
}
