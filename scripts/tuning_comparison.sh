#!/usr/bin/env bash
# One small model tuned in the ways that arXiv 2402.13963 compares: not at all, by LoRA, in full; on real medical questions, on a CPU.
# The experiment of docs/lora.md. Such a model learns the form of the task, not medicine.
#
#   scripts/tuning_comparison.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds the published files, as scripts/real_data.sh takes them. The base is random weights after stage 1 on long answers, all
# weights trained. Then stage 2 on multiple choice, the same rows in the same order for each: LoRA with the published rank, modules,
# dropout and learning rate; LoRA as the recipes have it; all weights. Everything is written to OUT_DIR (default runs/tuning). Stop it
# at any time; called again it goes on where it was. STAGE1_STEPS, STAGE2_STEPS, LIMIT (questions of each file) change its
# length, MODES="loglikelihood direct" has answers written as well.
set -euo pipefail
cd "$(dirname "$0")/.."
# A training that is stopped saves and exits with 75, which ends the script (set -e).
trap 'echo "stopped; call it again to go on" >&2; exit 130' INT TERM

raw=${1:?usage: scripts/tuning_comparison.sh RAW_DIR [OUT_DIR]}
out=${2:-runs/tuning}
python=${PYTHON_BIN:-$(scripts/setup.sh | tail -n 1)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
RECORDS_ONLY=1 PYTHON_BIN=$python scripts/real_data.sh "$raw" "$out"
records=$out/records

join() { local IFS=,; echo "$*"; }
stage1=$(join "$records"/stage1/*.jsonl)
stage2=$(join "$records"/stage2/*.jsonl)
# Sets with a development split, or a tenth held out; no question of a test split is here.
dev=$(join "$records"/dev/*.jsonl)

[ -s "$out/tokenizer/tokenizer.json" ] ||
  "$python" -m scripts.make_tokenizer --records="$stage1,$stage2" --vocab_size=8192 --output="$out/tokenizer"

common=(
  --config.batch_size=8 --config.data.seq_len=256 --config.epochs=0 --config.data.cache_dir="$out/packed" --config.mesh.devices=1
  --config.eval_every=0 --config.optim.weight_decay=0 --config.checkpoint.every_minutes=5 --config.log_every=10
)
"$python" -m mmed_jax.train --config=stage1 --config.run_dir="$out/base" --config.tokenizer="$out/tokenizer" \
  --config.data.train="$stage1" --config.data.language_weights="ko=0.3,zh=0.5" --config.steps="${STAGE1_STEPS:-80}" \
  --config.optim.lr=2e-3 --config.model.vocab_size=8192 --config.model.hidden_size=128 --config.model.intermediate_size=384 \
  --config.model.num_layers=4 --config.model.num_heads=4 --config.model.num_kv_heads=2 "${common[@]}"

tune() { # name, further flags
  "$python" -m mmed_jax.train --config=stage2 --config.run_dir="$out/$1" --config.init_from="$out/base" \
    --config.data.train="$stage2" --config.data.validation="$dev" --config.eval_rows=64 --config.data.modes=direct --config.steps="${STAGE2_STEPS:-50}" \
    "${common[@]}" "${@:2}"
}
tune lora-paper --config.optim.lr=2e-5 --config.optim.warmup_ratio=0.03 --config.optim.end_lr_ratio=0 \
  --config.lora.rank=16 --config.lora.dropout=0.05 --config.lora.targets=q,v
tune lora --config.optim.lr=3e-3 --config.lora.rank=16
tune full --config.optim.lr=1.5e-3

# One file of all sets, so that compare has one table, by language and in all.
head -q -n "${LIMIT:-100}" "$records"/dev/*.jsonl > "$out/dev.jsonl"
for mode in ${MODES:-loglikelihood}; do
  runs=()
  for name in base lora-paper lora full; do
    "$python" -m mmed_jax.evaluate --model="$out/$name" --data="$out/dev.jsonl" --mode="$mode" --output="$out/$mode/$name"
    runs+=("$out/$mode/$name")
  done
  "$python" -m mmed_jax.compare "${runs[@]}" --published=none --output="$out/compared-$mode"
done
