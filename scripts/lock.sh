#!/usr/bin/env bash
# Makes constraints.txt again from requirements.txt, the TPU compiler and the test tools: newest versions inside their bounds, for Python 3.11 and
# later on every platform. Needs uv (pip install uv). Run the tests afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp)
trap 'rm -f "$tools"' EXIT
printf 'pytest>=8,<10\npytest-xdist>=3.6,<4\nhypothesis>=6.100,<7\nruff>=0.9,<1\nmypy>=2.4,<3\nnltk>=3.10,<4\njieba>=0.42.1,<0.43\njanome>=0.5,<0.6\nsacrebleu>=2.6,<3\nrouge>=1.0.1,<2\ndatatrove>=0.10.1,<0.11\nahocorasick_rs>=1.0.3,<2\nlxml_html_clean>=0.4,<1\norjson>=3.11,<4\npypdfium2>=5,<6\ntrafilatura>=2.3,<3\nwarcio>=1.8,<2\nzstandard>=0.25,<1\nrapidocr>=3.10,<4\nonnxruntime>=1.32,<2\ngcsfs>=2026.9,<2027\ngoogle-cloud-storage>=3.10,<4\ngguf>=0.19,<0.20\njax[tpu]; sys_platform == "linux" and platform_machine == "x86_64"\n' > "$tools"
{
  echo "# Exact versions that scripts/quickstart.sh and scripts/test.sh install. Made by scripts/lock.sh from requirements.txt and the"
  echo "# test extra; do not edit by hand."
  uv pip compile --quiet --universal --no-annotate --no-header --python-version 3.11 requirements.txt "$tools"
  echo "# Tests only. On Linux the package index may offer a CUDA build of several gigabytes under this version; see README."
  echo "torch==2.13.0"
  # They need torch, and are named here so that the resolver does not bring its CUDA libraries along.
  echo "accelerate==1.15.0"
  echo "peft==0.21.2"
} > constraints.txt.new
mv constraints.txt.new constraints.txt
