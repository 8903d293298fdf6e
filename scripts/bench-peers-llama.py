#!/usr/bin/env python3
"""llama.cpp's side of `scripts/bench-peers`: a prompt in one batch, then one token after the other, on the CPU.

    python scripts/bench-peers-llama.py MODEL.gguf --seq 512 --new-tokens 128 --threads 2

Needs llama-cpp-python. Prints one JSON line, medians of `--rounds` after one that warms up.
"""

import argparse
import json
import statistics
import time

from llama_cpp import Llama


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    model = Llama(args.model, n_ctx=args.seq + args.new_tokens, n_batch=args.seq, n_threads=args.threads,
                  n_threads_batch=args.threads, verbose=False)
    prompt = [i * 7919 % model.n_vocab() for i in range(args.seq)]
    prefill, decode = [], []
    for _ in range(args.rounds + 1):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        token = model.sample(temp=0.0)
        prefill.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(args.new_tokens):
            model.eval([token])
            token = model.sample(temp=0.0)
        decode.append(time.perf_counter() - start)
    print(json.dumps({
        "prefill_tokens_per_second": args.seq / statistics.median(prefill[1:]),
        "decode_tokens_per_second": args.new_tokens / statistics.median(decode[1:]),
    }))


if __name__ == "__main__":
    main()
