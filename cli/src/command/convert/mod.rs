//! `retie convert`: from a pretrained model to a recursive one, and from a recursive one to a routed one.

mod page;
mod router;

use crate::{
    args::{JsonArgs, SetArgs},
    calibration::{CalibrationText, Layers},
    error::Status,
    model, output,
    progress::{Progress, Unit},
};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retie_checkpoint::{ModelSource, Provenance, Staging};
use retie_config::{Budget, ConvertConfig, DepthExtra, Fit, Init, Relax, Sharing, StoredDtype, document};
use retie_convert::{ConvertOptions, ConvertReport, Extras, SearchReport, SearchSpace, Stage};
use router::RouterArgs;
use serde::Serialize;
use std::{fmt::Display, path::PathBuf};

/// Turn a pretrained model into a recursive one
#[derive(Debug, Args)]
pub struct Convert {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL", required_unless_present = "config")]
    model: Option<String>,
    /// Passes over the shared block; has to divide the layers that are shared unless there is `--fit`, 1 copies the model
    #[arg(long, value_name = "R")]
    recursions: Option<usize>,
    /// Which depths share a layer
    #[arg(long, value_parser = names::<Sharing, _>(Sharing::CHOICES.map(Sharing::name)))]
    sharing: Option<Sharing>,
    /// Unshared layers before the loop of `cycle` and `sequence`
    #[arg(long, value_name = "LAYERS")]
    prelude: Option<usize>,
    /// Unshared layers after it
    #[arg(long, value_name = "LAYERS")]
    coda: Option<usize>,
    /// The stored layer of every depth, e.g. 0,1,2,1,2,3
    #[arg(long, value_name = "LAYER,…", value_delimiter = ',')]
    map: Option<Vec<usize>>,
    /// What becomes of layers that the recursions do not divide: some are left out, run twice, or stay unshared
    #[arg(long, value_parser = names::<Fit, _>(Fit::ALL.map(Fit::name)))]
    fit: Option<Fit>,
    /// Where the shared layers come from; `auto` measures candidates and takes the best, with its pattern and ranks
    #[arg(long, required_unless_present_any = ["config", "router"], value_parser = names::<Init, _>(Init::CHOICES.map(Init::name)))]
    init: Option<Init>,
    /// The most that all weights may be, for `--init auto`: 75% of the source, 90M parameters, 250MiB
    #[arg(long, value_parser = |text: &str| text.parse::<Budget>())]
    budget: Option<Budget>,
    /// Show what `--init auto` would choose, and write nothing
    #[arg(long)]
    plan: bool,
    /// Text on which the start is scored, and that `--init calibrated` is fitted to; of .jsonl, .parquet and .arrow files the field `text`
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Tokens of the text that are fitted to; a quarter as many others are scored [default: 8192]
    #[arg(long, value_name = "N")]
    calibration_tokens: Option<usize>,
    /// What each depth adds to the linears that it shares, for `--lora-rank` and what goes with it: `dora` is LoRA with a magnitude for
    /// every row; `--init auto` tries `lora` only
    #[arg(long, default_value = "lora", value_parser = names::<Relax, _>(Relax::ALL.map(Relax::name)))]
    relax: Relax,
    /// Rank of the LoRA that each depth gets; without it there is none
    #[arg(long, value_name = "RANK")]
    lora_rank: Option<usize>,
    /// Ranks of some linears, e.g. k_proj=16,v_proj=16; the others have `--lora-rank`
    #[arg(long, value_name = "LINEAR=RANK,…", value_delimiter = ',', value_parser = linear_rank)]
    lora_ranks: Vec<(String, usize)>,
    /// Parameters that all LoRA may have together, in place of ranks: spread by where the residuals' energy is
    #[arg(long, value_name = "PARAMETERS")]
    lora_budget: Option<usize>,
    /// First recursion that has LoRA; with 1 the first runs the bare shared weights
    #[arg(long, value_name = "RECURSION", default_value_t = 0)]
    lora_from: usize,
    /// Vectors that depths get beside the source's, which change nothing before training
    #[arg(long, value_name = "EXTRA,…", value_delimiter = ',', value_parser = names::<DepthExtra, _>(DepthExtra::ALL.map(DepthExtra::name)))]
    extras: Vec<DepthExtra>,
    /// Whether norms and biases are shared too, or each depth keeps its own
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    share_norms: bool,
    /// Let depths that differ in kind (a window, another rotation) share a layer; each keeps its own kind
    #[arg(long)]
    tie_across_kinds: bool,
    /// Element type of the written weights
    #[arg(long, default_value = "keep", value_parser = names::<StoredDtype, _>(StoredDtype::ALL.map(StoredDtype::name)))]
    dtype: StoredDtype,
    /// Seed of `--init random`, and of new routers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write; it may not hold anything yet
    #[arg(short, long, value_name = "DIR", required_unless_present = "config")]
    output: Option<PathBuf>,
    /// Take all of this from a YAML file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "model", "recursions", "sharing", "prelude", "coda", "map", "fit", "init", "budget", "calibration", "calibration_tokens", "relax", "lora_rank", "lora_ranks",
        "lora_budget", "lora_from", "extras", "share_norms", "tie_across_kinds", "dtype", "seed", "output",
    ])]
    config: Option<PathBuf>,
    /// Write a page about the conversion here, as HTML
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// A parser for a choice by its name, which shows every name in `--help`.
fn names<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>().map_err(std::io::Error::other))
}

