#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster that has JobSet installed, as kubectl is set up here:
#
#   bash launch/gke.sh --name=boxseg --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/boxseg_jax \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 --chips-per-host=4 \
#     --claim=CLAIM --workdir=/share/runs/camvid [--spot=yes] [--dry-run] -- \
#     --config=configs/camvid.py:gpu --config.data.batch_size=16
#
# --claim is a persistent volume claim that all pods can write to (ReadWriteMany), seen as /share;
# --image was made with launch/Dockerfile. Accelerators and topologies:
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
# Nobody has run this on a cluster yet: only what it would do has been tested.

# shellcheck disable=SC2154
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/job.sh
parse "name image accelerator topology hosts chips-per-host claim workdir spot" "$@"
need name image accelerator topology hosts chips-per-host claim workdir

json() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"; }
manifest=$(cat launch/gke.yaml)
fill() { manifest=${manifest//@$1@/"$2"}; }
fill NAME "$name"
fill IMAGE "$image"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill HOSTS "$hosts"
fill CHIPS "$chips_per_host"
fill CLAIM "$claim"
fill SPOT "${spot:+cloud.google.com/gke-spot: \"true\"}"
# JSON is YAML.
fill COMMAND "$(json bash launch/pod.sh "$workdir" "${program[@]}")"

echo "kubectl apply -f - <<'END'"
echo "$manifest"
echo "END"
[ -n "$dry_run" ] || kubectl apply -f - <<<"$manifest"
