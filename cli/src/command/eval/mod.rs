//! `retie eval`: accuracy on tasks, perplexity on a text, and reports on routers.

mod generated;
mod recounted;
mod task_files;

use crate::{
    args::{CaptureArgs, DeviceArgs, DtypeArgs},
    command::tasks::PERPLEXITY,
    error::Status,
    exits,
    model::{self, TextModel},
    output,
    progress::{Progress, Unit},
    ranks,
};
use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use generated::{Answerer, GeneratedArgs, oracle};
use retie_checkpoint::ModelSource;
use retie_collective::{Collective, lead_first};
use retie_convert::ParameterCounts;
use retie_data::{Tokenizer, Vocabulary, check_shared_vocabulary};
use retie_eval::{
    EvalReport, Example, ModelScorer, PerplexityOptions, PromptEncoder, RecursionSum, RouterReport, RunError,
    ShardedScorer, Task, TokenExits,
};
use retie_model::CausalLm;
use retie_tasks::TaskSpec;
use serde_json::{Value, json};
use std::{
    cell::Cell,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Measure a model on tasks and on a text
#[derive(Debug, Args)]
pub struct Eval {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// What to measure, with commas between; `retie tasks` lists them, `perplexity` needs `--text`
    #[arg(long, value_name = "TASKS", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Measure only the first N examples of a task, or windows of the text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Score as many tokens at once as B of the longest sequences have; no score depends on it
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: u64,
    /// Folder with TASK.parquet or TASK.jsonl files; without it they come from the hub
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Text for `perplexity`; of .jsonl, .parquet and .arrow files the field `text`, else the whole
    /// file
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a window of the text; by default 1024, or the model's context if that is less
    #[arg(long, value_name = "W", requires = "text")]
    window: Option<usize>,
    /// Tokens from one window's start to the next's; by default the window
    #[arg(long, value_name = "S", requires = "text")]
    stride: Option<usize>,
    /// What is measured: the whole stack, or also the exit after each recursion but the last, which
    /// skips the later recursions and nothing else
    #[arg(long, value_name = "DEPTHS", default_value = "last")]
    depths: Depths,
    /// Measure also what is served with the model's calibrated exits at these risks, with commas
    /// between
    #[arg(long, value_name = "LEVELS", value_delimiter = ',')]
    exit_risk: Vec<f64>,
    /// Compare with this model on the text too: forward KL from it, in nats per token, and the
    /// share of tokens with the same likeliest next token
    #[arg(long, value_name = "MODEL", requires = "text")]
    teacher: Option<String>,
    /// Report what the routers do on the text too, in inference and as in training
    #[arg(long, requires = "text")]
    router_report: bool,
    /// Write the numbers here too, as JSON
    #[arg(long, short = 'o', value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write every example's log-likelihoods here
    #[arg(long, value_name = "FILE")]
    log_samples: Option<PathBuf>,
    #[command(flatten)]
    generated: GeneratedArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
}

/// `--depths`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Depths {
    Last,
    All,
}

/// When the tokens of a measurement leave the loop.
#[derive(Clone, Copy, Debug)]
enum End {
    /// After the last recursion.
    Whole,
    /// After so many recursions, and so many depths.
    After { recursions: usize, num_depths: usize },
    /// By calibrated exits with this risk and its threshold.
    Risk { level: f64, threshold: f32 },
}

/// Report of one end.
struct Measured {
    end: End,
    /// Mean recursion count, where calibrated exits choose it.
    mean_recursions: Option<f64>,
    report: EvalReport,
}

/// Default window in tokens; a shorter context of the model lowers it.
const DEFAULT_WINDOW: usize = 1024;

impl Eval {
    pub fn run(self) -> anyhow::Result<Status> {
        ranks::run(|ranks| self.on(ranks))
    }

