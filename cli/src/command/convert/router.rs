//! `retie convert --router`: routers for a model that is recursive already.

use super::{Bars, command_line};
use crate::{error::Status, model, output};
use anyhow::{Context, ensure};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retie_checkpoint::Provenance;
use retie_config::{
    DepthScore, ExpertChoiceConfig, Gating, IntermediateState, KvStrategy, RouterConfig, RouterInput, RouterNetwork,
    RouterScore, TokenChoiceConfig,
};
use retie_convert::Extras;
use std::path::Path;

/// What a router is.
#[derive(Debug, Args)]
pub struct RouterArgs {
    /// Give a MODEL that is recursive already routers that choose a recursion depth for every token; nothing else changes
    #[arg(long, value_name = "KIND", value_parser = [EXPERT_CHOICE, TOKEN_CHOICE], conflicts_with_all = [
        "recursions", "sharing", "prelude", "coda", "map", "fit", "init", "budget", "plan", "report", "calibration", "calibration_tokens", "relax", "lora_rank", "lora_ranks", "lora_budget", "lora_from", "extras", "share_norms", "dtype", "config",
        "set",
    ])]
    router: Option<String>,
    /// Of expert_choice: part of a text's tokens that goes through each recursion, e.g. 1,0.6,0.3 [default: (R-r)/R for recursion r]
    #[arg(long, value_name = "PART,…", value_delimiter = ',', requires = "router")]
    capacities: Option<Vec<f64>>,
    /// What becomes of a token that goes through: only straight_through and delta start with the model's logits
    #[arg(long, value_name = "GATING", default_value = "straight_through", requires = "router", value_parser = names(Gating::ALL, Gating::name))]
    gating: Gating,
    /// Keys and values that a recursion's tokens attend to: of one another; of all tokens, as the first recursion made them; or those with its own in their places
    #[arg(long, value_name = "STRATEGY", default_value = "recursion_wise", requires = "router", value_parser = names(KvStrategy::ALL, KvStrategy::name))]
    kv: KvStrategy,
    /// Layers of a router
    #[arg(long, value_name = "NETWORK", default_value = "linear", requires = "router", value_parser = names(RouterNetwork::ALL, RouterNetwork::name))]
    router_network: RouterNetwork,
    /// Whether it reads hidden states as they are, or divided by their root mean square
    #[arg(long, value_name = "INPUT", default_value = "normalized", requires = "router", value_parser = names(RouterInput::ALL, RouterInput::name))]
    router_input: RouterInput,
    /// From its output to a score [default: sigmoid, with token_choice softmax]
    #[arg(long, value_name = "SCORE", requires = "router", value_parser = ["sigmoid", "tanh", "none", "softmax"])]
    router_score: Option<String>,
    /// Factor of the score [default: 1 with straight_through, 2 with delta, 0.1 with weighted and additive; of a softmax R with delta, 1 else]
    #[arg(long, value_name = "ALPHA", requires = "router")]
    router_alpha: Option<f64>,
    /// Of token_choice: what a token that goes on takes into the next recursion [default: plain]
    #[arg(long, value_name = "STATE", requires = "router", value_parser = names(IntermediateState::ALL, IntermediateState::name))]
    intermediate: Option<IntermediateState>,
    /// Of expert_choice: layers of auxiliary routers, which learn what the others choose, and by which inference goes [default: none]
    #[arg(long, value_name = "NETWORK", requires = "router", value_parser = ["linear", "mlp", "wide_mlp"])]
    auxiliary_router: Option<String>,
}

const EXPERT_CHOICE: &str = "expert_choice";
const TOKEN_CHOICE: &str = "token_choice";

fn names<T>(all: &'static [T], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(move |x| name(*x)))
        .try_map(|name| name.parse::<T>().map_err(std::io::Error::other))
}

fn not_of(option: &str, kind: &str, found: &str) -> String {
    format!("`--{option}` is of `--router {kind}`, found `--router {found}`\nhint: leave it out")
}

/// A choice by its name, which has to be one of routers of `kind`.
fn parsed<T: std::str::FromStr<Err = String>>(name: &str, kind: &str) -> anyhow::Result<T> {
    name.parse().map_err(|reason: String| anyhow::anyhow!("`--router {kind}`: {reason}"))
}

impl RouterArgs {
    /// Whether a router is asked for.
    pub fn is_given(&self) -> bool {
        self.router.is_some()
    }

    fn config(self, num_recursions: usize) -> anyhow::Result<RouterConfig> {
        if self.router.as_deref() == Some(TOKEN_CHOICE) {
            self.token_choice(num_recursions)
        } else {
            self.expert_choice(num_recursions)
        }
    }

    fn expert_choice(self, num_recursions: usize) -> anyhow::Result<RouterConfig> {
        ensure!(self.intermediate.is_none(), not_of("intermediate", TOKEN_CHOICE, EXPERT_CHOICE));
        let capacities = self.capacities.unwrap_or_else(|| ExpertChoiceConfig::default_capacities(num_recursions));
        Ok(RouterConfig::ExpertChoice(ExpertChoiceConfig {
            network: self.router_network,
            input: self.router_input,
            score: self.router_score.map_or(Ok(RouterScore::Sigmoid), |name| parsed(&name, EXPERT_CHOICE))?,
            alpha: self.router_alpha.unwrap_or_else(|| self.gating.default_alpha()),
            gating: self.gating,
            capacities,
            kv: self.kv,
            auxiliary: self.auxiliary_router.map(|name| parsed(&name, EXPERT_CHOICE)).transpose()?,
            thresholds: None,
        }))
    }

    fn token_choice(self, num_recursions: usize) -> anyhow::Result<RouterConfig> {
        ensure!(self.capacities.is_none(), not_of("capacities", EXPERT_CHOICE, TOKEN_CHOICE));
        ensure!(self.auxiliary_router.is_none(), not_of("auxiliary-router", EXPERT_CHOICE, TOKEN_CHOICE));
        let score = self.router_score.map_or(Ok(DepthScore::Softmax), |name| parsed(&name, TOKEN_CHOICE))?;
        Ok(RouterConfig::TokenChoice(TokenChoiceConfig {
            network: self.router_network,
            input: self.router_input,
            score,
            alpha: self.router_alpha.unwrap_or_else(|| score.default_alpha(self.gating, num_recursions)),
            gating: self.gating,
            intermediate: self.intermediate.unwrap_or(IntermediateState::Plain),
            kv: self.kv,
            biases: None,
        }))
    }

    /// Writes the model of `spec` with the routers into `out`.
    pub fn run(self, spec: &str, out: &Path, seed: u64, json: bool) -> anyhow::Result<Status> {
        let source = model::open(spec)?;
        let num_recursions = source.config.recursion.as_ref().map_or(1, |recursion| recursion.num_recursions);
        let provenance = Provenance::now(command_line(), Some(model::parent(&source)?));
        let extras = Extras { files: source.companions.clone(), provenance: Some(provenance), search: None };
        let mut bars = Bars::default();
        let router = self.config(num_recursions)?;
        let report = retie_convert::add_router(
            source.tensors.as_ref(),
            &source.config,
            &router,
            seed,
            &extras,
            out,
            &mut |progress| bars.see(progress),
        )
        .with_context(|| format!("`{spec}` does not get a router"))?;
        if json {
            output::json(&report)?;
        } else {
            output::data(&report)?;
        }
        output::wrote(out);
        output::next(&format!("retie uptrain CONFIG.yaml --set student.model={}", output::word(out)));
        Ok(Status::Done)
    }
}
