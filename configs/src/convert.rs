//! `retie convert --config FILE.yaml`: from a pretrained model to a recursive one.

use crate::{
    Budget, DepthExtra, Fit, Init, Pattern, Relax, ShareError, Sharing,
    document::{Checks, Document},
    run::{check_schema, check_text},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// A conversion. See `configs/recipes/convert-smollm2-r2.yaml` for a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertConfig {
    /// Version of these keys: 1.
    pub schema: u32,
    /// A Hugging Face folder, a `.gguf` file, or a hub id.
    pub model: String,
    /// Passes over the shared block, `R`; may be left out with a `map`, which implies it, and with `init: auto`, which tries 2 and 3.
    #[serde(default)]
    pub recursions: Option<usize>,
    /// Which depths share a layer; may be left out with a `map`, and with `init: auto`, which tries all that need nothing else.
    #[serde(default)]
    pub sharing: Option<Sharing>,
    /// Unshared layers before the loop of `cycle` and `sequence`.
    #[serde(default)]
    pub prelude: Option<usize>,
    /// Unshared layers after it.
    #[serde(default)]
    pub coda: Option<usize>,
    /// The stored layer of every depth.
    #[serde(default)]
    pub map: Option<Vec<usize>>,
    /// What becomes of layers that the recursions do not divide.
    #[serde(default)]
    pub fit: Option<Fit>,
    /// Where the shared layers come from.
    pub init: Init,
    /// The most that the weights may be, for `init: auto`.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Text on which the start is scored, and that `init: calibrated` is fitted to: a `.jsonl` or `.parquet` file with a field
    /// `text`, or a plain text file.
    #[serde(default)]
    pub calibration: Option<PathBuf>,
    /// Tokens of it that are fitted to, a quarter as many are scored; see [`ConvertConfig::calibration_tokens`] for the default.
    #[serde(default)]
    pub calibration_tokens: Option<usize>,
    /// What the depths add to the linears that they share: LoRA, or DoRA, which gives every row of a corrected linear a magnitude too.
    #[serde(default)]
    pub relax: Relax,
    /// Rank of the per-depth LoRA; none if absent.
    #[serde(default)]
    pub lora_rank: Option<usize>,
    /// Ranks of some linears, e.g. `k_proj`; the others have `lora_rank`.
    #[serde(default)]
    pub lora_ranks: BTreeMap<String, usize>,
    /// Parameters that all LoRA may have together; they are spread over depths and linears by where the residuals' energy is.
    #[serde(default)]
    pub lora_budget: Option<usize>,
    /// First recursion that has LoRA: 0, the default, is the first.
    #[serde(default)]
    pub lora_from: usize,
    /// Vectors that depths get beside the source's, none of which changes the logits before training.
    #[serde(default)]
    pub extras: BTreeSet<DepthExtra>,
    /// Whether norm weights are shared too, or each depth keeps its own.
    #[serde(default = "default_share_norms")]
    pub share_norms: bool,
    /// Whether depths that differ in kind (a window, another rotation) may share a layer; each keeps its own kind.
    #[serde(default)]
    pub tie_across_kinds: bool,
    /// Element type of the weights that are written.
    #[serde(default)]
    pub dtype: StoredDtype,
    /// Seed of `init: random`.
    #[serde(default)]
    pub seed: u64,
    /// Folder that is written.
    pub output: PathBuf,
}

/// Element type of written weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredDtype {
    /// That of the source.
    #[default]
    Keep,
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl StoredDtype {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Keep, Self::F32, Self::Bf16, Self::F16];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

impl std::fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for StoredDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || format!("unknown dtype `{name}`, expected one of keep, f32, bf16, f16");
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(unknown)
    }
}

/// Tokens to fit to, unless another number is asked for.
const CALIBRATION_TOKENS: usize = 8192;
/// Fewer say next to nothing about hundreds of directions.
const LEAST_CALIBRATION_TOKENS: usize = 64;

/// Keys that do not go together, in words for a file and for a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The key that is at fault.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
}

fn default_share_norms() -> bool {
    true
}

