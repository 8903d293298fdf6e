#!/usr/bin/env python3
"""Serves a GGUF file with llama.cpp's server, to measure it beside ours (made with xllamacpp 2026.10.11549):

    pip install xllamacpp
    scripts/serve-llama.py MODEL.gguf --slots 16 --context 512 &
    retie bench serve MODEL http://127.0.0.1:8090 --num-slots 16 --clients 16 …

Every slot has --context tokens. Threads, batches and the type of the cache are those of llama.cpp unless an option says
otherwise; the cache of prompts is off, as no two requests of the benchmark have one in common.
"""

import argparse
import signal

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.port = arguments.port
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.slots * arguments.context
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.warmup = True
    server = xllamacpp.Server(params)
    print(f"serving {arguments.model} at {server.listening_address}", flush=True)
    signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    main()
