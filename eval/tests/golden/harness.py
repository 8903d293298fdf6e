"""Makes `harness.json` and the `*.parquet` files: what lm-evaluation-harness makes of rows in the Hub's schemas.

    python harness.py          (lm_eval 0.4.13, datasets, numpy)

The harness's own task definitions read invented rows, and its own evaluator runs over a model that is a formula, so that
prompts, tokens, log-likelihoods and metrics can be compared without weights. `src/testing.rs` holds the same formula.
"""
import json
import os
import pathlib
import re
import tempfile

os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["DISABLE_MULTIPROC"] = "1"

import datasets
import lm_eval
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

HERE = pathlib.Path(__file__).parent
TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"
PREFIX = 7  # the token before an empty context


def encode(text):
    """Pieces: an optional space with what follows up to the next whitespace, or one whitespace character. Id: FNV-1a."""
    ids = []
    for piece in re.findall(r" ?\S+|\s", text):
        h = 0x811C9DC5
        for byte in piece.encode():
            h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
        ids.append(h % 50021)
    return ids


def log_prob(index, previous, token):
    """Of `token` at `index` after `previous`, and whether it is the likeliest."""
    x = (token * 31 + previous * 17 + index * 7) % 1009
    return -(x + 1) / 100, x % 4 != 0


class Formula(TemplateLM):
    backend = "causal"
    eot_token_id = PREFIX
    tokenizer_name = "formula"

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return encode(string)

    def _loglikelihood_tokens(self, requests, **kwargs):
        out = []
        for _, context, continuation in requests:
            assert context and continuation
            ids = context + continuation
            scores = [log_prob(i, ids[i - 1], ids[i]) for i in range(len(context), len(ids))]
            out.append((sum(s for s, _ in scores), all(g for _, g in scores)))
        return out

    def loglikelihood_rolling(self, requests, **kwargs):
        raise NotImplementedError

    def generate_until(self, requests, **kwargs):
        raise NotImplementedError


string = datasets.Value("string")
choices = {"text": datasets.Sequence(string), "label": datasets.Sequence(string)}

ROWS = {
    "lambada_openai": (
        "lambada/lambada_openai.yaml",
        {"text": string},
        [
            {"text": "The ferry left at noon, and Ada waved from the quay until she could no longer see the ferry"},
            {"text": "\"Where is it?\" he asked.\n\n\"In the box,\" said Tom,  and opened the box"},
            {"text": "One"},
            {"text": "Trailing space after the last word "},
            {"text": "A tab\tand a line\nbreak before the last\nword"},
            {"text": "Naïve café: ein Stück Käse, bitte, sagte sie, und nahm den Käse"},
        ],
    ),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        {"ind": datasets.Value("int32"), "activity_label": string, "ctx_a": string, "ctx_b": string, "ctx": string,
         "endings": datasets.Sequence(string), "source_id": string, "split": string, "split_type": string, "label": string},
        [
            {"ind": 1, "activity_label": "Baking", "ctx_a": "[header] How to bake [title] Warm the oven. [step] Set it to 200.",
             "ctx_b": "", "ctx": "", "source_id": "wikihow~1", "split": "val", "split_type": "indomain", "label": "2",
             "endings": ["Wait  twice.", " [substeps] Wait.", "[title] Bake it. [step] Take it out. ", "Eat [now\nor] later."]},
            {"ind": 2, "activity_label": "Rowing", "ctx_a": "Two people sit in a boat.", "ctx_b": "the TALLER one", "ctx": "",
             "source_id": "anet~2", "split": "val", "split_type": "zeroshot", "label": "0",
             "endings": ["rows.", "sleeps [for] a while.", "throws the oars away", "sings   loudly."]},
            {"ind": 3, "activity_label": " Lecture ", "ctx_a": "A room.", "ctx_b": "ßtraße IN ΟΔΟΣ", "ctx": "",
             "source_id": "anet~3", "split": "val", "split_type": "zeroshot", "label": "3",
             "endings": ["a", "[x]b", "c]d", "[e"]},
            {"ind": 4, "activity_label": "Signs", "ctx_a": "", "ctx_b": "ǆungla éTUDE", "ctx": "",
             "source_id": "anet~4", "split": "val", "split_type": "zeroshot", "label": "1",
             "endings": ["one [title] two", "three", "four", "five"]},
        ],
    ),
    "piqa": (
        "piqa/piqa.yaml",
        {"goal": string, "sol1": string, "sol2": string, "label": datasets.ClassLabel(names=["0", "1"])},
        [
            {"goal": "How do I dry a wet book?", "sol1": "Put it in the oven.", "sol2": "Stand it open in moving air.", "label": 1},
            {"goal": "To cut {a} cake ", "sol1": " use a thread", "sol2": "use a spoon, or two,", "label": 0},
            {"goal": "Ways to open a jar:", "sol1": "tap the lid", "sol2": "tap the läd", "label": 0},
        ],
    ),
    "winogrande": (
        "winogrande/default.yaml",
        {"sentence": string, "option1": string, "option2": string, "answer": string},
        [
            {"sentence": "The cup did not fit in the box because the _ was too large.", "option1": "cup", "option2": "box", "answer": "1"},
            {"sentence": "_ asked Lea for help, as she was new.", "option1": "Ines", "option2": "Lea", "answer": "2"},
            {"sentence": "Ben paid Tom more than _  ", "option1": "Max", "option2": "Kim _", "answer": "2"},
            {"sentence": "He gave the _-shaped key a turn_.", "option1": "heart ", "option2": "star", "answer": "1"},
        ],
    ),
    "arc_easy": (
        "arc/arc_easy.yaml",
        {"id": string, "question": string, "choices": choices, "answerKey": string},
        [
            {"id": "X_1", "question": "Which of these melts in warm water?", "answerKey": "C",
             "choices": {"text": ["iron", "glass", "ice", "granite"], "label": ["A", "B", "C", "D"]}},
            {"id": "X_2", "question": "Which planet is nearest to the Sun?", "answerKey": "1",
             "choices": {"text": ["Mercury", "Venus", "Earth"], "label": ["1", "2", "3"]}},
        ],
    ),
    "arc_challenge": (
        "arc/arc_challenge.yaml",
        {"id": string, "question": string, "choices": choices, "answerKey": string},
        [
            {"id": "Y_1", "question": "Why do leaves look green?\nChoose one.", "answerKey": "E",
             "choices": {"text": ["a", "they reflect green light", "they are warm", "  water", "they absorb green light"],
                         "label": ["A", "B", "C", "D", "E"]}},
        ],
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        {"id": string, "question_stem": string, "choices": choices, "answerKey": string},
        [
            {"id": "7-1", "question_stem": "A plant in a dark cellar will", "answerKey": "B",
             "choices": {"text": ["grow faster", "turn pale", "bloom", "sing"], "label": ["A", "B", "C", "D"]}},
            {"id": "7-2", "question_stem": "Ice floats on ", "answerKey": " A",
             "choices": {"text": ["water", "air", "nothing", "itself"], "label": ["A", "B", "C", "D"]}},
        ],
    ),
}

