"""The scripts of `launch/` that start jobs: what they would do, and what they do with stand-ins."""

import json
import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import yaml
from places import ROOT

LAUNCH = ROOT / "launch"
PROGRAM = [
  "--config=configs/camvid.py:gpu",
  "--config.data.class_names=('background', 'it\\'s & $HOME')",
]
TPU = {"name": "seg", "zone": "us-west4-a", "type": "v5litepod-16", "runtime": "v2-alpha"}
GKE = {"name": "seg", "image": "host/boxseg:1", "accelerator": "tpu-v5-lite-podslice"}
GKE |= {"topology": "4x4", "hosts": "4", "chips-per-host": "4", "claim": "share"}
NEEDED = {
  "gpus.sh": {},
  "slurm.sh": {"workdir": "runs/my run"},
  "tpu.sh": TPU | {"workdir": "/share/my run"},
  "gke.sh": GKE | {"workdir": "/share/my run"},
}


def call(script, *arguments, flags=None, cwd=ROOT, path="", **environment):
  flags = NEEDED[script] if flags is None else flags
  command = ["bash", LAUNCH / script, *(f"--{name}={value}" for name, value in flags.items())]
  kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
  kept["PATH"] = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
  return subprocess.run(
    [*command, *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=kept | environment,
    timeout=120,
    check=False,
  )


def planned(script, *arguments, program=PROGRAM, flags=None):
  """The commands that a dry run prints, as a shell would read them."""
  done = call(script, *arguments, "--dry-run", "--", *program, flags=flags)
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def stand_in(folder, name, code):
  """A command that notes how it was called, and does no more than that."""
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{code}\n')
  path.chmod(0o755)


def calls_in(folder):
  return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_it(path):
  subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize(
  ("script", "missing"), [(script, name) for script, flags in NEEDED.items() for name in flags]
)
def test_a_missing_flag_is_named(script, missing):
  flags = {name: value for name, value in NEEDED[script].items() if name != missing}
  done = call(script, "--dry-run", flags=flags)
  assert (done.returncode, done.stdout) == (2, "")
  assert f"error: --{missing}=... is missing" in done.stderr


@pytest.mark.parametrize("script", NEEDED)
@pytest.mark.parametrize(
  ("argument", "words"),
  [("--zoen=x", "unknown flag --zoen"), ("stray", "'stray'"), ("--workdir", "'--workdir'")],
)
def test_what_it_does_not_know_is_refused(script, argument, words):
  done = call(script, argument, "--dry-run")
  assert (done.returncode, done.stdout) == (2, "")
  assert words in done.stderr


@pytest.mark.parametrize("script", NEEDED)
def test_help_is_the_head_of_the_script(script):
  done = call(script, "--help", flags={})
  assert done.returncode == 0 and f"launch/{script}" in done.stdout
  assert "SBATCH" not in done.stdout.splitlines()[-1] and "set -e" not in done.stdout


def test_gpus_are_driven_by_one_process():
  install, train = planned("gpus.sh", "--gpus=0,2")
  assert install == ["bash", "-c", '. launch/venv.sh && install "[cuda]"']
  start = [".venv/bin/python", "-m", "boxseg_jax.main", *PROGRAM]
  assert train == ["exec", "env", "CUDA_VISIBLE_DEVICES=0,2", *start]
  assert planned("gpus.sh")[1] == ["exec", *start]
  assert planned("gpus.sh", program=[])[1] == ["exec", *start[:3]]


def test_the_program_takes_the_place_of_the_script(tmp_path):
  """So that a signal to the script is one to the program."""
  for name in ("launch", ".venv/bin"):
    (tmp_path / name).mkdir(parents=True)
  for name in ("gpus.sh", "job.sh"):
    (tmp_path / "launch" / name).write_text((LAUNCH / name).read_text())
  (tmp_path / "launch" / "venv.sh").write_text('install() { echo "installs $1"; }\n')
  stand_in(tmp_path / ".venv" / "bin", "python", 'echo "$$ on $CUDA_VISIBLE_DEVICES"')
  script = subprocess.Popen(
    ["bash", tmp_path / "launch" / "gpus.sh", "--gpus=1", "--", "--workdir=a b"],
    stdout=subprocess.PIPE,
    text=True,
  )
  out, _ = script.communicate(timeout=60)
  assert "installs [cuda]" in out and out.endswith(f"\n{script.pid} on 1\n")
  assert calls_in(tmp_path / ".venv" / "bin") == ["python -m boxseg_jax.main --workdir=a b"]


class TestSlurm:
  def test_one_process_per_gpu_and_back_into_the_queue(self):
    train, again = planned("slurm.sh")
    program = [".venv/bin/python", "-m", "boxseg_jax.main", "--distributed"]
    assert train == ["srun", "--kill-on-bad-exit=1", *program, "--workdir=runs/my run", *PROGRAM]
    assert again == ["scontrol", "requeue", "JOB"]

  def test_options_stand_before_the_first_command(self):
    """Slurm reads no further."""
    head = (LAUNCH / "slurm.sh").read_text().partition("\nset ")[0]
    options = " ".join(re.findall(r"^#SBATCH (.*)", head, re.MULTILINE)).split()
    assert {"--requeue", "--signal=TERM@180", "--open-mode=append"} <= set(options)
    assert {"--ntasks-per-node=8", "--gpus-per-node=8"} <= set(options)

  @pytest.mark.parametrize(
    ("status", "result", "requeued"), [(0, False, True), (0, True, False), (1, False, False)]
  )
  def test_only_what_was_stopped_is_queued_again(self, tmp_path, status, result, requeued):
    """Slurm runs a copy of the script, in the folder that it was submitted from."""
    stand_in(tmp_path, "srun", f"{'touch result.json;' if result else ''} exit {status}")
    stand_in(tmp_path, "scontrol", "")
    (tmp_path / "launch").symlink_to(LAUNCH)
    (tmp_path / "copy").write_text((LAUNCH / "slurm.sh").read_text())
    done = subprocess.run(
      ["bash", tmp_path / "copy", "--workdir=."],
      cwd="/",
      env=os.environ
      | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
      | {"SLURM_SUBMIT_DIR": str(tmp_path)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == status, done.stderr
    assert calls_in(tmp_path)[1:] == (["scontrol requeue 7"] if requeued else [])


class TestTpu:
  def test_asks_for_spot_capacity_installs_trains_and_deletes(self):
    folder, archive, create, state, copy, install, train, delete = planned("tpu.sh")
    tpus, zone = ["gcloud", "compute", "tpus"], "--zone=us-west4-a"
    everywhere = [*tpus, "tpu-vm", "ssh", "seg", zone, "--worker=all"]
    assert folder == ["mkdir", "-p", "runs"]
    assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
    assert create == [*tpus, "queued-resources", "create", "seg", "--node-id=seg", zone] + [
      "--accelerator-type=v5litepod-16",
      "--runtime-version=v2-alpha",
      "--spot",
    ]
    assert state[:5] == [*tpus, "queued-resources", "describe"]
    packed = next(word for word in archive if word.startswith("--output=")).partition("=")[2]
    assert copy == [*tpus, "tpu-vm", "scp", packed, "seg:", zone, "--worker=all"]
    assert install[:-1] == train[:-1] == everywhere
    assert delete == [*tpus, "queued-resources", "delete", "seg", zone, "--force", "--quiet"]

  def test_each_vm_reads_the_command_as_it_was_given(self):
    *_, install, train, _ = planned("tpu.sh", "--prepare=mount 'my share'")
    assert install[-1].startswith("--command=mount 'my share' && tar -xzf boxseg_jax.tar.gz && ")
    words = shlex.split(train[-1].removeprefix("--command="))
    start = ["cd", "boxseg_jax", "&&", ".venv/bin/python", "-m", "boxseg_jax.main"]
    start += ["--distributed", "--workdir=/share/my run", *PROGRAM]
    assert words == [*start, "&&", "test", "-e", "/share/my run/result.json"]

  def run(self, folder, gcloud):
    stand_in(folder, "gcloud", gcloud)
    stand_in(folder, "git", "")
    stand_in(folder, "sleep", "")
    (folder / "launch").mkdir()
    for name in ("tpu.sh", "job.sh"):
      (folder / "launch" / name).write_text((LAUNCH / name).read_text())
    flags = [f"--{name}={value}" for name, value in NEEDED["tpu.sh"].items()]
    done = subprocess.run(
      ["bash", folder / "launch" / "tpu.sh", *flags],
      env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )
    verbs = [call.split()[3:5] for call in calls_in(folder) if call.startswith("gcloud")]
    return done, [verb for _, verb in verbs if verb != "describe"]

  def test_goes_on_after_a_preemption(self, tmp_path):
    """The first TPU is taken away while it trains; the second one gets to the end."""
    gcloud = f"""cd {tmp_path}
    case "$4 $*" in
      create*) touch there ;;
      describe*) [ -e there ] && {{ [ -e taken ] && echo SUSPENDED || echo ACTIVE; }} ;;
      delete*) rm -f there taken ;;
      ssh*--distributed*) [ -e before ] || {{ touch before taken; exit 255; }} ;;
    esac"""
    done, verbs = self.run(tmp_path, gcloud)
    assert done.returncode == 0, done.stderr
    assert verbs == ["create", "scp", "ssh", "ssh", "delete"] * 2

  def test_a_training_that_fails_is_not_tried_again_and_not_hidden(self, tmp_path):
    """A TPU of that name is there already, and none of it is deleted: somebody has to look."""
    gcloud = 'case "$*" in *describe*) echo ACTIVE ;; *--distributed*) exit 1 ;; esac'
    done, verbs = self.run(tmp_path, gcloud)
    assert (done.returncode, verbs) == (2, ["scp", "ssh", "ssh"])
    assert "still costs: gcloud compute tpus queued-resources delete seg" in done.stderr


class TestGke:
  def manifest(self, *arguments):
    done = call("gke.sh", *arguments, "--dry-run", "--", *PROGRAM)
    assert done.returncode == 0, done.stderr
    first, *lines, last = done.stdout.splitlines()
    assert (first, last) == ("kubectl apply -f - <<'END'", "END")
    assert "@" not in "".join(line for line in lines if not line.lstrip().startswith("#"))
    return yaml.safe_load("\n".join(lines))

  def test_a_pod_per_host_that_starts_again_with_all_others(self):
    found = self.manifest("--spot=yes")
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "seg")
    assert found["spec"]["failurePolicy"]["maxRestarts"] > 0
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
      "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
      "cloud.google.com/gke-tpu-topology": "4x4",
      "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == "host/boxseg:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["command"] == ["bash", "launch/pod.sh", "/share/my run", *PROGRAM]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "share"}

  def test_without_spot_any_node_will_do(self):
    job = self.manifest()["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in job["template"]["spec"]["nodeSelector"]

  def test_what_is_printed_is_what_is_applied(self, tmp_path):
    stand_in(tmp_path, "kubectl", f"cat > {tmp_path}/applied")
    done = call("gke.sh", "--", *PROGRAM, path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert calls_in(tmp_path) == ["kubectl apply -f -"]
    printed = "\n".join(done.stdout.splitlines()[1:-1])
    assert (tmp_path / "applied").read_text() == printed + "\n"


class TestPod:
  def start(self, folder, code):
    stand_in(folder, "python", code)
    return subprocess.Popen(
      ["bash", LAUNCH / "pod.sh", folder, "--config=a b"],
      env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
    )

  @pytest.mark.parametrize(
    ("code", "status"), [("touch {}/result.json", 0), ("exit 0", 75), ("exit 3", 3)]
  )
  def test_well_ended_is_what_has_a_result(self, tmp_path, code, status):
    assert self.start(tmp_path, code.format(tmp_path)).wait(60) == status
    start = f"python -m boxseg_jax.main --distributed --workdir={tmp_path} --config=a b"
    assert calls_in(tmp_path) == [start]

  def test_waits_for_the_checkpoint_of_a_program_that_is_stopped(self, tmp_path):
    code = f"trap 'sleep 1; touch {tmp_path}/saved; exit 0' TERM\n"
    code += f"touch {tmp_path}/ready; while :; do sleep 0.1; done"
    pod = self.start(tmp_path, code)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
      time.sleep(0.05)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(60) == 75
    assert (tmp_path / "saved").exists()


def test_the_image_is_made_of_files_that_are_there():
  lines = (LAUNCH / "Dockerfile").read_text().splitlines()
  sources = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
  assert {"boxseg_jax", "configs", "launch", "pyproject.toml"} <= set(sources)
  assert all((ROOT / name).exists() for name in sources)
  entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
  assert json.loads(entry.partition(" ")[2]) == ["python", "-m", "boxseg_jax.main"]
