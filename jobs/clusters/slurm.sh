#!/usr/bin/env bash
#SBATCH --job-name=batch-explain
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --exclusive
# Explains a dataset on the nodes of one Slurm job; submit it in its own folder:
#   sbatch slurm.sh --input … --model … --explainer … --output …
# The arguments are those of `batch-explain run`. What to change: the lines above (and --partition, --account), and how
# the environment is opened. A job that Slurm ends at its time limit is gone on with by submitting it again.
#
# Input, model, explainer and output lie on a file system that all nodes share, or are abfs:// addresses.
set -euo pipefail

# module load python; source ~/batch-explain/bin/activate
python=${PYTHON:-python3}
port=${PORT:-8786}
nodes=$SLURM_JOB_NUM_NODES
workers=${SLURM_CPUS_PER_TASK:-1}
scheduler=tcp://$(hostname):$port # this script runs on the first node

"$python" -m dask scheduler --port "$port" --no-dashboard &
# One worker process a core. Slurm ends what takes more memory than --mem; Dask's own limit would pause workers for ever.
srun --ntasks="$nodes" --ntasks-per-node=1 "$python" -m dask worker "$scheduler" \
  --nworkers "$workers" --nthreads 1 --memory-limit 0 --no-dashboard --death-timeout 600 &
trap 'kill $(jobs -p) 2>/dev/null; wait || true' EXIT

"$python" "$SLURM_SUBMIT_DIR/wait_for_workers.py" "$scheduler" $((nodes * workers))
code=0
"$python" -m batch_explain run "$@" --scheduler "$scheduler" --resume || code=$?
exit "$code"
