#!/usr/bin/env bash
# One NVIDIA GPU with 80 GB or more: speed, MFU, memory and biggest kernels of an 8B model with random weights, trained in full, by
# LoRA and by QLoRA, beside transformers and peft where torch with CUDA is installed (QLoRA: bitsandbytes as well). Under 10 minutes after the environment is made.
#   scripts/bench_gpu.sh [--output=DIR] [--model=llama3-8b] [--minutes=9]      see scripts/bench_gpu.py
# PYTHON_BIN=... takes that python (with jax[cuda13]) and makes no environment.
set -euo pipefail
cd "$(dirname "$0")/.."

smoke=""
for word in "$@"; do [ "$word" = --smoke ] && smoke=1; done
if [ -z "$smoke" ] && ! nvidia-smi > /dev/null 2>&1; then
  echo "error: this machine has no NVIDIA GPU (nvidia-smi finds none); --smoke tries the script on the CPU" >&2
  exit 2
fi
python=${PYTHON_BIN:-}
if [ -z "$python" ]; then
  python=$(scripts/setup.sh | tail -n 1)
  if [ -z "$smoke" ] && ! "$python" -c 'import jax_cuda13_plugin' 2> /dev/null; then
    echo "bench_gpu: installing jax[cuda13], once" >&2
    "$python" -m pip install --disable-pip-version-check --quiet -c constraints.txt 'jax[cuda13]' >&2
  fi
fi
exec "$python" -m scripts.bench_gpu "$@"
