"""Writes sentencepiece_model.model, a tiny BPE model with bytes, and sentencepiece_model.json with its pieces, scores and types.

pip install sentencepiece
python sentencepiece_model.py      (with sentencepiece 0.2.3)

The types are those of llama.cpp's converter (`_create_vocab_sentencepiece` of conversion/base.py): pieces that the user defined count
as normal ones there, as long as `tokenizer.json` does not list them.
"""

import io
import json
from pathlib import Path

import sentencepiece as spm

text = ["the quick brown fox jumps over the lazy dog", "the law of the conservation of energy", "a cat, a dog and the fox", "1 2 3 12 123"]
model = io.BytesIO()
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(text * 20), model_writer=model, vocab_size=330, model_type="bpe", byte_fallback=True,
    add_dummy_prefix=False, normalization_rule_name="identity", user_defined_symbols=["<tool>", "▁▁"], pad_id=0, unk_id=3, bos_id=2, eos_id=1)
path = Path(__file__).with_suffix(".model")
path.write_bytes(model.getvalue())
tokenizer = spm.SentencePieceProcessor(model_proto=model.getvalue())
kinds = [(tokenizer.IsUnknown, 2), (tokenizer.IsControl, 3), (tokenizer.IsUnused, 5), (tokenizer.IsByte, 6), (lambda _: True, 1)]
ids = range(tokenizer.vocab_size())
golden = {
    "pieces": [tokenizer.IdToPiece(i) for i in ids],
    "scores": [tokenizer.GetScore(i) for i in ids],
    "types": [next(kind for holds, kind in kinds if holds(i)) for i in ids],
}
path.with_suffix(".json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")