impl ConvertConfig {
    /// With defaults for everything that has one, and without a pattern.
    #[must_use]
    pub fn new(model: String, init: Init, output: PathBuf) -> Self {
        Self {
            schema: 1,
            model,
            recursions: None,
            sharing: None,
            prelude: None,
            coda: None,
            map: None,
            fit: None,
            init,
            budget: None,
            calibration: None,
            calibration_tokens: None,
            relax: Relax::default(),
            lora_rank: None,
            lora_ranks: BTreeMap::new(),
            lora_budget: None,
            lora_from: 0,
            extras: BTreeSet::new(),
            share_norms: default_share_norms(),
            tie_across_kinds: false,
            dtype: StoredDtype::default(),
            seed: 0,
            output,
        }
    }

    /// Which depths share a layer.
    ///
    /// # Errors
    /// When the keys that say so do not go together.
    pub fn pattern(&self) -> Result<Pattern, ShareError> {
        let sharing = match (self.sharing, &self.map) {
            (Some(sharing), _) => sharing,
            (None, Some(_)) => Sharing::Map,
            (None, None) => {
                let problem = "neither `sharing` nor a `map` says which depths share a layer".to_owned();
                return Err(ShareError::Mismatch { problem, hint: "name a sharing pattern, e.g. `middle_cycle`" });
            }
        };
        Pattern::new(sharing, self.prelude, self.coda, self.map.as_deref())
    }

    /// Passes over the shared block; 0 where nothing says how many.
    #[must_use]
    pub fn num_recursions(&self) -> usize {
        let of_map =
            |map: &Vec<usize>| map.iter().map(|layer| map.iter().filter(|other| *other == layer).count()).max();
        self.recursions.or_else(|| self.map.as_ref().and_then(of_map)).unwrap_or(0)
    }

    /// Keys that do not go together.
    #[must_use]
    pub fn mismatches(&self) -> Vec<Mismatch> {
        let mut found = self.pattern_mismatches();
        found.extend(self.calibration_mismatches());
        found.extend(self.depth_mismatches());
        found
    }

    fn depth_mismatches(&self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut add = |key, message: String, hint| found.push(Mismatch { key, message, hint });
        let has_ranks = self.has_ranks();
        if has_ranks && self.lora_budget.is_some() {
            let message = "both ranks and a budget of the LoRA are given".to_owned();
            add("lora_budget", message, "the budget decides about ranks: give one or the other");
        }
        if self.relax != Relax::Lora && !has_ranks && self.lora_budget.is_none() && self.init != Init::Auto {
            let message = format!("relaxation `{}` is asked for, but no rank of it", self.relax);
            add("relax", message, "give it a rank or a budget, e.g. `lora_rank`, or leave `relax` out");
        }
        if self.lora_from > 0 && !has_ranks && self.lora_budget.is_none() {
            let message = format!("LoRA is asked for from recursion {} on, but there is none", self.lora_from);
            add("lora_from", message, "give it a rank or a budget, or leave `lora_from` out");
        }
        if self.lora_from > 0 && self.lora_from >= self.num_recursions() && self.init != Init::Auto {
            let message = format!(
                "LoRA from recursion {} on is none: they are 0 to {}",
                self.lora_from,
                self.num_recursions().saturating_sub(1)
            );
            add("lora_from", message, "1 leaves out the first");
        }
        if let Some((name, _)) = self.lora_ranks.iter().find(|(_, rank)| **rank == 0) {
            add(
                "lora_ranks",
                format!("the LoRA of `{name}` has rank 0, expected a positive integer"),
                "leave it out, and give `lora_ranks` of the others",
            );
        }
        if !self.extras.is_empty() && self.recursions == Some(1) {
            let message = "extras of the depths of a loop are asked for, but there is none with 1 recursion".to_owned();
            add("extras", message, "ask for 2 recursions or more, or leave `extras` out");
        }
        if self.lora_budget == Some(0) {
            add(
                "lora_budget",
                "`lora_budget` is `0`, expected a positive integer".to_owned(),
                "leave `lora_budget` out for a model without LoRA",
            );
        }
        found
    }

    /// Whether `init: auto` chooses the pattern.
    #[must_use]
    pub fn chooses_pattern(&self) -> bool {
        self.init == Init::Auto && self.sharing.is_none() && self.map.is_none()
    }

