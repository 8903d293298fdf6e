//! Generated tasks of `retie eval`: the model answers problems, and exact matches are counted by
//! depth and recursions.

use super::recounted::recounted;
use crate::{
    model::TextModel,
    output,
    progress::{Progress, Unit},
};
use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use retie_checkpoint::ModelSource;
use retie_data::{DecodeStream, document::token_places};
use retie_engine::{Engine, EngineOptions, Progress as Step, Request, StopConditions};
use retie_model::{CausalLm, WeightDtype, kernels::on_worker};
use retie_tasks::{Example, Group, Purpose, Scoreboard, TaskScore, TaskSpec, Trial, in_context};
use std::{collections::HashMap, ops::RangeInclusive, path::PathBuf};

/// Options of generated tasks.
#[derive(Debug, Args)]
pub struct GeneratedArgs {
    /// How problems of generated tasks are written: as in a training text, or for pretrained models
    /// behind solved examples
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,
    /// Solved examples before each problem of `--format icl`
    #[arg(long, value_name = "N", default_value_t = 8)]
    shots: u64,
    /// Numbers of recursions to run the model with for generated tasks, e.g. 1..4,8; by default its
    /// own
    #[arg(long, value_name = "R", value_delimiter = ',', value_parser = parse_range)]
    recursions: Vec<RangeInclusive<usize>>,
    /// Find the shortcut that explains most wrong answers of generated tasks
    #[arg(long, value_name = "HOW")]
    explain: Option<Explain>,
    /// Write right answers of generated tasks by depth and recursions here, as CSV
    #[arg(long, value_name = "FILE")]
    matrix: Option<PathBuf>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Plain,
    Icl,
}

/// `--explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Explain {
    Shortcut,
}

/// Problems of a group where `--limit` does not say how many.
const DEFAULT_PROBLEMS: usize = 200;

/// New tokens of an answer beyond those of the right one.
const MORE_TOKENS: usize = 8;

fn parse_range(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 1 <= first && first <= last && last <= 1024 => Ok(first..=last),
        _ => Err("expected a number of recursions from 1 to 1024, or two of them, as in 1..4".to_owned()),
    }
}

/// Who answers.
pub enum Answerer<'a> {
    /// A model of `source`, with the dtype of its weights.
    Model { source: &'a ModelSource, own: &'a TextModel, dtype: WeightDtype, batch_size: usize },
    /// The reference program, or the shortcut with a cap.
    Oracle(Option<usize>),
}

/// Name of the reference program in the place of a model; `oracle:K` is the shortcut `K`.
const ORACLE: &str = "oracle";

/// The cap of `oracle:K` as a model, `None` for `oracle`; `None` for every other model.
pub fn oracle(model: &str) -> Option<Option<usize>> {
    let rest = model.strip_prefix(ORACLE)?;
    match rest.strip_prefix(':') {
        None => rest.is_empty().then_some(None),
        Some(cap) => cap.parse().ok().map(Some),
    }
}

/// A problem as a prompt.
struct Prompt {
    group: Group,
    example: Example,
    text: String,
    ids: Vec<u32>,
    max_new_tokens: usize,
}

/// A model's answer, and the recursion counts of the tokens of the prompt.
#[derive(Default)]
struct Answer {
    text: String,
    counts: Vec<usize>,
}

impl GeneratedArgs {
    /// Checks the options against what is asked for.
    ///
    /// # Errors
    /// An option is given that no task uses, or a file cannot be written.
    pub fn check(&self, specs: &[TaskSpec]) -> anyhow::Result<()> {
        let given = [
            ("--format", self.format == Format::Icl),
            ("--recursions", !self.recursions.is_empty()),
            ("--explain", self.explain.is_some()),
            ("--matrix", self.matrix.is_some()),
        ];
        if let Some((option, _)) = given.iter().find(|(_, given)| *given && specs.is_empty()) {
            bail!("`{option}` is given, but no generated task is asked for\nhint: `retie tasks` lists them")
        }
        self.matrix.iter().try_for_each(|path| output::check_file(path))
    }

    fn shots(&self) -> anyhow::Result<Option<usize>> {
        let shots = usize::try_from(self.shots)?;
        Ok((self.format == Format::Icl).then_some(shots))
    }

    /// Numbers of recursions, of a model with `own`.
    fn recursions(&self, own: usize) -> Vec<usize> {
        let mut all: Vec<usize> = self.recursions.iter().cloned().flatten().collect();
        all.sort_unstable();
        all.dedup();
        if all.is_empty() { vec![own] } else { all }
    }

