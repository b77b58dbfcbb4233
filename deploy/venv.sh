#!/usr/bin/env bash
# Makes or re-uses .venv at the project's root. Usage: source deploy/venv.sh [extra]
# The environment is rebuilt only when pyproject.toml, the constraints or the extra change. Where SMART_SERVE_PYTHON names an
# interpreter that has everything already (a machine without a network, say), nothing is installed. It is then, or else the
# one in .venv, what $smart_serve_interpreter names.
smart_serve_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
smart_serve_extra=${1:-}

smart_serve_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "smart-serve needs Python 3.11, 3.12 or 3.13; none was found (set PYTHON to one)" >&2
  return 1
}

smart_serve_install() {
  local python stamp wanted target=".${smart_serve_extra:+[$smart_serve_extra]}"
  cd "$smart_serve_root" || return
  wanted=$(cat pyproject.toml deploy/constraints.txt | cksum)
  # The development environment holds everything the plain one does.
  for stamp in .venv/.installed-"${smart_serve_extra:-plain}" .venv/.installed-dev; do
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return 0
  done
  python=$(smart_serve_python) || return
  echo "Installing into .venv (once; about two minutes) ..."
  [ -x .venv/bin/python ] || "$python" -m venv .venv || return
  # torch first and pinned: a range would let another package pull a build of several gigabytes.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt torch || return
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt --editable "$target" || return
  echo "$wanted" > .venv/.installed-"${smart_serve_extra:-plain}"
}

smart_serve_interpreter=${SMART_SERVE_PYTHON:-$smart_serve_root/.venv/bin/python}
if [ -n "${SMART_SERVE_PYTHON:-}" ]; then
  cd "$smart_serve_root"
else
  smart_serve_install
fi
