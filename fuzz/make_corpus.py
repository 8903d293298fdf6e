#!/usr/bin/env python3
"""Makes the corpus of the fuzz targets: small inputs of every shape that a parser knows, written by other programs where there is one
(safetensors, gguf, pyarrow, transformers) and by hand where the format is ours.

    fuzz/make_corpus.py        needs safetensors, gguf, pyarrow, zstandard, transformers, numpy

Everything is below 4 KiB, so that many inputs a second can be run. Files of the corpus that this did not make are left alone.
"""

import gzip
import hashlib
import io
import json
import pathlib
import struct
import tempfile

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import zstandard
from safetensors.numpy import save
from transformers import AutoConfig

ROOT = pathlib.Path(__file__).resolve().parent
CORPUS = ROOT / "corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def text(value):
    return json.dumps(value, indent=1)


def weights():
    rng = np.random.default_rng(0)
    put("safetensors", "f32", save({"a": rng.normal(size=(2, 3)).astype("f4"), "b": np.zeros(0, "f4")}))
    put("safetensors", "mixed", save({"a": rng.normal(size=4).astype("f2"), "i": np.arange(3), "d": np.ones(2, "f8")}, {"format": "pt"}))
    put("safetensors", "empty", save({}))
    names = {"a": "a.safetensors", "b": "b.safetensors"}
    put("safetensors_index", "both", text({"metadata": {"total_size": 16}, "weight_map": names}))
    put("safetensors_index", "outside", text({"weight_map": {"a": "../a.safetensors", "b": "/etc/passwd", "c": ""}}))
    put("safetensors_index", "lacks", text({"weight_map": {"a": "b.safetensors", "b": "c.safetensors"}}))


