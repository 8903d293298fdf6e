"""A small SentencePiece BPE with byte fallback, once with a space put before the text and once without, and ids of
texts, for `src/gguf/tokenizer.rs`.

    python make_sentencepiece.py > sentencepiece.json          (sentencepiece 0.2.3)
"""
import io
import json

import sentencepiece as spm

LINES = ["the quick brown fox jumps over the lazy dog", "a fox and a dog, and the dog is lazy"] * 20
TEXTS = ["the lazy dog", " a fox", "  two  spaces ", "dog\nfox", "é ☃", "", "quick"]


def model(prefix):
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, vocab_size=320, model_type="bpe", byte_fallback=True,
        add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity",
        character_coverage=1.0, num_threads=1, minloglevel=2,
    )
    return spm.SentencePieceProcessor(model_proto=out.getvalue())


def kind(m, i):
    return 3 if m.is_control(i) else 2 if m.is_unknown(i) else 6 if m.is_byte(i) else 1


models = {"prefix": model(True), "none": model(False)}
out = {}
for name, m in models.items():
    out[name] = {
        "pieces": [m.id_to_piece(i) for i in range(m.vocab_size())],
        "scores": [m.get_score(i) for i in range(m.vocab_size())],
        "types": [kind(m, i) for i in range(m.vocab_size())],
        "texts": [{"text": text, "ids": m.encode(text), "decoded": m.decode(m.encode(text))} for text in TEXTS],
    }
print(json.dumps(out, ensure_ascii=False))
