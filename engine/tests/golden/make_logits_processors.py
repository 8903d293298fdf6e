"""Values of `transformers`' logits processors: writes logits_processors.json beside this file.

    pip install torch transformers
    python make_logits_processors.py

Logits are multiples of 1/8, so that the file is short and exact in f32. The presence and frequency penalties of
OpenAI, which `transformers` does not have, are computed from their definition:
`logit[t] -= count[t] * frequency_penalty + (count[t] > 0) * presence_penalty`, over the generated tokens.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB_SIZE = 24
PROMPT = [3, 17, 3, 9, 0]
GENERATED = [5, 9, 5, 5, 20]


def openai_penalties(logits, presence, frequency):
    logits = logits.clone()
    for token in set(GENERATED):
        logits[0, token] -= GENERATED.count(token) * frequency + presence
    return logits


def processed(logits, sampling):
    """In the order of `GenerationMixin._get_logits_processor`."""
    ids = torch.tensor([PROMPT + GENERATED])
    if "repetition_penalty" in sampling:
        logits = RepetitionPenaltyLogitsProcessor(sampling["repetition_penalty"])(ids, logits)
    logits = openai_penalties(logits, sampling.get("presence_penalty", 0), sampling.get("frequency_penalty", 0))
    warpers = LogitsProcessorList()
    if "temperature" in sampling:
        warpers.append(TemperatureLogitsWarper(sampling["temperature"]))
    if "top_k" in sampling:
        warpers.append(TopKLogitsWarper(sampling["top_k"]))
    if "top_p" in sampling:
        warpers.append(TopPLogitsWarper(sampling["top_p"]))
    if "min_p" in sampling:
        warpers.append(MinPLogitsWarper(sampling["min_p"]))
    return warpers(ids, logits)


CASES = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 0.75},
    {"frequency_penalty": 0.5},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 100},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {
        "repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.25,
        "temperature": 0.8, "top_k": 10, "top_p": 0.8, "min_p": 0.1,
    },
]  # fmt: skip


def main():
    generator = torch.Generator().manual_seed(7)
    # All different, so that no case depends on the order of equals.
    order = torch.randperm(4 * VOCAB_SIZE, generator=generator)[:VOCAB_SIZE]
    logits = (order - 64).float().unsqueeze(0) / 8
    cases = []
    for sampling in CASES:
        values = processed(logits.clone(), sampling)[0]
        # A removed token is null.
        values = [None if value == float("-inf") else float(value) for value in values]
        cases.append({"sampling": sampling, "logits": values})
    golden = {
        "transformers": transformers.__version__,
        "prompt": PROMPT,
        "generated": GENERATED,
        "logits": logits[0].tolist(),
        "cases": cases,
    }
    path = Path(__file__).with_name("logits_processors.json")
    lines = json.dumps(golden).replace('{"sampling"', '\n  {"sampling"')
    path.write_text(lines + "\n")


if __name__ == "__main__":
    main()
