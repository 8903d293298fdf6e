"""Checks a served demo model with `llm`, `langchain-openai` and lm-evaluation-harness (made with llm 0.36,
langchain-openai 1.7.4, lm-eval 0.4.13). `scripts/test-clients --more` starts the server and runs this:

    test-clients-more.py BASE_URL RETIE MODEL FOLDER

The harness has its tokenizer from the server. Its log-likelihoods are compared with those of `RETIE eval MODEL` on the
same contexts and continuations, which come from the demo's held-out text. FOLDER takes files.
"""

import json
import os
import pathlib
import subprocess
import sys

base_url, retie, model, folder = sys.argv[1:]
folder = pathlib.Path(folder)
binaries = pathlib.Path(sys.executable).parent
QUESTION = "Who founded the colony?"
EXAMPLES = 40


def check(name):
    print(f"ok: {name}")


def run(*command, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


generated = json.loads(
    run(retie, "generate", model, "--chat", "--prompt", QUESTION, "--max-new-tokens", 12, "--device", "cpu", "--json")
)["text"]

from langchain_openai import ChatOpenAI  # noqa: E402

chat = ChatOpenAI(model="demo", base_url=base_url, api_key="none", temperature=0, max_tokens=12)
assert chat.invoke(QUESTION).content == generated
assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == generated
check("langchain-openai: an answer and a stream")

(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: demo\n  model_name: demo\n  api_base: {base_url}\n", encoding="utf-8"
)
said = run(
    binaries / "llm", "-m", "demo", QUESTION, "-o", "temperature", 0, "-o", "max_tokens", 12, "--no-log",
    LLM_USER_PATH=str(folder), OPENAI_API_KEY="none",
)  # fmt: skip
assert said.strip() == generated.strip(), (said, generated)
check("llm: an answer")

rows = []
for line in open("cli/assets/demo-text/heldout.jsonl", encoding="utf-8"):
    sentences = json.loads(line)["text"].replace("\n", " ").split(". ")
    for context, first, second in zip(sentences[::3], sentences[1::3], sentences[2::3]):
        if 20 < len(context) < 300 and min(len(first), len(second)) > 20:
            rows.append((context + ".", [first[:80].strip(), second[:80].strip()]))
rows = rows[:EXAMPLES]
assert len(rows) == EXAMPLES


def write(name, objects):
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in objects), encoding="utf-8")


write("rows.jsonl", ({"context": context, "choices": choices, "gold": 0} for context, choices in rows))
# A task of `retie` with rows of one's own.
write(
    "piqa.jsonl",
    ({"contexts": [context] * 2, "continuations": [f" {text}" for text in choices], "gold": 0} for context, choices in rows),
)
(folder / "demo.yaml").write_text(
    f"""task: demo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
""",
    encoding="utf-8",
)
arguments = f"model=demo,base_url={base_url}/completions,tokenizer_backend=remote,num_concurrent=4,max_length=256"
run(
    binaries / "lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "demo",
    "--include_path", folder, "--batch_size", 4, "--log_samples", "--output_path", folder / "out",
    HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hub"),
)  # fmt: skip
run(retie, "eval", model, "--tasks", "piqa", "--data", folder, "--device", "cpu", "--log-samples", "samples.jsonl")
ours = [json.loads(line)["loglikelihoods"] for line in open(folder / "samples.jsonl", encoding="utf-8")]
(samples,) = (folder / "out").rglob("samples_demo_*.jsonl")
theirs = {}
for line in open(samples, encoding="utf-8"):
    sample = json.loads(line)
    theirs[sample["doc_id"]] = [float(response[0][0]) for response in sample["resps"]]
assert len(ours) == len(theirs) == EXAMPLES
differences = [abs(a - b) for index, row in enumerate(ours) for a, b in zip(row, theirs[index], strict=True)]
# Sums of about 20 log-probabilities in f32: each differs by the rounding of products in batches of other sizes.
assert max(differences) < 5e-5, max(differences)
best = [row.index(max(row)) for row in ours]
assert best == [theirs[index].index(max(theirs[index])) for index in range(EXAMPLES)]
check(f"lm-eval: {len(differences)} log-likelihoods are those of `retie eval` within {max(differences):.1e}, choices equal")
