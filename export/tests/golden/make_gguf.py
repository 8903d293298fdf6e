#!/usr/bin/env python3
"""Makes tiny plain models, and the metadata and hashes of the tensors that llama.cpp's converter makes of them.

    python make_gguf.py LLAMA_CPP     # a checkout of llama.cpp; writes NAME/ and gguf.json beside itself
                                      # made with build 11434, transformers 5.24, torch 2.15

`gguf.json` has, for each model and output type, the keys of the architecture and of each tensor its type, its dimensions (fastest
first) and the SHA-256 of its bytes. The models have no tokenizer, so that part of the converter is left out. Rows of 48 values, those
of `down_proj`, are not whole blocks of Q8_0.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
BASE = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 16}
FAMILIES = {
    "llama": BASE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama3": BASE | {"model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "qwen2": BASE | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": BASE | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "smollm3": BASE | {"model_type": "smollm3"},
    "olmo2": BASE | {"model_type": "olmo2"},
    "gemma": BASE | {"model_type": "gemma"},
    "gemma2": BASE | GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": BASE | GEMMA | {"model_type": "gemma3_text"},
}
TYPES = ["f32", "f16", "bf16", "q8_0"]


def make(name, config, seed):
    settings = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    model = AutoModelForCausalLM.from_config(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.bfloat16().save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)


def convert(folder, kind, llama_cpp):
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion import ModelBase, get_model_class

    parameters = ModelBase.load_hparams(folder, False)
    cls = get_model_class(parameters["architectures"][0])
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "x.gguf"
        model = type("Converter", (cls,), {"model_arch": cls.model_arch, "set_vocab": lambda self: None})(
            folder, gguf.LlamaFileType[kinds[kind]], path, eager=True)
        model.write()
        reader = gguf.GGUFReader(path)
        arch = reader.fields["general.architecture"].contents()
        keys = {key: field.contents() for key, field in reader.fields.items() if key.startswith(f"{arch}.")}
        tensors = {}
        for tensor in reader.tensors:
            digest = hashlib.sha256(tensor.data.tobytes()).hexdigest()
            tensors[tensor.name] = [int(tensor.tensor_type), [int(n) for n in tensor.shape], digest]
    return {"keys": {"general.architecture": arch} | keys, "tensors": tensors}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llama_cpp", type=Path)
    llama_cpp = parser.parse_args().llama_cpp
    golden = {}
    for seed, (name, config) in enumerate(FAMILIES.items()):
        make(name, config, seed)
        with tempfile.TemporaryDirectory() as copy:
            for file in ["config.json", "model.safetensors"]:
                (Path(copy) / file).write_bytes((HERE / name / file).read_bytes())
            # Gemma 3's converter counts the tokens.
            vocabulary = {str(i): i for i in range(BASE["vocab_size"])}
            (Path(copy) / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
            golden[name] = {kind: convert(Path(copy), kind, llama_cpp) for kind in TYPES}
    (HERE / "gguf.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
