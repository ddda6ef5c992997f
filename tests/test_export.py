"""What is exported says the same in a fresh process, and nothing is pushed by itself."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from data_cases import make_image
from test_run import ROOT, small

from boxseg_jax import config as configuration
from boxseg_jax.apps import export, model_card
from boxseg_jax.errors import InputError
from boxseg_jax.training import loop, saved


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  config = small(train__num_steps=2, train__checkpoint_every=2)
  loop.train(config, workdir, report=lambda line: None)
  return workdir


def run(workdir, to, **changes):
  config = configuration.get_config()
  config.update_from_flattened_dict(changes)
  return export.run(config, workdir, to=str(to), report=lambda line: None)


LOADED = {
  ".stablehlo": (
    "from jax import export\n"
    "program = export.deserialize(open(path, 'rb').read())\n"
    "probability, certainty = program.call(images)\n"
  ),
  ".safetensors": (
    "import boxseg_jax\n"
    "results = boxseg_jax.load(path).predict(images)\n"
    "probability = np.stack([result.probability for result in results])\n"
    "certainty = np.stack([result.certainty for result in results])\n"
  ),
}


@pytest.mark.parametrize("suffix", LOADED)
def test_a_fresh_process_says_the_same(finished, tmp_path, suffix):
  path = tmp_path / "deep" / f"model{suffix}"
  assert str(path) in run(finished, path)
  images = np.stack([make_image((32, 32), number) for number in range(3)])
  np.save(tmp_path / "images.npy", images)
  code = (
    f"import numpy as np\npath = {str(path)!r}\nimages = np.load('images.npy')\n"
    + LOADED[suffix]
    + "np.savez('out.npz', probability=probability, certainty=certainty)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  found = np.load(tmp_path / "out.npz")
  expected = jax.jit(export.predict_function(saved.load(finished)))(images)
  for name, value in zip(("probability", "certainty"), expected, strict=True):
    np.testing.assert_allclose(found[name], value, atol=1e-4)


def test_the_program_is_for_all_devices_and_batches(finished):
  network = saved.load(finished)
  program = jax.export.deserialize(bytearray(export.stablehlo(network)))
  assert program.platforms == export.PLATFORMS
  known = json.loads(program.fun_name)
  assert known == {"class_names": list(network.class_names), "height": 32, "width": 32}
  for count in (1, 5):
    assert program.call(np.zeros((count, 32, 32, 3), np.uint8))[1].shape == (count, 32, 32)


@pytest.mark.parametrize("to", ["", "model", "model.pkl", "model.onnxx"])
def test_other_forms_are_refused(finished, to):
  with pytest.raises(InputError, match=r"--to"):
    run(finished, to)


class TestHub:
  def test_the_folder_and_its_card(self, finished):
    yaml = pytest.importorskip("yaml")
    text = run(finished, "hub", **{"export.data_license": "cc0-1.0"})
    assert "not pushed" in text
    folder = finished / "hub"
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc0-1.0" and front["pipeline_tag"] == "image-segmentation"
    measured = json.loads((finished / "result.json").read_text())
    assert f"| foreground_iou | {100 * measured['foreground_iou']:.1f} |" in card
    assert "4 images with masks, 12 with boxes only" in card
    assert "Licence: cc0-1.0" in card
    assert json.loads((folder / "config.json").read_text())["step"] == 2
    again = saved.load(folder / "model.safetensors")
    assert again.class_names == saved.load(finished).class_names

  def test_what_is_not_known_is_said(self, finished, tmp_path):
    run(finished, tmp_path / "model.safetensors")
    run(tmp_path / "model.safetensors", "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "not measured" in card and "not known" in card and "license:" not in card

  def test_nothing_is_pushed_without_a_token(self, finished, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="HF_TOKEN"):
      run(finished, "hub", **{"export.repository": "someone/network"})

  def test_with_a_token_the_folder_is_pushed(self, finished, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
      def __init__(self, token):
        calls.append(("token", token))

      def create_repo(self, repository, exist_ok):
        calls.append(("create", repository, exist_ok))

      def upload_folder(self, repo_id, folder_path):
        calls.append(("upload", repo_id, folder_path))

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "secret")
    text = run(finished, "hub", **{"export.repository": "someone/network"})
    folder = finished / "hub"
    assert calls == [
      ("token", "secret"),
      ("create", "someone/network", True),
      ("upload", "someone/network", folder),
    ]
    assert "someone/network" in text and "secret" not in text
    assert "secret" not in (folder / "README.md").read_text()

  def test_what_the_hub_says_is_told(self, finished, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    class Api:
      def __init__(self, token):
        pass

      def create_repo(self, repository, exist_ok):
        raise ValueError("no such owner")

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(InputError, match="no such owner"):
      model_card.push(finished, "someone/network")
