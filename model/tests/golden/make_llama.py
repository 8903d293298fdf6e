#!/usr/bin/env python3
"""Makes golden files of Llama models with `transformers` and `torch` (CPU, eager attention).

    python make_llama.py            # writes beside itself; transformers 5.24, torch 2.15

* `gqa.safetensors`      grouped-query attention, tied embeddings.
* `llama3.safetensors`   untied head, every bias, `head_dim` not `hidden_size / num_attention_heads`, llama3 RoPE. The config
                         has the keys of transformers 4 (`rope_theta`, `rope_scaling`).
* `linear.safetensors`   linear RoPE. The config is what transformers 5 writes (`rope_parameters`).
* `tied.safetensors`     six depths over three stored layers (`cycle`, two recursions), own norms and LoRA at each depth.

These four hold the weights under their checkpoint names, and `golden.ids` [B, T], `golden.logits` [B, T, V], `golden.loss`
[1] (mean next-token cross-entropy over the batch, positions 1..T) and `golden.grad.<weight>`, computed in f64; `golden.rounding` [2] is
how far `transformers` in f32 is from them (see `golden`); metadata `config` is the text of `config.json`.

* `adamw.safetensors`    three steps of `torch.optim.AdamW`, with and without clipping (see `adamw`).

Weights are drawn wide enough that a wrong rotation, norm, bias or head order changes the logits by far more than rounding.
"""

import contextlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

HERE = Path(__file__).parent
LIMIT = 200_000  # bytes a file


def write(name, tensors, metadata=None):
    path = HERE / f"{name}.safetensors"
    plain = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    save_file(plain, path, metadata=metadata)
    path.chmod(0o644)
    size = path.stat().st_size
    assert size < LIMIT, f"{path.name}: {size} bytes"
    print(f"{path.name}: {size} bytes, {len(plain)} tensors")


def randomise(named_parameters, generator):
    """Norms around 1, small biases, matrices at about 1 / sqrt(fan in), embeddings at 0.5."""
    with torch.no_grad():
        for name, p in named_parameters:
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif "embed" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * 1.2 / p.shape[1] ** 0.5)


@contextlib.contextmanager
def in_f64():
    """What `transformers` computes in f32 whatever it is given (norms, softmax, angles) is computed in f64."""
    float32, as_float = torch.float32, torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = float32, as_float


def outcome(model, weights, ids):
    """Logits, loss, and the gradients of `weights`."""
    logits = model(input_ids=ids, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    # The model's own loss must be the same number: nothing is shifted twice.
    own = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert abs(own.item() - loss.item()) < 1e-6, (own, loss)
    return logits.detach(), loss.detach(), torch.autograd.grad(loss, list(weights.values()))


def golden(model, weights, generator):
    """The weights (checkpoint name -> parameter), and for two random rows of 24 tokens `golden.ids`, and of what f64 makes of the f32
    weights `golden.logits`, `golden.loss` and `golden.grad.<weight>`. The model is one of f64 afterwards.

    `golden.rounding` is how far f32 is from that: of the logits, relative to the largest, and the largest of the gradients, each
    relative to its largest element.
    """
    ids = torch.randint(model.config.vocab_size, (2, 24), generator=generator)
    rounded = outcome(model, weights, ids)
    stored = {name: p.detach().clone() for name, p in weights.items()}
    model.double()
    for p in weights.values():
        p.data = p.data.double()
    with in_f64():
        logits, loss, grads = outcome(model, weights, ids)
    error = (rounded[0] - logits).abs().max() / max(1.0, logits.abs().max())
    errors = [(a - b).abs().max() / max(1e-3, b.abs().max()) for a, b in zip(rounded[2], grads)]
    out = stored | {"golden.ids": ids, "golden.logits": logits.float(), "golden.loss": loss.reshape(1).float()}
    out |= {"golden.rounding": torch.tensor([error, max(errors)], dtype=torch.float32)}
    out |= {f"golden.grad.{k}": g.float() for k, g in zip(weights, grads)}
    print(f"  loss {loss.item():.4f}, logits std {logits.std().item():.3f}, smallest gradient norm "
          f"{min(g.norm().item() for g in grads):.2e}, f32 is off by {error:.1e}, its gradients by {max(errors):.1e}")
    return out


def build(config):
    return LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="eager").float().eval()


