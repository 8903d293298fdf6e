"""Writes gguf_encode.safetensors: values, and their bytes in every GGUF type that is written.

pip install gguf safetensors numpy
python gguf_encode.py        (with gguf 0.17.1, numpy 2.4)

Blocks of very different sizes, one of zeros, and one whose quotients are ties.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors.numpy import save_file

rng = np.random.default_rng(20261129)
values = rng.normal(size=(24, 32)).astype(np.float32) * np.logspace(-6, 3, 24, dtype=np.float32)[:, None]
values[3] = 0
values[4] = np.arange(32, dtype=np.float32) - 16 + 0.5
values[4, 0] = 127
tensors = {"values": values.reshape(-1)}
for name in ["F32", "F16", "BF16", "Q8_0"]:
    tensors[name] = np.ascontiguousarray(quantize(values.reshape(1, -1), GGMLQuantizationType[name])).view(np.uint8).reshape(-1)
save_file(tensors, Path(__file__).with_suffix(".safetensors"))
