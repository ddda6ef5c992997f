#!/usr/bin/env bash
# Trains on a Cloud TPU, one VM or all VMs of a slice, on spot capacity: asks for it, installs what
# is committed here, trains, and does so again after each preemption, until the training is done.
# The program goes on from its last checkpoint, and the TPU is deleted in the end.
#
#   bash launch/tpu.sh --name=boxseg --zone=us-west4-a --type=v5litepod-16 \
#     --runtime=v2-alpha-tpuv5-lite --workdir=/mnt/share/runs/camvid \
#     --prepare='sudo mkdir -p /mnt/share && sudo mount 10.0.0.2:/share /mnt/share' \
#     [--dry-run] -- --config=configs/camvid.py:gpu --config.data.batch_size=16
#
# --workdir is on storage that outlives the VMs and that all of them see; --prepare is run on each
# VM before the training, for instance to mount it. Started again, this goes on with the TPU of that
# name, if there is one, and prepares it again. Zones, types and runtimes:
# https://cloud.google.com/tpu/docs/regions-zones, https://cloud.google.com/tpu/docs/runtimes.
# Nobody has run this on a TPU yet: only what it would do has been tested.

# shellcheck disable=SC2154
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/job.sh
parse "name zone type runtime workdir prepare" "$@"
need name zone type runtime workdir

tpus=(gcloud compute tpus)
describe=("${tpus[@]}" queued-resources describe "$name" "--zone=$zone" "--format=value(state.state)")
state() { "${describe[@]}" 2>/dev/null || echo ABSENT; }
everywhere() { run "${tpus[@]}" tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$1"; }
delete() { run "${tpus[@]}" queued-resources delete "$name" "--zone=$zone" --force --quiet; }

# The images' own Python may be too old; uv brings one.
install="${prepare:+$prepare && }tar -xzf boxseg_jax.tar.gz && cd boxseg_jax && python3 -m pip install \
--quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 && \
python3 -m uv pip install --quiet '.[tpu]'"
train="cd boxseg_jax && .venv/bin/python -m boxseg_jax.main --distributed \
$(quoted "--workdir=$workdir" "${program[@]}") && test -e $(quoted "$workdir/result.json")"

request() {
  [ -z "$dry_run" ] && [ "$(state)" != ABSENT ] && return
  run "${tpus[@]}" queued-resources create "$name" "--node-id=$name" "--zone=$zone" \
    "--accelerator-type=$type" "--runtime-version=$runtime" --spot
}

wait_for_it() {
  quoted "${describe[@]}" # until it says ACTIVE
  [ -n "$dry_run" ] && return
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in FAILED | SUSPENDED) return 1 ;; esac
    sleep 30
  done
}

run mkdir -p runs
run git archive --format=tar.gz --prefix=boxseg_jax/ --output=runs/boxseg_jax.tar.gz HEAD
until request && wait_for_it &&
  run "${tpus[@]}" tpu-vm scp runs/boxseg_jax.tar.gz "$name:" "--zone=$zone" --worker=all &&
  everywhere "$install" && everywhere "$train"; do
  sleep 60 # a preemption is told late
  [ "$(state)" = ACTIVE ] && refuse "the training failed, and $name still costs: $(dry_run=yes delete)"
  delete
done
delete
