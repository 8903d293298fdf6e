//! `retie calibrate`: thresholds of early exits whose risk is controlled.

use crate::{
    args::{DeviceArgs, DtypeArgs, JsonArgs},
    choice::choice,
    error::Status,
    exits,
    model::{self, TextModel},
    output, own_text,
    progress::{Progress, Unit},
};
use anyhow::{anyhow, ensure};
use clap::Args;
use retie_checkpoint::Parent;
use retie_config::{
    CalibratedText, EXITS_SCHEMA, ExitCalibration, ExitRuleKind, ExitThreshold, RiskKind, RiskProcedure, SkippedKv,
};
use retie_engine::ExitOptions;
use retie_eval::{Beginning, ExitReport, ExitSettings, ExitTexts, PolicyReport, Realised, calibrate_exits};
use retie_model::{ExitRule, kernels::on_worker};
use std::path::{Path, PathBuf};

/// Find when tokens may leave the loop early, so that the risk stays within a level; written into
/// the model's folder
#[derive(Debug, Args)]
pub struct Calibrate {
    /// A recursive model: the folder that `retie convert` or `retie uptrain` wrote
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text of the kind that the promise is about; a document is a row, or a window of a plain text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Loss of a token: `disagreement` of the most probable token with that of the whole stack,
    /// `kl` from the whole stack in nats, or `nll` above its own
    #[arg(long, value_name = "RISK", default_value = "disagreement", value_parser = parse::<RiskKind>)]
    risk: RiskKind,
    /// Bounds of the mean loss of a document, with commas between
    #[arg(long, value_name = "LEVELS", value_delimiter = ',', default_value = "0.02")]
    level: Vec<f64>,
    /// Probability with which the bound holds, for `betting` and `learn_then_test`
    #[arg(long, value_name = "P", default_value_t = 0.9)]
    confidence: f64,
    /// Procedure: `betting`, `learn_then_test`, or `conformal`, which bounds the expected loss
    #[arg(long, value_name = "PROCEDURE", default_value = "betting", value_parser = parse::<RiskProcedure>)]
    procedure: RiskProcedure,
    /// Rule by which tokens leave; `router` is for expert choice
    #[arg(long, value_name = "RULE", default_value = "probe", value_parser = choice::<ExitRuleKind>(ExitRuleKind::NAMES))]
    rule: ExitRuleKind,
    /// Keys and values of skipped recursions; by default `propagate`, `skip` for a routed
    /// model, `shared` for one with shared keys and values
    #[arg(long, value_name = "POLICY", value_parser = choice::<SkippedKv>(SkippedKv::NAMES))]
    kv_policy: Option<SkippedKv>,
    /// Use at most N documents of a text
    #[arg(long, value_name = "N", default_value_t = 240, value_parser = clap::value_parser!(u64).range(12..))]
    documents: u64,
    /// Use the first W tokens of a document
    #[arg(long, value_name = "W", default_value_t = 256, value_parser = clap::value_parser!(u64).range(8..))]
    window: u64,
    /// Text of another kind, to see what the thresholds do there
    #[arg(long, value_name = "FILE")]
    other_text: Option<PathBuf>,
    /// Seed of the division of the documents
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// Tokens of a document at least.
const FEWEST_TOKENS: usize = 8;
/// Documents at least: a half tests thresholds.
const FEWEST_DOCUMENTS: usize = 12;

fn parse<T: std::str::FromStr<Err = String>>(name: &str) -> Result<T, String> {
    name.parse()
}

impl Calibrate {
    pub fn run(self) -> anyhow::Result<Status> {
        let mut levels = self.level.clone();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        for (option, value) in levels.iter().map(|level| ("--level", level)).chain([("--confidence", &self.confidence)])
        {
            ensure!(*value > 0.0 && *value < 1.0, "`{option}` is `{value}`, expected a number between 0 and 1");
        }
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        ensure!(
            source.path.is_dir(),
            "`{}` is a file, and thresholds are written into a folder\nhint: convert it first",
            self.model
        );
        output::check_file(&exits::path(&source))?;
        let text_model = TextModel::load(&source, &device, self.dtype.get())?;
        let map = source.config.share_map();
        let no_exits = |reason: String| anyhow!("tokens of `{}` cannot leave early: {reason}", self.model);
        let stack = map.exits().map_err(|error| no_exits(error.to_string()))?;
        let kv = self.kv_policy.unwrap_or_else(|| text_model.model.default_skipped_kv());
        text_model.model.check_exits(kv).map_err(no_exits)?;
        text_model.model.check_exit_rule(self.rule).map_err(no_exits)?;
        let documents = self.documents_of(&self.text, &text_model)?;
        let other = self.other_text.as_deref().map(|path| self.documents_of(path, &text_model)).transpose()?;
        output::line(&format!("calibration: {}", text_model.tokenizer.start_in_words()));
        let name = self.other_text.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let settings = ExitSettings {
            risk: self.risk,
            levels,
            confidence: self.confidence,
            procedure: self.procedure,
            rule: self.rule,
            kv,
            seed: self.seed,
        };
        let mut bar = Progress::new("calibrate", Unit::Count("documents"), 0);
        let mut show = |p: retie_eval::Progress| bar.set(p.done as u64, p.total as u64, "");
        let model = &text_model.model;
        let mut write_own = |rule: &ExitRule, threshold: f64, beginnings: &[Beginning<'_>]| {
            own_text::write(model, ExitOptions { rule: Some(rule.clone()), kv }, threshold, beginnings, self.seed)
        };
        let report = on_worker(|| {
            let other = other.as_deref().map(|documents| (name.as_str(), documents));
            let texts = ExitTexts { documents: &documents, other };
            calibrate_exits(model, stack, texts, &settings, &mut write_own, &mut show)
        })?;
        drop(bar);
        let text = Parent::from_files(&self.model, [self.text.as_path()])?;
        let calibration = ExitCalibration {
            schema: EXITS_SCHEMA,
            model: exits::files(&source)?,
            num_recursions: map.num_recursions(),
            rule: self.rule,
            probes: report.probes.clone(),
            kv_policy: kv,
            text: CalibratedText {
                sha256: text.files.into_iter().map(|file| file.sha256).collect(),
                documents: report.documents[1],
                window: usize::try_from(self.window)?,
            },
            thresholds: self.thresholds(&report),
        };
        let path = exits::path(&source);
        fs_err::write(&path, serde_json::to_string(&calibration)? + "\n")?;
        match self.json.json {
            true => output::json(&report)?,
            false => output::data(render(&report, &settings, map.num_recursions()))?,
        }
        output::wrote(&path);
        let mut levels = report.levels.iter().filter(|level| level.threshold.is_some());
        if let Some(level) = levels.next_back() {
            let model = output::word(Path::new(&self.model));
            output::next(&format!("retie generate {model} --prompt TEXT --exit-risk {}", level.level));
        }
        Ok(Status::Done)
    }

