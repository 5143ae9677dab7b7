#!/usr/bin/env bash
# Sets up .venv and passes the tests. Arguments go to pytest: scripts/test.sh tests/model/test_parity.py -k theta
# scripts/test.sh --fast: what to run while working. Every room, in two and a half minutes on two cores: without the tests listed in
# tests/slow.txt, and two cases of a test with many. Programs are compiled with less care than users' are, but with --optimised.
# A process for each core, without --fast one more (some tests wait), whole files on one of them; single files and -k in one
# process, as everything with -n 0 (a debugger, -s). -n 4 takes four.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(scripts/setup.sh test | tail -n 1)
# Compiled modules are kept, also where the machine's environment says otherwise: the checks in the tests take 15 s to compile.
unset PYTHONDONTWRITEBYTECODE
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m scripts.type_check
"$python" -m pytest "$@"