    fn pattern_mismatches(&self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let has_ends = self.prelude.is_some() || self.coda.is_some();
        if self.chooses_pattern() && has_ends {
            let message = "`prelude` and `coda` are given, but no sharing pattern that they belong to".to_owned();
            found.push(Mismatch { key: "prelude", message, hint: "name `cycle` or `sequence`, or leave them out" });
        }
        if let Err(error) = self.pattern()
            && !self.chooses_pattern()
        {
            let key = if self.map.is_some() { "map" } else { "sharing" };
            found.push(match error {
                ShareError::Mismatch { problem, hint } => Mismatch { key, message: problem, hint },
                other => Mismatch { key, message: other.to_string(), hint: "correct the pattern" },
            });
        }
        let chosen = self.init == Init::Auto && self.recursions.is_none();
        if self.num_recursions() == 0 && !chosen {
            let (message, hint) = match self.recursions {
                Some(_) => ("`recursions` is `0`, expected a positive integer", "1 copies the model"),
                None => ("nothing says how often the shared layers run", "give the number of recursions, e.g. 2"),
            };
            found.push(Mismatch { key: "recursions", message: message.to_owned(), hint });
        }
        if self.map.is_some() && self.fit.is_some() {
            let message = "a `map` takes no `fit`: it says of every layer what becomes of it".to_owned();
            found.push(Mismatch { key: "fit", message, hint: "leave `fit` out" });
        }
        found
    }
}

impl ConvertConfig {
    /// Tokens that `init: calibrated` is fitted to.
    #[must_use]
    pub fn calibration_tokens(&self) -> usize {
        self.calibration_tokens.unwrap_or(CALIBRATION_TOKENS)
    }

    /// What is wrong between `init` and the keys of a calibration and a search.
    fn calibration_mismatches(&self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut add = |key, message: String, hint| found.push(Mismatch { key, message, hint });
        let init = self.init;
        let measured = matches!(init, Init::Calibrated | Init::Auto);
        if measured && self.recursions == Some(1) {
            let message = format!("init `{init}` needs at least 2 recursions: with 1 no layer is shared");
            add("recursions", message, "with 1 recursion every other init copies the model");
        }
        if measured && self.calibration.as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
            let hint = "name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option";
            let what = if init == Init::Auto { "be measured on" } else { "be fitted to" };
            add("init", format!("init `{init}` has no text to {what}"), hint);
        }
        if self.calibration_tokens.is_some() && self.calibration.is_none() && !measured {
            let message = "a number of calibration tokens is given, but no text".to_owned();
            add("calibration_tokens", message, "name the text, or leave the number out");
        }
        if let Some(tokens) = self.calibration_tokens.filter(|tokens| *tokens < LEAST_CALIBRATION_TOKENS) {
            let message =
                format!("{tokens} calibration tokens are too few, expected at least {LEAST_CALIBRATION_TOKENS}");
            add("calibration_tokens", message, "leave the number out, or ask for some thousands");
        }
        match (init, self.budget) {
            (Init::Auto, None) => {
                let hint = "say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`";
                add("budget", "init `auto` has no budget".to_owned(), hint);
            }
            (Init::Auto, Some(_)) if self.has_ranks() || self.lora_budget.is_some() || self.lora_from > 0 => {
                let message = "init `auto` decides about the LoRA, but some is asked for".to_owned();
                add("init", message, "leave the keys of the LoRA out, or name another init");
            }
            (Init::Auto, Some(_)) if self.relax != Relax::Lora => {
                let message = format!("init `auto` tries LoRA only, but `{}` is asked for", self.relax);
                add("relax", message, "convert with `auto` first, and then once more with what it chose and `relax`");
            }
            (init, Some(_)) if init != Init::Auto => {
                let message = format!("init `{init}` takes no budget of all weights");
                add("budget", message, "ask for init `auto`; `lora_budget` is for the LoRA alone");
            }
            _ => {}
        }
        found
    }

    fn has_ranks(&self) -> bool {
        self.lora_rank.is_some() || !self.lora_ranks.is_empty()
    }
}