    /// Measures `specs`, with `limit` problems of each group.
    ///
    /// # Errors
    /// The tokenizer merges symbols, problems do not fit the model's context, or the model cannot
    /// run with a number of recursions.
    pub fn measure(
        &self,
        specs: &[TaskSpec],
        answerer: &Answerer<'_>,
        limit: Option<usize>,
    ) -> anyhow::Result<Vec<TaskScore>> {
        let own = match answerer {
            Answerer::Model { source, .. } => source.config.share_map().num_recursions(),
            Answerer::Oracle(_) => 1,
        };
        let shots = self.shots()?;
        let mut boards: Vec<Scoreboard> =
            specs.iter().map(|spec| Scoreboard::new(spec.clone(), (shots, own))).collect();
        if let Answerer::Model { own: model, .. } = answerer {
            specs.iter().try_for_each(|spec| retie_data::document::check_symbols(spec, &model.tokenizer))?;
        }
        for recursions in self.recursions(own) {
            let other = match answerer {
                Answerer::Model { source, own: model, dtype, .. } if recursions != own => {
                    Some(load(source, recursions, &model.device, *dtype)?)
                }
                _ => None,
            };
            for (spec, board) in specs.iter().zip(&mut boards) {
                let problems = problems(spec, limit.unwrap_or(DEFAULT_PROBLEMS));
                let trials = match answerer {
                    Answerer::Oracle(cap) => oracle_trials(spec, problems, recursions, *cap),
                    Answerer::Model { own: model, batch_size, .. } => {
                        let lm = other.as_ref().unwrap_or(&model.model);
                        let prompts = prompts(spec, problems, model, shots)?;
                        let label = format!("{} R={recursions}", spec.task());
                        let answers = on_worker(|| answers(lm, model, &prompts, (*batch_size, &label)))?;
                        trials(prompts, answers, recursions, model)?
                    }
                };
                board.extend(trials);
            }
        }
        Ok(boards.iter().map(|board| board.score(self.explain.is_some())).collect())
    }

    /// Writes `--matrix`.
    pub fn write(&self, scores: &[TaskScore]) -> anyhow::Result<()> {
        let Some(path) = &self.matrix else { return Ok(()) };
        let mut text = String::from("task,group,depth,recursions,examples,right\n");
        for score in scores {
            text += &score.to_csv();
        }
        fs_err::write(path, text)?;
        output::wrote(path);
        Ok(())
    }
}

fn load(source: &ModelSource, recursions: usize, device: &Device, dtype: WeightDtype) -> anyhow::Result<CausalLm> {
    let (config, tensors) = recounted(source, recursions)?;
    Ok(CausalLm::load_with(&config, &tensors, device, dtype)?)
}

/// Problems of every group that the task has.
fn problems(spec: &TaskSpec, count: usize) -> Vec<(Group, Example)> {
    let mut groups = vec![(Group::InDistribution, spec.lengths.clone()), (Group::Edge, spec.lengths.clone())];
    if let Some(longer) = spec.longer_lengths() {
        groups.extend([(Group::Longer, longer.clone()), (Group::LongerEdge, longer)]);
    }
    let mut all = Vec::with_capacity(count * groups.len());
    for (number, (group, lengths)) in (0_u64..).zip(groups) {
        // Each group has examples of its own.
        let example = |index| spec.example(Purpose::Evaluate, (number << 32) + index, &lengths, group.is_edge());
        all.extend((0..count as u64).map(|index| (group, example(index))));
    }
    all
}

fn oracle_trials(
    spec: &TaskSpec,
    problems: Vec<(Group, Example)>,
    recursions: usize,
    cap: Option<usize>,
) -> Vec<Trial> {
    let trial = |(group, example): (Group, Example)| {
        let answer = spec.solve(&example, cap).unwrap_or_default();
        Trial { group, example, recursions, answer, token_counts: Vec::new() }
    };
    problems.into_iter().map(trial).collect()
}

fn prompts(
    spec: &TaskSpec,
    problems: Vec<(Group, Example)>,
    model: &TextModel,
    shots: Option<usize>,
) -> anyhow::Result<Vec<Prompt>> {
    let solved: Option<Vec<Example>> = shots.map(|shots| {
        (0..shots as u64).map(|index| spec.example(Purpose::Shots, index, &spec.lengths, false)).collect()
    });
    let context = model.model.config().max_position_embeddings;
    let prompt = |(group, example): (Group, Example)| {
        let (text, right) = match &solved {
            Some(solved) => (in_context(solved, &example), format!(" {}\n", example.output)),
            None => (example.question(), example.continuation()),
        };
        let mut ids = model.tokenizer.encode_start(&text)?;
        if ids.is_empty() {
            ids.push(model.prefix_token()?);
        }
        let max_new_tokens = model.tokenizer.encode(&right)?.len() + MORE_TOKENS;
        ensure!(
            ids.len() + max_new_tokens <= context,
            "a problem of task `{spec}` has {} tokens and its answer up to {max_new_tokens}, expected {context} together, the model's context\nhint: ask for shorter problems or fewer `--shots`",
            ids.len()
        );
        Ok(Prompt { group, example, text, ids, max_new_tokens })
    };
    problems.into_iter().map(prompt).collect()
}

