"""Writes gguf_quants.safetensors: for every GGUF tensor type that is read, random blocks and their values.

pip install gguf safetensors numpy
python gguf_quants.py        (with gguf 0.19.0, numpy 2.4)

Blocks are random bytes, so that every bit of a packed field is used; only the f16 scales are drawn as small finite numbers.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file

# type -> offsets of the f16 fields of a block
SCALES = {
    "F32": [], "F16": [], "BF16": [],
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
NUM_BLOCKS = {1: 256, 32: 24, 256: 8}

rng = np.random.default_rng(20240917)
tensors = {}
for name, offsets in SCALES.items():
    kind = GGMLQuantizationType[name]
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    count = NUM_BLOCKS[block_values]
    if name in ("F32", "F16", "BF16"):
        numbers = rng.normal(size=count).astype(np.float32)
        numbers[:3] = [0.0, -0.0, 1e-7]  # 1e-7 is subnormal in f16
        if name == "BF16":
            blocks = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            blocks = numbers.astype(np.float32 if name == "F32" else np.float16).view(np.uint8)
        values = dequantize(numbers if name == "F32" else blocks.view(np.float16) if name == "F16" else blocks, kind)
    else:
        blocks = rng.integers(0, 256, size=(count, block_bytes), dtype=np.uint8)
        for offset in offsets:
            scale = rng.normal(size=count).astype(np.float16) * np.float16(0.05)
            scale[0] = np.float16(3e-7)  # subnormal
            blocks[:, offset : offset + 2] = scale.reshape(-1, 1).view(np.uint8)
        values = dequantize(blocks, kind)
    assert np.isfinite(values).all()
    tensors[f"{name}.blocks"] = np.ascontiguousarray(blocks).reshape(-1)
    tensors[f"{name}.values"] = np.ascontiguousarray(values.astype(np.float32)).reshape(-1)
save_file(tensors, Path(__file__).with_suffix(".safetensors"))
