#!/usr/bin/env bash
# Trains on a TPU VM pod slice with gcloud: make it, copy this checkout to every worker, run one command on all of them.
#
#   export TPU_NAME=mmed ZONE=us-east5-a TPU_TYPE=v5p-128        # and PROJECT, if it is not gcloud's default
#   scripts/tpu_pod.sh create [--spot]        asks for the slice (queued resource) and waits until it is there
#   scripts/tpu_pod.sh setup                  copies the checkout, installs jax[tpu] in ~/mmed_jax/.venv, on every worker
#   scripts/tpu_pod.sh run -- python -m mmed_jax.train --config=stage1:8b --config.run_dir=/mnt/runs/stage1-8b
#   scripts/tpu_pod.sh logs                   follows worker 0
#   scripts/tpu_pod.sh stop                   SIGTERM on every worker: the run saves and exits
#   scripts/tpu_pod.sh delete
#
# `run` starts the same command on every worker in the background (it survives the ssh session), with
# --config.distributed.expect_processes set to the number of workers, and then follows worker 0. Calling it again after a preemption
# continues from the newest good checkpoint. The run directory must be on storage that all workers see (a mounted bucket or NFS).
# DRY_RUN=1 prints the commands instead of running them.
set -euo pipefail

die() { echo "error: $*" >&2; exit 2; }
need() { for v in "$@"; do [ -n "${!v:-}" ] || die "$v is not set; see the top of $0"; done; }
do_() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

action=${1:-}
[ -n "$action" ] || { sed -n '2,18p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
shift
need TPU_NAME ZONE
where=(--zone="$ZONE")
[ -z "${PROJECT:-}" ] || where+=(--project="$PROJECT")
on_workers() { # worker(s), command
  do_ gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

case "$action" in
  create)
    need TPU_TYPE
    version=${TPU_RUNTIME:-}
    if [ -z "$version" ]; then
      case "$TPU_TYPE" in
        v6e-*) version=v2-alpha-tpuv6e ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v4-*) version=tpu-ubuntu2204-base ;;
        *) die "TPU_TYPE=$TPU_TYPE: set TPU_RUNTIME to its software version" ;;
      esac
    fi
    do_ gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" --node-id="$TPU_NAME" \
      --accelerator-type="$TPU_TYPE" --runtime-version="$version" "$@"
    [ -n "${DRY_RUN:-}" ] && exit 0
    until state=$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" --format='value(state.state)'); [ "$state" = ACTIVE ]; do
      case "$state" in FAILED | SUSPENDED) die "the queued resource is $state" ;; esac
      echo "$(date +%T) $state"
      sleep 30
    done
    ;;
  setup)
    archive=$(mktemp -d)/mmed_jax.tar.gz
    git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix=mmed_jax/ -o "$archive" HEAD
    do_ gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME": "${where[@]}" --worker=all
    on_workers all "tar xzf mmed_jax.tar.gz && cd mmed_jax && python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]' && ulimit -n 65536"
    on_workers all "cd mmed_jax && .venv/bin/python -m mmed_jax.doctor"
    ;;
  run)
    [ "${1:-}" = -- ] && shift
    [ $# -gt 0 ] || die "run -- COMMAND"
    workers=${TPU_WORKERS:-}
    if [ -z "$workers" ]; then
      workers=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" --format='value(networkEndpoints.len())') || die "cannot count the workers of $TPU_NAME"
    fi
    command=$(printf '%q ' "$@" "--config.distributed.expect_processes=$workers")
    on_workers all "cd mmed_jax && export PATH=\$PWD/.venv/bin:\$PATH && ulimit -n 65536 && nohup setsid $command > run.log 2>&1 < /dev/null & echo started"
    on_workers 0 "tail -n +1 -F mmed_jax/run.log"
    ;;
  logs) on_workers 0 "tail -n 200 -F mmed_jax/run.log" ;;
  stop) on_workers all "pkill -TERM -f 'mmed_jax[.]' || true" ;;
  delete) do_ gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet ;;
  *) die "unknown action '$action': create, setup, run, logs, stop, delete" ;;
esac
