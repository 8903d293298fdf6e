#!/usr/bin/env python3
"""The PyTorch side of `scripts/bench-peers`, on `transformers` modules, in f32 on the CPU unless asked otherwise.

    python scripts/bench-peers-torch.py train --steps 4 --threads 2 --lora-rank 64
    python scripts/bench-peers-torch.py products --seq 512 --batch 4 --threads 2
    python scripts/bench-peers-torch.py infer --seq 512 --batch 4 --new-tokens 128 --threads 2
    python scripts/bench-peers-torch.py svd --threads 2 --lora-rank 64

train: a student of the shapes of SmolLM2-135M, 30 depths over 15 stored layers (`cycle`, two recursions). Each depth is a
`LlamaDecoderLayer` with its own norms; the projections of depths d and d + 15 are the same `nn.Linear` objects; `--lora-rank`
adds LoRA to all seven projections of every depth. Teacher: the 30-layer model, frozen, run in the same step.
Loss: cross-entropy + KL(teacher || student) over the whole vocabulary at temperature 1, both means over tokens.
AdamW (`fused`), global norm clipped to 1.0. Random weights and token ids: a step's cost does not depend on them.
`tokens_per_second` is batch * seq over the median step, the first step left out (unless it is the only one); `peak_rss_mb` is
`ru_maxrss` in MiB, of the whole process, `import_rss_mb` the part that the libraries alone had taken before the models were built
(a CUDA build of torch maps its libraries too).

products: x·Wᵀ of batch × seq rows with each shape of the original model. Medians of `--rounds` after one that warms up.

infer: the original model: a forward pass with all logits; `generate`, greedy, in one sequence (the prompt alone is timed as the
first new token). Medians likewise.

`--device cuda`: f32 products may be done in TF32 there (`torch.set_float32_matmul_precision("high")`). `--dtype bf16`: training under
`torch.autocast` with f32 weights, products and inference on bf16 tensors.

svd: what a conversion to two recursions (`cycle`, `average`) computes: for every tied pair of projections the mean, the residual to
it, `torch.linalg.svd` without the full bases, and `B`, `A` of `--lora-rank`. The two residuals of a pair are one matrix and its negative,
so there is one decomposition a pair. Nothing is read or written. Float32, and float64, in which ours are.

Prints one JSON line.
"""

import argparse
import collections
import json
import os
import resource
import statistics
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("train", "products", "infer", "svd"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, default=0, help="0: no LoRA")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="train, products, infer")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="train, products, infer")
    parser.add_argument("--compile", action="store_true", help="train, infer (the forward pass alone): decoder layers through torch.compile; needs a C++ compiler")
    return parser.parse_args()


ARGS = arguments()
os.environ["OMP_NUM_THREADS"] = str(ARGS.threads)  # before torch is loaded

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

PROJECTIONS = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
RECURSIONS = 2
DEVICE = torch.device(ARGS.device)
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[ARGS.dtype]
if DEVICE.type == "cuda":
    torch.set_float32_matmul_precision("high")
SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


class LoraLinear(nn.Module):
    """y = W x + B (A x), B zero at the start; W is the shared layer's module."""

    def __init__(self, shared, rank):
        super().__init__()
        self.shared = shared
        self.lora_A = nn.Parameter(torch.randn(rank, shared.in_features) / shared.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(shared.out_features, rank))

    def forward(self, x):
        return self.shared(x) + F.linear(F.linear(x, self.lora_A), self.lora_B)


def llama(dtype=torch.float32):
    return LlamaForCausalLM._from_config(LlamaConfig(**SMOLLM2_135M), dtype=dtype, attn_implementation="sdpa")


def wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def compiled(model):
    """Compiles layer by layer, so that one compilation serves all equal layers.

    Compiling the whole model takes minutes on two cores.
    """
    if ARGS.compile:
        # A different layer index must not trigger a recompilation.
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        for layer in model.model.layers:
            layer.compile()
    return model


def tie(model, rank):
    """Ties the layers of the depths: `nn.Module.parameters` then yields each shared weight once."""
    layers = model.model.layers
    block = len(layers) // RECURSIONS
    stored = [{p: layer.get_submodule(p) for p in PROJECTIONS} for layer in layers[:block]]
    for depth, layer in enumerate(layers):
        for projection in PROJECTIONS:
            shared = stored[depth % block][projection]
            parent, leaf = projection.split(".")
            setattr(layer.get_submodule(parent), leaf, LoraLinear(shared, rank) if rank else shared)
    return model


def loss_of(student, teacher, inputs, targets):
    with torch.no_grad():
        teacher_log_probs = F.log_softmax(teacher(input_ids=inputs, use_cache=False).logits.flatten(0, 1), -1)
    log_probs = F.log_softmax(student(input_ids=inputs, use_cache=False).logits.flatten(0, 1), -1)
    kl = F.kl_div(log_probs, teacher_log_probs, log_target=True, reduction="batchmean")
    return F.nll_loss(log_probs, targets.flatten()) + kl


