#!/usr/bin/env bash
# What gke.yaml starts in a pod: bash launch/pod.sh WORKDIR ARGUMENTS OF THE PROGRAM
# The program ends well when it is stopped, too; to Kubernetes that would be a pod that is done. So
# this one fails (75: try again) as long as there is no result, and passes SIGTERM on.
set -uo pipefail
workdir=$1
shift
python -m boxseg_jax.main --distributed "--workdir=$workdir" "$@" &
trap 'kill -TERM $!' TERM
wait $! # ends with the program, or at once with the signal
wait $! || exit
[ -e "$workdir/result.json" ] || exit 75
