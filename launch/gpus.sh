#!/usr/bin/env bash
# Trains on the GPUs of one machine. One process drives all of them, and data.batch_size is
# divided among them: there are no ranks, and nothing has to be told how many there are.
#
#   bash launch/gpus.sh [--gpus=0,1] [--dry-run] -- --config=configs/camvid.py:gpu --workdir=runs/camvid
#
# --gpus chooses some of them, by number.

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/job.sh
parse "gpus" "$@"
run bash -c '. launch/venv.sh && install "[cuda]"'
start=(.venv/bin/python -m boxseg_jax.main "${program[@]}")
[ -z "${gpus:-}" ] || start=(env "CUDA_VISIBLE_DEVICES=$gpus" "${start[@]}")
# In the place of this script, so that signals reach it.
run exec "${start[@]}"
