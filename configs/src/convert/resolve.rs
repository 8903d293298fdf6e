//! From the keys of a conversion to what they mean. Every problem is found, not the first alone.

use super::{
    CalibrationSource, Compensation, Conversion, ConvertConfig, InitChoice, KeyProblem, LoraRanks, LoraSpec, Method,
    ResolvedConvert, SearchSpace, Start, TargetSettings,
};
use crate::{ConfigError, Init, Pattern, Relax, ShareError, Sharing};

/// Tokens to fit to, unless another number is asked for.
const CALIBRATION_TOKENS: usize = 8192;
/// The same for kept layers and for pairs of factors, which have more to be fitted.
const SELECTION_TOKENS: usize = 65_536;
/// Fewer tokens say next to nothing about hundreds of directions.
const LEAST_CALIBRATION_TOKENS: usize = 64;
/// Numbers of recursions that a search tries where none are asked for.
const SEARCHED_RECURSIONS: [usize; 2] = [2, 3];

/// The conversion that `config` describes, or everything that is wrong with it.
pub(super) fn resolve(config: &ConvertConfig) -> Result<ResolvedConvert, Vec<KeyProblem>> {
    let mut resolver = Resolver { config, problems: Vec::new() };
    let start = match (config.method, config.init) {
        (Method::Drop, _) => resolver.drop_layers(),
        (Method::Svd, _) => resolver.factor(),
        (Method::Recurse, Some(InitChoice::Fixed(Init::Select))) => resolver.select(),
        (Method::Recurse, Some(choice)) => {
            resolver.refuse_selection_keys(choice);
            match choice {
                InitChoice::Fixed(init) => resolver.fixed(init),
                InitChoice::Auto => resolver.search(),
            }
        }
        (Method::Recurse, None) => {
            resolver.problem("init", "key `init` is missing", "name an initialisation, e.g. `calibrated`");
            // What is wrong beside it is wrong with every init that takes a pattern.
            resolver.fixed(Init::Average)
        }
    };
    match start {
        Some(start) if resolver.problems.is_empty() => {
            Ok(ResolvedConvert { model: config.model.clone(), start, output: config.output.clone() })
        }
        _ => Err(resolver.problems),
    }
}

/// A configuration, and the problems that were found so far. A method gives `None` where it has
/// found one.
pub(super) struct Resolver<'c> {
    pub(super) config: &'c ConvertConfig,
    problems: Vec<KeyProblem>,
}