    fn on(self, ranks: &dyn Collective) -> anyhow::Result<Status> {
        let tasks = self.tasks()?;
        let specs = self.generated()?;
        self.check_outputs()?;
        let limit = self.limit.map(usize::try_from).transpose()?;
        let batch_size = usize::try_from(self.batch_size)?;
        if let Some(cap) = oracle(&self.model) {
            return self.ask_oracle(&specs, cap, limit, ranks);
        }
        self.capture.apply();
        let device = retie_model::device(&self.device.device)?;
        // Read everything before scoring anything: a bad last task should not cost an hour.
        let source = lead_first(ranks, || model::open(&self.model))?;
        let routed = source.config.recursion.as_ref().is_some_and(|recursion| recursion.router.is_some());
        ensure!(
            routed || !self.router_report,
            "`{}` has no router to report on\nhint: leave `--router-report` out",
            self.model
        );
        let teacher = self.teacher.as_deref().map(|teacher| lead_first(ranks, || model::open(teacher))).transpose()?;
        if let Some(teacher) = &teacher {
            check_vocabularies(teacher, &source)?;
        }
        let text = self.text.as_deref().map(retie_data::joined_text).transpose()?;
        let examples = || tasks.iter().map(|task| self.examples(task, limit)).collect::<anyhow::Result<Vec<_>>>();
        let examples = lead_first(ranks, examples)?;
        let map = source.config.share_map();
        let mut ends = Vec::new();
        if self.depths == Depths::All {
            let exits = map.exits().map_err(|error| anyhow!("{error}\nhint: leave `--depths` out"))?;
            let after = |recursions| End::After { recursions, num_depths: exits.num_depths(recursions) };
            ends.extend((1..exits.num_recursions()).map(after));
        }
        let mut calibrated = None;
        if !self.exit_risk.is_empty() {
            let calibration = lead_first(ranks, || exits::calibration(&source))?;
            for level in self.exit_risk.iter().copied() {
                ends.push(End::Risk { level, threshold: exits::threshold(&calibration, level)? });
            }
            calibrated = Some((exits::rule(&calibration, &device), calibration.kv_policy));
        }
        ends.push(End::Whole);
        let model = TextModel::load(&source, &device, self.dtype.get())?;
        if let Some((_, kv)) = &calibrated {
            let refused = |reason| anyhow!("tokens of `{}` cannot leave early: {reason}", self.model);
            model.model.check_exits(*kv).map_err(refused)?;
        }
        let answerer = Answerer::Model { source: &source, own: &model, dtype: self.dtype.get(), batch_size };
        let mut scores = Vec::new();
        if ranks.leads() {
            scores = self.generated.measure(&specs, &answerer, limit)?;
        }
        let teacher = teacher
            .map(|teacher| CausalLm::load_with(&teacher.config, teacher.tensors.as_ref(), &device, self.dtype.get()))
            .transpose()?;
        let mut measured = Vec::new();
        for end in ends {
            let exits = match (end, &calibrated) {
                (End::After { recursions, .. }, _) => TokenExits::After(recursions),
                (End::Risk { threshold, .. }, Some((rule, kv))) => TokenExits::Rule { rule, kv: *kv, threshold },
                (End::Whole | End::Risk { .. }, _) => TokenExits::Never,
            };
            let counts = Cell::new(RecursionSum::default());
            let mut evaluation =
                Evaluation { model: &model, exits, counts: &counts, teacher: teacher.as_ref(), batch_size, ranks };
            let mut report = EvalReport { limit, ..EvalReport::of(&self.model) };
            for (task, examples) in tasks.iter().zip(&examples) {
                report.tasks.push(evaluation.task(task, examples)?);
            }
            if let (Some(path), Some(text)) = (&self.text, &text) {
                let options = self.windows(source.config.max_position_embeddings, limit);
                report.perplexity = Some(evaluation.text(&path.display().to_string(), text, options)?);
                if self.router_report && matches!(end, End::Whole) && ranks.leads() {
                    report.router = evaluation.routers(text, options)?;
                }
            }
            if matches!(end, End::Whole) {
                report.generated = std::mem::take(&mut scores);
            }
            let mean_recursions = matches!(end, End::Risk { .. }).then(|| mean_recursions(counts.get(), ranks));
            measured.push(Measured { end, mean_recursions, report });
        }
        if !ranks.leads() {
            return Ok(Status::Done);
        }
        if text.is_some() || !tasks.is_empty() {
            output::line(&format!("evaluation: {}", model.tokenizer.start_in_words()));
        }
        for Measured { end, mean_recursions, report } in &measured {
            let (all, depths) = (map.num_recursions(), map.num_depths());
            let heading = match end {
                End::Whole if measured.len() == 1 => String::new(),
                End::Whole => format!("recursion {all} of {all}, {depths} depths\n"),
                End::After { recursions, num_depths } => {
                    format!("recursion {recursions} of {all}, {num_depths} depths\n")
                }
                End::Risk { level, .. } => {
                    format!("exits of risk {level}, {:.3} recursions\n", mean_recursions.unwrap_or(f64::NAN))
                }
            };
            output::data(format!("{heading}{report}"))?;
        }
        self.write(&source, &measured)?;
        Ok(Status::Done)
    }

