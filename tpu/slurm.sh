#!/usr/bin/env bash
# A run on a GPU cluster under SLURM: one process a GPU, on any number of nodes.
#
#   tpu/worker.sh setup --jax=cuda13       once, on a file system that all nodes see
#   sbatch --nodes=4 tpu/slurm.sh -- .venv/bin/python -m lmnoise.train \
#       --config=configs/noise.py:gpu --workdir=runs/noise
#   tail -f slurm-JOB.log
#
# Options of sbatch go before the file's name and win over the lines below: --nodes, --time,
# --partition, --account, and --gpus-per-node together with --ntasks-per-node, which must be the
# same number. Five minutes before its time is over the job gets SIGTERM, saves, and is put back
# into the queue, and so it is, up to 100 times, when a process was killed (out of memory, say) or
# ended with status 75 because another one was lost; there, or after a node failed, the run resumes.
# After status 2, which is for something to mend, the job ends.
#
# Options: --dry_run (print the command that every task runs, run nothing), --help.
#
# Costs: what your cluster charges for nodes x GPUs x hours; rented GPUs of the H100 class cost of
#   the order of 2 to 10 US dollars an hour each: look at your centre's or provider's price list.
# Stop: scancel --signal=TERM --batch JOB saves and queues it again (sent twice it ends the run in the
#   middle of the save); scancel JOB ends it for good (the last checkpoint stays).
#SBATCH --job-name=lmnoise
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

help() { sed -n '2,/^#SBATCH/{/^#SBATCH/!{s/^# \{0,1\}//;p;};}' "$0"; }

dry_run=0
while (($#)); do
  case $1 in
    --dry_run) dry_run=1 ;;
    --help | -h) help && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1: put -- before the command (see --help)" ;;
  esac
  shift
done
(($#)) || fail "give the command to run after --"
if [[ $dry_run == 0 ]]; then
  [[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no SLURM job: submit it, sbatch tpu/slurm.sh -- COMMAND"
  gpus=${SLURM_GPUS_PER_NODE:-} # h100:8 or 8
  [[ ${gpus##*:} == "${SLURM_NTASKS_PER_NODE:-}" ]] ||
    fail "--gpus-per-node and --ntasks-per-node must be the same number: one process drives one GPU"
fi

# In each task jax sees all GPUs of its node and takes the one with the number SLURM_LOCALID. SLURM
# signals every process of a task, helpers too; they do not hear SIGUSR1, of which the shell makes
# one SIGTERM to the command. srun reports the highest status: 2 becomes 254, above all signals.
# shellcheck disable=SC2016
TASK='trap "" USR1
JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID "$@" &
child=$! heard=0 status=0
trap "heard=1; kill -TERM $child 2>/dev/null" USR1
trap "heard=1" TERM
wait "$child" || status=$?
while ((heard)); do
  heard=0 status=0
  wait "$child" || status=$?
done
exit $((status == 2 ? 254 : status))'
# Newer versions of srun do not inherit --cpus-per-task. The processes end by themselves when one
# fails, and their statuses are wanted.
cpus=(--cpus-per-task="${SLURM_CPUS_PER_TASK:-8}")
step=(srun --kill-on-bad-exit=0 --gpu-bind=none "${cpus[@]}" bash -c "$TASK" task "$@")
if [[ $dry_run == 1 ]]; then
  printf -v line '%q ' "${step[@]}"
  echo "JAX_COORDINATOR_ADDRESS=FIRST_NODE:PORT ${line% }"
  exit
fi

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export JAX_COORDINATOR_ADDRESS="${nodes%%$'\n'*}:$((61440 + SLURM_JOB_ID % 4096))"
heard=0 stopped=0 cancelled=0 status=0

# shellcheck disable=SC2329 # the trap calls it
on_term() {
  heard=1
  # scancel JOB, which is for good, has signalled the tasks itself.
  if [[ $(scontrol show job "$SLURM_JOB_ID") != *JobState=RUNNING* ]]; then
    cancelled=1
  else
    stopped=1
    # The tasks, not this script; srun itself would kill them.
    scancel --signal=USR1 "$SLURM_JOB_ID" || true
  fi
}
trap on_term TERM

"${step[@]}" &
child=$!
wait "$child" || status=$?
# A trapped signal ends `wait` before the child.
while [[ $heard == 1 ]]; do
  heard=0 status=0
  wait "$child" || status=$?
done
if [[ $cancelled == 0 && $stopped == 1 ]]; then
  echo "stopped by SIGTERM: back into the queue"
elif [[ $status == 254 ]]; then
  exit 2
elif [[ $cancelled == 1 ]] || ((status != 75 && status <= 128)); then
  exit "$status"
elif ((${SLURM_RESTART_COUNT:-0} >= 100)); then
  echo "ended with status $status, and started anew 100 times already"
  exit "$status"
else
  echo "ended with status $status: back into the queue"
fi
exec scontrol requeue "$SLURM_JOB_ID"
