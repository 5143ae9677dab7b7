#!/usr/bin/env bash
# Builds MMed-IFT and MMed-IFT-MC from published files and trains both stages on the TFDS sets, on a CPU: the run of
# docs/data_gen_sets.md. The test server stands in for the language model, so generated texts have the right form and mean
# nothing; what runs is everything else. With a real endpoint: docs/data_gen.md.
#
#   scripts/build_sets.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds the published files, one file or folder a source, named after it (python -m data_gen convert --list); what is
# not there is left out and said.
# Everything is written to OUT_DIR (default runs/sets). Stop it at any time; called again it goes on where it was.
# ROWS=10000 rows a language; STAGE1_STEPS=300 STAGE2_STEPS=200.
set -euo pipefail
cd "$(dirname "$0")/.."
trap 'echo "stopped; call it again to go on" >&2; exit 130' INT TERM

raw=${1:?usage: scripts/build_sets.sh RAW_DIR [OUT_DIR]}
out=${2:-runs/sets}
rows=${ROWS:-10000}
python=${PYTHON_BIN:-$(scripts/setup.sh | tail -n 1)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} OPENAI_API_KEY=test
port=${PORT:-8090}
mkdir -p "$out/benchmarks"

# Development splits stand in for the test sets that no row may give away.
test_set() { # source, file
  if [ -e "$raw/$2" ]; then cp "$raw/$2" "$out/benchmarks/$1_${2##*/}"; fi
}
test_set headqa headqa_es_en/dev_HEAD.json
test_set frenchmedmcqa frenchmedmcqa_fr/dev.json
test_set rumeddanet rumeddanet_ru/dev_v1.jsonl
test_set medqa_us medqa_us/dev_mediq.jsonl

"$python" -m tests.support.openai_server --port="$port" > "$out/server.log" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
for _ in $(seq 60); do
  grep -q http "$out/server.log" && break
  sleep 1
done

build() { # recipe, flags
  "$python" -m data_gen build --recipe="$1" --data_dir="$raw" --benchmarks="$out/benchmarks" --licenses=research \
    --recipe.missing=skip --ledger="$out/ledger.sqlite" --model=gpt-4o-mini --base_url="http://127.0.0.1:$port/v1" "${@:2}"
}
targets=en=$rows,zh=$rows,ja=$rows,ko=$rows,fr=$rows,es=$rows,ru=$rows
build mmed_ift --output="$out/mmed_ift" --recipe.languages=en,zh,ja,ko,fr,es,ru --recipe.targets="$targets"
build mmed_ift_mc:open --output="$out/mmed_ift_mc"
kill "$server"

join() { local IFS=,; echo "$*"; }
[ -s "$out/tokenizer/tokenizer.json" ] ||
  "$python" -m scripts.make_tokenizer --vocab_size=12288 --output="$out/tokenizer" \
    --records="$(join "$out"/mmed_ift*/jsonl/train/*.jsonl)"

# 10.2 million parameters, as in docs/real_data.md.
common=(
  --config.batch_size=8 --config.data.seq_len=512 --config.epochs=0 --config.data.cache_dir="$out/packed"
  --config.mesh.devices=1 --config.eval_every=100 --config.eval_rows=80 --config.optim.lr=1.5e-3 --config.log_every=10
)
"$python" -m mmed_jax.train --config=stage1 --config.run_dir="$out/stage1" --config.tokenizer="$out/tokenizer" \
  --config.data.train="$out/mmed_ift/tfds/mmed_ift:train" --config.data.validation="$out/mmed_ift/tfds/mmed_ift:validation" \
  --config.steps="${STAGE1_STEPS:-300}" --config.model.vocab_size=12288 --config.model.hidden_size=256 \
  --config.model.intermediate_size=768 --config.model.num_layers=9 --config.model.num_heads=8 \
  --config.model.num_kv_heads=4 "${common[@]}"
"$python" -m mmed_jax.train --config=stage2 --config.run_dir="$out/stage2" --config.init_from="$out/stage1" \
  --config.data.train="$out/mmed_ift_mc/tfds/mmed_ift_mc:train" \
  --config.data.validation="$out/mmed_ift_mc/tfds/mmed_ift_mc:validation" --config.steps="${STAGE2_STEPS:-200}" \
  "${common[@]}"
