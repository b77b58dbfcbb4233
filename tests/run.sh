#!/usr/bin/env bash
# All checks: format, lint, types, tests. Options: --slow (also the slow tests), --gpu (only what needs
# a CUDA device: tests, then the benchmarks of big models), --chaos (nothing but streams while parts of
# a cluster are killed, for 15 minutes or as long as its own options say); anything else goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source deploy/venv.sh dev

selection="not slow and not gpu"
arguments=()
for argument in "$@"; do
  case "$argument" in
    --slow) selection="not gpu" ;;
    --gpu) selection="gpu" ;;
    --chaos) selection="" ;;
    *) arguments+=("$argument") ;;
  esac
done

python=$smart_serve_interpreter
# The console's tests drive a browser; without one they are skipped, and say so.
if [ "$selection" != gpu ] && ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Debian's Chromium (once) ..."
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null ||
    echo "Chromium could not be installed" >&2
fi

# Most models under test are tiny: threads cost them more than they bring.
export OMP_NUM_THREADS=1
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -z "$selection" ]; then
  exec "$python" -m tests.deploy.chaos ${arguments[@]+"${arguments[@]}"}
fi
if [ "$selection" = gpu ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "torch sees no CUDA device" >&2; exit 2; }
  # Files without such tests may import what a GPU machine has no use for.
  # shellcheck disable=SC2046  # no name of a test has spaces
  "$python" -m pytest -m gpu ${arguments[@]+"${arguments[@]}"} $(grep -rlE 'GPU_MARKS|mark\.gpu' tests --include='test_*.py')
  exec env -u OMP_NUM_THREADS bash deploy/big_models.sh
fi
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest -m "$selection" ${arguments[@]+"${arguments[@]}"}
