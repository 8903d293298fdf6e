#!/usr/bin/env python3
"""The judge: lm-evaluation-harness with `transformers` on the CPU in f32, over rows that hold the prompts already.

    python scripts/judge-eval.py MODEL --data DIR --tasks piqa,winogrande --limit 40 --out DIR

Needs lm-eval (made with 0.4.13), transformers, torch. MODEL is a Hugging Face folder. `DIR/TASK.jsonl` has the rows
`{"id", "contexts": [k], "continuations": [k], "gold"}` that `retie eval --data` reads too. Requests, tokenisation, batching and
scores are the harness's own: each task becomes one of its configured tasks.

Writes `TASK.jsonl` under `--out`, a row an example `{"task", "id", "gold", "loglikelihoods": [k]}` (the form of
`retie eval --log-samples`), and `results.json` with the harness's metrics. Greedy accuracy for LAMBADA.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from lm_eval import evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
ACC_NORM = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}


def choices(row):
    """Continuations without the space that the harness puts before them; `acc_norm` counts these characters."""
    assert all(c.startswith(" ") and not c.startswith("  ") for c in row["continuations"]), row
    return [c[1:] for c in row["continuations"]]


def form(row):
    """Harness configuration of this row's task."""
    if len(row["contexts"]) == 1:
        return {
            "output_type": "loglikelihood", "doc_to_text": lambda d: d["contexts"][0],
            "doc_to_target": lambda d: d["continuations"][0], "metric_list": [ACC, PERPLEXITY],
        }
    if len(set(row["contexts"])) > 1:  # WinoGrande: the context varies, and only acc is reported
        return {
            "output_type": "multiple_choice", "doc_to_text": lambda d: d["gold"], "doc_to_choice": lambda d: d["contexts"],
            "doc_to_target": lambda d: choices(d)[0], "metric_list": [ACC],
        }
    return {
        "output_type": "multiple_choice", "doc_to_text": lambda d: d["contexts"][0], "doc_to_choice": choices,
        "doc_to_target": lambda d: d["gold"], "metric_list": [ACC, ACC_NORM],
    }


def local_task(name, rows):
    dataset = DatasetDict({"test": Dataset.from_list(rows)})
    config = {"task": name, "test_split": "test", "num_fewshot": 0, "target_delimiter": " "} | form(rows[0])
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: dataset})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", required=True, help="comma-separated")
    parser.add_argument("--limit", type=int, help="examples a task; all by default")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = HFLM(pretrained=str(args.model), trust_remote_code=True, device="cpu", dtype="float32", batch_size=args.batch_size)
    args.out.mkdir(parents=True, exist_ok=True)
    summary = {}
    for name in args.tasks.split(","):
        with open(args.data / f"{name}.jsonl", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()][: args.limit]
        start = time.time()
        output = evaluate(model, {name: local_task(name, rows)}, bootstrap_iters=100, log_samples=True)
        samples = sorted(output["samples"][name], key=lambda s: s["doc_id"])
        with open(args.out / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row, sample in zip(rows, samples, strict=True):
                assert sample["doc"]["id"] == row["id"], "the harness changed the order"
                # resps: for each request the list of its repeats, each (log-likelihood, is greedy).
                scores = [float(r[0][0]) for r in sample["resps"]]
                file.write(json.dumps({"task": name, "id": row["id"], "gold": row["gold"], "loglikelihoods": scores}) + "\n")
        metrics = {k.split(",")[0]: v for k, v in output["results"][name].items() if isinstance(v, float)}
        summary[name] = metrics | {"examples": len(rows), "seconds": round(time.time() - start, 1)}
        (args.out / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(summary[name]), flush=True)


if __name__ == "__main__":
    main()
