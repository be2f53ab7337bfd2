#!/usr/bin/env bash
# A pod on this machine: N processes with D CPU devices each, over loopback (gloo).
#
#   tpu/simulate.sh 2 4 python -m lmnoise.train --config=configs/lm.py:laptop --workdir=runs/pod
#   tpu/simulate.sh [OPTION...] N D COMMAND [ARGUMENT...]
#
# It shows a command as it would run on N hosts, and how it takes a host that fails: kill one of
# the processes, whose ids it prints. COMMAND is started N times, as processes 0 to N-1 of one run
# with D devices each, with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set. Each
# line they print begins with the number of its process. The exit status is 0 if all of theirs
# are, otherwise that of the first that failed of itself; 75 is for the others it takes along.
#
# Options: --port=N (of process 0 on 127.0.0.1; default: a free one), --dry_run (print what would
# be started, start nothing), --help.
#
# Costs: nothing; it is as slow as N processes on these cores, and needs N times the memory.
# Stop: Ctrl-C, or SIGTERM to this script, goes to every process, which saves and ends; a second one
#   ends them at once.
set -uo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

help() { sed -n '2,/^set /{/^#/{s/^# \{0,1\}//;p;};}' "$0"; }

# check NAME VALUE LARGEST
check() {
  if [[ ! $2 =~ ^[1-9][0-9]{0,4}$ ]] || (($2 > $3)); then
    fail "$1 must be a number from 1 to $3, not '$2'"
  fi
}

# A port is free if nobody answers on it; the system gives these out least often.
free_port() {
  local try port
  for try in {1..10}; do
    port=$((20000 + (RANDOM + try) % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
  fail "no free port found: name one with --port"
}

port='' dry_run=0
while (($#)); do
  case $1 in
    --port=*) port=${1#*=} && check --port "$port" 65535 ;;
    --dry_run) dry_run=1 ;;
    --help | -h) help && exit ;;
    -*) fail "unknown argument $1 (see --help)" ;;
    *) break ;;
  esac
  shift
done
(($# >= 3)) || fail "give N, D and a command (see --help)"
processes=$1 devices=$2
shift 2
check N "$processes" 64
check D "$devices" 512
command -v -- "$1" >/dev/null || fail "there is no command '$1'"
port=${port:-$(free_port)} || exit

flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
# setting NUMBER: the environment of a process, one assignment a line.
setting() {
  printf '%s\n' "JAX_PLATFORMS=cpu" "XLA_FLAGS=$flags" \
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" \
    "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port" \
    "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1" "PYTHONUNBUFFERED=1"
}

if [[ $dry_run == 1 ]]; then
  for ((i = 0; i < processes; i++)); do
    mapfile -t environment < <(setting "$i")
    printf '[%s]' "$i"
    printf ' %q' "${environment[@]}" "$@"
    echo
  done
  exit
fi

pids=()
printers=()
signals=0
# pass_on SIGNAL: to all processes.
# shellcheck disable=SC2329 # the traps call it
pass_on() {
  local pid signal=$1
  signals=$((signals + 1))
  ((signals == 1)) || signal=KILL
  for pid in "${pids[@]}"; do kill "-$signal" "$pid" 2>/dev/null; done
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
# Whatever ends this script ends the processes.
trap 'for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null; done' EXIT

# Even kill -9 of this script, where the system can tie them to it.
tied=()
if setpriv --pdeathsig KILL true 2>/dev/null; then tied=(setpriv --pdeathsig KILL); fi

# A shell makes its background processes deaf to Ctrl-C unless it controls jobs; with that each
# is also a group of its own, so that a Ctrl-C reaches it once, from here.
set -m
for ((i = 0; i < processes; i++)); do
  mapfile -t environment < <(setting "$i")
  # The last line of a killed process may be open: it is closed, or another's would go on in it.
  exec {out}> >(
    trap '' INT TERM HUP
    while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$i" "$line"; done
  )
  printers+=($!)
  "${tied[@]}" env "${environment[@]}" "$@" </dev/null >&"$out" 2>&1 &
  pids+=($!)
  exec {out}>&-
  echo "[$i] is process $!"
done
set +m

# status_of PID: waits for a process; sets code.
status_of() {
  local before
  while
    before=$signals
    wait "$1"
    code=$?
    # A signal to this script ends the wait, not the process; its status can be asked for again.
    ((signals != before))
  do :; done
}

status=0
for pid in "${pids[@]}"; do
  status_of "$pid"
  # 75: it ended because another one did.
  if ((code != 0 && (status == 0 || status == 75))); then status=$code; fi
done
wait "${printers[@]}"
exit "$status"
