#!/usr/bin/env bash
# Explains a dataset on machines that this one reaches by ssh without a password.
#
#   HOSTS="node1 node2 node3" WORKERS=8 dask_ssh.sh --input … --model … --explainer … --output …
#
# The arguments are those of `batch-explain run`. What to change, here or in the environment:
#
#   HOSTS        the machines; the first one runs the scheduler as well
#   WORKERS      worker processes of each: one a core
#   PORT         of the scheduler, free on the first host and open to the others and to this machine
#   PYTHON       on every host, with the same batch-explain in it
#   SSH_OPTIONS  of `dask ssh`: --ssh-username, --ssh-port, --ssh-private-key
#
# This machine and all hosts see input, model, explainer and output at the same address: a shared folder, or abfs://, whose
# credentials (AZURE_STORAGE_…) each host sets in its ~/.bashrc, because ssh hands on no variables. `dask ssh` needs paramiko.
# Nothing keeps others on the network from the scheduler: let them, or see README.md on tls://.
set -euo pipefail

read -ra hosts <<<"${HOSTS:-node1 node2}"
workers=${WORKERS:-8}
port=${PORT:-8786}
python=${PYTHON:-python3}
read -ra ssh_options <<<"${SSH_OPTIONS:-}"
scheduler=tcp://${hosts[0]}:$port

set -m # a process group of its own, which takes Ctrl-C
"$python" -m dask ssh --nworkers "$workers" --nthreads 1 --memory-limit 0 --scheduler-port "$port" \
  --remote-python "$python" "${ssh_options[@]}" "${hosts[@]}" >&2 &
cluster=$!
set +m
trap 'kill -INT -- "-$cluster" 2>/dev/null; wait || true' EXIT

"$python" "$(dirname "$0")/wait_for_workers.py" "$scheduler" $((${#hosts[@]} * workers))
code=0
"$python" -m batch_explain run "$@" --scheduler "$scheduler" --resume || code=$?
exit "$code"
