"""Trains tiny_tokenizer.json and writes the cases for it, with the Python tokenizers library (0.23)."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

here = Path(__file__).parent
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|endoftext|>", "<|bos|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tokenizer.train_from_iterator([(here / "make_parquet.py").read_text()], trainer)
tokenizer.add_tokens([AddedToken("<name>", normalized=False), AddedToken("lazy", single_word=True)])
# What encoding must not do: add tokens, cut, pad.
tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A", None, [("<|bos|>", 1)])
tokenizer.enable_truncation(8)
tokenizer.enable_padding(length=16)
tokenizer.save(str(here / "tiny_tokenizer.json"))

tokenizer.no_truncation()
tokenizer.no_padding()
texts = [
    "",
    "hello world",
    "row 123 of 4567",
    "a<|endoftext|>b <|bos|>",
    "<name> is lazy, not lazybones",
    "naïve 🦀 日本語 e\u0301",
    "tabs\tand\r\nlines\n\n\n  and   spaces ",
    "\ufffd\u0000\u200b",
]
cases = []
for text in texts:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    cases.append(
        {
            "text": text,
            "ids": ids,
            "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "decoded_skipping_special": tokenizer.decode(ids, skip_special_tokens=True),
        }
    )
(here / "tiny_tokenizer_cases.json").write_text(json.dumps(cases, indent=1) + "\n")
print(tokenizer.get_vocab_size())
