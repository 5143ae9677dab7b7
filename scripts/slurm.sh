#!/usr/bin/env bash
#SBATCH --job-name=mmed_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
# SIGTERM two minutes before the time limit (B:TERM@120 and preemption do as well): the run saves and ends with 75, and the job is
# put back into the queue, where it goes on from what was saved.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# One process a node with all its GPUs; jax.distributed finds the others through Slurm. From the checkout, with the environment made by
#   python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[cuda]'
# submit:
#   sbatch scripts/slurm.sh python -m mmed_jax.train --config=stage1:8b --config.run_dir=/shared/runs/stage1-8b
# What sbatch is given overrides the lines above. Stopping a job for good, and more: docs/pods.md.
set -uo pipefail

fail() { echo "error: $*" >&2; exit 2; }
[ $# -gt 0 ] || fail "sbatch scripts/slurm.sh COMMAND"
job=${SLURM_JOB_ID:?run this with sbatch}
export PATH="$PWD/.venv/bin:$PATH"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
ulimit -n 65536 2> /dev/null || true

# The first node's name is where all processes meet: one that does not resolve would be waited for without a word.
unknown=()
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
  getent ahosts "$host" > /dev/null || unknown+=("$host")
done
[ ${#unknown[@]} -eq 0 ] || fail "the names of these nodes do not resolve on $(hostname): ${unknown[*]}"

# --signal=B:TERM reaches this shell alone. srun itself would answer a SIGTERM by killing its tasks; scancel only passes it on.
signalled=
trap 'signalled=1; scancel --signal=TERM "$job"' TERM

# Not --kill-on-bad-exit: the first process that ends with 75 would have the others killed after KillWait, which may still save or
# write the report. A process that fails ends the others by itself; what is left then after two minutes is ended here.
srun --label --kill-on-bad-exit=0 --wait=120 "$@" "--config.distributed.expect_processes=${SLURM_NTASKS:-$SLURM_NNODES}" &
step=$!
code=127
while :; do
  signalled=
  wait "$step"
  last=$?
  # A trapped signal ends the wait, and not what is waited for. 127: that was waited for before.
  [ "$last" -eq 127 ] || code=$last
  [ -n "$signalled" ] && [ "$last" -gt 128 ] || break
done

trap '' TERM  # no step is left to pass it on to

# 75: stopped and saved, at least one step further than before. 143: SIGTERM came before the first step; a job that never comes further
# is not queued again for ever. The count lies beside the job's output.
stops=slurm-$job.stops
case $code in
  75) rm -f "$stops" ;;
  143)
    count=$(($(cat "$stops" 2> /dev/null || echo 0) + 1))
    if [ "$count" -ge 3 ]; then
      rm -f "$stops"
      echo "error: stopped three times before its first step; give the job more time" >&2
      exit "$code"
    fi
    echo "$count" > "$stops"
    ;;
  *) rm -f "$stops"; exit "$code" ;;
esac

state=$(squeue --noheader --jobs="$job" --format='%T %r')
case $state in
  RUNNING* | *TimeLimit) # COMPLETING otherwise: cancelled by its user, or preempted and put back by Slurm itself
    echo "unfinished (exit code $code): back into the queue"
    scontrol requeue "$job" || echo "error: Slurm does not put job $job back into the queue; submit it again" >&2
    ;;
  *) echo "unfinished (exit code $code), not put back into the queue: job $job is ${state:-gone}" ;;
esac
exit "$code"
