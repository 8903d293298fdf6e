#!/usr/bin/env python3
"""Makes `smollm2.safetensors`: what `transformers` computes for SmolLM2-135M-Instruct, in brief.

    python make_smollm2.py LOGITS       # writes beside itself; numpy, safetensors

LOGITS has, for each of three prompts, `f32.prompt{i}.ids` [T], `.logits` [T, V], `.hidden{k}` [T, D] (0: embeddings,
k: after layer k, 30: after the final norm) and `.greedy16` [16]; `prompts` in its metadata. `transformers` 5.23 made it
in f32 from the weights of `SmolLM2-135M-Instruct.Q4_1.gguf`, dequantised exactly (`scripts/fetch-smollm2` gets that
file); llama.cpp in f32 agrees to 0.004. It has 14.6 MB; kept of each prompt, under `golden.prompt{i}.`:

* `ids` [T], `greedy16` [16]
* `top_ids`, `top_logits` [T, 8]: the largest logits of each position, in falling order
* `log_sum_exp` [T]: of all logits, in f64
* `target_log_probs` [T-1]: log-probability of the next token of the prompt, in f64
* `hidden0` [T, D]: the embeddings
* `hidden{1,15,30}` [8]: the first elements of the last position, and `rms` [3], the root mean square of all of them
"""

import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

OUT = Path(__file__).parent / "smollm2.safetensors"
LIMIT = 200_000  # bytes
TOP = 8
FIRST = 8
LAYERS = (1, 15, 30)


def excerpt(read):
    logits = read("logits")
    order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1, keepdims=True)
    log_sum_exp = np.log(np.exp(wide - largest).sum(axis=1)) + largest[:, 0]
    ids = read("ids")
    targets = wide[np.arange(len(ids) - 1), ids[1:]] - log_sum_exp[:-1]
    last = {k: read(f"hidden{k}")[-1] for k in LAYERS}
    rms = [np.sqrt(np.mean(last[k].astype(np.float64) ** 2)) for k in LAYERS]
    return {
        "ids": ids,
        "greedy16": read("greedy16"),
        "top_ids": order.astype(np.int64),
        "top_logits": np.take_along_axis(logits, order, axis=1),
        "log_sum_exp": log_sum_exp.astype(np.float32),
        "target_log_probs": targets.astype(np.float32),
        "hidden0": read("hidden0"),
        **{f"hidden{k}": last[k][:FIRST] for k in LAYERS},
        "rms": np.array(rms, dtype=np.float32),
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tensors = {}
    with safe_open(sys.argv[1], "np") as logits:
        prompts = logits.metadata()["prompts"]
        for i in range(3):
            kept = excerpt(lambda name, i=i: logits.get_tensor(f"f32.prompt{i}.{name}"))
            tensors |= {f"golden.prompt{i}.{name}": np.ascontiguousarray(x) for name, x in kept.items()}
    save_file(tensors, OUT, metadata={"prompts": prompts})
    OUT.chmod(0o644)
    size = OUT.stat().st_size
    assert size < LIMIT, f"{OUT.name}: {size} bytes"
    print(f"{OUT.name}: {size} bytes, {len(tensors)} tensors")


if __name__ == "__main__":
    main()
