#!/usr/bin/env bash
# The main job on the embedded demo, on any machine: sets up .venv, trains both stages on the hand-crafted records, measures, exports a
# Hugging Face folder and asks it a question. About five minutes on two CPU cores, most of it training. Stop it at any time; called
# again it goes on where it was.
#   scripts/quickstart.sh [OUT_DIR]        default: runs/quickstart; PYTHON_BIN=... takes that python and makes no environment
set -euo pipefail
cd "$(dirname "$0")/.."
# A training that is stopped saves and exits 0; the script must not go on from there.
trap 'echo "stopped; call it again to go on" >&2; exit 130' INT TERM

out=${1:-runs/quickstart}
started=$(date +%s)
step() { printf '\n[%s] %s\n' "$1" "$2"; }

step 1/6 "environment"
python=${PYTHON_BIN:-$(scripts/setup.sh | tail -n 1)}
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
common=(--config.data.cache_dir="$out/packed" --config.log_every=100)

step 2/6 "stage 1: general medical instructions (MMed-IFT)"
"$python" -m mmed_jax.train --config=stage1 --config.run_dir="$out/stage1" "${common[@]}"

step 3/6 "stage 2: multiple choice with rationale (MMed-IFT-MC)"
"$python" -m mmed_jax.train --config=stage2 --config.run_dir="$out/stage2" --config.init_from="$out/stage1" "${common[@]}"

step 4/6 "are the trained questions answered rightly?"
evaluate() { "$python" -m mmed_jax.evaluate --data="data_gen/handcrafted/$2" --model="$out/$1" --output="$out/evaluation/$3" "${@:4}"; }
evaluate stage1 instructions.jsonl instructions
evaluate stage2 mcq.jsonl direct --mode=direct
evaluate stage2 mcq.jsonl rationale --mode=rationale

step 5/6 "Hugging Face folder"
[ -e "$out/export/config.json" ] || "$python" -m mmed_jax.export --model="$out/stage2" --output="$out/export"

step 6/6 "one question to the exported folder"
"$python" -m mmed_jax.generate --model="$out/export" --input=data_gen/handcrafted/mcq.jsonl --limit=1 --output="$out/answers.jsonl"

echo
"$python" -m scripts.quickstart_table "$out"
echo "time       $(($(date +%s) - started)) s"