impl Document for ConvertConfig {
    fn check(&self, checks: &mut Checks) {
        check_schema(self.schema, checks);
        check_text("model", &self.model, checks);
        check_text("output", &self.output.to_string_lossy(), checks);
        for mismatch in self.mismatches() {
            checks.problem(mismatch.key, mismatch.message).hint(mismatch.hint);
        }
        if self.lora_rank == Some(0) {
            checks
                .problem("lora_rank", "`lora_rank` is `0`, expected a positive integer")
                .hint("leave `lora_rank` out for a model without LoRA");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;
    use insta::assert_snapshot;
    use std::path::Path;

    fn parse(text: &str) -> Result<ConvertConfig, crate::ConfigError> {
        document::parse(text, Path::new("convert.yaml"), &[])
    }

    const MINIMAL: &str =
        "schema: 1\nmodel: m\nrecursions: 2\nsharing: middle_cycle\ninit: average\noutput: checkpoints/store/m\n";

    #[test]
    fn defaults_fill_what_is_left_out() {
        let config = parse(MINIMAL).unwrap();
        let yaml = document::to_yaml(&config).unwrap();
        assert_snapshot!(yaml, @"
        schema: 1
        model: m
        recursions: 2
        sharing: middle_cycle
        prelude: null
        coda: null
        map: null
        fit: null
        init: average
        budget: null
        calibration: null
        calibration_tokens: null
        relax: lora
        lora_rank: null
        lora_ranks: {}
        lora_budget: null
        lora_from: 0
        extras: []
        share_norms: true
        tie_across_kinds: false
        dtype: keep
        seed: 0
        output: checkpoints/store/m
        ");
        assert_eq!(parse(&yaml).unwrap(), config);
        assert_eq!(config.num_recursions(), 2);
    }

    #[test]
    fn impossible_and_misspelt_values_are_all_reported() {
        let text = "schema: 1\nmodel: 7\nrecursions: 0\nsharing: midle_cycle\ninit: mean\nlora_rank: 0\ndtype: fp8\n";
        assert_snapshot!(parse(text).unwrap_err(), @r#"
        `convert.yaml` has 7 problems
        convert.yaml:1:1: key `output` is missing
        convert.yaml:2:8: `model` is `7`, expected a string
          hint: write it in quotes, `"7"`
        convert.yaml:3:13: `recursions` is `0`, expected a positive integer
          hint: 1 copies the model
        convert.yaml:4:10: `sharing` is `midle_cycle`, expected one of `cycle`, `sequence`, `middle_cycle`, `middle_sequence`, `map`
          hint: did you mean `middle_cycle`?
        convert.yaml:5:7: `init` is `mean`, expected one of `stepwise`, `average`, `lower`, `upper`, `random`, `calibrated`, `auto`
        convert.yaml:6:12: `lora_rank` is `0`, expected a positive integer
          hint: leave `lora_rank` out for a model without LoRA
        convert.yaml:7:8: `dtype` is `fp8`, expected one of `keep`, `f32`, `bf16`, `f16`
        "#);
    }

    #[test]
    fn a_pattern_is_a_name_with_what_it_takes_or_a_map() {
        let text = MINIMAL.replace("middle_cycle", "cycle\nprelude: 2\ncoda: 1\nfit: pad-unshared");
        let config = parse(&text).unwrap();
        assert_eq!(config.pattern().unwrap(), Pattern::Loop { sharing: Sharing::Cycle, prelude: 2, coda: 1 });
        assert_eq!(config.fit, Some(Fit::PadUnshared));
        let text = MINIMAL.replace("recursions: 2\nsharing: middle_cycle", "map: [0, 1, 2, 1, 1, 3]");
        let config = parse(&text).unwrap();
        assert_eq!((config.pattern().unwrap().sharing(), config.num_recursions()), (Sharing::Map, 3));
        assert_snapshot!(parse(&format!("{MINIMAL}coda: 2\n")).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:4:10: sharing `middle_cycle` takes no `prelude` or `coda`: it has one unshared layer at each end
          hint: ask for `cycle` or `sequence` with the `prelude` and `coda` that you want
        ");
        let text = MINIMAL.replace("recursions: 2\nsharing: middle_cycle\n", "");
        assert_snapshot!(parse(&text).unwrap_err(), @"
        `convert.yaml` has 2 problems
        convert.yaml:1:1: neither `sharing` nor a `map` says which depths share a layer
          hint: name a sharing pattern, e.g. `middle_cycle`
        convert.yaml:1:1: nothing says how often the shared layers run
          hint: give the number of recursions, e.g. 2
        ");
        let text = MINIMAL.replace("middle_cycle", "map\nmap: [0, 0]\nfit: drop");
        assert_snapshot!(parse(&text).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:6:6: a `map` takes no `fit`: it says of every layer what becomes of it
          hint: leave `fit` out
        ");
    }

    #[test]
    fn a_calibration_and_its_init_come_together() {
        let calibrated = MINIMAL.replace("average", "calibrated");
        assert_snapshot!(parse(&calibrated).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:5:7: init `calibrated` has no text to be fitted to
          hint: name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option
        ");
        // Any start can be scored on a text.
        parse(&format!("{MINIMAL}calibration: a.jsonl\ncalibration_tokens: 100\n")).unwrap();
        assert_snapshot!(parse(&format!("{MINIMAL}calibration_tokens: 100\n")).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:7:21: a number of calibration tokens is given, but no text
          hint: name the text, or leave the number out
        ");
        let text = calibrated.replace("recursions: 2", "recursions: 1");
        let text = format!("{text}calibration: a.jsonl\ncalibration_tokens: 10\n");
        assert_snapshot!(parse(&text).unwrap_err(), @"
        `convert.yaml` has 2 problems
        convert.yaml:3:13: init `calibrated` needs at least 2 recursions: with 1 no layer is shared
          hint: with 1 recursion every other init copies the model
        convert.yaml:8:21: 10 calibration tokens are too few, expected at least 64
          hint: leave the number out, or ask for some thousands
        ");
        let config = parse(&format!("{calibrated}calibration: a.jsonl\n")).unwrap();
        assert_eq!(config.calibration_tokens(), 8192);
    }

    #[test]
    fn a_search_has_a_budget_and_a_text_and_decides_about_the_rest() {
        let text = "schema: 1\nmodel: m\ninit: auto\noutput: o\nbudget: 75%\ncalibration: a.jsonl\n";
        let config = parse(text).unwrap();
        assert!(config.chooses_pattern() && config.num_recursions() == 0);
        assert_eq!(config.budget, Some(Budget::Percent(75.0)));
        assert_eq!(parse(&document::to_yaml(&config).unwrap()).unwrap(), config);
        assert!(!parse(&format!("{text}sharing: sequence\nprelude: 2\nrecursions: 3\n")).unwrap().chooses_pattern());
        let text = "schema: 1\nmodel: m\ninit: auto\noutput: o\nprelude: 1\nlora_rank: 4\n";
        assert_snapshot!(parse(text).unwrap_err(), @"
        `convert.yaml` has 3 problems
        convert.yaml:1:1: init `auto` has no budget
          hint: say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`
        convert.yaml:3:7: init `auto` has no text to be measured on
          hint: name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option
        convert.yaml:5:10: `prelude` and `coda` are given, but no sharing pattern that they belong to
          hint: name `cycle` or `sequence`, or leave them out
        ");
        let text = "schema: 1\nmodel: m\ninit: auto\noutput: o\nbudget: lots\ncalibration: a\nlora_budget: 9\n";
        assert_snapshot!(parse(text).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:5:9: `budget` is `lots`, expected parameters (`90M`), bytes (`250MiB`) or a part of the source (`75%`)
        ");
        assert_snapshot!(parse(&format!("{MINIMAL}budget: 1000\n")).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:7:9: init `average` takes no budget of all weights
          hint: ask for init `auto`; `lora_budget` is for the LoRA alone
        ");
    }

    #[test]
    fn a_relaxation_has_a_rank_and_is_not_for_a_search() {
        let config = parse(&format!("{MINIMAL}relax: dora\nlora_budget: 1000\n")).unwrap();
        assert_eq!(config.relax, Relax::Dora);
        assert_eq!(parse(&document::to_yaml(&config).unwrap()).unwrap(), config);
        assert_snapshot!(parse(&format!("{MINIMAL}relax: dora\n")).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:7:8: relaxation `dora` is asked for, but no rank of it
          hint: give it a rank or a budget, e.g. `lora_rank`, or leave `relax` out
        ");
        let auto = "schema: 1\nmodel: m\ninit: auto\noutput: o\nbudget: 75%\ncalibration: a\nrelax: dora\n";
        assert_snapshot!(parse(auto).unwrap_err(), @"
        `convert.yaml` has 1 problem
        convert.yaml:7:8: init `auto` tries LoRA only, but `dora` is asked for
          hint: convert with `auto` first, and then once more with what it chose and `relax`
        ");
    }

    #[test]
    fn every_dtype_name_parses_to_itself() {
        for dtype in StoredDtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert!("int8".parse::<StoredDtype>().is_err());
    }
}
