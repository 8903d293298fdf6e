//! Uptraining runs that are stopped, killed and resumed, their data and their logits caches.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

mod support;

use insta::assert_snapshot;
use serde_json::Value;
use std::{
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use support::{CONVERT, Place, uptrain_yaml};

/// Test folder with a converted model and `run.yaml`, a run of `steps` steps.
fn place(steps: u64) -> Place {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(steps));
    place
}

/// Step of each row of the metrics, with its losses and gradient norm as they are written.
fn losses(place: &Place, run: &str) -> Vec<(u64, String)> {
    let rows = place.read(&format!("{run}/metrics.jsonl"));
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        (
            row["step"].as_u64().unwrap(),
            format!("{} {} {}", row["loss"], row["grad_norm"], row["heldout_cross_entropy"]),
        )
    };
    rows.lines().map(row).collect()
}

fn start(place: &Place, args: &str) -> Child {
    place.command().args(args.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(path: &Path) {
    let begin = Instant::now();
    while !path.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "`{}` does not appear", path.display());
        sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let status = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let place = place(60);
    place.retie("uptrain run.yaml --set run.dir=whole").ok();
    let mut child = start(&place, "uptrain run.yaml");
    wait_for(&place.path("run/ckpt/step-8"));
    signal(&child, "-KILL");
    child.wait().unwrap();
    let killed_at = losses(&place, "run").len();
    assert!((8..60).contains(&killed_at), "{killed_at}");
    let run = place.retie("uptrain run.yaml --resume");
    assert!(run.stderr.contains("resumed after step"), "{run:?}");
    run.ok();
    assert_eq!(losses(&place, "run"), losses(&place, "whole"));
    let read = |run: &str| fs_err::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(read("run") == read("whole"), "the models differ");
}

#[test]
fn a_signal_saves_and_exits_with_130() {
    for name in ["-INT", "-TERM"] {
        let place = place(4000);
        let child = start(&place, "uptrain run.yaml");
        wait_for(&place.path("run/ckpt/step-4"));
        signal(&child, name);
        let run = place.run(child.wait_with_output().unwrap());
        assert_eq!(run.code, Some(130), "{run:?}");
        let (last, _) = losses(&place, "run").pop().unwrap();
        assert!(place.path(&format!("run/ckpt/step-{last}")).is_dir());
        let lines: Vec<&str> = run.stderr.lines().rev().take(3).collect();
        assert_eq!(lines[0], "next: retie uptrain run.yaml --resume");
        assert_eq!(lines[1], format!("wrote run/ckpt/step-{last}"));
        assert_eq!(lines[2], format!("interrupted after step {last} of 4000"));
    }
}

#[test]
fn a_time_limit_saves_and_exits_with_130_and_the_run_resumes() {
    let place = place(100_000);
    let run = place.retie("uptrain run.yaml --time-limit 2s");
    assert_eq!(run.code, Some(130), "{run:?}");
    let (last, _) = losses(&place, "run").pop().unwrap();
    assert!(place.path(&format!("run/ckpt/step-{last}")).is_dir());
    assert!(run.stderr.contains(&format!("interrupted after step {last} of 100000")), "{run:?}");
    let run = place.retie("uptrain run.yaml --resume --time-limit 1s");
    assert!(run.code == Some(130) && run.stderr.contains(&format!("resumed after step {last}")), "{run:?}");
    let run = place.retie("uptrain run.yaml --resume --time-limit soon");
    assert!(run.code == Some(2) && run.stderr.contains("`soon` is not a length of time"), "{run:?}");
}

#[test]
fn a_full_disk_during_a_checkpoint_leaves_the_previous_one_intact() {
    let place = place(4000);
    let child = start(&place, "uptrain run.yaml");
    wait_for(&place.path("run/ckpt/step-4"));
    signal(&child, "-INT");
    assert_eq!(place.run(child.wait_with_output().unwrap()).code, Some(130));
    let (step, _) = losses(&place, "run").pop().unwrap();
    let model = place.path(&format!("run/ckpt/step-{step}/model.safetensors"));
    let before = fs_err::read(&model).unwrap();

    // A file size limit, with its signal ignored, makes writes fail as on a full disk.
    let mut command = std::process::Command::new("sh");
    place.prepare(&mut command);
    let script =
        format!("trap '' XFSZ; ulimit -f 2000; exec {} uptrain run.yaml --resume", env!("CARGO_BIN_EXE_retie"));
    let run = place.run(command.args(["-c", &script]).output().unwrap());
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("error: failed to write"), "{run:?}");
    assert!(fs_err::read(&model).unwrap() == before, "the checkpoint before was changed");
    let partial = |path: &std::path::PathBuf| path.display().to_string().contains("partial");
    assert!(!place.listing().iter().any(partial), "{:?}", place.listing());

    let child = start(&place, "uptrain run.yaml --resume");
    wait_for(&place.path(&format!("run/ckpt/step-{}", (step / 4 + 1) * 4)));
    signal(&child, "-INT");
    assert_eq!(place.run(child.wait_with_output().unwrap()).code, Some(130));
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_with_other_settings() {
    let place = place(4);
    place.retie("uptrain run.yaml").ok();
    assert_snapshot!(place.refused("uptrain run.yaml"), @"
    error: `run` already holds a run
    hint: `--resume` continues it; another `run.dir` starts a new one
    ");
    assert_snapshot!(place.refused("uptrain run.yaml --resume --set optimizer.lr=0.5"), @"
    error: `run/config.resolved.yaml` differs from the configuration of the run:
      optimizer.lr: 0.001 in the run, 0.5 now
    hint: `--allow-change optimizer.lr` goes on with a change; another `run.dir` starts a new run
    ");
    assert_snapshot!(place.refused("uptrain run.yaml --resume --allow-change optimiser"), @"
    error: `--allow-change optimiser`: the configuration has no such key
    hint: keys are written as for `--set`, e.g. `optimizer.lr`; a part such as `optimizer` stands for all in it
    ");
    assert_snapshot!(place.refused("uptrain run.yaml --resume=text"), @"
    error: `text` is no checkpoint, expected a folder `ckpt/step-N` of a run, or a run's folder that has one
    ");
    let changes = "--set train.steps=6 --set optimizer.lr=0.5 --allow-change optimizer.lr --allow-change train";
    let run = place.retie(&format!("uptrain run.yaml --resume=auto {changes}"));
    assert!(
        run.stderr
            .contains("resumed after step 4 from run/ckpt/step-4\nchanged: optimizer.lr: 0.001 in the run, 0.5 now\n"),
        "{run:?}"
    );
    run.ok();
    let branch = "uptrain run.yaml --set run.dir=branch --resume=run/ckpt/step-4 --set run.loggers=[csv]";
    let run = place.retie(&format!("{branch} {changes}"));
    assert!(!run.stderr.contains("loss"), "without a console nothing is said of steps: {run:?}");
    run.ok();
    assert!(place.read("branch/metrics.csv").starts_with("step,loss,"));
    assert_eq!(losses(&place, "branch").len(), 2);
}

#[test]
fn a_run_distils_from_a_logits_cache() {
    let place = place(6);
    let lines = place.read("text/train.jsonl");
    place.write("small.jsonl", lines.lines().take(8).collect::<Vec<_>>().join("\n") + "\n");
    let cache = |k: usize, to: &str| {
        format!("cache-logits --teacher base --data small.jsonl --sequence-length 32 --top-k {k} -o {to} --json")
    };
    let json: Value = serde_json::from_str(&place.retie(&cache(64, "kept")).ok()).unwrap();
    assert_eq!(json["bytes_per_token"], f64::from(4 * 64 + 2));
    let file = fs_err::metadata(place.path("kept/shard-00000.logits")).unwrap().len();
    assert_eq!(json["bytes"].as_u64().unwrap() + 56, file);
    place.retie(&cache(2048, "all")).ok();

    let run = |name: &str, teacher: &str| {
        let yaml = uptrain_yaml(6).replace("{dir: run}", &format!("{{dir: {name}}}"));
        let yaml = yaml.replace("text/train.jsonl", "small.jsonl").replace("{model: base}", teacher);
        place.write(&format!("{name}.yaml"), yaml);
        place.retie(&format!("uptrain {name}.yaml")).ok();
        let rows = place.read(&format!("{name}/metrics.jsonl"));
        rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect::<Vec<Value>>()
    };
    let (online, all, top) =
        (run("online", "{model: base}"), run("of-all", "{logits: all}"), run("of-kept", "{logits: kept}"));

    // Top-p 0.999 of 2048 tokens: fewer bytes, and nearly the loss with all tokens.
    let part: Value =
        serde_json::from_str(&place.retie(&format!("{} --top-p 0.999", cache(2048, "part"))).ok()).unwrap();
    let sizes = (0..part["shards"].as_u64().unwrap())
        .map(|shard| fs_err::metadata(place.path(&format!("part/shard-{shard:05}.logits"))).unwrap().len() - 56);
    assert_eq!(part["bytes"].as_u64().unwrap(), sizes.sum::<u64>());
    let per_token = part["bytes_per_token"].as_f64().unwrap();
    assert!(per_token > 6.0 && per_token < 0.9 * f64::from(4 * 2048 + 2), "{per_token}");
    let of_part = run("of-part", "{logits: part}");
    let distill = |rows: &[Value], step: usize| rows[step]["terms"]["distill"].as_f64().unwrap();
    // Quantisation error: half of 1/2048 nat in each log-probability, then grown by five steps of
    // AdamW.
    assert!((distill(&all, 0) - distill(&online, 0)).abs() < 5e-4, "{} {}", distill(&all, 0), distill(&online, 0));
    assert!((distill(&all, 5) - distill(&online, 5)).abs() < 2e-2, "{} {}", distill(&all, 5), distill(&online, 5));
    assert!(distill(&top, 0) < distill(&online, 0) && distill(&top, 0) > 0.5 * distill(&online, 0));
    assert!((distill(&of_part, 0) - distill(&online, 0)).abs() < 0.05, "{}", distill(&of_part, 0));
    // Each step's training loss is on a different text, so the effect of training is compared on
    // the held-out text. Keeping 64 of 2048 tokens leaves a difference of 0.04 nats here; a wrong
    // gradient would leave more than training gains.
    let heldout = |rows: &[Value]| rows[5]["heldout_cross_entropy"].as_f64().unwrap();
    assert!((heldout(&top) - heldout(&online)).abs() < 0.1, "{} {}", heldout(&top), heldout(&online));
    let baseline: Value = serde_json::from_str(&place.read("of-kept/eval/step-0.json")).unwrap();
    assert!(baseline["teacher_heldout_cross_entropy"].is_null());

    // Repeating the command does nothing; other options are refused, and so is a run that the cache
    // was not made for.
    let shard = fs_err::read(place.path("kept/shard-00000.logits")).unwrap();
    place.retie(&cache(64, "kept")).ok();
    assert!(fs_err::read(place.path("kept/shard-00000.logits")).unwrap() == shard);
    let refused = |line: &str, reason: &str| {
        let message = place.refused(line);
        assert!(message.contains(reason) && message.contains("\nhint: "), "{message}");
    };
    let uptrain = "uptrain of-kept.yaml --set run.dir=new";
    refused(&cache(32, "kept"), "the cache of logits in `kept` was made of other things: ");
    refused(&format!("{} --top-p 0.9", cache(64, "kept")), "top_p differ");
    let none = place.refused(&format!("{} --top-p 0", cache(64, "new")));
    assert_snapshot!(none, @"error: `top_p` is `0`, expected a number above 0, up to 1");
    let cold = place.refused(&format!("{} --temperature 0", cache(64, "new")));
    assert_snapshot!(cold, @"error: `temperature` is `0`, expected a finite number above 0");
    refused(&format!("{uptrain} --set data.sequence_length=16"), "was made of other things: data differ");
    refused(
        &format!("{uptrain} --set losses.1.temperature=2"),
        "its temperature is `2`, `teacher.logits` was made with `1`",
    );
    refused(
        &cache(64, "kept").replace("--teacher base", "--teacher converted"),
        "the cache of logits in `kept` was made of other things: teacher, teacher_files differ",
    );
    let facts = place.read("kept/logits.json");
    let tokenizer = serde_json::from_str::<Value>(&facts).unwrap()["tokenizer"].as_str().unwrap().to_owned();
    place.write("kept/logits.json", facts.replace(&tokenizer, &"0".repeat(64)));
    refused(uptrain, "was made of other things: tokenizer differ");
    place.write("kept/logits.json", facts);
    let mut damaged = shard.clone();
    damaged[100] ^= 1;
    for bytes in [&damaged[..], &shard[..shard.len() - 1]] {
        place.write("kept/shard-00000.logits", bytes);
        refused(uptrain, "`kept/shard-00000.logits` is damaged");
    }
    place.retie(&cache(64, "kept")).ok();
    assert!(fs_err::read(place.path("kept/shard-00000.logits")).unwrap() == shard);

    // Another cache in the same folder would do for a new run, but not for a resumed one.
    fs_err::remove_dir_all(place.path("kept")).unwrap();
    place.retie(&cache(32, "kept")).ok();
    refused("uptrain of-kept.yaml --resume", "`kept` is not the one that the run began with");
}

/// Writes `RUN.yaml`, a run on a mixture: two files of demo text by a pattern, and a compressed
/// file of documents of about three tokens. A fifth is held out, and attention stays within a
/// document.
fn mixture(place: &Place, run: &str, teacher: &str) {
    let lines = place.read("text/train.jsonl");
    let lines: Vec<&str> = lines.lines().collect();
    for (index, part) in lines.chunks(lines.len().div_ceil(2)).enumerate() {
        place.write(&format!("part-{index}.jsonl"), part.join("\n"));
    }
    let compressed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/rows.jsonl.gz");
    fs_err::copy(compressed, place.path("rows.jsonl.gz")).unwrap();
    let text = "mixture: [{files: ['part-*.jsonl'], weight: 3}, {files: [rows.jsonl.gz], weight: 1}]
  heldout_fraction: 0.2
  packing: documents";
    let yaml = uptrain_yaml(60).replace("{dir: run}", &format!("{{dir: {run}}}"));
    let yaml = yaml.replace("train: [text/train.jsonl]", text).replace("  heldout: [text/heldout.jsonl]\n", "");
    place.write(&format!("{run}.yaml"), yaml.replace("{model: base}", teacher));
}

#[test]
fn a_killed_run_on_a_mixture_resumes_bit_for_bit() {
    let place = place(60);
    mixture(&place, "whole", "{model: base}");
    mixture(&place, "broken", "{model: base}");
    place.retie("uptrain whole.yaml").ok();
    let mut child = start(&place, "uptrain broken.yaml");
    wait_for(&place.path("broken/ckpt/step-8"));
    signal(&child, "-KILL");
    child.wait().unwrap();
    assert!(losses(&place, "broken").len() < 60);
    place.retie("uptrain broken.yaml --resume").ok();
    assert_eq!(losses(&place, "broken"), losses(&place, "whole"));
    let state: Value = serde_json::from_str(&place.read("whole/ckpt/step-60/state.json")).unwrap();
    // 60 steps of two sequences, three of four from the first source.
    let cursor = |row: u64| serde_json::json!({ "epoch": 0, "row": row });
    assert_eq!(state["cursors"], serde_json::json!([cursor(90), cursor(30)]));

    // The logits cache covers the same sequences.
    place.retie("cache-logits --teacher base --config whole.yaml --top-k 2048 -o kept").ok();
    mixture(&place, "of-kept", "{logits: kept}");
    place.retie("uptrain of-kept.yaml").ok();
    let distill = |run: &str| {
        let row = place.read(&format!("{run}/metrics.jsonl"));
        let row: Value = serde_json::from_str(row.lines().next().unwrap()).unwrap();
        row["terms"]["distill"].as_f64().unwrap()
    };
    // Quantisation error: half of 1/2048 nat in each log-probability.
    assert!((distill("of-kept") - distill("whole")).abs() < 5e-4, "{} {}", distill("of-kept"), distill("whole"));
    let plain = place.refused("uptrain of-kept.yaml --set run.dir=new --set data.packing=plain");
    assert!(plain.contains("was made of other things: data differ"), "{plain}");
}

#[test]
fn text_is_tokenized_once_for_all_runs() {
    let place = place(4);
    place.write("run.yaml", uptrain_yaml(4).replace("sequence_length: 32", "sequence_length: 32\n  cache_dir: tokens"));
    let tokenize = |line: &str| -> Value { serde_json::from_str(&place.retie(line).ok()).unwrap() };
    let json = tokenize("tokenize --config run.yaml --json");
    let texts = json["texts"].as_array().unwrap();
    assert_eq!(texts.iter().map(|text| text["name"].as_str().unwrap()).collect::<Vec<_>>(), ["train", "heldout"]);
    assert!(texts.iter().all(|text| text["from_cache"] == false && text["tokens"].as_u64().unwrap() > 1000), "{json}");
    let folders = || fs_err::read_dir(place.path("tokens")).unwrap().count();
    assert_eq!(folders(), 2);
    // The run finds the cache, and so does a command that names the text in another way. Sequences
    // from disk are those from memory.
    place.retie("uptrain run.yaml").ok();
    let again = tokenize("tokenize --model base --data text/train.jsonl -o tokens --json");
    assert_eq!(again["texts"][0]["from_cache"], true);
    assert_eq!(again["texts"][0]["tokens"], texts[0]["tokens"]);
    assert_eq!(folders(), 2);
    place.retie("uptrain run.yaml --set data.cache_dir=null --set run.dir=memory").ok();
    assert_eq!(losses(&place, "run"), losses(&place, "memory"));
    let message = place.refused("tokenize --config run.yaml --model nobody");
    assert!(message.contains("there is no model `nobody`"), "{message}");
    place.write("run.yaml", uptrain_yaml(4));
    assert_snapshot!(place.refused("tokenize --config run.yaml"), @"
    error: the run has no `data.cache_dir`
    hint: name the folder in the file, or here with `--cache-dir`
    ");
}

#[test]
fn a_run_reads_arrow_files_of_the_hub_and_files_of_tokens() {
    let place = place(4);
    // Files as a download leaves them in the hub cache.
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let set = place.path("hub/hub/datasets--org--set");
    fs_err::create_dir_all(set.join("refs")).unwrap();
    fs_err::write(set.join("refs/main"), commit).unwrap();
    let data = set.join("snapshots").join(commit).join("data");
    fs_err::create_dir_all(&data).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden");
    for (from, to) in
        [("stream.arrow", "train-0.arrow"), ("lz4.feather", "train-1.feather"), ("plain.arrow", "test.arrow")]
    {
        fs_err::copy(golden.join(from), data.join(to)).unwrap();
    }
    let run = |name: &str, train: &str| {
        let yaml =
            uptrain_yaml(4).replace("{dir: run}", &format!("{{dir: {name}}}")).replace("text/train.jsonl", train);
        let yaml = yaml.replace("text/heldout.jsonl", "hf://datasets/org/set/data/test.arrow");
        let yaml = yaml.replace("  sequence_length", "  text_field: meta.title\n  sequence_length");
        place.write(&format!("{name}.yaml"), yaml);
        place.retie(&format!("uptrain {name}.yaml")).ok();
    };
    run("hub", "hf://datasets/org/set/data/train-*");
    let json: Value = serde_json::from_str(&place.retie("tokenize --config hub.yaml -o tokens --json").ok()).unwrap();
    let folder = json["texts"][0]["folder"].as_str().unwrap();
    run("given", &format!("{folder}/*.tokens"));
    assert_eq!(losses(&place, "given"), losses(&place, "hub"));

    let refused = |train: &str| {
        place.write(
            "refused.yaml",
            uptrain_yaml(4).replace("text/train.jsonl", train).replace("{dir: run}", "{dir: refused}"),
        );
        place.refused("uptrain refused.yaml")
    };
    let absent = refused("hf://datasets/org/set/data/other-*");
    assert!(absent.contains("the repository has no file that matches `data/other-*`"), "{absent}");
    let unknown = refused("hf://datasets/org/unknown/t.txt");
    assert!(unknown.contains("the hub cache lacks"), "{unknown}");
    let address = refused("hf://models/org/set/t.txt");
    assert!(
        address.contains("is not the address of a data set's file, expected `hf://datasets/OWNER/NAME/FILE`"),
        "{address}"
    );
    let tokens = place.refused(
        "convert base --recursions 2 --sharing cycle --init calibrated --calibration tokens/none.tokens -o refused",
    );
    assert!(tokens.contains("none.tokens"), "{tokens}");
}

#[test]
fn tokenize_reports_how_full_best_fit_sequences_are() {
    let place = place(4);
    let yaml = uptrain_yaml(4)
        .replace("sequence_length: 32", "sequence_length: 512\n  packing: best_fit\n  cache_dir: tokens");
    place.write("run.yaml", yaml);
    let text = place.retie("tokenize --config run.yaml").ok();
    assert!(text.lines().next().unwrap().contains(" % full, in tokens/"), "{text}");
    place.retie("uptrain run.yaml").ok();
    let row: Value = serde_json::from_str(place.read("run/metrics.jsonl").lines().last().unwrap()).unwrap();
    let tokens = row["tokens"].as_u64().unwrap();
    assert!(tokens > 4 * 2 * 256 && tokens <= 4 * 2 * 512, "{tokens}");
    let message = place.refused("cache-logits --teacher base --config run.yaml -o kept");
    assert!(message.contains("logits are kept of sequences of one length"), "{message}");
}

#[test]
fn a_dry_run_shows_the_configuration_and_writes_nothing() {
    let place = place(4);
    let before = place.listing();
    let text = place.retie("uptrain run.yaml --dry-run --set train.steps=7").ok();
    assert!(text.contains("steps: 7\n") && text.contains("rate × 1, decay 0.01"), "{text}");
    let json: Value = serde_json::from_str(&place.retie("uptrain run.yaml --dry-run --json").ok()).unwrap();
    assert_eq!((json["config"]["train"]["steps"].as_u64(), json["plan"]["steps"].as_u64()), (Some(4), Some(4)));
    assert_eq!(place.listing(), before);
}

#[test]
fn averaged_weights_are_shown_measured_and_drawn() {
    let place = place(10);
    let run = "uptrain run.yaml --set optimizer.kind=muon --set train.average=tail";
    let plan = place.retie(&format!("{run} --dry-run")).ok();
    assert!(plan.contains("from: 0.75\n") && plan.contains("tensors, Muon, rate × 1"), "{plan}");
    let text = place.retie(run).ok();
    let json = place.retie(&format!("{run} --json --set run.dir=again")).ok();
    let json: Value = serde_json::from_str(&json).unwrap();
    let averaged = json["averaged_heldout_cross_entropy"].as_f64().unwrap();
    assert_eq!(json["last"]["averaged_heldout_cross_entropy"].as_f64(), Some(averaged));
    assert!(text.contains(&format!("\naveraged    {averaged:.4} held-out\n")), "{text}");
    place.retie("plot run -o curve.svg").ok();
    assert!(place.read("curve.svg").contains("averaged"));
    // The next stage of a run begins with them.
    place.retie("uptrain run.yaml --set student.model=run/model --set run.dir=next").ok();
    let next: Value = serde_json::from_str(&place.read("next/eval/step-0.json")).unwrap();
    assert_eq!(next["heldout_cross_entropy"].as_f64(), Some(averaged));
}

#[test]
fn a_finished_run_is_measured_and_reported() {
    let place = place(10);
    let json: Value = serde_json::from_str(&place.retie("uptrain run.yaml --json").ok()).unwrap();
    assert_eq!((json["outcome"].as_str(), json["last"]["step"].as_u64()), (Some("finished"), Some(10)));
    place.retie("eval run/model --tasks perplexity --text text/heldout.jsonl --limit 2 --window 64 -o up.json").ok();
    let table = place.retie("report run --eval uptrained=up.json -o report.html").ok();
    assert!(table.contains("uptrained") && table.contains("held-out"), "{table}");
    place.retie("plot mine=run -o curve.svg").ok();
    let svg = place.read("curve.svg");
    for title in [
        "Training loss",
        "Held-out cross-entropy",
        "Norm of the hidden states",
        "Cosine of hidden states",
        "Gradient norm",
    ] {
        assert!(svg.contains(title), "{title}");
    }
    let picture = place.retie("plot run -o curve.png");
    match picture.stderr.contains("has no font") {
        true => eprintln!("skipped: the picture of curves needs a font"),
        false => {
            picture.ok();
            assert!(fs_err::read(place.path("curve.png")).unwrap().starts_with(b"\x89PNG"));
        }
    }
    assert_snapshot!(
        place.refused("plot run -o curve.jpg"),
        @"error: `--output` is `curve.jpg`, expected a name that ends in .svg or .png"
    );
    place.retie("plot run --curves heldout,loss --title Mine -o some.svg").ok();
    let some = place.read("some.svg");
    assert!(some.contains(">Mine</text>") && some.contains("Training loss") && !some.contains("Norm of"), "{some}");
    assert!(svg.contains(">mine</text>") && svg.contains(">teacher</text>"), "{svg}");
    let html = place.read("report.html");
    assert!(
        html.contains("Norm of the hidden states")
            && html.contains("recursion 2")
            && html.contains("recursions 1 and 2")
    );
    assert!(html.contains("<svg") && html.contains("sequence_length: 32") && !html.contains("http"), "a whole page");

    // A report shows the name of a run, and its path on hover.
    let path = place.path("run").display().to_string();
    let table = place.retie(&format!("report {path} -o long.html")).ok();
    assert!(table.lines().nth(1).unwrap().starts_with("run  "), "{table}");
    let html = place.read("long.html");
    assert!(html.contains(&format!("<td><span title=\"{path}\">run</span></td>")), "{html}");
    assert_eq!(html.matches("<svg class=\"wide\"").count(), html.matches("<svg class=\"narrow\"").count());
}

#[test]
fn without_a_terminal_the_dashboard_prints_lines() {
    let place = place(2);
    let run = place.retie("uptrain run.yaml --tui");
    assert!(run.stderr.contains("train: 2/2 steps  loss "), "{run:?}");
    assert!(!run.stderr.contains('\u{1b}') && !run.stderr.contains('│'), "{run:?}");
    run.ok();
}
