#!/usr/bin/env bash
# The benchmark of widened models: every policy against the oracle and `generate`, at two contexts and two temperatures.
# Figures and pages go to smart_serve/bench/results/<device>/. Arguments go to `bench`: `--batch 1,8 --rounds 2` where time
# is short. Environment: PYTHON, DEVICE (cuda), MODELS, CONTEXTS, RESULTS.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
name=$("$python" -c "
import torch
from smart_serve.models.fingerprint import device_name
print('-'.join(device_name(torch.device('$device')).lower().split()))")
results=${RESULTS:-smart_serve/bench/results}/$name
mkdir -p "$results"

for model in ${MODELS:-llava-1.5-7b llama-3.1-8b}; do
  widen=(--widen "$model")
  if [ "$model" = bundled ]; then widen=(); fi
  for context in ${CONTEXTS:-512 2048}; do
    # 60/6/10 are EAGLE-2's own nodes, layers and children, 59/5/10 those of MSD.
    "$python" -m smart_serve.bench ${widen[@]+"${widen[@]}"} --device "$device" --context "$context" \
      --policies off,chain:4,eagle2,eagle2:59x5,smart-paper,smart,transformers --oracle \
      --batch 1,2,4,8,16,32,64,128 --temperature 0,1 --rounds 3 \
      --json "$results/$model-$context.json" --report "$results/$model-$context.html" "$@"
  done
done
