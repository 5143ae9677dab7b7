#!/usr/bin/env bash
# The main job on the embedded demo, on any machine: sets up .venv, trains both stages on the hand-crafted records, measures, exports a
# Hugging Face folder and asks it a question in two languages. Minutes on two CPU cores, most of it training. Stop it at any time;
# called again it goes on where it was.
#   scripts/quickstart.sh [OUT_DIR]        default: runs/quickstart; PYTHON_BIN=... takes that python and makes no environment
set -euo pipefail
cd "$(dirname "$0")/.."

printf '\n[1/6] environment\n'
python=${PYTHON_BIN:-$(scripts/setup.sh | tail -n 1)}
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# The commands run in one process, so that jax starts once and nothing is compiled twice.
exec "$python" -m scripts.quickstart "${1:-runs/quickstart}"
