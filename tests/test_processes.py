"""Several processes that train together, over loopback: one, two or four are the same training."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_run import _CHILD, _command, _newest_checkpoint, last_state, small

from boxseg_jax.training import loop

STEPS = 12
# Six images to evaluate in batches of eight: with four processes one of them has none.
SETTINGS = {
  "train__num_steps": STEPS,
  "train__log_every": 3,
  "train__checkpoint_every": 3,
  "data__shapes__num_eval": 6,
  # Fewer programs to compile, in each process.
  "loss__teacher": "self",
  "eval__pictures": 0,
  "eval__box_images": 0,
}


def start(config, workdir, count, **environment):
  """The processes of a job, each with one device."""
  with contextlib.closing(socket.socket()) as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), **environment}
  return [
    subprocess.Popen(
      [*_command(config, workdir), "--distributed"],
      **_CHILD | {"env": _CHILD["env"] | job | {"JAX_PROCESS_ID": str(number)}},
    )
    for number in range(count)
  ]


def end(processes, timeout=900):
  """(exit status, standard output, standard error) of each; none outlives this."""
  try:
    outputs = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


def wait_for_checkpoint(processes, workdir, step):
  deadline = time.monotonic() + 600
  while _newest_checkpoint(workdir) < step and all(p.poll() is None for p in processes):
    assert time.monotonic() < deadline
    time.sleep(0.01)


def stop_after(processes, workdir, step):
  """SIGTERM to the last process: all leave the same checkpoint, and no error. Its step."""
  wait_for_checkpoint(processes, workdir, step)
  processes[-1].send_signal(signal.SIGTERM)
  for status, _, told in end(processes):
    assert status == 0 and "goes on from step" in told, told
  stopped = _newest_checkpoint(workdir)
  assert step <= stopped < STEPS
  return stopped


def assert_same_training(config, one, many):
  # Sums over processes are taken in another order: float32 differs in its last digits.
  first, second = last_state(config, one).params, last_state(config, many).params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), first, second)
  results = [json.loads((workdir / "result.json").read_text()) for workdir in (one, many)]
  assert results[1] == pytest.approx(results[0], abs=0.02, nan_ok=True)
  lines = (many / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines if "train/loss" in line]
  assert steps == sorted(set(steps)) and set(range(3, STEPS + 1, 3)) <= set(steps)


def test_two_processes_are_stopped_and_four_go_on(tmp_path):
  config = small(**SETTINGS)
  loop.train(config, tmp_path / "one", report=lambda line: None)
  stopped = stop_after(start(config, tmp_path / "many", 2), tmp_path / "many", 3)
  four = end(start(config, tmp_path / "many", 4))
  assert [status for status, _, _ in four] == [0] * 4, four
  assert f"checkpoint of step {stopped}" in four[0][1] and "foreground_iou" in four[0][1]
  assert not any("foreground_iou" in out for _, out, _ in four[1:])
  assert_same_training(config, tmp_path / "one", tmp_path / "many")


def test_two_processes_are_stopped_and_one_goes_on(tmp_path):
  config = small(**SETTINGS | {"parallel__kind": "jit", "loss__teacher": "boxes"})
  loop.train(config, tmp_path / "one", report=lambda line: None)
  stop_after(start(config, tmp_path / "many", 2), tmp_path / "many", 3)
  loop.train(config, tmp_path / "many", report=lambda line: None)
  assert_same_training(config, tmp_path / "one", tmp_path / "many")


def test_a_process_that_dies_takes_the_job_down(tmp_path):
  config = small(**SETTINGS | {"train__num_steps": 100_000})
  pair = start(config, tmp_path / "job", 2)
  wait_for_checkpoint(pair, tmp_path / "job", 3)
  pair[1].kill()
  killed = time.monotonic()
  status, _, told = end(pair)[0]
  assert time.monotonic() - killed < 60
  assert status != 0
  # Whichever notices first, the sum that fails or JAX, which misses the other's signs of life.
  assert "process 0 of 2 stops, as another one has died" in told or "another task died" in told


def test_what_is_not_told_to_a_job_is_named(tmp_path):
  command = [*_command(small(), tmp_path / "job"), "--distributed"]
  for environment, words in (({}, "--distributed: "), ({"JAX_NUM_PROCESSES": "two"}, "'two'")):
    child = subprocess.run(
      command, check=False, **_CHILD | {"env": _CHILD["env"] | environment}, timeout=100
    )
    assert child.returncode == 2 and words in child.stderr, child.stderr
    assert "Traceback" not in child.stderr
  child = subprocess.run(
    [sys.executable, "-m", "boxseg_jax.main", "--distributed", "--mode=predict"],
    check=False,
    **_CHILD,
  )
  assert child.returncode == 2 and "not for predict" in child.stderr