    fn thresholds(&self, report: &ExitReport) -> Vec<ExitThreshold> {
        let confidence = Some(self.confidence).filter(|_| self.procedure != RiskProcedure::Conformal);
        let entry = |level: &retie_eval::LevelReport| ExitThreshold {
            risk: self.risk,
            level: level.level,
            procedure: self.procedure,
            confidence,
            threshold: level.threshold,
            mean_recursions: level.mean_recursions,
        };
        report.levels.iter().map(entry).collect()
    }

    /// The first tokens of each document of `path`; windows of a text that is one document.
    fn documents_of(&self, path: &Path, model: &TextModel) -> anyhow::Result<Vec<Vec<u32>>> {
        let (most, window) = (usize::try_from(self.documents)?, usize::try_from(self.window)?);
        let window = window.min(model.model.config().max_position_embeddings);
        let bos = model.tokenizer.bos_token();
        let start = |tokens: &[u32]| bos.into_iter().chain(tokens.iter().copied()).take(window).collect::<Vec<_>>();
        let mut documents = Vec::new();
        if retie_data::has_rows(path) {
            for document in retie_data::documents(path, retie_data::DEFAULT_TEXT_FIELD)? {
                // Enough of the text for a window: tokenizing all of a book takes longer.
                let text: String = document?.text.chars().take(window * 16).collect();
                documents.push(start(&model.tokenizer.encode(&text)?));
            }
        } else {
            let tokens = model.tokenizer.encode(&retie_data::read_text(path)?)?;
            documents.extend(tokens.chunks(window).map(start));
        }
        documents.retain(|tokens| tokens.len() >= FEWEST_TOKENS);
        let spread = documents.len().div_ceil(most).max(1);
        let documents: Vec<_> = documents.into_iter().step_by(spread).collect();
        ensure!(
            documents.len() >= FEWEST_DOCUMENTS,
            "`{}` has {} documents of {FEWEST_TOKENS} tokens or more, expected at least {FEWEST_DOCUMENTS}\n\
             hint: a promise about documents needs many of them; give a longer text, or a shorter `--window`",
            path.display(),
            documents.len()
        );
        Ok(documents)
    }
}

/// Report of a calibration as text.
fn render(report: &ExitReport, settings: &ExitSettings, num_recursions: usize) -> String {
    let [fitted, tested, heldout] = report.documents;
    let promise = match settings.procedure {
        RiskProcedure::Conformal => "conformal, in expectation".to_owned(),
        procedure => format!("{procedure}, confidence {}", settings.confidence),
    };
    let mut lines = vec![format!(
        "exits by `{}` under `{}`: {fitted} documents for the rule, {tested} for the thresholds ({promise}), {heldout} held out",
        report.rule, report.kv_policy
    )];
    for exit in &report.exits {
        lines.push(format!(
            "every token after recursion {} of {num_recursions}: {} {:.4}, agreement {:.4}",
            exit.recursions, report.risk, exit.risk, exit.agreement
        ));
    }
    lines.push(format!("whole stack: NLL {:.4}", report.nll));
    lines.push("\nmean recursion count of each rule, with the keys and values of the whole stack".to_owned());
    let columns = |cells: Vec<String>| cells.iter().map(|cell| format!("{cell:>10}")).collect::<String>();
    let levels = settings.levels.iter().map(|level| format!("{level}")).collect();
    lines.push(format!("{:<12}{}", report.risk.name(), columns(levels)));
    for rule in &report.rules {
        let counts = rule.mean_recursions.iter().map(|count| format!("{count:.3}")).collect();
        lines.push(format!("{:<12}{}", rule.rule.name(), columns(counts)));
    }
    lines.push(format!("\nas it is served, by `{}`", report.rule));
    for level in &report.levels {
        lines.push(match level.threshold {
            Some(threshold) => format!(
                "{} ≤ {}: threshold {threshold:.4}, {:.3} recursions, risk {:.4}",
                report.risk, level.level, level.mean_recursions, level.risk
            ),
            None => format!(
                "{} ≤ {}: never exit{}",
                report.risk,
                level.level,
                level
                    .nearest_level
                    .map(|nearest| format!("; the nearest level that could be met is {nearest:.4}"))
                    .unwrap_or_default()
            ),
        });
        for Realised { text, documents, risk, mean_recursions, nll, whole_nll } in &level.realised {
            lines.push(format!(
                "  {text} ({documents} documents): risk {risk:.4}, {mean_recursions:.3} recursions, NLL {nll:.4} (whole stack {whole_nll:.4})"
            ));
        }
        // A single policy is the one above.
        if level.policies.len() > 1 {
            lines.extend(level.policies.iter().map(|PolicyReport { kv_policy, realised }| {
                let Realised { risk, mean_recursions, nll, .. } = realised;
                format!(
                    "  under `{kv_policy}`, held out: risk {risk:.4}, {mean_recursions:.3} recursions, NLL {nll:.4}"
                )
            }));
        }
    }
    lines.join("\n")
}