impl Resolver<'_> {
    pub(super) fn problem(&mut self, key: &'static str, message: impl Into<String>, hint: &'static str) {
        self.problems.push(KeyProblem { key, message: message.into(), hint });
    }

    fn fixed(&mut self, init: Init) -> Option<Start> {
        let calibration = self.calibration();
        let (pattern, num_recursions) = (self.pattern(), self.num_recursions());
        if num_recursions.is_none() && self.config.recursions.is_none() {
            let hint = "give the number of recursions, e.g. 2";
            self.problem("recursions", "nothing says how often the shared layers run", hint);
        }
        if init == Init::Calibrated {
            self.require_sharing(num_recursions);
        }
        if self.config.budget.is_some() {
            let hint = "ask for init `auto`; `lora_budget` is for the LoRA alone";
            self.problem("budget", format!("init `{init}` takes no budget of all weights"), hint);
        }
        let lora = self.lora(num_recursions);
        let target = self.target(num_recursions);
        self.kv_sharing(calibration.is_some() || init == Init::Calibrated);
        let (pattern, num_recursions) = (pattern?, num_recursions?);
        if let Err(ConfigError::BadKvSharing { kv_sharing, problem, hint }) =
            self.config.kv_sharing.check(num_recursions, pattern.sharing())
        {
            let message = format!("keys and values cannot be shared as `kv_sharing: {kv_sharing}` says: {problem}");
            self.problem("kv_sharing", message, hint);
        }
        let conversion = Conversion {
            remainder: self.config.remainder,
            lora,
            ..Conversion::new(num_recursions, pattern, init, target)
        };
        Some(Start::Fixed { conversion, calibration })
    }

    fn search(&mut self) -> Option<Start> {
        let ConvertConfig { sharing, map, prelude, coda, budget, remainder, relax, .. } = self.config;
        let calibration = self.calibration();
        let patterns = match (sharing, map) {
            (None, None) => {
                if prelude.is_some() || coda.is_some() {
                    let message = "`prelude` and `coda` are given, but no sharing pattern that they belong to";
                    self.problem("prelude", message, "name `cycle` or `sequence`, or leave them out");
                }
                Sharing::ALL.iter().filter_map(|sharing| Pattern::new(*sharing, None, None, None).ok()).collect()
            }
            _ => self.pattern().into_iter().collect(),
        };
        let num_recursions = self.num_recursions();
        self.require_sharing(num_recursions);
        if budget.is_none() {
            let hint = "say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`";
            self.problem("budget", "init `auto` has no budget", hint);
        }
        if self.has_ranks() || self.config.lora_budget.is_some() || self.config.lora_from > 0 {
            let hint = "leave the keys of the LoRA out, or name another init";
            self.problem("init", "init `auto` decides about the LoRA, but some is asked for", hint);
        } else if *relax != Relax::Lora {
            let hint = "convert with `auto` first, and then once more with what it chose and `relax`";
            self.problem("relax", format!("init `auto` tries LoRA only, but `{relax}` is asked for"), hint);
        }
        let target = self.target(num_recursions);
        self.kv_sharing(true);
        let space = SearchSpace {
            patterns,
            recursions: num_recursions.map_or(SEARCHED_RECURSIONS.to_vec(), |asked| vec![asked]),
            remainder: *remainder,
            budget: (*budget)?,
            target,
        };
        Some(Start::Search { space, calibration: calibration? })
    }

    /// The sharing pattern that is asked for.
    fn pattern(&mut self) -> Option<Pattern> {
        let ConvertConfig { sharing, prelude, coda, map, remainder, .. } = self.config;
        if map.is_some() && remainder.is_some() {
            let message = "a `map` takes no `fit`: it says of every layer what becomes of it";
            self.problem("fit", message, "leave `fit` out");
        }
        let key = if map.is_some() { "map" } else { "sharing" };
        let Some(sharing) = sharing.or(map.as_ref().map(|_| Sharing::Map)) else {
            let message = "neither `sharing` nor a `map` says which depths share a layer";
            self.problem(key, message, "name a sharing pattern, e.g. `middle_cycle`");
            return None;
        };
        match Pattern::new(sharing, *prelude, *coda, map.as_deref()) {
            Ok(pattern) => return Some(pattern),
            Err(ShareError::Mismatch { problem, hint }) => self.problem(key, problem, hint),
            Err(other) => self.problem(key, other.to_string(), "correct the pattern"),
        }
        None
    }

    /// Passes over the shared block: those that are asked for, or those of the map; `None` where
    /// neither says it.
    fn num_recursions(&mut self) -> Option<usize> {
        let ConvertConfig { recursions, map, .. } = self.config;
        if *recursions == Some(0) {
            self.problem("recursions", "`recursions` is `0`, expected a positive integer", "1 copies the model");
            return None;
        }
        let most_uses =
            |map: &Vec<usize>| map.iter().map(|layer| map.iter().filter(|other| *other == layer).count()).max();
        recursions.or_else(|| map.as_ref().and_then(most_uses))
    }

    /// Refuses an init that is measured where no layer is shared.
    fn require_sharing(&mut self, num_recursions: Option<usize>) {
        if num_recursions == Some(1) {
            let init = self.config.init.map_or("auto", InitChoice::name);
            let message = format!("init `{init}` needs at least 2 recursions: with 1 no layer is shared");
            self.problem("recursions", message, "with 1 recursion every other init copies the model");
        }
    }

    pub(super) fn calibration(&mut self) -> Option<CalibrationSource> {
        let ConvertConfig { method, init, calibration, calibration_tokens, source_layers, compensation, .. } =
            self.config;
        let path = calibration.clone().filter(|path| !path.as_os_str().is_empty());
        let selects = *method == Method::Drop || *init == Some(InitChoice::Fixed(Init::Select));
        let use_of_text = match init {
            _ if selects && source_layers.is_none() => Some("be measured on"),
            _ if *method == Method::Svd => Some("be fitted to"),
            _ if selects && *compensation == Some(Compensation::LeastSquares) => Some("be fitted to"),
            Some(InitChoice::Auto) => Some("be measured on"),
            Some(InitChoice::Fixed(Init::Calibrated)) => Some("be fitted to"),
            _ => None,
        };
        match (use_of_text, calibration_tokens) {
            (Some(purpose), _) if path.is_none() => {
                let hint = "name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option";
                let (key, what) = match (method, init) {
                    (Method::Recurse, Some(init)) => ("init", format!("init `{init}`")),
                    _ => ("method", format!("method `{method}`")),
                };
                self.problem(key, format!("{what} has no text to {purpose}"), hint);
            }
            (None, Some(_)) if path.is_none() => {
                let message = "a number of calibration tokens is given, but no text";
                self.problem("calibration_tokens", message, "name the text, or leave the number out");
            }
            _ => {}
        }
        let tokens = calibration_tokens.unwrap_or(if selects || *method == Method::Svd {
            SELECTION_TOKENS
        } else {
            CALIBRATION_TOKENS
        });
        if tokens < LEAST_CALIBRATION_TOKENS {
            let message =
                format!("{tokens} calibration tokens are too few, expected at least {LEAST_CALIBRATION_TOKENS}");
            self.problem("calibration_tokens", message, "leave the number out, or ask for some thousands");
        }
        Some(CalibrationSource { path: path?, tokens })
    }

    fn has_ranks(&self) -> bool {
        self.config.lora_rank.is_some() || !self.config.lora_ranks.is_empty()
    }

    pub(super) fn lora(&mut self, num_recursions: Option<usize>) -> Option<LoraSpec> {
        let ConvertConfig { relax, lora_rank, lora_ranks, lora_budget, lora_from, .. } = self.config;
        let ranks = match lora_budget {
            Some(budget) => LoraRanks::Budget(*budget),
            None if self.has_ranks() => LoraRanks::Named { rank: *lora_rank, by_linear: lora_ranks.clone() },
            None => {
                if *relax != Relax::Lora {
                    let message = format!("relaxation `{relax}` is asked for, but no rank of it");
                    self.problem(
                        "relax",
                        message,
                        "give it a rank or a budget, e.g. `lora_rank`, or leave `relax` out",
                    );
                }
                if *lora_from > 0 {
                    let message = format!("LoRA is asked for from recursion {lora_from} on, but there is none");
                    self.problem("lora_from", message, "give it a rank or a budget, or leave `lora_from` out");
                }
                return None;
            }
        };
        if self.has_ranks() && lora_budget.is_some() {
            let message = "both ranks and a budget of the LoRA are given";
            self.problem("lora_budget", message, "the budget decides about ranks: give one or the other");
        }
        if *lora_rank == Some(0) {
            let hint = "leave `lora_rank` out for a model without LoRA";
            self.problem("lora_rank", "`lora_rank` is `0`, expected a positive integer", hint);
        }
        if let Some((name, _)) = lora_ranks.iter().find(|(_, rank)| **rank == 0) {
            let message = format!("the LoRA of `{name}` has rank 0, expected a positive integer");
            self.problem("lora_ranks", message, "leave it out, and give `lora_ranks` of the others");
        }
        if *lora_budget == Some(0) {
            let hint = "leave `lora_budget` out for a model without LoRA";
            self.problem("lora_budget", "`lora_budget` is `0`, expected a positive integer", hint);
        }
        match num_recursions {
            Some(1) => {
                let hint = "ask for more recursions, or leave the LoRA out";
                self.problem("recursions", "LoRA needs at least 2 recursions: with 1 no layer is shared", hint);
            }
            Some(recursions) if *lora_from >= recursions => {
                let message = format!("LoRA from recursion {lora_from} on is none: they are 0 to {}", recursions - 1);
                self.problem("lora_from", message, "1 leaves out the first");
            }
            _ => {}
        }
        Some(LoraSpec { relax: *relax, from: *lora_from, ranks })
    }

    /// Refuses to score or fit on a text what runs layer by layer, each with keys and values of its
    /// own.
    pub(super) fn kv_sharing(&mut self, is_measured: bool) {
        let kv_sharing = self.config.kv_sharing;
        if is_measured && kv_sharing.reads_first_recursion() {
            let message = format!("a start with `kv_sharing: {kv_sharing}` cannot be fitted to or scored on a text");
            let hint = "leave the text and the inits that need one out, and measure the folder with `retie eval`";
            self.problem("kv_sharing", message, hint);
        }
    }

    pub(super) fn target(&mut self, num_recursions: Option<usize>) -> TargetSettings {
        let ConvertConfig { extras, share_norms, kv_sharing, tie_across_kinds, dtype, max_shard_size, seed, .. } =
            self.config;
        if !extras.is_empty() && num_recursions == Some(1) {
            let message = "extras of the depths of a loop are asked for, but there is none with 1 recursion";
            self.problem("extras", message, "ask for 2 recursions or more, or leave `extras` out");
        }
        TargetSettings {
            extras: extras.clone(),
            share_norms: *share_norms,
            kv_sharing: *kv_sharing,
            tie_across_kinds: *tie_across_kinds,
            dtype: *dtype,
            max_shard_size: *max_shard_size,
            seed: *seed,
        }
    }
}
