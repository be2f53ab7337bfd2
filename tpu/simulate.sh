#!/usr/bin/env bash
# A pod on this machine: N processes with D CPU devices each, over loopback (gloo).
#
# What for:  to see a command run as it would on N hosts, and how it takes a host that fails.
# Cost:      nothing; it is as slow as N processes on these cores, and needs N times the memory.
# Stopping:  Ctrl-C or SIGTERM to this script goes to every process, which saves and ends; a second
#            one ends them at once. SIGTERM or kill to one process is the exercise.
#
#   tpu/simulate.sh 2 4 python -m lmnoise.train --config=configs/lm.py:laptop --workdir=runs/pod
set -u

usage() {
    cat <<'TEXT'
usage: tpu/simulate.sh [--dry_run] N D COMMAND [ARGUMENT...]

Starts COMMAND N times on this machine, as processes 0 to N-1 of one run with D CPU devices each,
with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set. Each line they print
begins with the number of its process. Ends with 0 if all did, otherwise with the status of the
first that did not. Needs no accelerator and costs nothing.

  --dry_run  print what would be started, and start nothing
  --help     this text

environment:
  PORT                  port of process 0 on 127.0.0.1; by default a free one
  LMNOISE_LOST_TIMEOUT  seconds, see lmnoise/training/processes.py
TEXT
}

fail() {
    echo "simulate.sh: $1 (see --help)" >&2
    exit 2
}

count_of() { # count_of NAME VALUE LARGEST
    case $2 in
    '' | 0* | *[!0-9]*) fail "$1 must be a number from 1 to $3, not '$2'" ;;
    esac
    if [ "${#2}" -gt 5 ] || [ "$2" -gt "$3" ]; then
        fail "$1 must be a number from 1 to $3, not '$2'"
    fi
}

# A port is free if nobody answers on it; the system gives these out least often.
free_port() {
    local try port
    for try in 1 2 3 4 5 6 7 8 9 10; do
        port=$((20000 + (RANDOM + try) % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "no free port found: set PORT"
}

dry_run=0
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --dry_run) dry_run=1 && shift ;;
    -*) fail "there is no option $1" ;;
    *) break ;;
    esac
done
[ $# -ge 3 ] || fail "N, D and a command are needed"
processes=$1 devices=$2
shift 2
count_of N "$processes" 64
count_of D "$devices" 512
command -v -- "$1" >/dev/null || fail "there is no command '$1'"
if [ -n "${PORT-}" ]; then count_of PORT "$PORT" 65535; else PORT=$(free_port) || exit 2; fi

flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
setting() { # the environment of process $1, one assignment a line
    printf '%s\n' "JAX_PLATFORMS=cpu" "XLA_FLAGS=$flags" \
        "JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT" \
        "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$PORT" \
        "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1" "PYTHONUNBUFFERED=1"
}

if [ "$dry_run" = 1 ]; then
    for ((i = 0; i < processes; i++)); do
        mapfile -t environment < <(setting "$i")
        printf '[%s]' "$i"
        printf ' %q' "${environment[@]}" "$@"
        echo
    done
    exit 0
fi

pids=()
printers=()
signals=0
# shellcheck disable=SC2329 # the traps call it
pass_on() { # pass_on SIGNAL
    local pid signal=$1
    signals=$((signals + 1))
    [ "$signals" -eq 1 ] || signal=KILL
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
    exec {out}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$i] /")
    printers+=($!)
    "${tied[@]}" env "${environment[@]}" "$@" </dev/null >&"$out" 2>&1 &
    pids+=($!)
    exec {out}>&-
    echo "[$i] is process $!"
done
set +m

status=0
for pid in "${pids[@]}"; do
    while :; do
        wait "$pid"
        code=$?
        # A signal to this script ends the wait, not the process.
        kill -0 "$pid" 2>/dev/null || break
    done
    [ "$code" = 0 ] || [ "$status" != 0 ] || status=$code
done
wait "${printers[@]}"
exit "$status"
