//! TARGET of the benchmark: the address of a server, or a model with settings of its own.

use crate::args::NumDrafts;
use anyhow::{anyhow, bail, ensure};
use retie_config::SkippedKv;
use retie_engine::Scheduler;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A server with the API of OpenAI.
    Server(String),
    /// A model, which is served here.
    Model(Variant),
}

/// A model and how it is served; what is `None` is as the options of the command say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// As it was given.
    pub name: String,
    /// Folder, file or hub id.
    pub model: String,
    pub scheduler: Option<Scheduler>,
    /// Risk of calibrated exits.
    pub exit_risk: Option<f64>,
    /// Policy for skipped recursions, without a calibration.
    pub kv_policy: Option<SkippedKv>,
    pub speculate: Option<NumDrafts>,
}

impl Target {
    /// Parses `http://HOST:PORT`, or `MODEL[,scheduler=MODE][,exit_risk=LEVEL][,kv_policy=POLICY]
    /// [,speculate[=K]]`.
    ///
    /// # Errors
    /// A setting is unknown, given twice, or has a wrong value.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Server(text.to_owned()));
        }
        let (model, settings) = text.split_once(',').map_or((text, None), |(model, rest)| (model, Some(rest)));
        let mut variant = Variant { name: text.to_owned(), model: model.to_owned(), ..Variant::default() };
        for setting in settings.into_iter().flat_map(|settings| settings.split(',')) {
            variant.set(setting).map_err(|error| anyhow!("the target `{text}`: {error}"))?;
        }
        ensure!(
            variant.exit_risk.is_none() || variant.kv_policy.is_none() && variant.speculate.is_none(),
            "the target `{text}`: with `exit_risk` the policy is that of the calibration, and nothing is drafted\n\
             hint: leave `kv_policy` and `speculate` out"
        );
        Ok(Self::Model(variant))
    }
}

impl Variant {
    fn set(&mut self, setting: &str) -> anyhow::Result<()> {
        let (key, value) = setting.split_once('=').map_or((setting, None), |(key, value)| (key, Some(value)));
        let given = value.unwrap_or_default();
        let wrong = |error: String| anyhow!("`{key}`: {error}");
        let is_new = match key {
            "scheduler" => self.scheduler.replace(given.parse().map_err(wrong)?).is_none(),
            "kv_policy" => self.kv_policy.replace(given.parse().map_err(wrong)?).is_none(),
            "speculate" => self.speculate.replace(value.unwrap_or("auto").parse().map_err(wrong)?).is_none(),
            "exit_risk" => {
                let level = given.parse().map_err(|_| anyhow!("`exit_risk` is `{given}`, expected a number"))?;
                self.exit_risk.replace(level).is_none()
            }
            _ => bail!(
                "unknown setting `{key}`\nhint: settings are `scheduler`, `exit_risk`, `kv_policy` and `speculate`"
            ),
        };
        ensure!(is_new, "`{key}` is given twice");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_or_a_model_with_settings() {
        assert_eq!(Target::parse("http://h:1,x").unwrap(), Target::Server("http://h:1,x".to_owned()));
        let model = |text: &str| match Target::parse(text).unwrap() {
            Target::Model(variant) => variant,
            Target::Server(url) => panic!("{url}"),
        };
        assert_eq!(model("a/b"), Variant { name: "a/b".to_owned(), model: "a/b".to_owned(), ..Variant::default() });
        let found = model("m,scheduler=depthwise,exit_risk=0.02");
        assert_eq!(
            (found.model.as_str(), found.scheduler, found.exit_risk),
            ("m", Some(Scheduler::Depthwise), Some(0.02))
        );
        assert_eq!(model("m,speculate").speculate, Some(NumDrafts(None)));
        assert_eq!(model("m,speculate=3").speculate, Some(NumDrafts(Some(3))));
        assert_eq!(model("m,kv_policy=recompute").kv_policy, Some(SkippedKv::Recompute));
    }

    #[test]
    fn settings_that_cannot_be_are_refused_with_the_target() {
        for (text, expected) in [
            ("m,risk=1", "the target `m,risk=1`: unknown setting `risk`"),
            ("m,exit_risk=low", "`exit_risk` is `low`, expected a number"),
            ("m,scheduler=greedy", "`scheduler`: `greedy` is no scheduler"),
            ("m,speculate=9", "`speculate`: expected `auto` or 1 to 7"),
            ("m,speculate,speculate=2", "`speculate` is given twice"),
            ("m,exit_risk=0.1,kv_policy=skip", "the policy is that of the calibration"),
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
