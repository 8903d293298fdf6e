#!/usr/bin/env python3
"""Compares GGUF exports of a real model with llama.cpp: log-probabilities and tokens of a loop, bytes of quantised tensors.

    pip install xllamacpp gguf torch transformers
    python check_llama_cpp.py RETIE SmolLM2.gguf      # the program, and the file that scripts/fetch-smollm2 gets

1. A model whose 15 stored layers run twice is exported with `--to gguf`; llama.cpp's log-probabilities of the token after each
   prefix of a text, and its greedy tokens, are those of the `hf` export in torch, both in f32.
2. Every tensor of `--to gguf-unrolled --dtype q4_k_m`, `q5_k_m` and `q6_k` has the bytes that ggml's `ggml_quantize_chunk` makes of that
   of the F32 file in its type. Which type a matrix has is printed: the wheel has no `llama_model_quantize` to compare it with.
"""

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xllamacpp
from gguf import GGMLQuantizationType, GGUFReader, quant_shape_to_byte_shape
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "The water cycle moves water between the sea, the air and the land. Rain falls, rivers run, and the sun"
FILE_TYPES = ["q4_k_m", "q5_k_m", "q6_k"]


def retie(program, *words):
    start = time.time()
    report = subprocess.run([program, *words, "--json"], check=True, capture_output=True, text=True).stdout
    print(f"retie {' '.join(words[:1] + words[2:])}: {time.time() - start:.1f} s")
    return json.loads(report)


def server(path):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.cpuparams.n_threads = str(path), 256, 0, 2
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.n_parallel = 1
    return xllamacpp.Server(params)


def check_loop(loop, hf):
    tokenizer = AutoTokenizer.from_pretrained(hf, trust_remote_code=True)
    ids = tokenizer(TEXT).input_ids
    model = AutoModelForCausalLM.from_pretrained(hf, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = greedy[0, len(ids):].tolist()
    llama = server(loop)
    largest = 0.0
    for end in range(1, len(ids) + 1, 3):
        request = {"prompt": ids[:end], "max_tokens": 1, "temperature": 0, "n_probs": 200, "logprobs": 200, "cache_prompt": False}
        answer = llama.handle_completions(request)
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert len(found) == 200
        largest = max(largest, max(abs(entry["logprob"] - expected[end - 1, entry["id"]].item()) for entry in found))
    answer = llama.handle_completions({"prompt": ids, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": 1})
    tokens = [entry["id"] for entry in answer["choices"][0]["logprobs"]["content"]]
    print(f"loop: max |difference of log-probabilities| {largest:.1e}, {sum(a == b for a, b in zip(tokens, greedy))} of 16 tokens equal")
    assert largest <= 1e-4 and tokens == greedy


def quantise(values, kind):
    ggml = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    out = np.zeros(quant_shape_to_byte_shape(values.shape, kind), dtype=np.uint8)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, out)]
    sizes = [ctypes.c_int64(n) for n in (0, *values.shape)]
    assert ggml.ggml_quantize_chunk(ctypes.c_int(int(kind)), *pointers, *sizes, None) == out.nbytes
    return out.reshape(-1)


def check_types(ours, plain):
    plain = {tensor.name: tensor for tensor in GGUFReader(plain).tensors}
    kinds = {}
    for tensor in GGUFReader(ours).tensors:
        values = np.ascontiguousarray(plain[tensor.name].data).reshape(-1, int(tensor.shape[0]))
        is_plain = tensor.tensor_type == GGMLQuantizationType.F32
        expected = values.view(np.uint8).reshape(-1) if is_plain else quantise(values, tensor.tensor_type)
        assert np.array_equal(tensor.data.view(np.uint8).reshape(-1), expected), tensor.name
        kinds.setdefault(tensor.tensor_type.name, []).append(tensor.name)
    print("  all equal:", {kind: len(names) for kind, names in kinds.items()})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("retie")
    parser.add_argument("model")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: str(Path(folder) / name)
        convert = ["convert", arguments.model, "--recursions", "2", "--dtype", "f32"]
        retie(arguments.retie, *convert, "--sharing", "cycle", "--init", "average", "-o", at("looped"))
        retie(arguments.retie, *convert, "--sharing", "middle_cycle", "--init", "average", "--lora-rank", "16", "-o", at("lora"))
        loop = retie(arguments.retie, "export", at("looped"), "--to", "gguf", "--dtype", "f32", "-o", at("gguf"))
        retie(arguments.retie, "export", at("looped"), "--to", "hf", "--dtype", "f32", "-o", at("hf"))
        unrolled = retie(arguments.retie, "export", at("looped"), "--to", "gguf-unrolled", "--dtype", "f32", "-o", at("full"))
        print(f"bytes: {loop['bytes']} of {unrolled['bytes']}, {loop['bytes'] / unrolled['bytes']:.2f}")
        check_loop(Path(at("gguf")) / "model.gguf", at("hf"))
        retie(arguments.retie, "export", at("lora"), "--to", "gguf-unrolled", "--dtype", "f32", "-o", at("plain"))
        for name in FILE_TYPES:
            retie(arguments.retie, "export", at("lora"), "--to", "gguf-unrolled", "--dtype", name, "-o", at(name))
            check_types(Path(at(name)) / "model.gguf", Path(at("plain")) / "model.gguf")


if __name__ == "__main__":
    main()
