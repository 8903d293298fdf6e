#!/usr/bin/env python3
"""Trains the small Llama that `retie demo` bundles, with its tokenizer and its texts.

    python scripts/make-demo-model.py --text openstax_train.jsonl --out cli/assets

Needs torch, transformers, tokenizers, safetensors (made with torch 2.15, transformers 5.23, 4.5 M tokens on one CPU thread:
44 minutes on a busy machine).
`--text` has one row `{"text", "source"}` a module of an OpenStax book, CC BY 4.0. Writes under `--out`:

    demo-model/{config.json,model.safetensors,tokenizer.json}   bf16 weights, tied embeddings
    demo-text/train.jsonl      text for the demo's uptraining; part of what the model was trained on
    demo-text/heldout.jsonl    modules that the model never saw
    NOTICE.md                  attribution

Prose only: paragraphs are kept, headings, lists and tables are not. Everything is seeded; on the same machine and versions a
second run gives the same weights.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

TITLES = {
    "osbooks-us-history": "*U.S. History*, P. Scott Corbett, Volker Janssen, John M. Lund, Todd Pfannestiel, Paul Vickery, "
    "Sylvie Waskiewicz, <https://openstax.org/details/books/us-history>",
    "osbooks-world-history": "*World History*, volumes 1 and 2, Ann Kordas, Ryan J. Lynch, Brooke Nelson, Julie Tatlock, "
    "<https://openstax.org/details/books/world-history-volume-1>",
}
EOS = "<|endoftext|>"
HELDOUT_EVERY = 20  # modules
TRAIN_BYTES, HELDOUT_BYTES = 450_000, 60_000  # of the demo's own texts
VOCAB, SEQ = 2048, 256

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 128,
    "intermediate_size": 352, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
    "max_position_embeddings": SEQ, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16",
}

NOTICE = """# Notice

`demo-text/` is taken from, and the model in `demo-model/` was trained on, these OpenStax textbooks:

{titles}

© Rice University, OpenStax. Licensed under the Creative Commons Attribution 4.0 International licence,
<https://creativecommons.org/licenses/by/4.0/>. Access for free at <https://openstax.org>.