/// `NAME=RANK`.
fn linear_rank(text: &str) -> Result<(String, usize), String> {
    let (name, rank) = text.split_once('=').ok_or("expected LINEAR=RANK")?;
    Ok((name.to_owned(), rank.parse().map_err(|_| format!("`{rank}` is no rank, expected a positive integer"))?))
}

impl Convert {
    pub fn run(self) -> anyhow::Result<Status> {
        let (json, plan, page) = (self.json, self.plan, self.report.clone());
        if self.router.is_given() {
            let (Some(model), Some(output)) = (&self.model, &self.output) else {
                anyhow::bail!("expected MODEL and `--output` with `--router`");
            };
            return self.router.run(model, output, self.seed, json.json);
        }
        let config = self.into_config()?;
        anyhow::ensure!(
            !plan || config.init == Init::Auto,
            "`--plan` shows what `--init auto` would choose, found `--init {}`",
            config.init
        );
        anyhow::ensure!(!plan || page.is_none(), "`--plan` writes nothing, found `--report`");
        if let Some(page) = &page {
            page::check_place(page)?;
        }
        let source = model::open(&config.model)?;
        if plan {
            let (_, report) = search(&source, &config)?;
            show(json, &report)?;
            return Ok(Status::Done);
        }
        let report = convert(&source, &config)?;
        show(json, &report)?;
        output::wrote(&config.output);
        if let Some(page) = &page {
            page::write(page, &config, &report)?;
            output::wrote(page);
        }
        output::next(&format!("retie eval {} --tasks perplexity --text FILE", output::word(&config.output)));
        Ok(Status::Done)
    }

    fn into_config(self) -> anyhow::Result<ConvertConfig> {
        if let Some(path) = self.config {
            return Ok(document::load(&path, &self.set.set)?);
        }
        let (Some(model), Some(init), Some(output)) = (self.model, self.init, self.output) else {
            anyhow::bail!("expected MODEL, `--init` and `--output`, or `--config`");
        };
        anyhow::ensure!(self.set.set.is_empty(), "`--set` changes a YAML file, expected `--config FILE` with it");
        let config = ConvertConfig {
            recursions: self.recursions,
            sharing: self.sharing,
            prelude: self.prelude,
            coda: self.coda,
            map: self.map,
            fit: self.fit,
            budget: self.budget,
            calibration: self.calibration,
            calibration_tokens: self.calibration_tokens,
            relax: self.relax,
            lora_rank: self.lora_rank,
            lora_ranks: self.lora_ranks.into_iter().collect(),
            lora_budget: self.lora_budget,
            lora_from: self.lora_from,
            extras: self.extras.into_iter().collect(),
            share_norms: self.share_norms,
            tie_across_kinds: self.tie_across_kinds,
            dtype: self.dtype,
            seed: self.seed,
            ..ConvertConfig::new(model, init, output)
        };
        match config.mismatches().first() {
            Some(mismatch) => anyhow::bail!("{}\nhint: {}", mismatch.message, mismatch.hint),
            None => Ok(config),
        }
    }
}

