#!/usr/bin/env bash
# Made these files, with the program of commit ad3aba3 in RETIE: the last one with `kv` in the router, `depth_warmup_steps`
# in recipes and `mean_depth` in metrics. Kept as they are: later programs have to read them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${RETIE:?a retie binary of commit ad3aba3}" "${PYTHON:=python3}"
export RAYON_NUM_THREADS=1
"$PYTHON" make_source.py .
"$RETIE" convert source --recursions 2 --sharing middle_cycle --init average --lora-rank 2 --share-norms false \
    --dtype f32 -o looped
"$RETIE" convert looped --router token_choice --kv shared -o routed
"$RETIE" uptrain recipe.yaml
mv run/metrics.jsonl expected.jsonl
head -n 2 expected.jsonl >run/metrics.jsonl
rm -r looped run/model run/ckpt/step-4