    /// Tasks of `--tasks` without `perplexity` and without generated ones.
    ///
    /// # Errors
    /// Unknown or repeated tasks, and options that do not fit the tasks.
    fn tasks(&self) -> anyhow::Result<Vec<&'static Task>> {
        let names = || self.tasks.iter().map(|name| name.trim());
        let of_harness = names().filter(|name| *name != PERPLEXITY && !TaskSpec::is_task(name));
        let tasks: Vec<_> = of_harness.map(Task::find).collect::<Result<_, _>>()?;
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = names().find(|name| !seen.insert(*name)) {
            bail!("task `{twice}` is asked for twice");
        }
        match (names().any(|name| name == PERPLEXITY), &self.text) {
            (true, None) => bail!("task `{PERPLEXITY}` has no text\nhint: name a file with `--text FILE`"),
            (false, Some(_)) => {
                bail!("`--text` is given, but `{PERPLEXITY}` is not among the tasks\nhint: add it to `--tasks`")
            }
            _ => {}
        }
        ensure!(
            self.log_samples.is_none() || !tasks.is_empty(),
            "`--log-samples` is given, but `{PERPLEXITY}` has no examples"
        );
        Ok(tasks)
    }

    /// Generated tasks of `--tasks`.
    ///
    /// # Errors
    /// A task or a setting that does not exist, and options that do not fit the tasks.
    fn generated(&self) -> anyhow::Result<Vec<TaskSpec>> {
        let names = self.tasks.iter().map(|name| name.trim()).filter(|name| TaskSpec::is_task(name));
        let specs = names.map(TaskSpec::parse).collect::<Result<Vec<_>, _>>()?;
        self.generated.check(&specs)?;
        Ok(specs)
    }

    /// Answers of the reference program, or of the shortcut with a cap, in the place of a model's.
    fn ask_oracle(
        &self,
        specs: &[TaskSpec],
        cap: Option<usize>,
        limit: Option<usize>,
        ranks: &dyn Collective,
    ) -> anyhow::Result<Status> {
        ensure!(
            specs.len() == self.tasks.len(),
            "`{}` answers generated tasks only\nhint: `retie tasks` lists them",
            self.model
        );
        if !ranks.leads() {
            return Ok(Status::Done);
        }
        let generated = self.generated.measure(specs, &Answerer::Oracle(cap), limit)?;
        let report = EvalReport { limit, generated, ..EvalReport::of(&self.model) };
        output::data(report.to_string())?;
        if let Some(path) = &self.json {
            fs_err::write(path, serde_json::to_string_pretty(&report.to_json())? + "\n")?;
            output::wrote(path);
        }
        self.generated.write(&report.generated)?;
        Ok(Status::Done)
    }

    /// Checks that the output files can be written, before anything is measured.
    fn check_outputs(&self) -> anyhow::Result<()> {
        [&self.json, &self.log_samples].into_iter().flatten().try_for_each(|path| output::check_file(path))
    }

    fn examples(&self, task: &'static Task, limit: Option<usize>) -> anyhow::Result<Vec<Example>> {
        let files = match &self.data {
            Some(folder) => vec![task.file_in(folder)?],
            None => vec![task_files::from_hub(task)?],
        };
        let mut examples = task.load(&files)?;
        examples.truncate(limit.unwrap_or(usize::MAX));
        Ok(examples)
    }

    fn windows(&self, context: usize, limit: Option<usize>) -> PerplexityOptions {
        let window = self.window.unwrap_or(DEFAULT_WINDOW.min(context));
        let batch_size = usize::try_from(self.batch_size).unwrap_or(1);
        PerplexityOptions { window, stride: self.stride.unwrap_or(window), limit, batch_size }
    }

    /// Writes `--json`, the results of the whole stack and of its early exits, and `--log-samples`.
    fn write(&self, source: &ModelSource, measured: &[Measured]) -> anyhow::Result<()> {
        let Some((Measured { report, .. }, exits)) = measured.split_last() else { return Ok(()) };
        self.generated.write(&report.generated)?;
        if let Some(path) = &self.json {
            let (mut early, mut risks) = (Vec::new(), Vec::new());
            for Measured { end, mean_recursions, report } in exits {
                let results = &report.to_json()["results"];
                match end {
                    End::Whole => {}
                    End::After { recursions, num_depths } => early.push(json!({
                        "recursion": recursions, "depths": num_depths, "results": results,
                        "cost": cost(source, Some(*recursions)),
                    })),
                    End::Risk { level, .. } => risks.push(json!({
                        "exit_risk": level, "mean_recursions": mean_recursions, "results": results,
                    })),
                }
            }
            write_json(path, source, report, [("exits", early), ("exit_risks", risks)])?;
            output::wrote(path);
        }
        if let Some(path) = &self.log_samples {
            let mut out = BufWriter::new(fs_err::File::create(path)?);
            report
                .write_samples(&mut out)
                .and_then(|()| out.flush())
                .with_context(|| format!("cannot write `{}`", path.display()))?;
            output::wrote(path);
        }
        if let Some(path) = &self.json {
            output::next(&format!("retie report --eval NAME={} -o report.html", output::word(path)));
        }
        Ok(())
    }
}