fn show(json: JsonArgs, report: &(impl Serialize + Display)) -> anyhow::Result<()> {
    if json.json { output::json(report) } else { Ok(output::data(report)?) }
}

/// Converts `source` as `config` says, with its tokenizer and provenance, under a progress bar.
pub fn convert(source: &ModelSource, config: &ConvertConfig) -> anyhow::Result<ConvertReport> {
    if source.tokenizer_json().is_some() {
        model::tokenizer(source)?;
    }
    let provenance = Provenance::now(command_line(), Some(model::parent(source)?));
    let mut extras = Extras { files: source.companions.clone(), provenance: Some(provenance), search: None };
    let mut options = ConvertOptions::of(config)?;
    if config.init == Init::Auto {
        let (chosen, report) = search(source, config)?;
        output::line(&format!("chosen: {}", report.why));
        (options, extras.search) = (chosen, Some(report));
    }
    let mut bars = Bars::default();
    let tensors = source.tensors.as_ref();
    let mut see = |progress: retie_convert::Progress<'_>| bars.see(progress);
    let report = match text(source, config)? {
        Some(text) => {
            let model = Layers::new(&source.config)?;
            let calibration = text.calibration(&model);
            let (config, out) = (&source.config, &config.output);
            retie_convert::convert_with_text(tensors, config, &options, &calibration, &extras, out, &mut see)
        }
        None => retie_convert::convert(tensors, &source.config, &options, &extras, &config.output, &mut see),
    };
    Ok(report?)
}

/// The candidates of `init: auto`, ranked, and the options of the best one.
fn search(source: &ModelSource, config: &ConvertConfig) -> anyhow::Result<(ConvertOptions, SearchReport)> {
    let (Some(budget), Some(text)) = (config.budget, text(source, config)?) else {
        anyhow::bail!("init `auto` needs a budget and a text");
    };
    let model = Layers::new(&source.config)?;
    let space = SearchSpace::of(config, budget)?;
    // Beside the place where the model will stand; it goes when the search is over.
    let scratch = Staging::new(&config.output)?;
    let mut bars = Bars::default();
    Ok(retie_convert::search(
        source.tensors.as_ref(),
        &source.config,
        &ConvertOptions::of(config)?,
        &space,
        &text.calibration(&model),
        scratch.path(),
        &mut |progress| bars.see(progress),
    )?)
}

fn text(source: &ModelSource, config: &ConvertConfig) -> anyhow::Result<Option<CalibrationText>> {
    let read = |path: &PathBuf| CalibrationText::read(source, path, config.calibration_tokens());
    config.calibration.as_ref().map(read).transpose()
}

/// The bar of the stage that is under way.
#[derive(Default)]
struct Bars(Option<(Stage, Progress)>);

impl Bars {
    fn see(&mut self, progress: retie_convert::Progress<'_>) {
        if self.0.as_ref().is_none_or(|(stage, _)| *stage != progress.stage) {
            let (label, things) = match progress.stage {
                Stage::Search => ("search", "candidates"),
                Stage::Spread => ("ranks", "steps"),
                Stage::Tie => ("tie", "layers"),
                Stage::Refit => ("refit", "depths"),
                Stage::Measure => ("measure", "depths"),
                Stage::Write => ("convert", "tensors"),
                Stage::Check => ("check", "tensors"),
            };
            // The bar before is taken off before the next one is drawn.
            self.0 = None;
            self.0 = Some((progress.stage, Progress::new(label, Unit::Count(things), progress.total as u64)));
        }
        if let Some((_, bar)) = &mut self.0 {
            bar.set(progress.done as u64, progress.total as u64, progress.tensor);
        }
    }
}

/// The command line of this process, for provenance.
pub fn command_line() -> Vec<String> {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    std::iter::once("retie".to_owned()).chain(words).collect()
}
