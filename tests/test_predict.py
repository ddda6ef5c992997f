"""A trained network in use: read back, predicting, in bulk, and refusing what makes no sense."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from data_cases import make_image
from PIL import Image
from test_run import ROOT, last_state, small

import boxseg_jax
from boxseg_jax import config as configuration
from boxseg_jax.apps import predict
from boxseg_jax.errors import InputError, PartlyDoneError
from boxseg_jax.evaluation import pictures
from boxseg_jax.training import loop, saved


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run with a teacher, whose network says something of every class."""
  workdir = tmp_path_factory.mktemp("run")
  config = small(train__num_steps=2, train__checkpoint_every=1, eval__box_images=0)
  loop.train(config, workdir, report=lambda line: None)
  return config, workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  for number, size in enumerate([(32, 32), (50, 40), (20, 90)]):
    path = folder / "deep" / f"{number}.png" if number else folder / "0.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(make_image(size, number)).save(path)
  return folder


class TestReadingBack:
  def test_of_a_run_and_of_a_file(self, finished, tmp_path):
    config, workdir = finished
    network = saved.load(workdir)
    expected = last_state(config, workdir).ema
    jax.tree.map(np.testing.assert_array_equal, dict(network.variables), dict(expected))
    assert network.description["step"] == 2
    assert network.class_names == tuple(config.data.class_names)
    assert network.canvas == (32, 32)
    path = tmp_path / "deep" / "model.safetensors"
    saved.save(network, path)
    again = saved.load(path)
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(network.variables))
    assert again.settings == network.settings
    assert again.description == network.description

  def test_a_step_can_be_chosen(self, finished, tmp_path):
    _, workdir = finished
    one, two = saved.load(workdir, step=1), saved.load(workdir, step=2)
    differ = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (one[1], two[1])), strict=True)]
    assert any(differ)
    with pytest.raises(InputError, match=r"no checkpoint of step 7 \(held: 1, 2\)"):
      saved.load(workdir, step=7)
    saved.save(two, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="step=2 cannot be chosen"):
      saved.load(tmp_path / "two.safetensors", step=2)

  def test_what_is_no_network_is_refused(self, finished, tmp_path):
    _, workdir = finished
    with pytest.raises(InputError, match=r"there is no network\.json"):
      saved.load(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
      saved.load(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read as a safetensors file"):
      saved.load(tmp_path / "junk.safetensors")
    for text in ("{", "[]", "{}", '{"model": {"name": "unet"}, "loss": {}}'):
      (tmp_path / "network.json").write_text(text)
      with pytest.raises(InputError, match=r"network\.json.* (is damaged|cannot be read)"):
        saved.load(tmp_path)
    shutil.copy(workdir / "network.json", tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint yet"):
      saved.load(tmp_path)

  def test_arrays_of_another_network_are_refused(self, finished, tmp_path):
    network = saved.load(finished[1])
    fewer = jax.tree.map(lambda leaf: leaf[..., :1], network.variables)
    saved.save(network._replace(variables=fewer), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="arrays do not fit the network, e.g. "):
      saved.load(tmp_path / "other.safetensors")

  def test_without_tensorflow_or_the_data(self, finished, photos):
    code = (
      "import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None\n"
      "import boxseg_jax\n"
      f"model = boxseg_jax.load({str(finished[1])!r})\n"
      f"print(model.predict({str(photos / '0.png')!r}).classes.shape)"
    )
    done = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "(32, 32)", done.stderr


class TestModel:
  def test_predicts_one_or_many(self, finished, photos):
    model = boxseg_jax.load(finished[1])
    assert "star" in repr(model)
    one = model.predict(photos / "deep" / "1.png")
    assert one.name.endswith("1.png")
    many = model.predict(photos)
    assert [result.classes.shape for result in many] == [(32, 32), (50, 40), (20, 90)]
    np.testing.assert_allclose(one.logits, many[1].logits, atol=1e-4)
    same = model.predict(make_image((50, 40), 1))
    np.testing.assert_array_equal(same.logits, one.logits)
    mixed = [(300, 20), (50, 40), (300, 30), (20, 90)]  # batched by size, handed out in order
    results = model.predict([make_image(size, 0) for size in mixed], batch_size=2)
    assert [result.classes.shape for result in results] == mixed

  def test_what_a_result_says(self, finished, photos):
    result = boxseg_jax.load(finished[1]).predict(photos / "0.png", mirror=True)
    assert result.classes.dtype == np.uint8
    np.testing.assert_array_equal(result.classes, result.logits.argmax(-1))
    np.testing.assert_allclose(result.probability, jax.nn.softmax(result.logits), atol=1e-6)
    assert ((result.certainty > 0) & (result.certainty <= 1)).all()
    np.testing.assert_array_equal(result.image, make_image((32, 32), 0))
    assert result.overlay().shape == (32, 32, 3)
    page = result.plot()
    assert page.width > 3 * 160 and page.height > 160

  def test_classes_and_certainty_are_shown_where_they_are(self):
    """The picture of a result against its parts."""
    image = np.full((200, 200, 3), 128, np.uint8)
    classes = np.zeros((200, 200), np.uint8)
    classes[:100] = 1
    certainty = np.zeros((200, 200))
    certainty[:, 100:] = 1.0
    page = pictures.predicted(image, classes, certainty, ("background", "cat"))
    tiles = page[26 : 26 + 200]
    prediction, doubt = tiles[:, 6 + 206 : 6 + 406], tiles[:, 6 + 412 : 6 + 612]
    assert np.ptp(prediction[150, 150].astype(int)) == 0 < np.ptp(prediction[50, 50].astype(int))
    assert doubt[50, 50].sum() < doubt[50, 150].sum()


class TestInBulk:
  def run(self, workdir, photos, to, **changes):
    config = configuration.get_config()
    config.update_from_flattened_dict(changes)
    return predict.run(config, workdir, images=[str(photos)], to=str(to), report=print)

  def test_writes_what_the_model_says(self, finished, photos, tmp_path):
    text = self.run(finished[1], photos, tmp_path)
    assert str(tmp_path / "labels") in text
    for result in boxseg_jax.load(finished[1]).predict(photos):
      name = os.path.relpath(result.name, photos).removesuffix(".png")
      with Image.open(tmp_path / "labels" / f"{name}.png") as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), result.classes)
      with Image.open(tmp_path / "certainty" / f"{name}.png") as certainty:
        np.testing.assert_allclose(np.asarray(certainty) / 255, result.certainty, atol=0.003)
      with Image.open(tmp_path / "overlays" / f"{name}.jpg") as overlay:
        assert overlay.size == result.image.shape[1::-1]

  def test_goes_on_where_it_stopped(self, finished, photos, tmp_path, capsys):
    self.run(finished[1], photos, tmp_path, **{"predict.overlays": False})
    assert not (tmp_path / "overlays").exists()
    kept, lost = tmp_path / "labels" / "0.png", tmp_path / "labels" / "deep" / "1.png"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    capsys.readouterr()
    self.run(finished[1], photos, tmp_path)
    assert lost.exists() and kept.stat().st_mtime_ns == before
    assert "2 images were predicted earlier." in capsys.readouterr().out

  def test_another_network_or_option_is_refused(self, finished, photos, tmp_path):
    self.run(finished[1], photos, tmp_path)
    with pytest.raises(InputError, match="other options"):
      self.run(finished[1], photos, tmp_path, **{"predict.mirror": True})
    network = saved.load(finished[1])
    params = jax.tree.map(lambda leaf: leaf + 1, network.variables["params"])
    other = network._replace(variables=network.variables | {"params": params})
    assert saved.fingerprint(other) != saved.fingerprint(network)
    assert saved.fingerprint(saved.load(finished[1])) == saved.fingerprint(network)
    saved.save(other, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another network"):
      self.run(tmp_path / "other.safetensors", photos, tmp_path)

  def test_broken_files_are_listed_and_the_others_done(self, finished, photos, tmp_path):
    mixed = tmp_path / "in"
    shutil.copytree(photos, mixed)
    (mixed / "torn.jpg").write_bytes(b"\xff\xd8torn")
    with pytest.raises(PartlyDoneError, match=r"1 of 4 images.*\n.*torn\.jpg"):
      self.run(finished[1], mixed, tmp_path / "out")
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 3

  def test_many_broken_files_fit_the_terminal(self, finished, photos, tmp_path):
    """The message names some and says where all are; once they are whole the list is gone."""
    mixed, out = tmp_path / "in", tmp_path / "out"
    mixed.mkdir()
    whole = (photos / "0.png").read_bytes()
    names = [f"{number:03}.png" for number in range(64)]
    for number, name in enumerate(names):
      contents = (whole, b"", whole[: len(whole) // 2], b"no image")
      (mixed / name).write_bytes(contents[number % 4])
    with pytest.raises(PartlyDoneError, match=r"48 of 64 images") as raised:
      self.run(finished[1], mixed, out)
    lines = str(raised.value).splitlines()
    assert len(lines) == 12 and lines[-1].strip() == f"and 38 more: all are in {out / 'broken.txt'}"
    listed = (out / "broken.txt").read_text().splitlines()
    assert len(listed) == 48
    assert all(names[i] in listed[n] for n, i in enumerate(i for i in range(64) if i % 4))
    assert len(list((out / "labels").iterdir())) == 16
    for name in names:
      (mixed / name).write_bytes(whole)
    self.run(finished[1], mixed, out)
    assert not (out / "broken.txt").exists() and len(list((out / "labels").iterdir())) == 64

  def test_files_that_differ_in_suffix_alone_stay_apart(self, finished, tmp_path):
    for name in ("a.png", "a.bmp"):
      Image.fromarray(make_image((8, 8), len(name))).save(tmp_path / name)
    self.run(finished[1], tmp_path, tmp_path / "out")
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2

  def test_the_command(self, finished, photos, tmp_path):
    def command(*flags):
      call = [sys.executable, "-m", "boxseg_jax.main", "--mode=predict", *flags]
      return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300)

    where = f"--workdir={finished[1]}"
    done = command(where, f"--images={photos}/*.png", f"--to={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "labels" / "0.png").exists()
    done = command(where)
    assert done.returncode == 2 and "--images" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_description_is_plain_json(finished):
  described = json.loads((finished[1] / "network.json").read_text())
  assert described["model"]["name"] == "unet"
  assert described["loss"]["box_priors"]["fill_bands"]