/// Greedy answers to `prompts`, up to the end of the text or of the line.
fn answers(
    lm: &CausalLm,
    model: &TextModel,
    prompts: &[Prompt],
    (batch_size, label): (usize, &str),
) -> anyhow::Result<Vec<Answer>> {
    let context = prompts.iter().map(|prompt| prompt.ids.len() + prompt.max_new_tokens).max().unwrap_or(1);
    let slots = batch_size.min(prompts.len()).max(1);
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(1);
    let max_step_tokens = (longest * slots).clamp(slots, 2048.max(slots));
    // Solved examples are the same before every problem: the first one reads them for all.
    let options = EngineOptions { num_slots: slots, context, max_step_tokens };
    let mut engine = Engine::new(lm.clone(), options)?.with_prefix_reuse();
    let routed = lm.router().is_some();
    let mut bar = Progress::new(label, Unit::Count("problems"), prompts.len() as u64);
    let mut answers: Vec<Answer> = prompts.iter().map(|_| Answer::default()).collect();
    let mut running = HashMap::new();
    let (mut next, mut done, mut at_once) = (0, 0, 1);
    while done < prompts.len() {
        while next < prompts.len() && running.len() < at_once {
            let prompt = &prompts[next];
            let stop = StopConditions::for_model(lm.config(), Some(prompt.max_new_tokens));
            let request = Request { prompt: prompt.ids.clone(), stop, recursion_counts: routed, ..Request::default() };
            let decoder = DecodeStream::after(&model.tokenizer, true, &prompt.ids)?;
            running.insert(engine.admit(request)?, (next, decoder));
            next += 1;
        }
        let progress = engine.step();
        ensure!(!progress.is_empty(), "the engine has no sequence to run");
        at_once = slots;
        for Step { sequence, token, finish, recursion_counts, .. } in progress {
            let Some((index, decoder)) = running.get_mut(&sequence) else { continue };
            let (answer, prompt) = (&mut answers[*index], &prompts[*index]);
            answer.counts.extend(recursion_counts.into_iter().take(prompt.ids.len() - answer.counts.len()));
            if let Some(token) = token {
                answer.text += &decoder.step(token)?;
            }
            let line_ends = answer.text.trim_start().contains('\n');
            if finish.is_some() || line_ends {
                answer.text = answer.text.trim().lines().next().unwrap_or_default().trim().to_owned();
                engine.evict(sequence);
                running.remove(&sequence);
                done += 1;
            }
        }
        bar.set(done as u64, prompts.len() as u64, "");
    }
    Ok(answers)
}

/// The answers as trials, with the recursion counts of the problems' tokens.
fn trials(
    prompts: Vec<Prompt>,
    answers: Vec<Answer>,
    recursions: usize,
    model: &TextModel,
) -> anyhow::Result<Vec<Trial>> {
    let trial = |(prompt, answer): (Prompt, Answer)| {
        let mut token_counts = Vec::new();
        if !answer.counts.is_empty() {
            let problem = prompt.example.input.text();
            let start = prompt.text.rfind(problem).context("a prompt has no problem")?;
            let places = token_places(&model.tokenizer, &prompt.text, &prompt.ids);
            for (place, count) in places.into_iter().zip(&answer.counts) {
                let inside = place.end > start && place.start < start + problem.len() && !place.is_empty();
                let symbol = inside.then(|| prompt.example.input.symbol_at(place.end - start - 1)).flatten();
                token_counts.extend(symbol.map(|symbol| (prompt.example.input.depths()[symbol], *count)));
            }
        }
        let Prompt { group, example, .. } = prompt;
        Ok(Trial { group, example, recursions, answer: answer.text, token_counts })
    };
    prompts.into_iter().zip(answers).map(trial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oracle_is_named_with_or_without_a_cap() {
        assert_eq!((oracle("oracle"), oracle("oracle:3")), (Some(None), Some(Some(3))));
        assert_eq!((oracle("oracle:x"), oracle("oracles"), oracle("a/b")), (None, None, None));
    }

    #[test]
    fn numbers_of_recursions_are_numbers_or_ranges() {
        assert_eq!(parse_range("3"), Ok(3..=3));
        assert_eq!(parse_range("1..4"), Ok(1..=4));
        assert!(["0", "4..1", "a", "1..", "1..9999"].iter().all(|text| parse_range(text).is_err()));
    }
}
