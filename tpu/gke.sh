#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster: fills in tpu/jobset.yaml and hands it to kubectl.
#
#   tpu/gke.sh submit --name=noise --image=us-docker.pkg.dev/my-project/my-repo/lmnoise:1 \
#       --accelerator=tpu-v6e-slice --topology=4x4 --chips_per_host=4 -- \
#       python -m lmnoise.train --config=configs/noise.py:pod --workdir=gs://my-bucket/runs/noise
#   tpu/gke.sh status --name=noise
#   tpu/gke.sh logs   --name=noise --worker=0
#   tpu/gke.sh delete --name=noise
#
# The number of pods is the number of chips of the topology by --chips_per_host. The image is built
# from the repository, `docker build -f tpu/Dockerfile .`, and pushed where the cluster can read
# it. The work directory must be on gs://; the service account needs to write there (workload
# identity). A pod that fails or is lost restarts the run, up to --restarts times; status 2, which is
# for something to mend, ends it. `delete` sends SIGTERM, and the run has ten minutes to save;
# `submit` of the same command resumes it. It needs kubectl, pointed at the cluster, with the JobSet
# controller (0.6 or later) in it.
#
# Options: --name, --image, --accelerator (label cloud.google.com/gke-tpu-accelerator of the
# nodes), --topology (label cloud.google.com/gke-tpu-topology), --chips_per_host (default 4),
# --namespace=default, --service_account=default, --restarts=100, --worker=N (logs, default 0),
# --lines=50 (logs), --dry_run (print the manifest or command, run nothing), --help.
#
# Costs: the node pool's chips, of the order of 1 to 5 US dollars a chip and hour on demand, less on
#   spot nodes, busy or idle; today's prices: https://cloud.google.com/tpu/pricing.
# Stop: tpu/gke.sh delete --name=NAME ends the run; the charges end when the node pool is scaled to
#   zero (by its autoscaler, or gcloud container clusters resize ... --num-nodes=0).
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

# The arguments as a JSON list, which is YAML too; Kubernetes reads $(NAME) in it, and $$ as $.
json_list() {
  local argument list=''
  for argument; do
    argument=${argument//\\/\\\\}
    argument=${argument//\"/\\\"}
    argument=${argument//$'\n'/\\n}
    argument=${argument//$'\t'/\\t}
    argument=${argument//\$/\$\$}
    [[ $argument != *[[:cntrl:]]* ]] || fail "the command holds a control character: remove it"
    list+="${list:+, }\"$argument\""
  done
  echo "[$list]"
}

# fill PLACE VALUE: puts a value where the manifest has ${PLACE}.
fill() { text=${text//"\${$1}"/"$2"}; }

manifest() {
  local text list
  text=$(grep -v '^#' tpu/jobset.yaml)
  fill NAME "$name"
  fill NAMESPACE "$namespace"
  fill RESTARTS "$restarts"
  fill HOSTS "$hosts"
  fill SERVICE_ACCOUNT "$service_account"
  fill ACCELERATOR "$accelerator"
  fill TOPOLOGY "$topology"
  fill IMAGE "$image"
  fill CHIPS "$chips"
  # Last, so that nothing in the command is taken for a place to fill in.
  list=$(json_list "$@") || exit
  fill COMMAND "$list"
  echo "$text"
}

submit() {
  local filled
  filled=$(manifest "$@") || exit
  if [[ $dry_run == 1 ]]; then echo "$filled"; else kubectl create -f - <<<"$filled"; fi
}

# check NAME VALUE: a name as Kubernetes takes it.
check_label() {
  [[ $2 =~ ^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "--$1 must be lower-case letters, digits and -, at most 63, not '$2'"
}

check() {
  # The names of the pods add to it.
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name must be lower-case letters, digits and -, at most 40, not '$name'"
  check_label namespace "$namespace"
  check_label service_account "$service_account"
  [[ $worker =~ ^(0|[1-9][0-9]{0,4})$ ]] || fail "--worker must be a number, not '$worker'"
  [[ $lines =~ ^[1-9][0-9]{0,6}$ ]] || fail "--lines must be a number above 0, not '$lines'"
  if [[ $action == submit ]]; then
    (($1)) || fail "give the command to run after --"
    check_label accelerator "$accelerator"
    [[ $image =~ ^[A-Za-z0-9][-A-Za-z0-9._:/@]*$ ]] ||
      fail "--image must name a container image, not '$image'"
    [[ $topology =~ ^[1-9][0-9]{0,2}x[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})?$ ]] ||
      fail "--topology must be like 4x4 or 4x4x8, not '$topology'"
    [[ $chips =~ ^[1-8]$ ]] || fail "--chips_per_host must be 1 to 8, not '$chips'"
    [[ $restarts =~ ^(0|[1-9][0-9]{0,5})$ ]] || fail "--restarts must be a number, not '$restarts'"
    local all=$((${topology//x/*}))
    ((all % chips == 0)) ||
      fail "--chips_per_host=$chips does not divide the $all chips of --topology=$topology"
    hosts=$((all / chips))
  else
    (($1 == 0)) || fail "$action takes no command after --"
  fi
  [[ $dry_run == 1 ]] || command -v kubectl >/dev/null ||
    fail "there is no kubectl here: install it and point it at the cluster"
}

action=${1:-}
case $action in
  --help | -h) help && exit ;;
  submit | status | logs | delete) shift ;;
  "") fail "name an action: submit, status, logs or delete (see --help)" ;;
  *) fail "unknown action $action: name submit, status, logs or delete" ;;
esac
name='' image='' accelerator='' topology='' chips=4 namespace=default service_account=default
restarts=100 worker=0 lines=50 dry_run=0
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips_per_host=*) chips=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --service_account=*) service_account=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    --help | -h) help && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1: put -- before the command (see --help)" ;;
  esac
  shift
done
check $#

pods=jobset.sigs.k8s.io/jobset-name=$name
case $action in
  submit) submit "$@" ;;
  status)
    execute kubectl get jobset "$name" --namespace="$namespace"
    execute kubectl get pods --namespace="$namespace" --selector="$pods"
    ;;
  logs)
    pods+=,batch.kubernetes.io/job-completion-index=$worker
    execute kubectl logs --namespace="$namespace" --selector="$pods" --tail="$lines"
    ;;
  delete) execute kubectl delete jobset "$name" --namespace="$namespace" ;;
esac
