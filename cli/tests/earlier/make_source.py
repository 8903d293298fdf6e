"""A tiny Llama with a tokenizer of words and a text, for `make.sh`. Needs numpy and safetensors."""

import json
import random
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

out = Path(sys.argv[1])
rng = np.random.default_rng(0)
words = ["[UNK]", "<s>", "</s>"] + [a + b for a in "bdfgklmnprst" for b in "aeiou"]
size, hidden, mlp, heads, head_dim, layers = len(words), 8, 16, 2, 4, 6

weights = {"model.embed_tokens.weight": (size, hidden), "model.norm.weight": (hidden,)}
for layer in range(layers):
    at = f"model.layers.{layer}."
    weights |= {at + "input_layernorm.weight": (hidden,), at + "post_attention_layernorm.weight": (hidden,)}
    weights |= {at + f"self_attn.{name}_proj.weight": (rows, hidden) for name, rows in (("q", 8), ("k", 4), ("v", 4))}
    weights |= {at + "self_attn.o_proj.weight": (hidden, heads * head_dim), at + "mlp.down_proj.weight": (hidden, mlp)}
    weights |= {at + f"mlp.{name}_proj.weight": (mlp, hidden) for name in ("gate", "up")}
scale = lambda name: 1.0 if "norm" in name else 0.0
tensors = {name: (scale(name) + 0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in weights.items()}
(out / "source").mkdir(parents=True)
save_file(tensors, out / "source/model.safetensors", {"format": "pt"})
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": size, "hidden_size": hidden,
    "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 1,
    "head_dim": head_dim, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}
(out / "source/config.json").write_text(json.dumps(config, indent=1))
tokenizer = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [
        {"id": i, "content": words[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for i in range(3)
    ],
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]"},
}
(out / "source/tokenizer.json").write_text(json.dumps(tokenizer))
random.seed(0)
rows = [" ".join(random.choices(words[3:], k=40)) for _ in range(12)]
(out / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