def gguf_file(write):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        write(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def ggufs():
    def keys(writer):
        writer.add_block_count(1)
        writer.add_context_length(32)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(32)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(4)

    def spm(writer):
        keys(writer)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", "▁a"])
        writer.add_token_scores([0.0, 0.0, 0.0, -1.0])
        writer.add_token_types([2, 3, 3, 1])
        writer.add_add_space_prefix(True)
        writer.add_chat_template("{{ messages }}")
        writer.add_tensor("output_norm.weight", np.ones(32, "f4"))
        writer.add_tensor("token_embd.weight", np.ones((4, 32), "f2"))

    def bpe(writer):
        keys(writer)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["a", "b", "ab", "<|endoftext|>"])
        writer.add_token_merges(["a b"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_eos_token_id(3)
        quantised = gguf.quants.quantize(np.linspace(-1, 1, 128, dtype="f4").reshape(4, 32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("token_embd.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def k_quants(writer):
        keys(writer)
        for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
            kind = gguf.GGMLQuantizationType[kind]
            size = gguf.GGML_QUANT_SIZES[kind][1]
            writer.add_tensor(f"{kind.name}.weight", np.arange(size, dtype="u1").reshape(1, size), raw_dtype=kind)

    def values(writer):
        writer.add_uint8("u8", 1)
        writer.add_int16("i16", -1)
        writer.add_uint64("u64", 1 << 60)
        writer.add_float64("f64", 0.5)
        writer.add_bool("flag", True)
        writer.add_array("nested", ["x", "y"])
        writer.add_array("numbers", [1, 2, 3])

    for write in (spm, bpe, k_quants, values):
        put("gguf", write.__name__, gguf_file(write))


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "gpt_neox", "olmo2")
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


def configs():
    for family in FAMILIES:
        config = AutoConfig.for_model(family, **SIZES)
        keys = {key: value for key, value in config.to_dict().items() if value is not None}
        put("config", family, text(keys))
    llama = {"model_type": "llama", "rms_norm_eps": 1e-5, **SIZES}
    put("config", "rope_llama3", text({**llama, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}))
    put("config", "rope_linear", text({**llama, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500000.0}))
    put("config", "nan", text({**llama, "rms_norm_eps": float("nan"), "rope_theta": float("inf")}))
    repository = ROOT.parent
    for name, path in (("recursive", "cli/tests/earlier/run/ckpt/step-2/config.json"), ("routed", "cli/tests/earlier/routed/config.json")):
        put("config", name, (repository / path).read_bytes())
    for path in sorted((repository / "configs/recipes").glob("*.yaml")):
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        put("yaml", path.stem, "\n".join(lines) + "\n")
    put("yaml", "aliases", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nschema: 1\n<<: *a\n")
    put("yaml", "tags", "schema: !!int '1'\nrun: {dir: !x y}\nmodel: |\n  a\n---\nb: 1\n")


def tokenizers():
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3, "Ġ": 4}, "merges": ["a b"]}
    added = [{"id": 3, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
           "decoder": byte_level, "model": model}  # fmt: skip
    put("tokenizer", "bpe", text(bpe))
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|[^\s]+"}, "behavior": "Isolated", "invert": False}
    sequence = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    put("tokenizer", "split", text({**bpe, "pre_tokenizer": sequence, "normalizer": {"type": "NFC"}}))
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["▁a", -1.0], ["b", -2.0]]
    put("tokenizer", "unigram", text({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Prepend", "prepend": "▁"}, "pre_tokenizer": {"type": "Metaspace"},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}}))  # fmt: skip
    put("tokenizer", "wordpiece", text({**bpe, "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "WordPiece", "prefix": "##"},
        "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1, "##b": 2}, "unk_token": "[UNK]"}}))  # fmt: skip

    put("chat_template", "chatml", "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")  # fmt: skip
    put("chat_template", "namespace", "{%- set ns = namespace(first=true) -%}{%- for m in messages if m.role != 'system' -%}"
        "{%- if loop.first or ns.first %}{{ bos_token }}{% set ns.first = false %}{%- endif -%}{{ m.content | trim | upper }}{%- endfor -%}")  # fmt: skip
    put("chat_template", "macro", "{% macro show(x, n=2) %}{{ x.split(' ')[:n] | join(',') }}{% endmacro %}{{ show(messages[-1].content) }}"
        "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}{{ messages | tojson(indent=2) }}{{ strftime_now('%d %b %Y') }}")  # fmt: skip
    put("chat_template", "raise", "{% if messages[0].role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% generation %}x{% endgeneration %}")
    put("chat_template", "config", text({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": [
        {"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0]['content'] }}"}]}))
    # Each of these took gigabytes, minutes or the whole stack of a renderer that counts instructions and texts only.
    grow = "{% set ns = namespace(x=['x'], y=['x']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
    for name, source in {
        "doubled_text": "{% set ns = namespace(x='xxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "doubled_list": grow + "{{ ns.x }}",
        "doubled_concat": grow + "{% set y = ns.x ~ 'a' %}",
        "doubled_equal": grow + "{{ ns.x == ns.y }}",
        "nested": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [[[[[[[[ns.x]]]]]]]] %}{% endfor %}",
        "itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "macros": "{% macro f(x) %}{{ f([x, x, x, x]) }}{% endmacro %}{{ f(1) }}",
        "wide": "{{ '{:>99999999999}'.format(1) }}",
        "constant": "{% set y = ([1] * 90000000) ~ '' %}",
        "slices": "{% set ns = namespace(x=range(9999)) %}{% for i in range(9999) %}{% set ns.x = ns.x[1:] %}{% endfor %}{{ ns.x|length }}",
    }.items():
        put("chat_template", f"bounded_{name}", source)


def texts():
    rows = ["The colony.", "", "é😀", "a\nb"]
    put("jsonl", "rows", "".join(json.dumps({"text": row, "id": i}) + "\n" for i, row in enumerate(rows)))
    put("jsonl", "odd", b'\xef\xbb\xbf{"text": "\\ud83d\\ude00"}\r\n\n{"text": null}\n{"text": "\\ud83d"}\n{"id": 1}\n[1]\n')
    put("jsonl", "gz", gzip.compress(b'{"text": "x"}\n', mtime=0))
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    put("compressed", "gz", gzip.compress(lines * 3, mtime=0))
    put("compressed", "two_gz", gzip.compress(lines, mtime=0) + gzip.compress(lines, mtime=0))
    put("compressed", "zst", zstandard.ZstdCompressor(write_checksum=True).compress(lines * 3))
    put("compressed", "zst_bomb", zstandard.ZstdCompressor().compress(b'{"text": "' + b"a" * 300000 + b'"}\n'))

    table = pa.table({"text": rows, "id": [1, 2, 3, 4]})
    for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
        sink = io.BytesIO()
        pa.parquet.write_table(table.select(["text"]), sink, compression=codec, store_schema=False, write_statistics=False)
        put("parquet", codec, sink.getvalue())
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({"text": pa.array(rows * 2, pa.large_utf8())}), sink, use_dictionary=False, data_page_version="2.0",
                           data_page_size=16, store_schema=False, write_statistics=False)  # fmt: skip
    put("parquet", "v2", sink.getvalue())
    for name, column in (
        ("plain", pa.array(rows)), ("large", pa.array(rows, pa.large_utf8())), ("view", pa.array(rows, pa.string_view())),
        ("dictionary", pa.array(rows).dictionary_encode()), ("binary", pa.array([row.encode() for row in rows], pa.binary())),
    ):  # fmt: skip
        for kind, new in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
            sink = io.BytesIO()
            options = pa.ipc.IpcWriteOptions(compression="zstd" if name == "large" else "lz4" if name == "dictionary" else None)
            with new(sink, pa.schema([("text", column.type)]), options=options) as writer:
                writer.write_batch(pa.record_batch([column], ["text"]))
            put("arrow", f"{name}_{kind}", sink.getvalue())


def ours():
    repository = ROOT.parent
    tokenizer = json.loads((repository / "data/tests/golden/tiny_tokenizer.json").read_text())
    width = 2
    tokens = np.arange(24, dtype="<u2") % 7
    facts = b"retietok" + struct.pack("<I6Q", width, 0, len(tokens), 1, 0, 3, 0) + b"0" * 64 + struct.pack("<II", 0xFFFFFFFF, 0)
    assert tokenizer["model"]["vocab"]
    body = tokens.tobytes()
    put("tokens", "plain", facts + hashlib.sha256(facts + body).digest() + body)
    put("tokens", "short", facts)
    meta = {"schema": 1, "teacher": "t", "teacher_files": [["model.safetensors", "0" * 64]], "tokenizer": "x", "data": "y", "rows": 2,
            "sequence_length": 3, "vocab_size": 100, "top_k": 2, "temperature": 1.0, "rows_per_shard": 2}  # fmt: skip
    token = struct.pack("<2H3H", 1, 2, 1000, 2000, 9000)
    rows = token * 6
    put("logits", "plain", json.dumps(meta).encode() + b"\0" + b"retielog" + struct.pack("<QQ", 0, 2) + hashlib.sha256(rows).digest() + rows)
    few = struct.pack("<H", 1) + struct.pack("<H2H", 1, 100, 5000)
    body = struct.pack("<2Q", 3 * len(few), 6 * len(few)) + few * 6
    head = json.dumps({**meta, "top_p": 0.9}).encode() + b"\0" + b"retielog" + struct.pack("<QQ", 0, 2)
    put("logits", "top_p", head + hashlib.sha256(body).digest() + body)
    wide = json.dumps({**meta, "vocab_size": 100000, "rows": 4}).encode()
    put("logits", "two_shards", wide + b"\0retielog")
    state = {"step": 2, "skipped": 0, "tokens": 64, "cursors": [{"epoch": 0, "row": 4}], "data": "ab" * 32}
    put("state", "plain", text(state))
    put("state", "old", text({"step": 2, "tokens": 64, "cursor": {"epoch": 1, "row": 3}, "data": "ab"}))
    put("state", "many", text({**state, "cursors": [{"epoch": 0, "row": 0}, {"epoch": 9, "row": 49}], "logits": "cd" * 32}))


def requests():
    def body(route, value):
        return bytes([route]) + json.dumps(value).encode()

    put("http", "completion", body(0, {"prompt": "def", "max_tokens": 2, "temperature": 0.5, "seed": 1, "top_p": 0.9, "n": 2, "logprobs": 2}))
    put("http", "prompts", body(0, {"prompt": [[1, 2, 3], [4]], "max_tokens": 1, "echo": True, "stop": ["a", "b"], "model": "tiny"}))
    put("http", "stream", body(0, {"prompt": "x", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}))
    put("http", "penalties", body(0, {"prompt": "x", "max_tokens": 2, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
                                      "min_p": 0.1, "top_k": 3, "ignore_eos": True, "logit_bias": {"5": 1}}))  # fmt: skip
    put("http", "chat", body(1, {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 2}))
    put("http", "parts", body(1, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 1, "tools": None}))
    put("http", "tokenize", body(2, {"prompt": "def f", "add_special_tokens": True}))
    put("http", "tokenize_chat", body(2, {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}))
    put("http", "detokenize", body(3, {"tokens": [1, 2, 3]}))


for make in (weights, ggufs, configs, tokenizers, texts, ours, requests):
    make()
sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
print(f"{len(sizes)} files, {sum(sizes)} bytes, the largest {max(sizes)}")
