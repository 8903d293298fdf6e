"""Keys of the configuration classes of transformers, for `src/arch/defaults.rs`: for each family the value of
each key where it is absent, and whether the class takes null.

    python make_defaults.py > defaults.json          (transformers 5.24)
"""
import dataclasses
import json
import typing

from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "gpt_neox", "olmo2"]


def rotary(name, config):
    """The spelling before version 5, which `convert_rope_params_to_dict` of the classes reads."""
    parameters = config.rope_parameters
    if name == "gemma3_text":
        return {
            "rope_theta": parameters["full_attention"]["rope_theta"],
            "rope_local_base_freq": parameters["sliding_attention"]["rope_theta"],
            "sliding_window_pattern": config._sliding_window_pattern,
        }
    if name == "gpt_neox":
        return {"rotary_emb_base": parameters["rope_theta"], "rotary_pct": parameters["partial_rotary_factor"]}
    return {"rope_theta": parameters["rope_theta"]}


families = {}
for name in FAMILIES:
    cls = CONFIG_MAPPING[name]
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    keys = {}
    for field in dataclasses.fields(cls):
        if field.name in inherited or field.name == "rope_parameters":
            continue
        nullable = type(None) in typing.get_args(field.type)
        keys[field.name] = {"default": field.default, "nullable": nullable}
    keys |= {key: {"default": value, "nullable": False} for key, value in rotary(name, cls()).items()}
    families[name] = keys
# Keys of the base class, and those of generation, which it takes out of the file.
common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
common |= set(GenerationConfig._get_default_generation_params())
body = f' "every family": {json.dumps(sorted(common))},\n'
body += ",\n".join(
    f' "{name}": {{\n' + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in keys.items()) + "\n }"
    for name, keys in families.items()
)
print("{\n" + body + "\n}")
