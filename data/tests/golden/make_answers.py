#!/usr/bin/env python3
"""Writes answers.json: conversations as tokens, and which of them are answers, as `transformers` has it.

    python make_answers.py      # transformers 5.24

The templates are those of chat_templates.json. `return_assistant_tokens_mask` needs `{% generation %}` blocks, which only one of them
has. Each other one gets them here, by hand: around what the model writes, up to the token that ends its turn and without the line
break behind it; the script checks that the text is still that of the template without them. The tokenizer is tiny_tokenizer.json with
the special tokens of the families.
"""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>",
           "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>"]
BEGIN, END = "{%- generation %}", "{%- endgeneration %}"
OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"
# What stands in a template, and with marks.
MARKS = {
    "chatml": ("{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
               "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}" + OPEN +
               "{{ message['content'] + '<|im_end|>' }}" + CLOSE + "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"),
    "llama-2": ("{{ ' '  + content.strip() + ' ' + eos_token }}", OPEN + "{{ ' '  + content.strip() + ' ' + eos_token }}" + CLOSE),
    "llama-3": ("        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}",
                "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{%- if message['role'] == 'assistant' %}" + BEGIN +
                "{{- message['content'] | trim + '<|eot_id|>' }}" + END + "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}"),
    "qwen": ("        {{- '<|im_start|>' + message.role + '\\n' + content }}\n        {{- '<|im_end|>\\n' }}",
             "        {{- '<|im_start|>' + message.role + '\\n' }}" + BEGIN + "{{- content + '<|im_end|>' }}" + END + "{{- '\\n' }}"),
    "gemma": ("{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
              "{{ '<start_of_turn>' + role + '\n' }}{% if role == 'model' %}" + OPEN + "{{ message['content'] | trim + '<end_of_turn>' }}" + CLOSE +
              "{% else %}{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\n' }}"),
    "zephyr": None,
}


def talk(*turns, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for at, text in enumerate(turns):
        messages.append({"role": ["user", "assistant"][at % 2], "content": text})
    return messages


CONVERSATIONS = [
    talk("What is rain?", "Water that falls."),
    talk("Hi", "Hello, what can I do?", "Count to three", "one two three\n\nfour?", "Thanks", "  Gern geschehen: äöü 你好  "),
    talk("Hi", "Yes.", "And the last question has no answer"),
    talk("Hi", "Yes.", system="You are terse."),
]


def main():
    golden = json.loads((HERE / "chat_templates.json").read_text())
    tokenizer = Tokenizer.from_file(str(HERE / "tiny_tokenizer.json"))
    tokenizer.add_special_tokens(SPECIAL)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "tokenizer.json")
        tokenizer.save(path)
        fast = PreTrainedTokenizerFast(tokenizer_file=path, **golden["special_tokens"])
        saved = json.loads(Path(path).read_text())
    cases = []
    for name, marks in MARKS.items():
        template = golden["templates"][name]
        marked = template
        if marks:
            assert template.count(marks[0]) == 1, name
            marked = template.replace(*marks)
        for messages in CONVERSATIONS:
            if name == "gemma" and messages[0]["role"] == "system":
                continue
            text = fast.apply_chat_template(messages, chat_template=template, tokenize=False)
            assert text == fast.apply_chat_template(messages, chat_template=marked, tokenize=False), name
            out = fast.apply_chat_template(messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True)
            ids, mask = list(out["input_ids"]), list(out["assistant_masks"])
            assert 0 < sum(mask) < len(mask)
            cases.append({"template": name, "messages": messages, "ids": ids, "mask": "".join(map(str, mask))})
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = json.dumps({"added_tokens": saved["added_tokens"]})[:-1] + f', "cases": [\n{lines}\n]}}\n'
    (HERE / "answers.json").write_text(text)


if __name__ == "__main__":
    main()
