#!/usr/bin/env bash
#SBATCH --job-name=refocus_shards
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
#
# Each task of this array refocuses one shard of a plate. submit.sh sends it, and what goes before and after.
# The first argument is the number of shards:
#
#   sbatch --array=1-8 refocus_plate.sh 8 SRC DST [options of refocus plate]
#
# A task that was killed can run again: fields that are done stay, and the task goes on with the others.
# To do only shard 3 again, send --array=3, and leave the number of shards as it was.

set -euo pipefail

if (( $# < 3 )) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo 'usage: sbatch --array=1-8 refocus_plate.sh 8 SRC DST [options of refocus plate] for 8 shards' >&2
    exit 2
fi

shards=$1
shard=${SLURM_ARRAY_TASK_ID:?is not set; send this script with sbatch --array=1-8}
if (( ${SLURM_ARRAY_TASK_MIN:-$shard} < 1 || ${SLURM_ARRAY_TASK_MAX:-$shard} > shards )); then
    echo "an array for $shards shards has tasks from 1 to $shards, as in sbatch --array=1-$shards; nothing was done" >&2
    exit 2
fi

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} MKL_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

exec refocus plate "$2" "$3" --shard "$shard/$shards" "${@:4}"
