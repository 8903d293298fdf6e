//! The demo model, converted, and a short run on it.
#![allow(dead_code)] // each test file uses a part

pub use retie_collective::Threads;

use retie_checkpoint::{ModelSource, Provenance};
use retie_collective::Single;
use retie_config::{
    Average, ConvertConfig, ExpertChoiceConfig, Init, KvSharing, MechanismAt, ModelConfig, MuonConfig, OptimizerKind,
    Relax, RouterConfig, RouterInput, Sharing, TokenChoiceConfig, UptrainConfig, document, steps_with,
};
use retie_convert::{InsertOptions, OutputFiles, RouterOptions, SourceModel, add_router, convert, insert};
use retie_trainer::{Event, Job, Outcome, Resume, StepRow, TrainError, read_metrics, uptrain};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets")
}

fn source_model(source: &ModelSource) -> SourceModel<'_> {
    SourceModel { tensors: source.tensors.as_ref(), config: &source.config }
}

/// The tokenizer of `source`, for the folder that is made of it.
fn companions(source: &ModelSource) -> OutputFiles {
    OutputFiles { files: source.companions.clone(), ..OutputFiles::default() }
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
        let conversion = ConvertConfig {
            recursions: Some(2),
            sharing: Some(Sharing::Cycle),
            relax,
            lora_rank: Some(4),
            share_norms: false,
            ..ConvertConfig::new("base".to_owned(), Init::Average, student.clone())
        };
        let conversion = conversion.validate().unwrap();
        let (model, files) = (source_model(&source), companions(&source));
        convert(model, conversion.conversion().unwrap(), None, &files, &student, &mut |_| {}).unwrap();
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

/// Muon as by default, for the factors of LoRA too if asked for.
pub fn muon(lora: bool) -> OptimizerKind {
    OptimizerKind::Muon(MuonConfig { lora, ..MuonConfig::default() })
}

/// Muon, an average of the weights and a frozen start of one group, all in one run.
pub fn all_together(config: &mut UptrainConfig) {
    config.optimizer.kind = muon(true);
    config.optimizer.groups.shared.freeze_until = 2;
    config.optimizer.groups.lora.lr = 2.0;
    config.train.average = Some(Average::Tail { from: 0.3 });
}

/// Routers that choose half of the tokens for the second recursion.
pub fn expert_choice() -> RouterConfig {
    RouterConfig::ExpertChoice(ExpertChoiceConfig {
        input: RouterInput::Normalized,
        alpha: 1.0,
        ..ExpertChoiceConfig::new(2)
    })
}

/// A router by which each token chooses one of two depths.
pub fn token_choice() -> RouterConfig {
    RouterConfig::TokenChoice(TokenChoiceConfig { input: RouterInput::Normalized, ..TokenChoiceConfig::default() })
}

/// The run of [`config`] on its student, which has LoRA and norms of its own at every depth, with
/// routers as `router` says.
pub fn with_router(dir: &Path, router: &RouterConfig) -> UptrainConfig {
    with_shared_router(dir, router, KvSharing::RecursionWise)
}

/// As [`with_router`], with KV sharing.
pub fn with_shared_router(dir: &Path, router: &RouterConfig, kv_sharing: KvSharing) -> UptrainConfig {
    let mut config = config(dir);
    let source = ModelSource::open(&config.student.model).unwrap();
    let student = dir.join("routed");
    let options = RouterOptions { router: router.clone(), kv_sharing: Some(kv_sharing), seed: 0 };
    add_router(source_model(&source), &options, &companions(&source), &student, &mut |_| {}).unwrap();
    config.student.model = student.display().to_string();
    config
}

/// The run of [`config`] on its student with mechanisms, as `retie insert --with` has them.
pub fn with_mechanisms(dir: &Path, mechanisms: &[&str]) -> UptrainConfig {
    let mut config = config(dir);
    let source = ModelSource::open(&config.student.model).unwrap();
    let student = dir.join("stepped");
    let added: Vec<MechanismAt> = mechanisms.iter().map(|text| text.parse().unwrap()).collect();
    let options = InsertOptions { steps: steps_with(&[], &added, 2).unwrap(), context: None, seed: 0 };
    insert(source_model(&source), &options, &companions(&source), &student, &mut |_| {}).unwrap();
    config.student.model = student.display().to_string();
    config
}

/// The run of [`config`] on its student with KV sharing, without routers.
pub fn with_kv_sharing(dir: &Path, kv_sharing: KvSharing) -> UptrainConfig {
    let config = config(dir);
    let path = Path::new(&config.student.model).join("config.json");
    let mut student = ModelConfig::load(&path).unwrap();
    student.recursion.as_mut().unwrap().kv_sharing = kv_sharing;
    fs_err::write(path, serde_json::to_string(&student.to_json()).unwrap()).unwrap();
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
    let job = Job { device: &device, ranks: &Single, stop };
    uptrain(config, resume, &Provenance::now(vec!["test".into()], None), job, events)
}

/// A run of one of several ranks.
pub fn start_on(
    config: &UptrainConfig,
    resume: Resume,
    ranks: &Threads,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let device = retie_model::device("cpu").unwrap();
    let job = Job { device: &device, ranks, stop };
    uptrain(config, resume, &Provenance::now(vec!["test".into()], None), job, &mut |_| {})
}

/// Runs to the end and gives the rows.
pub fn run(config: &UptrainConfig, device: &str) -> Vec<StepRow> {
    start(config, device, Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap();
    read_metrics(&config.run.dir).unwrap()
}

/// A row without what depends on the clock; JSON spells each number so that it reads back as it
/// was.
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