def llama(name, seed, config, as_transformers_writes_it=False):
    generator = torch.Generator().manual_seed(seed)
    model = build(config)
    randomise(model.named_parameters(), generator)
    text = model.config.to_json_string(use_diff=False) if as_transformers_writes_it else json.dumps(config, indent=2)
    # The stored text must describe the same model.
    again = LlamaForCausalLM(LlamaConfig(**json.loads(text)))
    frequencies = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(again.model.rotary_emb.inv_freq, frequencies, rtol=0, atol=0)
    head_dim = config["head_dim"]
    unscaled = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    print(f"{name}: unscaled / used frequencies", [round(x, 3) for x in (unscaled / frequencies).tolist()])
    write(name, golden(model, dict(model.named_parameters()), generator), {"config": text})


class LoraLinear(nn.Module):
    """y = W x + B (A x); `shared` is the same module at every depth that uses the layer."""

    def __init__(self, shared, rank):
        super().__init__()
        self.shared = shared
        self.lora_A = nn.Parameter(torch.empty(rank, shared.in_features))
        self.lora_B = nn.Parameter(torch.empty(shared.out_features, rank))

    def forward(self, x):
        return self.shared(x) + F.linear(F.linear(x, self.lora_A), self.lora_B)


PROJECTIONS = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]


def tied(seed):
    recursions, rank = 2, 4
    base = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 48,
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    }
    generator = torch.Generator().manual_seed(seed)
    model = build(base)
    block = base["num_hidden_layers"] // recursions
    stored = [LlamaDecoderLayer(model.config, i).float() for i in range(block)]
    weights = {"model.embed_tokens.weight": model.model.embed_tokens.weight, "model.norm.weight": model.model.norm.weight}
    for i, layer in enumerate(stored):
        weights |= {f"model.layers.{i}.{p}.weight": layer.get_submodule(p).weight for p in PROJECTIONS}
    for d, depth in enumerate(model.model.layers):
        for norm in NORMS:
            weights[f"model.depths.{d}.{norm}.weight"] = depth.get_submodule(norm).weight
        for p in PROJECTIONS:
            lora = LoraLinear(stored[d % block].get_submodule(p), rank)
            parent, leaf = p.split(".")
            setattr(depth.get_submodule(parent), leaf, lora)
            weights[f"model.depths.{d}.{p}.lora_A.weight"] = lora.lora_A
            weights[f"model.depths.{d}.{p}.lora_B.weight"] = lora.lora_B
    randomise(weights.items(), generator)
    assert len(list(model.parameters())) == len(weights), "a parameter was left out, or is there twice"
    config = base | {
        "model_type": "recursive_llama", "architectures": ["RecursiveLlamaForCausalLM"],
        "recursion": {"num_recursions": recursions, "sharing": "cycle", "init": "average", "share_norms": False,
                      "lora": {"rank": rank}},
    }
    write("tied", golden(model, weights, generator), {"config": json.dumps(config, indent=2)})


def adamw(seed):
    """`param` [5, 7] and `grad.{0,1,2}`; `plain.param.{i}` after step i, `clipped.param.{i}` with the norm clipped to 1.0 first.

    `norm.{i}` is the norm of `grad.{i}`: above 1, below 1, above 1. lr 1e-2, betas (0.9, 0.95), eps 1e-8, decay 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(5, 7, generator=generator)
    grads = [scale * torch.randn(5, 7, generator=generator) for scale in (1.0, 0.05, 0.6)]
    out = {"param": start} | {f"grad.{i}": g for i, g in enumerate(grads)}
    for name in ("plain", "clipped"):
        param = nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([param], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
        for i, grad in enumerate(grads):
            param.grad = grad.clone()
            if name == "clipped":
                out[f"norm.{i}"] = torch.nn.utils.clip_grad_norm_([param], 1.0).reshape(1)
            optimizer.step()
            out[f"{name}.param.{i}"] = param.detach().clone()
    assert [out[f"norm.{i}"].item() > 1 for i in range(3)] == [True, False, True]
    write("adamw", out)


def main():
    torch.set_num_threads(1)
    plain = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 64,
        "hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 1, "eos_token_id": 2,
    }
    llama("gqa", 1, plain)
    llama("llama3", 2, plain | {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "max_position_embeddings": 512,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64},
    })
    linear = {k: v for k, v in plain.items() if k != "rope_theta"} | {
        "num_hidden_layers": 2, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    }
    llama("linear", 3, linear, as_transformers_writes_it=True)
    tied(4)
    adamw(6)


if __name__ == "__main__":
    main()
