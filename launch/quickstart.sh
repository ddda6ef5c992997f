#!/usr/bin/env bash
# From a bare machine to a trained network: installs into .venv and runs the main job
# on the embedded data set, once per arm. Takes about 8 minutes on two cores.
# Further arguments go to the program, e.g. --config.train.num_steps=100.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
install ""
exec .venv/bin/python -m boxseg_jax.main --mode=study --config=configs/shapes.py --workdir=runs/quickstart "$@"
