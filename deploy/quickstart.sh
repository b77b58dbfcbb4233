#!/usr/bin/env bash
# Serves the bundled model on this machine and asks it about a picture.
#
#   deploy/quickstart.sh                      ask about the bundled picture, then go on serving
#   deploy/quickstart.sh --once               stop after the answer
#   deploy/quickstart.sh --image cat.png --ask "What is this?"
#   deploy/quickstart.sh --port 8001          another port than 8000
#   deploy/quickstart.sh --help
#
# The first run installs everything into .venv; Ctrl-C stops everything that was started.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
caller=$PWD

# Mistakes are told before anything is installed; deploy/quickstart.py checks the values.
words=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '/^set -euo/d'
      exit 0
      ;;
    --once) ;;
    --image | --ask | --port)
      [ $# -ge 2 ] || { echo "quickstart: $1 needs a value" >&2; exit 2; }
      shift
      ;;
    *)
      echo "quickstart: unknown option '$1' (see --help)" >&2
      exit 2
      ;;
  esac
  shift
done

# The empty argument keeps our own options from reaching the script.
source "$here/venv.sh" ""
cd "$caller"
# -P: a folder of the caller's that is called deploy must not hide ours.
exec "$smart_serve_interpreter" -P -m deploy.quickstart ${words[@]+"${words[@]}"}
