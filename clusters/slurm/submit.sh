#!/usr/bin/env bash
#
# Sends a plate to SLURM as three jobs: one writes what all fields share, an array refocuses the fields, one makes tables.
#
#   SHARDS=8 ./submit.sh SRC DST [options of refocus plate]
#
# Send it again to go on after a failure: fields that are done stay. If some fields fail, there are tables of the others.
# sbatch reads variables such as SBATCH_PARTITION and SBATCH_ACCOUNT. Memory and time of a shard are in refocus_plate.sh.

set -euo pipefail

if (( $# < 2 )); then
    echo 'usage: SHARDS=8 ./submit.sh SRC DST [options of refocus plate]' >&2
    exit 2
fi

shards=${SHARDS:-8}
if ! [[ $shards =~ ^[1-9][0-9]*$ ]]; then
    echo "SHARDS=$shards: give the number of shards, such as 8" >&2
    exit 2
fi

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

single=(--parsable --requeue --open-mode=append --output=%x_%j.log --cpus-per-task=1 --mem=2G --time=02:00:00)

# The command line of refocus plate, quoted for another shell
plate() {
    printf 'export OMP_NUM_THREADS=1; exec refocus plate'
    printf ' %q' "$@"
}

init=$(sbatch "${single[@]}" --job-name=refocus_init --wrap="$(plate "$@" --init)")
init=${init%%;*} # Some clusters add their name to the number of the job
fields=$(sbatch --parsable --array="1-$shards" --dependency="afterok:$init" --kill-on-invalid-dep=yes \
    "$here/refocus_plate.sh" "$shards" "$@")
fields=${fields%%;*}
tables=$(sbatch "${single[@]}" --job-name=refocus_tables --dependency="afterok:$init,afterany:$fields" \
    --kill-on-invalid-dep=yes --wrap="$(plate "$@" --tables)")

echo "jobs: $init writes what all fields share, $fields refocuses them in $shards shards, ${tables%%;*} makes the tables"
