#!/usr/bin/env bash
# Both stages on real medical question-answering sets, with a small model from random weights, on a CPU: the experiment of
# docs/real_data.md. Such a model learns the form of the task, not medicine.
#
#   scripts/real_data.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds the published files, one folder a set (see the list below). Everything is written to OUT_DIR (default runs/real).
# Stop it at any time; called again it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
# A training that is stopped saves and exits with 75, which ends the script (set -e).
trap 'echo "stopped; call it again to go on" >&2; exit 130' INT TERM

raw=${1:?usage: scripts/real_data.sh RAW_DIR [OUT_DIR]}
out=${2:-runs/real}
python=${PYTHON_BIN:-$(scripts/setup.sh | tail -n 1)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
records=$out/records
mkdir -p "$records/stage1" "$records/stage2" "$records/dev"

convert() { # source, input, output, further flags
  [ -s "$records/$3.jsonl" ] && return
  echo "== $1: $2"
  "$python" -m data_gen convert --source="$1" --input="$raw/$2" --output="$records/$3.jsonl" "${@:4}"
}

# Stage 1: long answers. MedMCQA's explanations stay out, because its questions are evaluated on below.
convert medquad medquad_en/sample3000.jsonl stage1/medquad
convert xlinghealth xlinghealth_en_zh_es stage1/xlinghealth
convert toyhom toyhom_zh/sample_internal_medicine_gb18030.csv stage1/toyhom
convert cmb_clin cmb_clin_zh/CMB-test-qa.json stage1/cmb_clin
convert mfds_edrug mfds_edrug_ko/e_yakeunyo.xlsx stage1/mfds_edrug
convert covid_faq covid_faq_multilingual/cdc.csv stage1/covid_faq
convert pubmedqa pubmedqa_en/pqal_train.json stage1/pubmedqa --kind=instruction
# Stage 2: multiple choice, training splits.
convert medqa_us medqa_us/train_selfbiorag_4opt.jsonl stage2/medqa_us
convert frenchmedmcqa frenchmedmcqa_fr/train.json stage2/frenchmedmcqa
convert rumeddanet rumeddanet_ru/train_v1.jsonl stage2/rumeddanet
convert headqa headqa_es_en/train_HEAD.json stage2/headqa
convert pubmedqa pubmedqa_en/pqal_train.json stage2/pubmedqa --kind=mcq
# Development splits, for validation and accuracy.
convert medqa_us medqa_us/dev_mediq.jsonl dev/medqa_us
convert medmcqa medmcqa_dev_en/dev.jsonl dev/medmcqa --kind=mcq
convert mmlu_medical mmlu_medical_en dev/mmlu_medical
convert frenchmedmcqa frenchmedmcqa_fr/dev.json dev/frenchmedmcqa
convert rumeddanet rumeddanet_ru/dev_v1.jsonl dev/rumeddanet
convert headqa headqa_es_en/dev_HEAD.json dev/headqa
for lang in en es fr; do
  convert casimedicos "casimedicos_en_es_fr/${lang}_train.jsonl" "stage1/casimedicos_$lang" --kind=instruction
  convert casimedicos "casimedicos_en_es_fr/${lang}_train.jsonl" "stage2/casimedicos_$lang" --kind=mcq
  convert casimedicos "casimedicos_en_es_fr/${lang}_dev.jsonl" "dev/casimedicos_$lang" --kind=mcq
done
# These have no development split here: every tenth question is held out.
convert medqa_zh medqa_zh/cmexam_cmb.json all_medqa_zh
convert jmmlu_medical jmmlu_medical_ja all_jmmlu
for name in medqa_zh jmmlu; do
  awk 'NR % 10 != 0' "$records/all_$name.jsonl" > "$records/stage2/$name.jsonl"
  awk 'NR % 10 == 0' "$records/all_$name.jsonl" > "$records/dev/$name.jsonl"
done

# scripts/tuning_comparison.sh goes on from here by itself.
[ -z "${RECORDS_ONLY:-}" ] || exit 0

join() { local IFS=,; echo "$*"; }
stage1=$(join "$records"/stage1/*.jsonl)
stage2=$(join "$records"/stage2/*.jsonl)
dev=$(join "$records"/dev/*.jsonl)

[ -s "$out/tokenizer/tokenizer.json" ] ||
  "$python" -m scripts.make_tokenizer --records="$stage1,$stage2" --vocab_size=12288 --output="$out/tokenizer"

# 10.2 million parameters; lengths and learning rates chosen for about an hour on two CPU cores.
common=(
  --config.batch_size=8 --config.data.seq_len=512 --config.epochs=0 --config.data.cache_dir="$out/packed"
  --config.mesh.devices=1 --config.eval_every=150 --config.eval_rows=160 --config.optim.lr=1.5e-3
  --config.optim.weight_decay=0.1 --config.checkpoint.every_minutes=5 --config.log_every=10
)
"$python" -m mmed_jax.train --config=stage1 --config.run_dir="$out/stage1" --config.tokenizer="$out/tokenizer" \
  --config.data.train="$stage1" --config.data.validation_fraction=0.02 \
  --config.data.language_weights="ko=0.3,zh=0.5" --config.steps="${STAGE1_STEPS:-350}" \
  --config.model.vocab_size=12288 --config.model.hidden_size=256 --config.model.intermediate_size=768 \
  --config.model.num_layers=9 --config.model.num_heads=8 --config.model.num_kv_heads=4 "${common[@]}"
"$python" -m mmed_jax.train --config=stage2 --config.run_dir="$out/stage2" --config.init_from="$out/stage1" \
  --config.data.train="$stage2" --config.data.validation="$dev" --config.steps="${STAGE2_STEPS:-150}" "${common[@]}"

"$python" -m mmed_jax.evaluate --model="$out/stage2" --data="$dev" --mode=direct --limit="${LIMIT:-150}" --output="$out/evaluation"
"$python" -m mmed_jax.export --model="$out/stage2" --output="$out/export" --overwrite
