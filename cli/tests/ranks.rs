//! Distributed commands, as `mpirun` and Slurm start them. Without the feature `mpi` several
//! processes are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};
use support::{CONVERT, Place, uptrain_yaml};

/// Test folder with a converted model and `run.yaml`, a run of `steps` steps of two micro-batches.
fn place(steps: u64) -> Place {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(steps).replace("batch_size: 2", "batch_size: 2, gradient_accumulation: 2"));
    place
}

#[test]
fn commands_for_one_process_are_refused_in_several() {
    let place = Place::new();
    let mut command = place.command();
    command.args(["inspect", "base"]).env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", "1");
    let run = place.run(command.output().unwrap());
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(
        run.stderr
            .contains("2 processes were started (`OMPI_COMM_WORLD_SIZE`), and `retie inspect` is for one\nhint: "),
        "{run:?}"
    );
}

/// Command that runs a job file of `scripts/slurm`, with an `srun` that starts one process and an
/// `scontrol` that logs its arguments.
fn job(place: &Place, name: &str) -> Command {
    let write = |name: &str, script: &str| {
        let path = place.write(name, script);
        fs_err::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    fs_err::create_dir_all(place.path("bin")).unwrap();
    write(
        "bin/srun",
        "#!/bin/sh\necho \"$@\" >> srun.log\nwhile case $1 in --*) true;; *) false;; esac; do shift; done\nexec \"$@\"\n",
    );
    write("bin/scontrol", "#!/bin/sh\necho \"$@\" >> scontrol.log\n");
    let binary = Path::new(env!("CARGO_BIN_EXE_retie")).parent().unwrap();
    let path = format!("{}:{}:{}", place.path("bin").display(), binary.display(), std::env::var("PATH").unwrap());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/slurm").join(name);
    let mut command = Command::new("bash");
    place.prepare(&mut command);
    command.arg(file).args(["run.yaml", "--set", "train.seed=7"]).env("PATH", path).env("SLURM_JOB_ID", "41");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn stopped_slurm_jobs_requeue_themselves() {
    for name in ["node.sbatch", "nodes.sbatch"] {
        let place = place(4000);
        let child = job(&place, name).spawn().unwrap();
        wait::for_path(&place.path("run/ckpt/step-4"));
        let [retie] = wait::children(child.id())[..] else { panic!("one process") };
        wait::signal("-USR1", retie);
        let run = place.run(child.wait_with_output().unwrap());
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(run.stderr.contains("interrupted after step"), "{run:?}");
        assert_eq!(place.read("scontrol.log"), "requeue 41\n");
        assert_eq!(
            place.read("srun.log"),
            "--mpi=pmix --kill-on-bad-exit=1 --cpus-per-task=1 retie uptrain run.yaml --set train.seed=7 --resume\n"
        );
        // The second job resumes the run; a job that fails with an error is not requeued.
        let text = place.read("run/config.resolved.yaml");
        place.write("run/config.resolved.yaml", text.replace("lr: 0.001", "lr: 0.5"));
        let run = place.run(job(&place, name).output().unwrap());
        assert!(run.code == Some(2) && run.stderr.contains("differs from the configuration of the run"), "{run:?}");
        assert_eq!(place.read("scontrol.log"), "requeue 41\n");
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes_are_refused_without_mpi() {
    let place = place(4);
    for rank in ["0", "1"] {
        let mut command = place.command();
        command.args(["uptrain", "run.yaml"]).env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", rank);
        let run = place.run(command.output().unwrap());
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains("each would train a model of its own\nhint: build it with MPI: "), "{run:?}");
        assert!(!place.path("run").exists());
    }
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::*;
    use serde_json::Value;
    use std::process::Child;
    use support::{Run, STAGES};

    const BINARY: &str = env!("CARGO_BIN_EXE_retie");

    /// `mpirun` with the words of `line`, in which `retie` stands for the binary. More ranks than
    /// processors are allowed, and so is root, for containers.
    fn mpirun(place: &Place, line: &str) -> Command {
        let mut command = Command::new("mpirun");
        place.prepare(&mut command);
        let words = line.split_whitespace().map(|word| if word == "retie" { BINARY } else { word });
        command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]).args(words);
        command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(place: &Place, line: &str) -> Run {
        place.run(mpirun(place, line).output().unwrap())
    }

    fn start(place: &Place, line: &str) -> Child {
        mpirun(place, line).spawn().unwrap()
    }

    fn rows(place: &Place, run: &str) -> Vec<Value> {
        let rows = place.read(&format!("{run}/metrics.jsonl"));
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asserts that two runs have the same rows, up to the order of f32 sums.
    #[track_caller]
    fn assert_same(place: &Place, found: &str, expected: &str) {
        let (found, expected) = (rows(place, found), rows(place, expected));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found["step"], &found["tokens"]), (&expected["step"], &expected["tokens"]));
            for key in ["loss", "cross_entropy", "grad_norm", "heldout_cross_entropy"] {
                let (a, b) = (found[key].as_f64(), expected[key].as_f64());
                let (Some(a), Some(b)) = (a, b) else {
                    assert_eq!(a, b);
                    continue;
                };
                assert!((a - b).abs() <= 1e-6 * b, "step {}, {key}: {a} and {b}", found["step"]);
            }
        }
    }

    /// Rows of a run without the fields that depend on the clock.
    fn bits(place: &Place, run: &str) -> Vec<String> {
        let strip = |mut row: Value| {
            row.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "tokens_per_second");
            row.to_string()
        };
        rows(place, run).into_iter().map(strip).collect()
    }

    #[test]
    fn two_ranks_have_the_losses_of_one_process_with_two_micro_batches() {
        let place = place(12);
        place.retie("uptrain run.yaml --set run.dir=alone").ok();
        let uptrain = "-n 2 retie uptrain run.yaml --set run.dir";
        let out = run(&place, &format!("{uptrain}=two --json")).ok();
        let json: Value = serde_json::from_str(&out).expect("one rank writes");
        assert_eq!((json["outcome"].as_str(), json["last"]["step"].as_u64()), (Some("finished"), Some(12)));
        run(&place, &format!("{uptrain}=again")).ok();
        run(&place, &format!("{uptrain}=divided --set train.shard_optimizer=true")).ok();
        assert_same(&place, "two", "alone");
        assert_same(&place, "divided", "alone");
        assert_eq!(bits(&place, "two"), bits(&place, "again"));
        let model = |run: &str| fs_err::read(place.path(run).join("model/model.safetensors")).unwrap();
        assert!(model("two") == model("again"));
        place.retie("eval two/model --tasks perplexity --text text/heldout.jsonl --limit 2 --window 64").ok();
    }

    #[test]
    fn stages_on_two_ranks_are_those_of_one_process() {
        let place = place(5);
        place.write("run.yaml", place.read("run.yaml") + STAGES);
        place.retie("uptrain run.yaml --set run.dir=alone").ok();
        let uptrain = "-n 2 retie uptrain run.yaml --set run.dir=two";
        run(&place, uptrain).ok();
        let same = || {
            assert_same(&place, "two/warm", "alone/warm");
            assert_same(&place, "two/whole", "alone/whole");
        };
        same();
        // The finished stage is skipped, and only one rank reports it.
        fs_err::remove_dir_all(place.path("two/whole")).unwrap();
        let resumed = run(&place, &format!("{uptrain} --resume"));
        assert_eq!(resumed.stderr.matches("stage warm is done: two/warm/model").count(), 1, "{resumed:?}");
        resumed.ok();
        same();
    }

    #[test]
    fn a_killed_rank_ends_the_job_and_the_run_resumes_with_another_number_of_ranks() {
        let place = place(60);
        place.retie("uptrain run.yaml --set run.dir=alone").ok();
        let child = start(&place, "-n 2 retie uptrain run.yaml --set train.shard_optimizer=true");
        wait::for_path(&place.path("run/ckpt/step-8"));
        let ranks = wait::children(child.id());
        assert_eq!(ranks.len(), 2);
        wait::signal("-KILL", ranks[1]);
        let killed = place.run(child.wait_with_output().unwrap());
        assert!(killed.code != Some(0) && killed.stderr.contains("rank 1"), "{killed:?}");
        assert!(rows(&place, "run").len() < 60);
        let resumed = place.retie("uptrain run.yaml --resume");
        assert!(resumed.stderr.contains("resumed after step"), "{resumed:?}");
        resumed.ok();
        assert_same(&place, "run", "alone");
    }

    #[test]
    fn a_signal_to_all_ranks_or_to_one_stops_all_after_the_same_step() {
        let place = place(100_000);
        for (signal, all) in [("-USR1", true), ("-TERM", false)] {
            let before = place.path("run/ckpt").exists();
            let child = start(&place, "-n 2 retie uptrain run.yaml --resume");
            if before {
                wait::for_rows(&place.path("run/metrics.jsonl"));
            } else {
                wait::for_path(&place.path("run/ckpt/step-4"));
            }
            // A signal to the last rank alone must stop all ranks too.
            wait::signal(signal, if all { child.id() } else { wait::children(child.id())[1] });
            let stopped = place.run(child.wait_with_output().unwrap());
            assert_eq!(stopped.code, Some(130), "{stopped:?}");
            let last = rows(&place, "run").len();
            assert!(place.path(&format!("run/ckpt/step-{last}")).is_dir());
            let text = format!("interrupted after step {last} of 100000");
            assert_eq!(stopped.stderr.matches(&text).count(), 1, "{stopped:?}");
        }
        let limited = run(&place, "-n 2 retie uptrain run.yaml --resume --time-limit 2s");
        assert_eq!(limited.code, Some(130), "{limited:?}");
    }

    #[test]
    fn an_error_on_a_rank_ends_the_job_and_names_the_rank() {
        let place = place(100_000);
        let refused = |line: &str, reasons: &[&str]| {
            let before = place.listing();
            let run = run(&place, line);
            assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:?}");
            for reason in reasons {
                assert_eq!(run.stderr.matches(reason).count(), 1, "{reason}: {run:?}");
            }
            assert_eq!(place.listing(), before, "something was written");
        };
        // An error on all ranks: rank 0 reports it.
        let uneven = "`train.gradient_accumulation` is `2`, expected a multiple of the 3 ranks";
        refused("-n 3 retie uptrain run.yaml", &["error: rank 0 of 3 ends the job", uneven]);
        refused("-n 3 retie uptrain run.yaml --dry-run", &[uneven]);
        refused("-n 2 retie uptrain nothing.yaml", &["error: rank 0 of 2 ends the job", "nothing.yaml"]);
        // An error on one rank.
        let one = "-n 1 retie uptrain run.yaml : -n 1 retie uptrain nothing.yaml";
        refused(one, &["error: rank 1 of 2 ends the job", "nothing.yaml"]);
        refused("-n 2 retie inspect base", &["`retie inspect` is for one"]);
        // A launcher that MPI does not know of.
        let mut command = place.command();
        command.args(["uptrain", "run.yaml"]).env("SLURM_STEP_NUM_TASKS", "2").env("SLURM_PROCID", "0");
        let run = place.run(command.output().unwrap());
        assert_eq!(run.code, Some(2), "{run:?}");
        let text = "2 processes were started (`SLURM_STEP_NUM_TASKS`), but MPI connects 1\nhint: ";
        assert!(run.stderr.contains(text), "{run:?}");
    }

    #[test]
    fn a_dry_run_counts_the_ranks() {
        let place = place(4);
        let plan = |ranks: usize, more: &str| -> Value {
            let out = run(&place, &format!("-n {ranks} retie uptrain run.yaml --dry-run --json {more}")).ok();
            serde_json::from_str::<Value>(&out).unwrap()["plan"].clone()
        };
        let (one, two, divided) = (plan(1, ""), plan(2, ""), plan(2, "--set train.shard_optimizer=true"));
        assert_eq!((&one["ranks"], &two["ranks"], &divided["ranks"]), (&1.into(), &2.into(), &2.into()));
        let bytes = |plan: &Value| plan["student_bytes"].as_u64().unwrap();
        // Weights, gradients and two moments: halving the moments saves one part of four.
        assert_eq!((bytes(&one), bytes(&divided)), (bytes(&two), bytes(&two) / 4 * 3));
    }

    /// Asserts that two reports are the same, up to the order of f32 sums.
    #[track_caller]
    fn assert_near(found: &Value, expected: &Value) {
        match (found, expected) {
            (Value::Object(a), Value::Object(b)) => {
                assert!(a.keys().eq(b.keys()), "{a:?} and {b:?}");
                a.values().zip(b.values()).for_each(|(a, b)| assert_near(a, b));
            }
            (Value::Array(a), Value::Array(b)) => {
                assert_eq!(a.len(), b.len());
                a.iter().zip(b).for_each(|(a, b)| assert_near(a, b));
            }
            (Value::Number(a), Value::Number(b)) => {
                let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                // Batches of other sizes change a log-probability by the rounding of its logits,
                // about 1e-6.
                assert!((a - b).abs() <= 1e-5 * b.abs(), "{a} and {b}");
            }
            _ => assert_eq!(found, expected),
        }
    }

    #[test]
    fn an_evaluation_on_several_ranks_equals_that_of_one_process() {
        let place = place(4);
        place.retie("route converted --kind expert_choice --network random -o routed").ok();
        let text = "--tasks perplexity --text text/heldout.jsonl --window 64 --batch-size 2";
        for eval in
            [format!("converted {text} --limit 7 --teacher base"), format!("routed {text} --limit 2 --router-report")]
        {
            place.retie(&format!("eval {eval} -o alone.json")).ok();
            let json = |file: &str| serde_json::from_str::<Value>(&place.read(file)).unwrap();
            for world in [2, 3] {
                let ranks = run(&place, &format!("-n {world} retie eval {eval} -o ranks.json"));
                assert_eq!(ranks.stderr.matches("wrote").count(), 1, "{ranks:?}");
                ranks.ok();
                assert_near(&json("ranks.json"), &json("alone.json"));
            }
        }
    }

    #[test]
    fn a_logits_cache_of_several_ranks_equals_that_of_one_process() {
        let place = place(4);
        let lines = place.read("text/train.jsonl");
        place.write("small.jsonl", lines.lines().take(8).collect::<Vec<_>>().join("\n") + "\n");
        let keep = |to: &str| {
            format!(
                "retie cache-logits --teacher base --data small.jsonl --sequence-length 32 --top-k 8 -o {to} --json"
            )
        };
        place.retie(keep("alone").trim_start_matches("retie ")).ok();
        let out = run(&place, &format!("-n 2 {}", keep("ranks"))).ok();
        let json: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(json["shards"], 1);
        for file in ["logits.json", "shard-00000.logits"] {
            let read = |dir: &str| fs_err::read(place.path(dir).join(file)).unwrap();
            assert!(read("alone") == read("ranks"), "{file}");
        }
    }
}

/// Waiting for processes, and signals to them.
mod wait {
    use std::{
        path::Path,
        process::Command,
        thread::sleep,
        time::{Duration, Instant},
    };

    fn until(what: &str, mut ready: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !ready() {
            assert!(begin.elapsed() < Duration::from_secs(120), "{what} does not come");
            sleep(Duration::from_millis(5));
        }
    }

    pub fn for_path(path: &Path) {
        until(&path.display().to_string(), || path.exists());
    }

    /// Waits until a file has grown.
    #[cfg(feature = "mpi")]
    pub fn for_rows(path: &Path) {
        let len = || fs_err::metadata(path).unwrap().len();
        let before = len();
        until("a row", || len() > before);
    }

    /// Process ids of the children of `parent`, ascending: the order in which they were started.
    pub fn children(parent: u32) -> Vec<u32> {
        let found = Command::new("ps").args(["-o", "pid=", "--ppid", &parent.to_string()]).output().unwrap().stdout;
        let mut found: Vec<u32> =
            String::from_utf8(found).unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        found.sort_unstable();
        found
    }

    pub fn signal(name: &str, process: u32) {
        assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
    }
}
