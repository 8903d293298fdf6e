//! Configurations that are read, and messages of those that are refused.

use super::*;
use crate::{document, document::to_yaml};
use insta::assert_snapshot;
use std::path::Path;

const MINIMAL: &str = "\
schema: 1
run: {dir: out}
student: {model: m}
data:
  train: [a.txt]
  sequence_length: 512
losses:
  - cross_entropy: {weight: 1}
optimizer: {lr: 3e-3}
schedule:
  cosine: {warmup_steps: 20}
train:
  tokens: 300_000
  batch_size: 2
";

fn parse(text: &str, overrides: &[&str]) -> Result<UptrainConfig, crate::ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    document::parse(text, Path::new("uptrain.yaml"), &overrides)
}

fn error(text: &str, overrides: &[&str]) -> String {
    parse(text, overrides).unwrap_err().to_string()
}

#[test]
fn defaults_fill_what_is_left_out_and_three_e_minus_three_is_a_number() {
    let config = parse(MINIMAL, &[]).unwrap();
    assert_snapshot!(to_yaml(&config).unwrap(), @"
    schema: 1
    run:
      dir: out
      loggers:
      - console
    student:
      model: m
    teacher: null
    data:
      train:
      - a.txt
      heldout: []
      text_field: text
      sequence_length: 512
      packing: plain
      cache_dir: null
    losses:
    - cross_entropy:
        weight: 1.0
        weight_schedule: []
        label_smoothing: 0.0
        z_loss: 0.0
    optimizer:
      kind: adamw
      lr: 0.003
      beta1: 0.9
      beta2: 0.95
      eps: 1.0e-8
      weight_decay: 0.01
      max_grad_norm: 1.0
      groups:
        shared:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        unshared:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        lora:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        extras:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        routers:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        auxiliary_routers:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        norms:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
        embeddings:
          lr: 1.0
          weight_decay: null
          freeze_until: 0
    schedule:
      cosine:
        warmup_steps: 20
        min_lr_ratio: 0.1
    train:
      tokens: 300000
      batch_size: 2
      gradient_accumulation: 1
      checkpoint_recursions: false
      precision: f32
      shard_optimizer: false
      checkpoint_every: 100
      keep_last: 2
      keep_best: 0
      non_finite: stop
      loss_spike:
        report:
          window: 50
          deviations: 6.0
      telemetry_every: 1
      eval_every: 0
      eval_sequences: 16
      seed: 42
    ");
    assert_eq!(config.optimizer.lr, 0.003);
}

#[test]
fn the_written_configuration_reads_back_as_itself() {
    for overrides in [
        &[][..],
        &[
            "train={steps: 7, batch_size: 3, seed: 18446744073709551615}",
            "schedule={warmup_stable_decay: {warmup_steps: 1, decay_steps: 2}}",
        ],
        &[
            "optimizer={lr: 1.2345678901234567e-5, eps: 1e-30, weight_decay: 0}",
            "run.dir='1e3'",
            "student.model=\"a: 'b' # c\"",
        ],
        &["losses=[{distill: {weight: 0.1, divergence: {skew_kl: {}}}}]", "teacher.model=t"],
        &["losses=[{distill: {weight: 0.1, divergence: tvd}}]", "teacher.model=t"],
        &[
            "losses=[{distill: {weight: 0.1, divergence: {jsd: {beta: 0.25}}}}]",
            "teacher.model=true story",
            "data.heldout=[h.txt]",
            "data.cache_dir=c",
        ],
        &[
            "data={mixture: [{files: [a.txt], weight: 2}, {files: ['b/*.jsonl.gz'], weight: 0.5, text_field: t}], sequence_length: 8}",
            "data.heldout_fraction=0.01",
            "data.packing=best_fit",
        ],
        &["run.loggers=[csv, tensorboard]", "train.loss_spike=ignore", "train.telemetry_every=0"],
        &["run.loggers=[]", "train.loss_spike={report: {window: 9}}"],
        &["optimizer.kind=muon", "train.average=ema", "schedule={linear: {warmup_steps: 2}}"],
        &[
            "optimizer.kind={muon: {momentum: 0.9, ns_steps: 3, adjust_lr: original, lora: true}}",
            "optimizer.groups.shared={lr: 2, freeze_until: 7}",
            "train.average={tail: {from: 0.5}}",
            "schedule={warmup_stable_decay: {warmup_steps: 1, decay_steps: 2, decay_type: 1-sqrt}}",
        ],
    ] {
        let config = parse(MINIMAL, overrides).unwrap();
        let yaml = to_yaml(&config).unwrap();
        assert_eq!(parse(&yaml, &[]).unwrap(), config, "{yaml}");
    }
}

#[test]
fn length_in_tokens_is_rounded_up_to_whole_steps() {
    let config = parse(MINIMAL, &["train.gradient_accumulation=3"]).unwrap();
    assert_eq!(config.tokens_per_step(), 2 * 3 * 512);
    assert_eq!(config.num_steps(), 98); // 300000 / 3072 = 97.66
    let config = parse(MINIMAL, &["train.tokens=null", "train.steps=5", "schedule.warmup_steps=5"]).unwrap();
    assert_eq!(config.num_steps(), 5);
    assert_eq!(config.lr_at(1), 0.003 / 5.0);
}

#[test]
fn an_unknown_key_a_wrong_type_and_an_impossible_value_are_all_reported() {
    let text = MINIMAL
        .replace("student: {model: m}", "student: {modle: m}")
        .replace("sequence_length: 512", "sequence_length: long")
        .replace("batch_size: 2", "batch_size: 0");
    assert_snapshot!(error(&text, &[]), @"
    `uptrain.yaml` has 3 problems
    uptrain.yaml:3:11: unknown key `student.modle`
      hint: did you mean `model`?
    uptrain.yaml:6:20: `data.sequence_length` is `long`, expected an integer
    uptrain.yaml:14:15: `train.batch_size` is `0`, expected a positive integer
    ");
}

#[test]
fn every_impossible_value_is_reported() {
    let text = "\
schema: 2
run: {dir: ''}
student: {model: ' '}
data:
  train: [a.txt, b.txt, a.txt]
  heldout: [b.txt]
  sequence_length: 1
losses:
  - cross_entropy: {weight: -1, label_smoothing: 1, z_loss: -1}
  - distill: {weight: .nan, temperature: 0, divergence: {jsd: {beta: 1}}}
  - cross_entropy: {weight: 0.5}
optimizer: {lr: 0, beta1: 1.0, beta2: -0.1, eps: 0, weight_decay: -1, max_grad_norm: .inf}
schedule:
  warmup_stable_decay: {warmup_steps: 60, decay_steps: 50, min_lr_ratio: 2}
train: {steps: 100, batch_size: 0, gradient_accumulation: 0, keep_last: 0, eval_sequences: 0}
";
    assert_snapshot!(error(text, &[]), @"
    `uptrain.yaml` has 26 problems
    uptrain.yaml:1:1: loss `distill` needs a teacher, and `teacher` is missing
      hint: `teacher: {model: …}` names the model to distil from, e.g. the unconverted original
    uptrain.yaml:1:9: `schema` is `2`, expected `1`, the version that this build reads
    uptrain.yaml:2:7: `run.dir` is empty
    uptrain.yaml:3:18: `student.model` is empty
    uptrain.yaml:5:25: `data.train.2` is `a.txt`, which stands already at `data.train.0`
    uptrain.yaml:6:13: `data.heldout.0` is `b.txt`, which stands already at `data.train.1`
    uptrain.yaml:7:20: `data.sequence_length` is `1`, expected 2 or more (the first token is not predicted)
    uptrain.yaml:9:29: `losses.0.cross_entropy.weight` is `-1`, expected a finite number, 0 or more
    uptrain.yaml:9:50: `losses.0.cross_entropy.label_smoothing` is `1`, expected a number from 0 to below 1
    uptrain.yaml:9:61: `losses.0.cross_entropy.z_loss` is `-1`, expected a finite number, 0 or more
    uptrain.yaml:10:23: `losses.1.distill.weight` is `NaN`, expected a finite number, 0 or more
    uptrain.yaml:10:42: `losses.1.distill.temperature` is `0`, expected a finite number above 0
    uptrain.yaml:10:70: `losses.1.distill.divergence.jsd.beta` is `1`, expected a number between 0 and 1
    uptrain.yaml:11:5: loss `cross_entropy` stands already at `losses.0`
      hint: one entry with the sum of the weights says the same
    uptrain.yaml:12:17: `optimizer.lr` is `0`, expected a finite number above 0
    uptrain.yaml:12:27: `optimizer.beta1` is `1`, expected a number from 0 to below 1
    uptrain.yaml:12:39: `optimizer.beta2` is `-0.1`, expected a number from 0 to below 1
    uptrain.yaml:12:50: `optimizer.eps` is `0`, expected a finite number above 0
    uptrain.yaml:12:67: `optimizer.weight_decay` is `-1`, expected a finite number, 0 or more
    uptrain.yaml:12:86: `optimizer.max_grad_norm` is `inf`, expected a finite number above 0
    uptrain.yaml:14:39: warm-up of `60` and decay of `50` steps do not fit in a run of 100 steps
    uptrain.yaml:14:74: `schedule.warmup_stable_decay.min_lr_ratio` is `2`, expected a number from 0 to 1
    uptrain.yaml:15:33: `train.batch_size` is `0`, expected a positive integer
    uptrain.yaml:15:59: `train.gradient_accumulation` is `0`, expected a positive integer
    uptrain.yaml:15:73: `train.keep_last` is `0`, expected a positive integer
    uptrain.yaml:15:92: `train.eval_sequences` is `0`, expected a positive integer
    ");
}

#[test]
fn the_length_is_given_once() {
    assert_snapshot!(error(MINIMAL, &["train.steps=3"]), @"
    `uptrain.yaml` has 1 problem
    uptrain.yaml:13:11: both `train.steps` and `train.tokens` are given, expected one of them
    ");
    assert_snapshot!(error(&MINIMAL.replace("  tokens: 300_000\n", ""), &[]), @"
    `uptrain.yaml` has 1 problem
    uptrain.yaml:12:1: the run has no length, expected one of `train.steps` and `train.tokens`
    ");
    assert_snapshot!(error(MINIMAL, &["train.tokens=0"]), @"
    `uptrain.yaml` has 1 problem
    --set train.tokens=0: `train.tokens` is `0`, expected a positive integer
    ");
}

#[test]
fn a_teacher_is_needed_by_distillation_and_by_nothing_else() {
    assert_snapshot!(error(MINIMAL, &["losses=[{distill: {weight: 1}}]"]), @"
    `uptrain.yaml` has 1 problem
    uptrain.yaml:1:1: loss `distill` needs a teacher, and `teacher` is missing
      hint: `teacher: {model: …}` names the model to distil from, e.g. the unconverted original
    ");
    assert_snapshot!(error(MINIMAL, &["teacher.model=t"]), @"
    `uptrain.yaml` has 1 problem
    --set teacher.model=t: `teacher` is given, but no loss uses one
      hint: add a `distill` loss or remove `teacher`
    ");
}

#[test]
fn a_divergence_is_a_name_or_a_name_with_settings() {
    let set = |divergence| error(MINIMAL, &["teacher.model=t", divergence]);
    let parsed = |divergence| parse(MINIMAL, &["teacher.model=t", divergence]).unwrap();
    assert_eq!(
        parsed("losses=[{distill: {weight: 1, divergence: jsd}}]"),
        parsed("losses=[{distill: {weight: 1, divergence: {jsd: {beta: 0.5}}}}]")
    );
    assert_snapshot!(set("losses=[{distill: {weight: 1, divergence: {skew_kl: {beta: 0.1}}}}]"), @"
    `uptrain.yaml` has 1 problem
    --set losses=[{distill: {weight: 1, divergence: {skew_kl: {beta: 0.1}}}}]: unknown key `losses.0.distill.divergence.skew_kl.beta`
      hint: the keys here are `alpha`
    ");
    assert_snapshot!(set("losses=[{distill: {weight: 1, divergence: revers_kl}}]"), @"
    `uptrain.yaml` has 1 problem
    --set losses=[{distill: {weight: 1, divergence: revers_kl}}]: `losses.0.distill.divergence` is `revers_kl`, expected one of `forward_kl`, `reverse_kl`, `jsd`, `tvd`, `skew_kl`
      hint: did you mean `reverse_kl`?
    ");
}

#[test]
fn a_teacher_is_a_model_or_what_was_kept_of_one() {
    let distill = "losses=[{distill: {weight: 1}}]";
    parse(MINIMAL, &[distill, "teacher.logits=cache"]).unwrap();
    assert_snapshot!(error(MINIMAL, &[distill, "teacher={model: t, logits: cache}"]), @"
    `uptrain.yaml` has 1 problem
    --set teacher={model: t, logits: cache}: `teacher` is one of `model` and `logits`
    ");
    assert_snapshot!(error(MINIMAL, &["losses=[{hidden: {weight: 1}}]", "teacher.logits=cache"]), @"
    `uptrain.yaml` has 1 problem
    --set teacher.logits=cache: loss `hidden` needs the teacher's hidden states, `teacher.logits` has none
      hint: name the model in `teacher.model`
    ");
    assert_snapshot!(error(MINIMAL, &[distill, "teacher.logits=cache", "data.packing=best_fit"]), @"
    `uptrain.yaml` has 1 problem
    --set teacher.logits=cache: `teacher.logits` is for sequences of one length, `best_fit` makes others
      hint: name the model in `teacher.model`, or take `data.packing: documents`
    ");
}

#[test]
fn a_run_shorter_than_its_schedule_is_refused() {
    assert_snapshot!(error(MINIMAL, &["train.tokens=10_000"]), @"
    `uptrain.yaml` has 1 problem
    uptrain.yaml:11:26: `schedule.cosine.warmup_steps` is `20`, but the run has 10 steps
    ");
    assert_snapshot!(error(MINIMAL, &["losses.0.weight=0"]), @"
    `uptrain.yaml` has 1 problem
    uptrain.yaml:7:1: every loss in `losses` has weight 0, nothing would be trained
      hint: give one of them a weight above 0
    ");
    assert_snapshot!(error(MINIMAL, &["losses=[]", "data.train=[]", "train.eval_every=5"]), @"
    `uptrain.yaml` has 3 problems
    --set losses=[]: `losses` is empty, expected at least one loss
    --set data.train=[]: there is no text to train on, expected one of `data.train` and `data.mixture`
    --set train.eval_every=5: `train.eval_every` is `5`, but there is no held-out text
      hint: give files in `data.heldout` or a `data.heldout_fraction`, or leave `train.eval_every` out
    ");
}

#[test]
fn schedules_groups_and_kept_checkpoints_are_checked() {
    let yaml = "losses=[{cross_entropy: {weight: 1, weight_schedule: [{step: 2, factor: 1}, {step: 2, factor: -1}]}}]";
    assert_snapshot!(error(MINIMAL, &[yaml, "optimizer.groups={lora: {lr: -1}, norms: {weight_decay: -1}}"]), @"
    `uptrain.yaml` has 4 problems
    --set losses=[{cross_entropy: {weight: 1, weight_schedule: [{step: 2, factor: 1}, {step: 2, factor: -1}]}}]: `losses.0.cross_entropy.weight_schedule.1.factor` is `-1`, expected a finite number, 0 or more
    --set losses=[{cross_entropy: {weight: 1, weight_schedule: [{step: 2, factor: 1}, {step: 2, factor: -1}]}}]: `losses.0.cross_entropy.weight_schedule.1.step` is `2`, expected more than 2: steps are counted from 1 and ascend
    --set optimizer.groups={lora: {lr: -1}, norms: {weight_decay: -1}}: `optimizer.groups.lora.lr` is `-1`, expected a finite number, 0 or more
    --set optimizer.groups={lora: {lr: -1}, norms: {weight_decay: -1}}: `optimizer.groups.norms.weight_decay` is `-1`, expected a finite number, 0 or more
    ");
    let groups = "{shared: {lr: 0}, unshared: {lr: 0}, lora: {lr: 0}, extras: {lr: 0}, routers: {lr: 0}, auxiliary_routers: {lr: 0}, norms: {lr: 0}, embeddings: {lr: 0}}";
    assert_snapshot!(error(MINIMAL, &[&format!("optimizer.groups={groups}")]), @"
    `uptrain.yaml` has 1 problem
    --set optimizer.groups={shared: {lr: 0}, unshared: {lr: 0}, lora: {lr: 0}, extras: {lr: 0}, routers: {lr: 0}, auxiliary_routers: {lr: 0}, norms: {lr: 0}, embeddings: {lr: 0}}: every group has a rate of 0, nothing would be trained
    ");
    assert_snapshot!(error(MINIMAL, &["train.keep_best=1", "train.non_finite={skip: {in_a_row: 0}}"]), @"
    `uptrain.yaml` has 2 problems
    --set train.keep_best=1: `train.keep_best` is `1`, but not every checkpoint is measured: `train.checkpoint_every` is `100` and `train.eval_every` `0`
      hint: `checkpoint_every` has to be a multiple of `eval_every`
    --set train.non_finite={skip: {in_a_row: 0}}: `train.non_finite.skip.in_a_row` is `0`, expected a positive integer
    ");
}

#[test]
fn a_bare_name_has_every_default() {
    let bare = parse(MINIMAL, &["optimizer.kind=muon", "train.average=tail", "train.loss_spike=report"]).unwrap();
    let spelt = [
        "optimizer.kind={muon: {momentum: 0.95, ns_steps: 5, adjust_lr: match_rms_adamw, lora: false}}",
        "train.average={tail: {from: 0.75}}",
        "train.loss_spike={report: {window: 50, deviations: 6}}",
    ];
    assert_eq!(bare, parse(MINIMAL, &spelt).unwrap());
    assert!(to_yaml(&bare).unwrap().contains("  kind:\n    muon:\n      momentum: 0.95\n"));
}

#[test]
fn settings_of_muon_averages_decays_and_frozen_starts_are_checked() {
    let muon = "optimizer.kind={muon: {momentum: 1, ns_steps: 0, adjust_lr: orginal}}";
    assert_snapshot!(error(MINIMAL, &[muon]), @"
    `uptrain.yaml` has 3 problems
    --set optimizer.kind={muon: {momentum: 1, ns_steps: 0, adjust_lr: orginal}}: `optimizer.kind.muon.adjust_lr` is `orginal`, expected one of `original`, `match_rms_adamw`
      hint: did you mean `original`?
    --set optimizer.kind={muon: {momentum: 1, ns_steps: 0, adjust_lr: orginal}}: `optimizer.kind.muon.momentum` is `1`, expected a number from 0 to below 1
    --set optimizer.kind={muon: {momentum: 1, ns_steps: 0, adjust_lr: orginal}}: `optimizer.kind.muon.ns_steps` is `0`, expected a number from 1 to 100
    ");
    assert_snapshot!(error(MINIMAL, &["optimizer.kind={muon: {momentum: 1, ns_steps: 0}}"]), @"
    `uptrain.yaml` has 2 problems
    --set optimizer.kind={muon: {momentum: 1, ns_steps: 0}}: `optimizer.kind.muon.momentum` is `1`, expected a number from 0 to below 1
    --set optimizer.kind={muon: {momentum: 1, ns_steps: 0}}: `optimizer.kind.muon.ns_steps` is `0`, expected a number from 1 to 100
    ");
    assert_snapshot!(error(MINIMAL, &["optimizer.kind=moun"]), @"
    `uptrain.yaml` has 1 problem
    --set optimizer.kind=moun: `optimizer.kind` is `moun`, expected one of `adamw`, `muon`
      hint: did you mean `muon`?
    ");
    assert_snapshot!(error(MINIMAL, &["optimizer.kind={muon: {nesterov: true}}"]), @"
    `uptrain.yaml` has 1 problem
    --set optimizer.kind={muon: {nesterov: true}}: unknown key `optimizer.kind.muon.nesterov`
      hint: the keys here are `momentum`, `ns_steps`, `adjust_lr`, `lora`
    ");
    assert_snapshot!(error(MINIMAL, &["train.average={ema: {decay: 1}}"]), @"
    `uptrain.yaml` has 1 problem
    --set train.average={ema: {decay: 1}}: `train.average.ema.decay` is `1`, expected a number between 0 and 1
    ");
    assert_snapshot!(error(MINIMAL, &["train.average={tail: {from: 1}}"]), @"
    `uptrain.yaml` has 1 problem
    --set train.average={tail: {from: 1}}: `train.average.tail.from` is `1`, expected a number from 0 to below 1
    ");
    assert_snapshot!(error(MINIMAL, &["train.average={mean: {}}"]), @"
    `uptrain.yaml` has 1 problem
    --set train.average={mean: {}}: `train.average` is `mean`, expected one of `ema`, `tail`
    ");
    let decay = "schedule={warmup_stable_decay: {warmup_steps: 1, decay_steps: 2, decay_type: sqrt}}";
    assert_snapshot!(error(MINIMAL, &[decay]), @"
    `uptrain.yaml` has 1 problem
    --set schedule={warmup_stable_decay: {warmup_steps: 1, decay_steps: 2, decay_type: sqrt}}: `schedule.warmup_stable_decay.decay_type` is `sqrt`, expected one of `linear`, `1-sqrt`
      hint: did you mean `1-sqrt`?
    ");
    assert_snapshot!(error(MINIMAL, &["schedule={linear: {warmup_steps: 400, min_lr_ratio: 2}}"]), @"
    `uptrain.yaml` has 2 problems
    --set schedule={linear: {warmup_steps: 400, min_lr_ratio: 2}}: `schedule.linear.min_lr_ratio` is `2`, expected a number from 0 to 1
    --set schedule={linear: {warmup_steps: 400, min_lr_ratio: 2}}: `schedule.linear.warmup_steps` is `400`, but the run has 293 steps
    ");
    let late = "optimizer.groups={shared: {freeze_until: 293}, norms: {freeze_until: 292}}";
    assert_snapshot!(error(MINIMAL, &[late]), @"
    `uptrain.yaml` has 1 problem
    --set optimizer.groups={shared: {freeze_until: 293}, norms: {freeze_until: 292}}: `optimizer.groups.shared.freeze_until` is `293`, but the run has 293 steps
      hint: a rate of 0 freezes a group for the whole run
    ");
    let names = ["shared", "unshared", "lora", "extras", "routers", "auxiliary_routers", "norms"];
    let frozen: Vec<String> = names.iter().map(|name| format!("{name}: {{freeze_until: 1}}")).collect();
    let frozen = format!("optimizer.groups={{{}, embeddings: {{lr: 0}}}}", frozen.join(", "));
    assert_snapshot!(error(MINIMAL, &[&frozen]).replace(&frozen, "G"), @"
    `uptrain.yaml` has 1 problem
    --set G: every group is frozen at the start, the first step would train nothing
    ");
    assert_snapshot!(error(MINIMAL, &["optimizer.groups.layers.lr=2"]), @"
    `uptrain.yaml` has 1 problem
    --set optimizer.groups.layers.lr=2: unknown key `optimizer.groups.layers`
      hint: the keys here are `shared`, `unshared`, `lora`, `extras`, `routers`, `auxiliary_routers`, `norms`, `embeddings`
    ");
}

#[test]
fn loggers_and_the_rule_for_spikes_are_checked() {
    let spike = "train.loss_spike={report: {window: 4, deviations: 0}}";
    assert_snapshot!(error(MINIMAL, &["run.loggers=[csv, tensorboard, csv]", spike]), @"
    `uptrain.yaml` has 3 problems
    --set run.loggers=[csv, tensorboard, csv]: `run.loggers.2` is there already
    --set train.loss_spike={report: {window: 4, deviations: 0}}: `train.loss_spike.report.window` is `4`, expected 5 steps or more
    --set train.loss_spike={report: {window: 4, deviations: 0}}: `train.loss_spike.report.deviations` is `0`, expected a finite number above 0
    ");
    assert_snapshot!(error(MINIMAL, &["run.loggers=[wandb]"]), @"
    `uptrain.yaml` has 1 problem
    --set run.loggers=[wandb]: `run.loggers.0` is `wandb`, expected one of `console`, `csv`, `tensorboard`
    ");
}

#[test]
fn a_mixture_is_checked_source_by_source() {
    let mixture = "data={mixture: [{files: [a.txt], weight: 0}, {files: [], weight: -1}, {files: [b.txt, a.txt], weight: .nan, text_field: ''}], sequence_length: 8}";
    let message = error(MINIMAL, &[mixture, "data.heldout=[b.txt]", "data.heldout_fraction=1"]);
    assert_snapshot!(message.replace(mixture, "M"), @"
    `uptrain.yaml` has 9 problems
    --set M: `data.mixture.0.weight` is `0`, expected a finite number above 0
    --set M: `data.mixture.1.files` is empty, expected at least one file
    --set M: `data.mixture.1.weight` is `-1`, expected a finite number above 0
    --set M: `data.mixture.2.weight` is `NaN`, expected a finite number above 0
    --set M: `data.mixture.2.text_field` is empty
    --set M: `data.mixture.2.files.1` is `a.txt`, which stands already at `data.mixture.0.files.0`
    --set data.heldout=[b.txt]: `data.heldout.0` is `b.txt`, which stands already at `data.mixture.2.files.0`
    --set data.heldout_fraction=1: `data.heldout_fraction` is `1`, expected a number between 0 and 1
    --set data.heldout_fraction=1: both `data.heldout` and `data.heldout_fraction` are given, expected one of them
    ");
    assert_snapshot!(error(MINIMAL, &["data.mixture=[{files: [b.txt], weight: 1}]"]), @"
    `uptrain.yaml` has 1 problem
    --set data.mixture=[{files: [b.txt], weight: 1}]: both `data.train` and `data.mixture` are given, expected one of them
    ");
    assert_snapshot!(error(MINIMAL, &["data={sequence_length: 8}", "data.packing=masked"]), @"
    `uptrain.yaml` has 2 problems
    --set data={sequence_length: 8}: there is no text to train on, expected one of `data.train` and `data.mixture`
    --set data.packing=masked: `data.packing` is `masked`, expected one of `plain`, `documents`, `best_fit`
    ");
}

#[test]
fn a_renamed_key_is_read_by_its_earlier_name() {
    let steps = |text: &str, overrides: &[&str]| parse(text, overrides).unwrap().train.full_recursion_warmup_steps;
    let old = MINIMAL.replace("  batch_size: 2", "  batch_size: 2\n  depth_warmup_steps: 5");
    assert_eq!(steps(&old, &[]), Some(5));
    assert_eq!(steps(&old, &["train.depth_warmup_steps=6"]), Some(6));
    assert_eq!(steps(&old, &["train.full_recursion_warmup_steps=7"]), Some(7));
    assert_eq!(
        steps(MINIMAL, &["train={steps: 9, batch_size: 1, depth_warmup_steps: 8}", "schedule.warmup_steps=1"]),
        Some(8)
    );
    assert!(!to_yaml(&parse(&old, &[]).unwrap()).unwrap().contains("depth_warmup"));
    let both = old.replace("  tokens:", "  full_recursion_warmup_steps: 5\n  tokens:");
    assert_snapshot!(error(&both, &[]), @"
    `uptrain.yaml` has 1 problem
    uptrain.yaml:16:3: `train.depth_warmup_steps` is the earlier name of `train.full_recursion_warmup_steps`, which is given too
    ");
    // No hint has the earlier name.
    assert!(!error(MINIMAL, &["train.depth_warmup=1"]).replace("train.depth_warmup", "").contains("depth_warmup"));
}

#[test]
fn a_misspelled_key_of_a_loss_and_a_loss_without_a_weight_are_reported_at_their_place() {
    let text = MINIMAL.replace(
        "  - cross_entropy: {weight: 1}",
        "  - cross_entropy: {wieght: 1, label_smooting: 0.1}\n  - blockwise: {}\n  - hiden: {weight: 1}\n  - distill",
    );
    let names = "`cross_entropy`, `distill`, ";
    let message = error(&text, &[]);
    let (before, after) = message.split_once(names).unwrap();
    // A further loss is a further name.
    let after = after.split_once('\n').unwrap().1;
    assert_snapshot!(format!("{before}{names}…\n{after}"), @"
    `uptrain.yaml` has 5 problems
    uptrain.yaml:8:21: unknown key `losses.0.cross_entropy.wieght`
      hint: did you mean `weight`?
    uptrain.yaml:8:32: unknown key `losses.0.cross_entropy.label_smooting`
      hint: did you mean `label_smoothing`?
    uptrain.yaml:9:5: key `losses.1.blockwise.weight` is missing
    uptrain.yaml:10:5: `losses.2` is `hiden`, expected one of `cross_entropy`, `distill`, …
      hint: did you mean `hidden`?
    uptrain.yaml:11:5: `losses.3` is `distill`, expected `distill: { … }` with its settings
    ");
}

proptest::proptest! {
    #[test]
    fn a_damaged_file_is_read_or_refused_with_a_problem(
        at in 0..MINIMAL.len(), len in 0usize..12, put in "[a-z0-9:,\\[\\]{}&*!'\"#\n -]{0,8}",
    ) {
        let mut text = MINIMAL.to_owned();
        text.replace_range(at..(at + len).min(MINIMAL.len()), &put);
        match parse(&text, &[]) {
            Ok(config) => proptest::prop_assert_eq!(&parse(&to_yaml(&config).unwrap(), &[]).unwrap(), &config),
            Err(crate::ConfigError::Document(error)) => proptest::prop_assert!(error.num_problems() > 0),
            Err(other) => panic!("{other}"),
        }
    }
}
