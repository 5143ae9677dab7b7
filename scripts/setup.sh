#!/usr/bin/env bash
# Makes the virtual environment (.venv, or $VENV) with the exact versions of constraints.txt, unless it is already there.
#   scripts/setup.sh          what training, evaluation and export need
#   scripts/setup.sh test     and what the tests need
# Prints the environment's python on the last line of stdout; progress goes to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-run}
venv=${VENV:-.venv}
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.12 python3.11 python3; do
    if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "error: no Python 3.11 or newer found; install one or set PYTHON=/path/to/python" >&2
  exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
  echo "error: PYTHON=$python is not a Python 3.11 or newer" >&2
  exit 2
fi

# The stamp says what the environment was made from; anything else means: make it again.
stamp="$("$python" -c 'import sys; print(sys.version)') $(cat requirements.txt constraints.txt pyproject.toml | cksum)"
have() { [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.made-for-$1" 2> /dev/null)" = "$stamp" ]; }
if ! have "$extra" && ! { [ "$extra" = run ] && have test; }; then
  echo "setup: $("$python" --version) -> $venv (about two minutes, once)" >&2
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    "$python" -m venv --clear "$venv" >&2
  fi
  packages=(-r requirements.txt)
  if [ "$extra" = test ]; then
    # What the extra [test] of pyproject.toml names, and the extras that it names itself: one list.
    packages+=($("$venv/bin/python" -c '
import re, tomllib

extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
waiting = ["test"]
for extra in waiting:
    for requirement in extras[extra]:
        own = re.fullmatch(r"mmed_jax\[(.*)\]", requirement)
        waiting.extend(own.group(1).split(",")) if own else print(requirement)
'))
    # The TPU compiler, for the tests of mmed_jax.plan; there are wheels for Linux on x86-64 only.
    [ "$(uname -sm)" = "Linux x86_64" ] && packages+=("jax[tpu]")
  fi
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar off --no-compile -c constraints.txt "${packages[@]}" >&2
  # What pip would do on one core, on all of them, and without the packages' own tests. Some ship files that are no Python.
  "$venv/bin/python" -m compileall -q -j 0 -x 'site-packages/.*/tests?/' "$venv"/lib/python*/site-packages > /dev/null 2>&1 || true
  echo "$stamp" > "$venv/.made-for-$extra"
  echo "setup: done" >&2
fi
echo "$venv/bin/python"
