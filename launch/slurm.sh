#!/usr/bin/env bash
# Trains on a Slurm cluster with one process per GPU, from the root of a clone on a disk that all
# nodes see, with the package in .venv (bash -c '. launch/venv.sh && install "[cuda]"'):
#
#   sbatch --nodes=2 --time=12:00:00 launch/slurm.sh --workdir=runs/camvid -- \
#     --config=configs/camvid.py:gpu --config.data.batch_size=16
#
# Three minutes before its time is over, and when it is preempted, the training writes a checkpoint
# and ends; the job is then queued again, until the training is done. All #SBATCH lines can be
# overruled like this, for nodes of 4 GPUs: --ntasks-per-node=4 --gpus-per-node=4.
# `bash launch/slurm.sh --dry-run ...` prints what the job would do. Nobody has run it on a cluster
# yet: only what it would do has been tested.

# shellcheck disable=SC2154
#SBATCH --job-name=boxseg --output=%x-%j.log --open-mode=append
#SBATCH --nodes=1 --ntasks-per-node=8 --cpus-per-task=8
# Of the node, not of the task: each process takes the GPU of its own number out of all.
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@180 --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # Slurm runs a copy of this file
. launch/job.sh
parse "workdir" "$@"
need workdir
run srun --kill-on-bad-exit=1 .venv/bin/python -m boxseg_jax.main --distributed \
  "--workdir=$workdir" "${program[@]}"
# Stopped or done, the program ends well; done, it leaves its result.
if [ -n "$dry_run" ] || [ ! -e "$workdir/result.json" ]; then
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
fi
