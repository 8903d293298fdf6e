#!/usr/bin/env python3
"""Log-likelihoods of the demo's model three times: through a server, by `retie eval`, and in f64 by numpy alone.

    RETIE=target/release/retie scripts/judge-loglikelihoods.py        needs numpy

80 continuations of held-out text; the server gets them as lm-evaluation-harness sends them (`echo`, `logprobs`, four
sequences a request), and one by one. Prints the largest and the root mean square difference of each pair.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import urllib.request

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "cli/assets/demo-model"
RETIE = os.environ.get("RETIE", str(ROOT / "target/release/retie"))


def examples():
    """Contexts with two continuations each, which `scripts/test-clients --more` takes too."""
    rows = []
    for line in open(ROOT / "cli/assets/demo-text/heldout.jsonl", encoding="utf-8"):
        sentences = json.loads(line)["text"].replace("\n", " ").split(". ")
        for context, first, second in zip(sentences[::3], sentences[1::3], sentences[2::3]):
            if 20 < len(context) < 300 and min(len(first), len(second)) > 20:
                rows.append((context + ".", [" " + first[:80].strip(), " " + second[:80].strip()]))
    return rows[:40]


def evaluated(rows, folder):
    task = [{"contexts": [context] * 2, "continuations": texts, "gold": 0} for context, texts in rows]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task), encoding="utf-8")
    command = [RETIE, "eval", MODEL, "--tasks", "piqa", "--data", folder, "--device", "cpu", "--log-samples", folder / "out"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return [value for line in open(folder / "out", encoding="utf-8") for value in json.loads(line)["loglikelihoods"]]


def served(rows):
    """Token ids with the length of their context, and log-likelihoods in requests of four and of one."""
    command = [RETIE, "serve", str(MODEL), "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = re.search(r"at (http[^ ]*): ", server.stderr.readline())[1]

    def post(path, body):
        request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def tokens(text):
        return post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    def scores(some):
        prompts = [ids for ids, _ in some]
        body = {"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
        choices = sorted(post("/v1/completions", body)["choices"], key=lambda choice: choice["index"])
        return [sum(choice["logprobs"]["token_logprobs"][start:-1]) for choice, (_, start) in zip(choices, some)]

    sequences = [(tokens(context + text), len(tokens(context))) for context, texts in rows for text in texts]
    found = [[value for i in range(0, len(sequences), n) for value in scores(sequences[i : i + n])] for n in (4, 1)]
    server.terminate()
    return sequences, found


def exact(sequences):
    """The same by a Llama in f64, with the angles of the rotary embedding in f32 as `transformers` has them."""
    data = (MODEL / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    head, data = json.loads(data[8 : 8 + length]), data[8 + length :]
    config = json.loads((MODEL / "config.json").read_text())

    def tensor(entry):
        values = data[slice(*entry["data_offsets"])]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(values, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(values, {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
        return values.reshape(entry["shape"]).astype(np.float64)

    weights = {name: tensor(entry) for name, entry in head.items() if name != "__metadata__"}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    powers = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = np.float32(1) / np.float32(config.get("rope_theta", 10000.0)) ** powers

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name + ".weight"]

    def log_probs(ids):
        x, count = weights["model.embed_tokens.weight"][ids], len(ids)
        angles = (np.arange(count, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
        cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
        mask = np.triu(np.full((count, count), -np.inf), 1)
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."

            def linear(x, name):
                return x @ weights[f"{at}{name}_proj.weight"].T

            def rotated(x):
                return x * cos + np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin

            h = norm(x, at + "input_layernorm")
            q, k, v = (linear(h, f"self_attn.{name}").reshape(count, -1, size) for name in "qkv")
            k, v = (np.repeat(x, heads // groups, 1) for x in (rotated(k), v))
            scores = np.einsum("inh,jnh->nij", rotated(q), k) / np.sqrt(size) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("nij,jnh->inh", scores / scores.sum(-1, keepdims=True), v)
            x = x + linear(mixed.reshape(count, -1), "self_attn.o")
            h = norm(x, at + "post_attention_layernorm")
            gate = linear(h, "mlp.gate")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, "mlp.up"), "mlp.down")
        table = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        logits = norm(x, "model.norm") @ table.T
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def score(ids, start):
        found = log_probs(np.array(ids))
        return sum(found[i - 1, ids[i]] for i in range(start, len(ids)))

    return [score(ids, start) for ids, start in sequences]


def main():
    rows = examples()
    with tempfile.TemporaryDirectory() as folder:
        found = {"retie eval": evaluated(rows, pathlib.Path(folder))}
    sequences, (found["server, by four"], found["server, by one"]) = served(rows)
    found["f64"] = exact(sequences)
    tokens = np.mean([len(ids) - start for ids, start in sequences])
    print(f"{len(sequences)} log-likelihoods, {np.mean(found['f64']):.1f} nats over {tokens:.1f} tokens in the mean")
    names = list(found)
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            off = np.array(found[a]) - np.array(found[b])
            print(f"{a:16} {b:16} max {np.abs(off).max():.1e}  rms {np.sqrt((off * off).mean()):.1e}")


if __name__ == "__main__":
    main()
