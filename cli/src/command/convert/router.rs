//! `retie convert --router`: routers for a model that is recursive already.

use super::{Bars, command_line};
use crate::{error::Status, model, output};
use anyhow::Context;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retie_checkpoint::Provenance;
use retie_config::{ExpertChoiceConfig, Gating, KvStrategy, RouterConfig, RouterInput, RouterNetwork, RouterScore};
use retie_convert::Extras;
use std::path::Path;

/// What a router is.
#[derive(Debug, Args)]
pub struct RouterArgs {
    /// Give a MODEL that is recursive already routers that choose a recursion depth for every token; nothing else changes
    #[arg(long, value_name = "KIND", value_parser = ["expert_choice"], conflicts_with_all = [
        "recursions", "sharing", "prelude", "coda", "map", "fit", "init", "budget", "plan", "report", "calibration", "calibration_tokens", "relax", "lora_rank", "lora_ranks", "lora_budget", "lora_from", "extras", "share_norms", "dtype", "config",
        "set",
    ])]
    router: Option<String>,
    /// Part of a text's tokens that goes through each recursion, e.g. 1,0.6,0.3 [default: (R-r)/R for recursion r]
    #[arg(long, value_name = "PART,…", value_delimiter = ',', requires = "router")]
    capacities: Option<Vec<f64>>,
    /// What becomes of a token that goes through: only straight_through and delta start with the model's logits
    #[arg(long, value_name = "GATING", default_value = "straight_through", requires = "router", value_parser = names(Gating::ALL, Gating::name))]
    gating: Gating,
    /// Layers of a router
    #[arg(long, value_name = "NETWORK", default_value = "linear", requires = "router", value_parser = names(RouterNetwork::ALL, RouterNetwork::name))]
    router_network: RouterNetwork,
    /// Whether it reads hidden states as they are, or divided by their root mean square
    #[arg(long, value_name = "INPUT", default_value = "normalized", requires = "router", value_parser = names(RouterInput::ALL, RouterInput::name))]
    router_input: RouterInput,
    /// From its output to a score
    #[arg(long, value_name = "SCORE", default_value = "sigmoid", requires = "router", value_parser = names(RouterScore::ALL, RouterScore::name))]
    router_score: RouterScore,
    /// Factor of the score [default: 1 with straight_through, 2 with delta, 0.1 with weighted and additive]
    #[arg(long, value_name = "ALPHA", requires = "router")]
    router_alpha: Option<f64>,
}

fn names<T>(all: &'static [T], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(move |x| name(*x)))
        .try_map(|name| name.parse::<T>().map_err(std::io::Error::other))
}

impl RouterArgs {
    /// Whether a router is asked for.
    pub fn is_given(&self) -> bool {
        self.router.is_some()
    }

    fn config(self, num_recursions: usize) -> RouterConfig {
        let capacities = self.capacities.unwrap_or_else(|| ExpertChoiceConfig::default_capacities(num_recursions));
        RouterConfig::ExpertChoice(ExpertChoiceConfig {
            network: self.router_network,
            input: self.router_input,
            score: self.router_score,
            alpha: self.router_alpha.unwrap_or_else(|| self.gating.default_alpha()),
            gating: self.gating,
            capacities,
            kv: KvStrategy::RecursionWise,
            thresholds: None,
        })
    }

    /// Writes the model of `spec` with the routers into `out`.
    pub fn run(self, spec: &str, out: &Path, seed: u64, json: bool) -> anyhow::Result<Status> {
        let source = model::open(spec)?;
        let num_recursions = source.config.recursion.as_ref().map_or(1, |recursion| recursion.num_recursions);
        let provenance = Provenance::now(command_line(), Some(model::parent(&source)?));
        let extras = Extras { files: source.companions.clone(), provenance: Some(provenance), search: None };
        let mut bars = Bars::default();
        let router = self.config(num_recursions);
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
