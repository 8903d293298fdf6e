"""Checks a served demo model from the side of the `openai` Python client (made with 3.57.0). `scripts/test-clients`
starts the server and runs this:

    test-clients.py BASE_URL API_KEY GENERATED.json

`GENERATED.json` is what `retie generate --json` says of the prompt below. The server has one slot and a queue of four.
"""

import concurrent.futures
import json
import math
import sys
import time

import openai

base_url, key, generated = sys.argv[1:]
with open(generated, encoding="utf-8") as file:
    generated = json.load(file)
PROMPT = "The colony"
assert generated["prompt"] == PROMPT

client = openai.OpenAI(base_url=base_url, api_key=key)
once = client.with_options(max_retries=0)
MESSAGES = [{"role": "user", "content": "Who founded the colony?"}]


def check(name):
    print(f"ok: {name}")


models = client.models.list().data
assert [model.id for model in models] == ["demo"] and models[0].owned_by == "retie"
assert client.models.retrieve("demo").id == "demo"
check("models")

answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=12, temperature=0)
assert answer.choices[0].text == generated["text"], (answer, generated)
assert answer.usage.prompt_tokens == generated["prompt_tokens"] and answer.usage.completion_tokens == 12
assert answer.choices[0].finish_reason == "length" and answer.choices[0].logprobs is None
check("the text of a completion is that of `retie generate`")

stream = client.completions.create(
    model="demo", prompt=PROMPT, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == generated["text"]
assert chunks[-1].choices == [] and chunks[-1].usage == answer.usage
assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks[:-1])
check("the pieces of a stream are the completion, and its usage comes last")

several = client.completions.create(model="demo", prompt=[PROMPT, "In"], n=2, seed=7, max_tokens=8, temperature=1)
again = client.completions.create(model="demo", prompt=[PROMPT, "In"], n=2, seed=7, max_tokens=8, temperature=1)
assert [choice.index for choice in several.choices] == [0, 1, 2, 3] and several.choices == again.choices
assert several.choices[0].text != several.choices[1].text
check("several prompts and choices, and a seed that repeats")

first = generated["text"].split()[1]
stopped = client.completions.create(model="demo", prompt=PROMPT, max_tokens=12, temperature=0, stop=["~", first])
assert stopped.choices[0].text == generated["text"][: generated["text"].index(first)]
assert stopped.choices[0].finish_reason == "stop"
check("a stop string ends the text before it")

# What lm-evaluation-harness sends, and how it reads the answer.
ids = client.post("/../tokenize", body={"prompt": PROMPT + generated["text"]}, cast_to=object)["tokens"]
scored = client.completions.create(
    model="demo", prompt=[ids], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
)
lists = scored.choices[0].logprobs
context = generated["prompt_tokens"]
assert lists.token_logprobs[0] is None and len(lists.token_logprobs) == len(ids) + 1
greedy = [max(top.values()) == logprob for top, logprob in zip(lists.top_logprobs[1:], lists.token_logprobs[1:])]
if ids[context:] == generated["ids"]:
    assert all(greedy[context - 1 : -1]), "greedy tokens are the most probable ones"
assert all(math.isfinite(logprob) and logprob <= 0 for logprob in lists.token_logprobs[1:])
check("log-probabilities of a given text, as an evaluation reads them")

chat = client.chat.completions.create(
    model="demo", messages=MESSAGES, max_completion_tokens=10, temperature=0, logprobs=True, top_logprobs=3
)
prompt = client.post("/../tokenize", body={"messages": MESSAGES}, cast_to=object)["tokens"]
same = client.completions.create(model="demo", prompt=prompt, max_tokens=10, temperature=0)
assert chat.choices[0].message.role == "assistant" and chat.choices[0].message.content == same.choices[0].text
assert chat.usage == same.usage
content = chat.choices[0].logprobs.content
assert b"".join(bytes(token.bytes) for token in content).decode() == same.choices[0].text
assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob for token in content)
check("chat: the template of the model, and log-probabilities")

chunks = list(
    client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=10, temperature=0, stream=True)
)
assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat.choices[0].message.content
assert chunks[-1].choices[0].finish_reason == chat.choices[0].finish_reason
assert all(len(chunk.choices) == 1 for chunk in chunks)
# The helper takes an answer that is cut off for an error: this one ends with a stop string.
said = chat.choices[0].message.content
word = said.split()[2]
with client.chat.completions.stream(
    model="demo", messages=MESSAGES, max_tokens=10, temperature=0, stop=word
) as events:
    final = events.get_final_completion()
assert final.choices[0].message.content == said[: said.index(word)] and final.choices[0].finish_reason == "stop"
check("chat: a stream, read by hand and by the client's helper")


def refused(kind, **changes):
    request = {"model": "demo", "prompt": PROMPT, "max_tokens": 4, **changes}
    try:
        once.completions.create(**request)
    except kind as error:
        return error
    raise AssertionError(f"{changes} is not refused")


error = refused(openai.BadRequestError, max_tokens="four")
assert error.param == "max_tokens" and "expected an integer" in error.message and error.type == "invalid_request_error"
error = refused(openai.BadRequestError, max_tokens=100_000)
assert error.code == "context_length_exceeded" and "100000" in error.message and "256" in error.message
assert refused(openai.NotFoundError, model="gpt-4").code == "model_not_found"
assert refused(openai.BadRequestError, logit_bias={"5": 1}).param == "logit_bias"
client.completions.create(model="demo", prompt=PROMPT, max_tokens=1, user="me", extra_body={"not_known": 1})
try:
    openai.OpenAI(base_url=base_url, api_key="wrong").models.list()
    raise AssertionError("a wrong key is accepted")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"
check("errors have their classes, `param` and `code`; unknown fields are ignored")

long = {"model": "demo", "prompt": PROMPT, "max_tokens": 240, "extra_body": {"ignore_eos": True}}
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    tries = [pool.submit(once.completions.create, **long) for _ in range(16)]
    kinds = [type(future.exception()) for future in tries]
assert set(kinds) == {type(None), openai.RateLimitError}, kinds
start = time.monotonic()
patient = client.with_options(max_retries=20)
with concurrent.futures.ThreadPoolExecutor(10) as pool:
    tries = [pool.submit(patient.completions.create, **{**long, "max_tokens": 60}) for _ in range(10)]
    assert all(future.result().usage.completion_tokens == 60 for future in tries)
check(f"a full queue answers 429, and the client's retries succeed ({time.monotonic() - start:.1f} s)")

stream = client.completions.create(**{**long, "stream": True})
next(iter(stream))
stream.close()
start = time.monotonic()
client.completions.create(model="demo", prompt=PROMPT, max_tokens=1)
check(f"a closed stream frees the only slot ({time.monotonic() - start:.2f} s)")