golden = {}
with tempfile.TemporaryDirectory() as scratch:
    for name, (path, features, rows) in ROWS.items():
        dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        dataset.to_parquet(HERE / f"{name}.parquet")
        config = load_yaml(TASKS / path, resolve_func=True)
        split = config.get("test_split") or config["validation_split"]
        for key in ["training_split", "validation_split", "test_split", "tag"]:
            config.pop(key, None)
        config |= {"task": name, "dataset_path": "parquet", "dataset_name": None, "test_split": split,
                   "dataset_kwargs": {"data_files": {split: str(HERE / f"{name}.parquet")}, "cache_dir": scratch}}
        task = ConfigurableTask(config=config)
        out = lm_eval.simple_evaluate(model=Formula(), tasks=[task], bootstrap_iters=2, log_samples=True)
        metrics = {k.removesuffix(",none"): v for k, v in out["results"][name].items() if k.endswith(",none")}
        metrics.pop("perplexity_stderr", None)  # a bootstrap
        examples = []
        for sample in sorted(out["samples"][name], key=lambda s: s["doc_id"]):
            target = sample["target"]
            examples.append({
                "contexts": [a[0] for a in sample["arguments"]],
                "continuations": [a[1] for a in sample["arguments"]],
                "loglikelihoods": [r[0][0] for r in sample["resps"]],
            })
        golden[name] = {"rows": rows, "examples": examples, "metrics": metrics}

pairs = [("The  cat ", "sat"), ("end\n\n", " of it"), ("", "on its own"), ("a\u00a0", " b"), ("a\u001f ", "b"), ("x", "yz w")]
model = Formula()
golden["pairs"] = []
for context, continuation in pairs:
    if context:
        ids = model._encode_pair(context, continuation)
    else:
        ids = ([PREFIX], encode(continuation))
    golden["pairs"].append({"context": context, "continuation": continuation, "context_ids": ids[0], "continuation_ids": ids[1]})
texts = ["one two", " one  two\n", "", "a\u00a0b\u001cc\u2003d"]
golden["word_counts"] = [[t, len(re.split(r"\s+", t))] for t in texts]
(HERE / "harness.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