Changes: plain text was extracted from the modules; headings, lists, tables, figures and short paragraphs were left out. Each row
names its source repository, commit and module in `source`. OpenStax does not endorse this project.
`scripts/make-demo-model.py` made all of it.
"""


def prose(text):
    """Paragraphs of running text: long enough, not a list item, ending as a sentence does."""
    keep = [p.strip() for p in text.split("\n\n")]
    keep = [p for p in keep if len(p) >= 120 and "\n" not in p and not p.startswith("- ") and re.search(r"[.?!)”\"]$", p)]
    return "\n\n".join(keep)


def modules(path):
    """Rows of the chosen titles, as (training, held out)."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["source"].split("/")[1].split("@")[0] in TITLES and len(text := prose(row["text"])) >= 2000:
                rows.append({"text": text, "source": row["source"]})
    heldout = [r for i, r in enumerate(rows) if i % HELDOUT_EVERY == HELDOUT_EVERY // 2]
    train = [r for i, r in enumerate(rows) if i % HELDOUT_EVERY != HELDOUT_EVERY // 2]
    return train, heldout


def cut(rows, limit, generator):
    """Random whole modules up to `limit` bytes of JSON lines."""
    out, size = [], 0
    for i in torch.randperm(len(rows), generator=generator).tolist():
        line = json.dumps(rows[i], ensure_ascii=False) + "\n"
        if size + len(line.encode()) <= limit:
            out.append(line)
            size += len(line.encode())
    return "".join(out)


def train_tokenizer(rows):
    """SmolLM2's form: digits one by one, then the GPT-2 pattern on bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((r["text"] for r in rows), trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def encode(tokenizer, rows):
    """One stream of ids, each module closed by the end token."""
    eos = tokenizer.token_to_id(EOS)
    return torch.tensor([i for e in tokenizer.encode_batch([r["text"] for r in rows]) for i in [*e.ids, eos]])


class Muon:
    """Momentum, then the nearest semi-orthogonal matrix, for the projections (<https://kellerjordan.github.io/posts/muon/>).

    In so few steps it gets further than AdamW. Matrices of one shape are stacked, and the iteration runs in f32.
    """

    def __init__(self, params, lr, momentum=0.95, decay=0.1):
        self.lr, self.momentum, self.decay = lr, momentum, decay
        shapes = sorted({tuple(p.shape) for p in params})
        self.groups = [[p for p in params if tuple(p.shape) == s] for s in shapes]
        self.buffers = [torch.zeros(len(g), *g[0].shape) for g in self.groups]

    @torch.no_grad()
    def step(self, scale):
        for group, buffer in zip(self.groups, self.buffers):
            grad = torch.stack([p.grad for p in group])
            buffer.lerp_(grad, 1 - self.momentum)
            x = grad.lerp_(buffer, self.momentum)
            tall = x.shape[1] > x.shape[2]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for a, b, c in [(3.4445, -4.7750, 2.0315)] * 4:
                gram = x @ x.mT
                x = a * x + (b * gram + c * gram @ gram) @ x
            x = x.mT if tall else x
            lr = self.lr * scale
            for p, update in zip(group, x):
                p.mul_(1 - lr * self.decay).sub_(update, alpha=lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


@torch.no_grad()
def nll(model, ids):
    """Mean NLL a token over non-overlapping windows, each scored from its second token."""
    model.eval()
    windows = ids[: len(ids) // SEQ * SEQ].view(-1, SEQ)
    losses = [model(input_ids=w, labels=w, use_cache=False).loss.item() * len(w) for w in windows.split(16)]
    model.train()
    return sum(losses) / len(windows)


def schedule(step, steps):
    """Multiplier of the learning rates: short warm-up, then a line to zero over the last 70 %."""
    return min(1.0, (step + 1) / 40, (steps - step) / (0.7 * steps))


def train(model, ids, heldout, args, generator):
    matrices = [p for n, p in model.named_parameters() if "_proj" in n]
    others = [p for n, p in model.named_parameters() if "_proj" not in n]
    muon = Muon(matrices, lr=args.lr)
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    windows = ids[: len(ids) // SEQ * SEQ].view(-1, SEQ)
    order, start = [], time.time()
    for step in range(args.steps):
        if len(order) < args.batch:
            shift = int(torch.randint(SEQ, (1,), generator=generator))
            windows = ids[shift : shift + (len(ids) - shift) // SEQ * SEQ].view(-1, SEQ)
            order = torch.randperm(len(windows), generator=generator).tolist()
        batch = windows[[order.pop() for _ in range(args.batch)]]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        scale = schedule(step, args.steps)
        adam.param_groups[0]["lr"] = args.adam_lr * scale
        adam.step()
        muon.step(scale)
        model.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            held = f" heldout {nll(model, heldout[: 64 * SEQ]):.4f}" if (step + 1) % 250 == 0 else ""
            rate = (step + 1) * args.batch * SEQ / (time.time() - start)
            print(f"step {step + 1}/{args.steps} loss {loss.item():.4f}{held} {rate:.0f} tokens/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=1e-2)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train_rows, heldout_rows = modules(args.text)
    tokenizer = train_tokenizer(train_rows)
    ids, heldout = encode(tokenizer, train_rows), encode(tokenizer, heldout_rows)
    print(f"{len(train_rows)} modules, {len(ids)} tokens; held out {len(heldout_rows)} modules, {len(heldout)} tokens")

    text_dir, model_dir = args.out / "demo-text", args.out / "demo-model"
    text_dir.mkdir(parents=True, exist_ok=True)
    model_dir.mkdir(parents=True, exist_ok=True)
    (text_dir / "train.jsonl").write_text(cut(train_rows, TRAIN_BYTES, generator), encoding="utf-8")
    (text_dir / "heldout.jsonl").write_text(cut(heldout_rows, HELDOUT_BYTES, generator), encoding="utf-8")
    titles = "\n".join(f"- {title}" for title in TITLES.values())
    (args.out / "NOTICE.md").write_text(NOTICE.format(titles=titles), encoding="utf-8")

    model = LlamaForCausalLM._from_config(LlamaConfig(**CONFIG), dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.mul_(1 / math.sqrt(2 * CONFIG["num_hidden_layers"]))
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    train(model, ids, heldout, args, generator)

    model = model.to(torch.bfloat16)
    model.save_pretrained(model_dir)
    (model_dir / "generation_config.json").unlink(missing_ok=True)
    (model_dir / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (model_dir / "model.safetensors").chmod(0o644)
    tokenizer.save(str(model_dir / "tokenizer.json"), pretty=False)

    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)  # as it will be read
    print(f"held-out NLL of the saved weights: {nll(model, heldout):.4f} a token, "
          f"{len(heldout) / sum(len(r['text'].encode()) for r in heldout_rows):.4f} tokens a byte")
    model.eval()
    for prompt in ["In the nineteenth century,", "The war between", "Many women"]:
        prompt_ids = torch.tensor([tokenizer.encode(prompt).ids])
        out = model.generate(prompt_ids, max_new_tokens=60, do_sample=False, attention_mask=torch.ones_like(prompt_ids))
        print(repr(tokenizer.decode(out[0].tolist())))


if __name__ == "__main__":
    main()
