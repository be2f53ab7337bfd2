#!/usr/bin/env bash
# Cloud TPU slices: ask for one, set it up, run a command on all its workers, read, stop, delete.
#
#   tpu/cloud.sh create --name=noise --zone=us-east5-b --type=v6e-16 --spot
#   tpu/cloud.sh status --name=noise --zone=us-east5-b
#   tpu/cloud.sh setup  --name=noise --zone=us-east5-b
#   tpu/cloud.sh run    --name=noise --zone=us-east5-b -- .venv/bin/python -m lmnoise.train \
#       --config=configs/noise.py:pod --workdir=gs://my-bucket/runs/noise --config.data.data_dir=gs://my-bucket/data
#   tpu/cloud.sh logs   --name=noise --zone=us-east5-b --worker=0
#   tpu/cloud.sh stop   --name=noise --zone=us-east5-b
#   tpu/cloud.sh delete --name=noise --zone=us-east5-b
#
# `create` asks for a queued resource, which becomes ACTIVE when there is room. `setup` copies the
# last commit to all workers and installs it with the lock file's version of jax[tpu]. `run` starts
# the command on every worker, in the background; the work directory must be one that all workers
# see, gs://. `stop` sends SIGTERM: the run saves, and `run` with the same command resumes it (a
# second `stop` ends it in the middle of the save). Nothing here watches the slice: when Google takes
# a --spot slice away, `delete`, `create`, `setup` and `run` it again by hand, and the run goes on
# from its last checkpoint. It needs the gcloud command, logged in.
#
# Options: --name, --zone, --project (default: gcloud's), --type (as `gcloud compute tpus
# accelerator-types list` calls it), --runtime (default: fits the type), --spot (cheaper, may be
# taken away, and is not asked for again), --valid_for=6h (give up waiting after), --worker=N or all
# (logs), --lines=50 (logs), --dry_run (print the commands, run nothing), --help.
#
# Costs: an ACTIVE slice is charged for by chip and second, busy or idle: of the order of 1 to 5 US
#   dollars a chip and hour on demand, so tens to hundreds of dollars an hour for a pod, and less
#   with --spot; today's prices: https://cloud.google.com/tpu/pricing. Storage is extra.
# Stop: tpu/cloud.sh delete --name=NAME --zone=ZONE ends the charges; stop alone does not.
set -euo pipefail
cd "$(dirname "$0")/.."

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

# queued ACTION ARGUMENTS...
queued() {
  local verb=$1
  shift
  execute gcloud compute tpus queued-resources "$verb" "$name" "${place[@]}" "$@"
}

# on_workers WHICH ACTION ARGUMENTS...: tpu/worker.sh there; the arguments survive the remote shell.
on_workers() {
  local which=$1 line
  shift
  printf -v line '%q ' "$@"
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$which" \
    --command="cd lmnoise && bash tpu/worker.sh ${line% }"
}

create() {
  local options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")
  [[ $spot == 0 ]] || options+=(--spot)
  [[ -z $valid_for ]] || options+=(--valid-until-duration="$valid_for")
  queued create "${options[@]}"
}

setup() {
  local archive
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  archive=$folder/lmnoise.tar.gz
  [[ -z $(git status --porcelain) ]] ||
    echo "notice: what is not committed here is not copied to the workers" >&2
  execute git archive --format=tar.gz --output="$archive" HEAD
  execute gcloud compute tpus tpu-vm scp "$archive" "$name:lmnoise.tar.gz" "${place[@]}" --worker=all
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    --command="mkdir -p lmnoise && tar -xzf lmnoise.tar.gz -C lmnoise"
  on_workers all setup --jax=tpu
}

default_runtime() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

check() {
  [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "--name must be lower-case letters, digits and -, at most 63, not '$name'"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail "--zone must be a zone such as us-east5-b, not '$zone'"
  [[ -z $project || $project =~ ^[a-z][-a-z0-9:.]{4,61}[a-z0-9]$ ]] ||
    fail "--project must be a project id, not '$project'"
  [[ $worker =~ ^(all|0|[1-9][0-9]{0,4})$ ]] ||
    fail "--worker must be a number or all, not '$worker'"
  [[ $lines =~ ^[1-9][0-9]{0,6}$ ]] || fail "--lines must be a number above 0, not '$lines'"
  [[ -z $valid_for || $valid_for =~ ^[1-9][0-9]*[smhd]$ ]] ||
    fail "--valid_for must be a time such as 6h, not '$valid_for'"
  if [[ $action == create ]]; then
    [[ $type =~ ^[a-z0-9]+-[1-9][0-9]*$ ]] ||
      fail "--type must be a type such as v6e-16, not '$type'"
    [[ $type != v5e-* ]] || fail "--type=$type is called v5litepod-${type#v5e-} there: use that name"
    runtime=${runtime:-$(default_runtime "$type")}
    [[ $runtime =~ ^[a-z0-9][-a-z0-9.]*$ ]] ||
      fail "--runtime must name the software version for $type, not '$runtime'"
  fi
  if [[ $action == run ]]; then
    (($1)) || fail "give the command to run after --"
  else
    (($1 == 0)) || fail "$action takes no command after --"
  fi
  [[ $dry_run == 1 ]] || command -v gcloud >/dev/null ||
    fail "there is no gcloud here: install the Google Cloud CLI, https://cloud.google.com/sdk"
}

action=${1:-}
case $action in
  --help | -h) help && exit ;;
  create | status | setup | run | logs | stop | delete) shift ;;
  "") fail "name an action: create, status, setup, run, logs, stop or delete (see --help)" ;;
  *) fail "unknown action $action: name create, status, setup, run, logs, stop or delete" ;;
esac
name='' zone='' project='' type='' runtime='' valid_for='' worker=0 lines=50 spot=0 dry_run=0
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --valid_for=*) valid_for=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --spot) spot=1 ;;
    --dry_run) dry_run=1 ;;
    --help | -h) help && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1: put -- before the command (see --help)" ;;
  esac
  shift
done
check $#
place=(--zone="$zone")
[[ -z $project ]] || place+=(--project="$project")

case $action in
  create) create ;;
  status) queued describe --format='value(state.state)' ;;
  setup) setup ;;
  run) on_workers all start -- "$@" ;;
  logs) on_workers "$worker" logs --lines="$lines" ;;
  stop) on_workers all stop ;;
  delete) queued delete --force --quiet ;;
esac