fn vocabulary<'a>(source: &'a ModelSource, tokenizer: Option<&'a Tokenizer>) -> Vocabulary<'a> {
    Vocabulary { model: &source.spec, size: source.config.vocab_size, tokenizer }
}

/// Refuses a teacher that cannot be compared with `model` token by token.
fn check_vocabularies(teacher: &ModelSource, model: &ModelSource) -> anyhow::Result<()> {
    let own = model::tokenizer(model)?;
    let of_teacher = teacher.tokenizer_json().map(|_| model::tokenizer(teacher)).transpose()?;
    Ok(check_shared_vocabulary(vocabulary(teacher, of_teacher.as_ref()), vocabulary(model, Some(&own)))?)
}

/// Mean recursion count of the tokens that all ranks have read.
fn mean_recursions(sum: RecursionSum, ranks: &dyn Collective) -> f64 {
    let mut sums = [sum.recursions as f64, sum.tokens as f64];
    ranks.all_reduce_f64(&mut sums);
    let [recursions, tokens] = sums;
    recursions / tokens
}

/// Writes the numbers with the model's size and, if there are any, those of early exits, by name.
pub fn write_json<'a>(
    path: &Path,
    source: &ModelSource,
    report: &EvalReport,
    exits: impl IntoIterator<Item = (&'a str, Vec<Value>)>,
) -> anyhow::Result<()> {
    let mut value = report.to_json();
    let counts = ParameterCounts::from_config(&source.config);
    if let Value::Object(map) = &mut value {
        let counts = json!({
            "embedding": counts.embedding, "non_embedding": counts.non_embedding(), "total": counts.total(),
        });
        map.insert("parameters".to_owned(), counts);
        map.insert("cost".to_owned(), cost(source, None));
        for (name, exits) in exits.into_iter().filter(|(_, exits)| !exits.is_empty()) {
            map.insert(name.to_owned(), exits.into());
        }
    }
    Ok(fs_err::write(path, serde_json::to_string_pretty(&value)? + "\n")?)
}

/// Tokens of the sequence whose operations are counted.
const COST_TOKENS: usize = 512;

/// What a token costs, by formula: of the whole model, or where every token leaves after so many
/// recursions.
fn cost(source: &ModelSource, recursions: Option<usize>) -> Value {
    let (config, tokens) = (&source.config, COST_TOKENS as f64);
    let mut shares = config.expected_shares();
    if let Some(left) = recursions {
        let all = shares.unwrap_or_else(|| vec![1.0; config.share_map().num_recursions()]);
        shares = Some(all.into_iter().enumerate().map(|(r, share)| if r < left { share } else { 0.0 }).collect());
    }
    let cost = config.cost(COST_TOKENS, shares.as_deref());
    let bytes = config.tensors().into_iter().filter_map(|spec| Some(source.tensors.info(&spec.name())?.num_bytes()));
    json!({
        "operations_per_token": cost.operations() / tokens,
        "cache_bytes_per_token": cost.cache_bytes / tokens,
        "weight_bytes": bytes.map(|bytes| bytes as u64).sum::<u64>(),
        "tokens": COST_TOKENS,
    })
}

