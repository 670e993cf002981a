#!/usr/bin/env bash
#SBATCH --job-name=refocus_shards
#SBATCH --array=1-8
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
#
# Each task of this array refocuses its share of the fields of a plate. submit.sh sends it, and what goes before and after.
#
#   sbatch --array=1-8 refocus_plate.sh SRC DST [options of refocus plate]
#
# A task that was killed can run again: fields that are done stay, and the task goes on with the others.

set -euo pipefail

if (( $# < 2 )); then
    echo 'usage: sbatch --array=1-8 refocus_plate.sh SRC DST [options of refocus plate]' >&2
    exit 2
fi

: "${SLURM_ARRAY_TASK_ID:?is not set; send this script with sbatch --array=1-8}"
if [[ ${SLURM_ARRAY_TASK_COUNT:-} != "${SLURM_ARRAY_TASK_MAX:-}" ]]; then
    echo 'the array must have the tasks 1 to N, as in sbatch --array=1-8; fields that are done are not done again' >&2
    exit 2
fi

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} MKL_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

exec refocus plate "$1" "$2" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "${@:3}"
