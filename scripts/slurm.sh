#!/usr/bin/env bash
#SBATCH --job-name=mmed_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
# SIGTERM two minutes before the end: the run saves and exits 75, and the next job of the same command continues.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#
# One process a node with all its GPUs; jax.distributed finds the others through Slurm. From the checkout, with the environment made by
#   python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[cuda]'
# submit:
#   sbatch scripts/slurm.sh python -m mmed_jax.train --config=stage1:8b --config.run_dir=/shared/runs/stage1-8b
set -euo pipefail

[ $# -gt 0 ] || { echo "error: sbatch scripts/slurm.sh COMMAND" >&2; exit 2; }
export PATH="$PWD/.venv/bin:$PATH"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
ulimit -n 65536 || true
exec srun --kill-on-bad-exit=1 "$@" "--config.distributed.expect_processes=${SLURM_NNODES:?run this with sbatch}"