/// A model under evaluation, and the settings of its measurements.
pub struct Evaluation<'a> {
    pub model: &'a TextModel,
    /// When tokens leave the loop.
    pub exits: TokenExits<'a>,
    /// Where recursion counts are summed.
    pub counts: &'a Cell<RecursionSum>,
    /// Model to compare with on a text.
    pub teacher: Option<&'a CausalLm>,
    /// Batch size of each rank.
    pub batch_size: usize,
    pub ranks: &'a dyn Collective,
}

impl Evaluation<'_> {
    /// Sequences that all ranks score at once.
    fn batch(&self) -> usize {
        self.batch_size.saturating_mul(self.ranks.world())
    }

    /// Progress callback; only rank 0 shows a bar.
    fn show(&self, label: &str, unit: &'static str) -> impl FnMut(retie_eval::Progress) {
        let mut bar = self.ranks.leads().then(|| Progress::new(label, Unit::Count(unit), 0));
        move |p| bar.iter_mut().for_each(|bar| bar.set(p.done as u64, p.total as u64, ""))
    }

    fn encoder(&self) -> anyhow::Result<PromptEncoder<'_>> {
        Ok(PromptEncoder {
            codec: &self.model.tokenizer,
            prefix_token: self.model.prefix_token()?,
            bos_token: self.model.tokenizer.bos_token(),
            max_length: self.model.model.config().max_position_embeddings,
        })
    }

    /// Measures `examples` of a task, with a progress bar.
    pub fn task(&mut self, task: &'static Task, examples: &[Example]) -> anyhow::Result<retie_eval::TaskResult> {
        let mut progress = self.show(task.name, "continuations");
        let scorer = ModelScorer::new(&self.model.model).exiting(self.exits).counting(self.counts);
        let mut scorer = ShardedScorer::new(scorer, false, self.ranks);
        retie_eval::evaluate_task(task, examples, &self.encoder()?, &mut scorer, self.batch(), &mut progress)
            .map_err(unwrapped)
    }

    /// Measures the model's routers on `text`, with a progress bar; `None` without routers.
    pub fn routers(&self, text: &str, options: PerplexityOptions) -> anyhow::Result<Option<RouterReport>> {
        let tokens = self.model.tokenizer.encode(text)?;
        // Each window begins with the BOS token, as for the perplexity.
        let bos: Vec<u32> = self.model.tokenizer.bos_token().into_iter().collect();
        let text_tokens = options.window.saturating_sub(bos.len());
        let stride = if options.stride == options.window { text_tokens } else { options.stride };
        let windows = retie_data::windows(&tokens, text_tokens, stride)?.take(options.limit.unwrap_or(usize::MAX));
        let windows: Vec<Vec<u32>> = windows.map(|window| [&bos[..], window.tokens].concat()).collect();
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let texts =
            windows.iter().map(|ids| Ok((*ids, self.model.pieces(ids)?))).collect::<anyhow::Result<Vec<_>>>()?;
        let classes = retie_eval::classify(&texts);
        let mut progress = self.show("routers", "windows");
        Ok(retie_eval::measure_router(&self.model.model, &windows, &classes, options.batch_size, &mut progress))
    }

    /// Measures the perplexity of `text`, reported as `name`, with a progress bar.
    pub fn text(
        &mut self,
        name: &str,
        text: &str,
        options: PerplexityOptions,
    ) -> anyhow::Result<retie_eval::Perplexity> {
        let options = PerplexityOptions { batch_size: self.batch(), ..options };
        let mut progress = self.show(PERPLEXITY, "windows");
        let alone = ModelScorer::new(&self.model.model).exiting(self.exits).counting(self.counts);
        let scorer = match self.teacher {
            Some(teacher) => alone.beside(teacher),
            None => alone,
        };
        let mut scorer = ShardedScorer::new(scorer, self.teacher.is_some(), self.ranks);
        retie_eval::measure_perplexity(name, text, options, &self.encoder()?, &mut scorer, &mut progress)
            .map_err(unwrapped)
    }
}

/// The wrapped error itself, so that the exit code can depend on its type.
fn unwrapped<E: std::error::Error + Send + Sync + 'static>(error: RunError<E>) -> anyhow::Error {
    match error {
        RunError::Eval(error) => error.into(),
        RunError::Scorer(error) => error.into(),
    }
}
