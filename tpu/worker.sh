#!/usr/bin/env bash
# What happens on one machine of a pod: set up lmnoise, start a command, read its log, stop it.
#
#   tpu/worker.sh setup [--jax=tpu]          make .venv, with the lock file's jax for this accelerator
#   tpu/worker.sh start -- COMMAND...        start it in the background; it outlives the connection
#   tpu/worker.sh exec -- COMMAND...         run it here; if SIGTERM stopped it, exit with status 75
#   tpu/worker.sh logs [--lines=50]          the end of its output
#   tpu/worker.sh stop                       SIGTERM: the run saves a checkpoint and ends; a second
#                                            stop ends it at once, also in the middle of the save
#   tpu/worker.sh status                     whether it is running
#
# tpu/cloud.sh calls it on all workers, tpu/jobset.yaml in every pod. On a Cloud TPU slice the
# processes find each other by the machines' metadata. The log and the process id are kept in runs/.
# Of the statuses of a run, 2 is for something to mend; 75 for one that another process ended.
#
# Options: --jax=tpu|cuda13|cpu, --lines=N, --dry_run (print the commands, run nothing), --help.
#
# Costs: nothing beyond the machine that it runs on, which is charged for until it is deleted.
# Stop: tpu/worker.sh stop ends the command only; delete the machine to end the charges.
set -euo pipefail
cd "$(dirname "$0")/.."

LOG=runs/worker.log
PID=runs/worker.pid
LINGER=15 # seconds

fail() {
  echo "error: $1" >&2
  exit 2
}

execute() {
  local line
  printf -v line '%q ' "$@"
  if [[ $dry_run == 1 ]]; then echo "${line% }"; else "$@"; fi
}

help() { sed -n '2,/^set /{/^#/{s/^# \{0,1\}//;p;};}' "tpu/${0##*/}"; }

setup() {
  local version packages
  version=$(sed -n 's/^jax==//p' requirements.lock)
  packages=(gcsfs)
  [[ $jax == cpu ]] || packages+=("jax[$jax]==$version")
  # Images of Cloud TPU come with an older Python; uv, which `make` asks for one, needs no root.
  export PATH="$PATH:$HOME/.local/bin"
  if ! command -v python3.12 python3.13 uv >/dev/null; then
    execute python3 -m pip install --user --quiet uv
  fi
  execute make .venv
  execute .venv/bin/python -m pip install --quiet "${packages[@]}"
}

# When a process started, in ticks since the machine did; nothing for one that is not there.
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

# Whether the process that `start` noted is there; sets `pid`. After a reboot another one may have
# its number, but not its time.
running() {
  local noted=''
  pid=''
  [[ -f $PID ]] && read -r pid noted <"$PID" && [[ -n $noted && $(born "$pid") == "$noted" ]]
}

start() {
  local line
  ! running || fail "process $pid is running here: stop it first with tpu/worker.sh stop"
  if [[ $dry_run == 1 ]]; then
    printf -v line '%q ' "$@"
    echo "setsid nohup $line</dev/null >$LOG 2>&1 &"
    return
  fi
  command -v "$1" >/dev/null || fail "there is no command $1 here: was tpu/worker.sh setup run?"
  mkdir -p runs
  setsid nohup "$@" </dev/null >"$LOG" 2>&1 &
  echo "$! $(born $!)" >"$PID"
  echo "$HOSTNAME: started process $!; its output is in $PWD/$LOG"
}

# A run that SIGTERM stopped has saved and ends with status 0; to a scheduler that would mean that
# it is finished, so the status becomes 75 (try again).
exec_here() {
  local status=0 child='' heard=0 terminated=0
  if [[ $dry_run == 1 ]]; then
    execute "$@"
    return
  fi
  trap 'heard=1 terminated=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  "$@" &
  child=$!
  [[ $terminated == 0 ]] || kill -TERM "$child" 2>/dev/null || true
  heard=0
  wait "$child" || status=$?
  # A trapped signal ends `wait` before the child.
  while [[ $heard == 1 ]]; do
    heard=0 status=0
    wait "$child" || status=$?
  done
  [[ $terminated == 0 ]] || exit 75
  # The scheduler goes by the first that ends, which shall be the one that failed.
  [[ $status != 75 ]] || sleep "$LINGER"
  exit "$status"
}

stop() {
  if ! running; then
    echo "$HOSTNAME: nothing is running"
  else
    execute kill -TERM "$pid"
  fi
}

show_logs() {
  [[ -f $LOG ]] || fail "there is no $LOG: nothing was started here"
  execute tail -n "$lines" "$LOG"
}

show_status() {
  if running; then echo "$HOSTNAME: running"; else echo "$HOSTNAME: not running"; fi
}

action=${1:-}
case $action in
  --help | -h) help && exit ;;
  setup | start | exec | logs | stop | status) shift ;;
  "") fail "name an action: setup, start, exec, logs, stop or status (see --help)" ;;
  *) fail "unknown action $action: name setup, start, exec, logs, stop or status" ;;
esac
dry_run=0 jax=tpu lines=50
while (($#)); do
  case $1 in
    --jax=*) jax=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    --help | -h) help && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1: put -- before the command (see --help)" ;;
  esac
  shift
done
[[ $jax =~ ^(tpu|cuda13|cpu)$ ]] || fail "--jax must be tpu, cuda13 or cpu, not '$jax'"
[[ $lines =~ ^[1-9][0-9]{0,6}$ ]] || fail "--lines must be a number above 0, not '$lines'"
case $action in
  start | exec) (($#)) || fail "give the command to run after --" ;;
  *) (($# == 0)) || fail "$action takes no command, and there is '$1'" ;;
esac
case $action in
  setup) setup ;;
  start) start "$@" ;;
  exec) exec_here "$@" ;;
  logs) show_logs ;;
  stop) stop ;;
  status) show_status ;;
esac