def peak_rss_mb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def median_seconds(work):
    seconds = []
    for _ in range(ARGS.rounds + 1):
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@torch.inference_mode()
def products():
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(0)
    rows = ARGS.batch * ARGS.seq
    # Tied embeddings are one parameter, and a product as the head.
    shapes = collections.Counter(tuple(p.shape) for p in llama().parameters() if p.dim() == 2)
    found = []
    for (out, size), uses in sorted(shapes.items()):
        x, weight = (torch.randn(shape, device=DEVICE, dtype=DTYPE) for shape in ((rows, size), (out, size)))
        seconds = median_seconds(lambda x=x, weight=weight: F.linear(x, weight))
        found.append({"tokens": rows, "out": out, "in": size, "uses": uses, "gflops": 2 * rows * out * size / seconds / 1e9})
    print(json.dumps({"peer": "pytorch", "torch": torch.__version__, "threads": torch.get_num_threads(), "products": found}))


@torch.inference_mode()
def infer():
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(0)
    rows, model = ARGS.batch * ARGS.seq, compiled(llama(DTYPE).eval().to(DEVICE))
    vocab = SMOLLM2_135M["vocab_size"]
    ids = torch.tensor([i * 7919 % vocab for i in range(rows)], device=DEVICE).view(ARGS.batch, ARGS.seq)
    forward = median_seconds(lambda: model(input_ids=ids, use_cache=False).logits[-1, -1].tolist())
    found = {"peer": "pytorch", "torch": torch.__version__, "threads": torch.get_num_threads(), "forward_tokens_per_second": rows / forward}
    if not ARGS.compile:  # decoding has other shapes for every token
        found["generate"] = generate(model, ids)
    print(json.dumps(found))


def generate(model, ids):
    mask = torch.ones(1, ARGS.seq, dtype=torch.long, device=DEVICE)

    def new_tokens(count):
        model.generate(ids[:1], attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)

    prefill = median_seconds(lambda: new_tokens(1))
    # Prefill yields the first new token.
    both = median_seconds(lambda: new_tokens(1 + ARGS.new_tokens))
    return {
        "prefill_tokens_per_second": ARGS.seq / prefill, "decode_tokens_per_second": ARGS.new_tokens / (both - prefill),
        "seconds": both,
    }


@torch.inference_mode()
def svd():
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(0)
    model = llama()
    layers = model.model.layers
    block = len(layers) // RECURSIONS

    def seconds(dtype):
        start = time.perf_counter()
        for first, second in zip(layers[:block], layers[block:]):
            for projection in PROJECTIONS:
                pair = [layer.get_submodule(projection).weight.to(dtype) for layer in (first, second)]
                residual = pair[0] - (pair[0] + pair[1]) / 2
                u, s, vh = torch.linalg.svd(residual, full_matrices=False)
                rank = min(ARGS.lora_rank, len(s))
                b, a = u[:, :rank] * s[:rank], vh[:rank]
                assert b.shape[1] == a.shape[0]
        return time.perf_counter() - start

    print(json.dumps({
        "peer": "pytorch", "torch": torch.__version__, "threads": torch.get_num_threads(), "lora_rank": ARGS.lora_rank,
        "decompositions": block * len(PROJECTIONS), "seconds_f32": seconds(torch.float32), "seconds_f64": seconds(torch.float64),
    }))


def train():
    import_rss_mb = peak_rss_mb()
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(0)
    student, teacher = compiled(tie(llama(), ARGS.lora_rank).to(DEVICE)), compiled(llama().to(DEVICE))
    teacher.requires_grad_(False)
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    vocab, count = SMOLLM2_135M["vocab_size"], ARGS.batch * (ARGS.seq + 1)
    seconds, losses = [], []
    for step in range(ARGS.steps):
        ids = torch.tensor([((step * count + i) * 2654435761) % vocab for i in range(count)], device=DEVICE).view(ARGS.batch, ARGS.seq + 1)
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DTYPE != torch.float32):
            loss = loss_of(student, teacher, ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    print(json.dumps({
        "peer": "pytorch", "torch": torch.__version__, "threads": torch.get_num_threads(), "steps": ARGS.steps,
        "batch": ARGS.batch, "seq": ARGS.seq, "lora_rank": ARGS.lora_rank, "parameters": sum(p.numel() for p in parameters),
        "step_seconds": [round(s, 4) for s in seconds],
        "tokens_per_second": round(ARGS.batch * ARGS.seq / statistics.median(seconds[1:] or seconds), 2),
        "import_rss_mb": import_rss_mb, "peak_rss_mb": peak_rss_mb(), "losses": losses,
    }))


if __name__ == "__main__":
    {"train": train, "products": products, "infer": infer, "svd": svd}[ARGS.work]()
