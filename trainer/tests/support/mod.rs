//! The demo model, converted, and a short run on it.
#![allow(dead_code)] // each test file uses a part

mod threads;

pub use threads::Threads;

use retie_checkpoint::{ModelSource, Provenance};
use retie_config::{
    DepthScore, ExpertChoiceConfig, Gating, Init, IntermediateState, KvStrategy, Pattern, Relax, RouterConfig,
    RouterInput, RouterNetwork, RouterScore, Sharing, TokenChoiceConfig, UptrainConfig, document,
};
use retie_convert::{ConvertOptions, Extras, add_router, convert};
use retie_trainer::{Event, Outcome, Resume, Single, StepRow, TrainError, read_metrics, uptrain};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets")
}

/// Converts the demo model into `dir/student` and gives a run of 6 steps on it.
pub fn config(dir: &Path) -> UptrainConfig {
    config_of(dir, Relax::Lora)
}

/// The same with LoRA or DoRA.
pub fn config_of(dir: &Path, relax: Relax) -> UptrainConfig {
    let student = dir.join("student");
    let base = assets().join("demo-model");
    if !student.exists() {
        let source = ModelSource::open(base.to_str().unwrap()).unwrap();
        let options = ConvertOptions {
            relax,
            lora_rank: Some(4),
            share_norms: false,
            ..ConvertOptions::new(2, Pattern::new(Sharing::Cycle, None, None, None).unwrap(), Init::Average)
        };
        let extras = Extras { files: source.companions.clone(), ..Extras::default() };
        convert(source.tensors.as_ref(), &source.config, &options, &extras, &student, &mut |_| {}).unwrap();
    }
    let text = format!(
        "schema: 1\nrun: {{dir: {run}}}\nstudent: {{model: {student}}}\nteacher: {{model: {base}}}\n\
         data: {{train: [{train}], heldout: [{heldout}], sequence_length: 32}}\n\
         losses:\n  - cross_entropy: {{weight: 0.3}}\n  - distill: {{weight: 0.7, temperature: 2.0}}\n\
         optimizer: {{lr: 1e-3}}\nschedule: {{cosine: {{warmup_steps: 2, min_lr_ratio: 0.1}}}}\n\
         train: {{steps: 6, batch_size: 2, gradient_accumulation: 2, checkpoint_every: 2, eval_every: 3, eval_sequences: 2}}\n",
        run = dir.join("run").display(),
        student = student.display(),
        base = base.display(),
        train = assets().join("demo-text/train.jsonl").display(),
        heldout = assets().join("demo-text/heldout.jsonl").display(),
    );
    document::parse(&text, Path::new("run.yaml"), &[]).unwrap()
}

/// Routers that choose half of the tokens for the second recursion.
pub fn expert_choice(kv: KvStrategy) -> RouterConfig {
    RouterConfig::ExpertChoice(ExpertChoiceConfig {
        network: RouterNetwork::Linear,
        input: RouterInput::Normalized,
        score: RouterScore::Sigmoid,
        alpha: 1.0,
        gating: Gating::Weighted,
        capacities: vec![1.0, 0.5],
        kv,
        auxiliary: None,
        thresholds: None,
    })
}

/// A router by which each token chooses one of two depths.
pub fn token_choice(kv: KvStrategy) -> RouterConfig {
    RouterConfig::TokenChoice(TokenChoiceConfig {
        network: RouterNetwork::Linear,
        input: RouterInput::Normalized,
        score: DepthScore::Softmax,
        alpha: 1.0,
        gating: Gating::Weighted,
        intermediate: IntermediateState::Plain,
        kv,
        biases: None,
    })
}

/// The run of [`config`] on its student, which has LoRA and norms of its own at every depth, with routers as `router` says.
pub fn with_router(dir: &Path, router: &RouterConfig) -> UptrainConfig {
    let mut config = config(dir);
    let source = ModelSource::open(&config.student.model).unwrap();
    let student = dir.join("routed");
    let extras = Extras { files: source.companions.clone(), ..Extras::default() };
    add_router(source.tensors.as_ref(), &source.config, router, 0, &extras, &student, &mut |_| {}).unwrap();
    config.student.model = student.display().to_string();
    config
}

pub fn start(
    config: &UptrainConfig,
    device: &str,
    resume: Resume,
    stop: &AtomicBool,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, TrainError> {
    let device = retie_model::device(device).unwrap();
    uptrain(config, &device, resume, &Provenance::now(vec!["test".into()], None), &Single, stop, events)
}

/// A run of one of several ranks.
pub fn start_on(
    config: &UptrainConfig,
    resume: Resume,
    ranks: &Threads,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let device = retie_model::device("cpu").unwrap();
    uptrain(config, &device, resume, &Provenance::now(vec!["test".into()], None), ranks, stop, &mut |_| {})
}

/// Runs to the end and gives the rows.
pub fn run(config: &UptrainConfig, device: &str) -> Vec<StepRow> {
    start(config, device, Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap();
    read_metrics(&config.run.dir).unwrap()
}

/// A row without what depends on the clock; JSON spells each number so that it reads back as it was.
pub fn bits(rows: &[StepRow]) -> Vec<String> {
    let row = |row: &StepRow| StepRow { seconds: 0.0, tokens_per_second: 0.0, ..row.clone() };
    rows.iter().map(|r| serde_json::to_string(&row(r)).unwrap()).collect()
}

/// Begins a run, and has it stop after step `last`, with a checkpoint.
pub fn stop_after(config: &UptrainConfig, last: u64) {
    let stop = AtomicBool::new(false);
    let outcome = start(config, "cpu", Resume::Never, &stop, &mut |event| {
        if matches!(event, Event::Step { row, .. } if row.step == last) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(outcome.unwrap(), Outcome::Interrupted { step, .. } if step == last));
}
