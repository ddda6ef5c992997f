"""Exported files: read in a fresh process, they say what the network says."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import boxseg_jax
from boxseg_jax import config as configuration
from boxseg_jax import models
from boxseg_jax.apps import card, export, programs
from boxseg_jax.errors import ExportError, InputError
from boxseg_jax.models import depthwise, pretrained
from boxseg_jax.training import saved

NEEDS = {"onnx": ("jax2onnx", "onnxruntime"), "savedmodel": ("orbax.export", "tensorflow")}
CANVAS = (32, 40)
CLASSES = ("background", "star", "crescent")
IMAGES = np.random.default_rng(1).integers(0, 256, (3, *CANVAS, 3), np.uint8)


def trained_file(folder, class_names=CLASSES, **options):
  """A file of a network whose parameters and statistics are all drawn, so that each counts."""
  options = {"name": "unet", "width": 2} | options
  if options["name"] != "unet" or "encoder" in options:
    del options["width"]
  model = models.build(num_classes=len(class_names), **options)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *CANVAS, 3)), train=False)
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name == "kernel":
      return rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
    return (
      rng.uniform(0.5, 1.5, leaf.shape)
      if name in ("scale", "var")
      else rng.normal(size=leaf.shape) * 0.1
    )

  variables = jax.tree_util.tree_map_with_path(
    lambda path, leaf: draw(path, leaf).astype(np.float32), dict(shapes)
  )
  variables = with_logits_of_usual_size(model, {"batch_stats": {}} | variables)
  description = {
    "model": options,
    "class_names": list(class_names),
    "canvas": list(CANVAS),
    "loss": _loss(len(class_names)),
    "best_metric": "miou",
    "step": 7,
  }
  network = saved.Network(model, variables, class_names, CANVAS, None, description)
  path = folder / "trained.safetensors"
  saved.save(network, path)
  return path


def with_logits_of_usual_size(model, variables):
  """Logits of a deviation of 3 and s of 1: drawn parameters make thousands in deep networks."""
  images = jnp.asarray(IMAGES, jnp.float32) / 255
  outputs = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
  head = variables["params"]["head"]
  for name, values, wanted in (("logits", outputs.logits, 3), ("sigma", outputs.sigma, 1)):
    head[name]["kernel"] = np.asarray(head[name]["kernel"] * (wanted / values.std()))
  return variables


def _loss(num_classes):
  return {
    "num_classes": num_classes,
    "inside_boxes": "uncertainty",
    "bootstrap": "none",
    "teacher": "self",
    "mask_images": 1,
    "box_images": 1,
    "bootstrap_start": 0,
    "bootstrap_ramp": 0,
    "class_weights": [1.0] * num_classes,
    "box_priors": None,
  }


def exported(source, kind, path, report=lambda line: None):
  for library in NEEDS.get(kind, ()):
    pytest.importorskip(library)
  return export.run(configuration.get_config(), source, to=str(path), report=report)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return trained_file(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
  """Path of the same network in a format, written when it is first asked for."""
  folder, done = tmp_path_factory.mktemp("exported"), {}

  def file(kind):
    if kind not in done:
      done[kind] = exported(source, kind, folder / f"model.{kind}")
    return folder / f"model.{kind}", done[kind]

  return file


@pytest.mark.parametrize("kind", export.FORMATS)
def test_what_is_shown_to_the_user_works_in_a_fresh_process(source, files, kind):
  """The printed lines, run with one image and with three."""
  path, shown = files(kind)
  assert str(path) in shown
  alone = "one = np.asarray(probability)\nimages = three\n"
  compare = "assert np.abs(one[0] - np.asarray(probability)[0]).max() < 1e-5\n"
  snippet = f"three = images\nimages = three[:1]\n{shown}\n{alone}{shown}\n{compare}"
  got = export.in_fresh_process(snippet, IMAGES)
  live = boxseg_jax.load(source).predict(list(IMAGES))
  assert got["probability"].shape == (3, *CANVAS, 3) and got["certainty"].shape == (3, *CANVAS)
  for index, result in enumerate(live):
    assert np.ptp(result.probability) > 0.2 and np.ptp(result.certainty) > 0.02
    np.testing.assert_allclose(got["probability"][index], result.probability, atol=1e-4)
    np.testing.assert_allclose(got["certainty"][index], result.certainty, atol=1e-4)


# `export` reads each file back itself and compares; that it notices is tested below.
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
@pytest.mark.parametrize(
  "options",
  [
    {"name": "erfnet"},
    {"name": "deeplabv3plus"},
    {"encoder": "efficientnet_lite0"},
    {"norm": "group", "width": 4, "dtype": "bfloat16", "class_names": CLASSES[:2]},
  ],
  ids=lambda options: "-".join(map(str, options.values())),
)
def test_networks(tmp_path, kind, options):
  lines = []
  source = trained_file(tmp_path, **options)
  exported(source, kind, tmp_path / f"model.{kind}", lines.append)
  assert len(lines) == 1 and "step 7" in lines[0] and (tmp_path / f"model.{kind}").exists()


class TestWhatAFileSaysOfItself:
  def test_stablehlo(self, files):
    path, _ = files("stablehlo")
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == programs.PLATFORMS == ("cpu", "cuda", "tpu")
    (image,) = program.in_avals
    assert str(image.shape[0]) == "b" and image.shape[1:] == (*CANVAS, 3)
    assert image.dtype == np.uint8
    with zipfile.ZipFile(path) as archive:
      said = json.loads(archive.read("network.json"))
    assert said["class_names"] == list(CLASSES) and said["step"] == 7

  def test_savedmodel(self, files):
    path, _ = files("savedmodel")
    said = json.loads((path / "assets.extra" / "network.json").read_text())
    assert said["class_names"] == list(CLASSES) and said["canvas"] == list(CANVAS)

  def test_onnx(self, files):
    path, _ = files("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["class_names"]) == list(CLASSES)
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["b", *CANVAS, 3])
    assert [output.shape[0] for output in session.get_outputs()] == ["b", "b"]


def test_a_file_that_says_something_else_is_not_kept(source, tmp_path, monkeypatch):
  def write_another(network, path):
    worse = jax.tree.map(lambda leaf: leaf * 1.001, network.variables)
    saved.save(network._replace(variables=worse), path)

  path = tmp_path / "model.safetensors"
  path.write_text("of an earlier export")
  wrong = export.FORMATS["safetensors"]._replace(write=write_another)
  monkeypatch.setitem(export.FORMATS, "safetensors", wrong)
  with pytest.raises(ExportError, match="differs from the network by 0.0"):
    exported(source, "safetensors", path)
  assert path.read_text() == "of an earlier export"
  assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_used_is_told_with_its_error(tmp_path):
  with pytest.raises(ExportError, match="fresh process:[^$]*no such file or folder"):
    export.in_fresh_process(
      export.FORMATS["safetensors"].snippet.format(
        path=json.dumps(str(tmp_path / "x.safetensors"))
      ),
      IMAGES,
    )


@pytest.mark.parametrize(
  ("to", "message"),
  [
    ("", "safetensors, stablehlo, savedmodel, onnx, hub"),
    ("onx", "did you mean 'onnx'"),
    ("model.onx", "--to=model.onx: 'onx'; did you mean 'onnx'"),
    ("model.pt", "known: safetensors, stablehlo, savedmodel, onnx"),
    ("folder/model", "known: safetensors"),
  ],
)
def test_unknown_formats(source, to, message):
  with pytest.raises(InputError, match=message):
    export.run(configuration.get_config(), source, to=to)


def test_where_files_go(source):
  beside = source.parent
  for to, expected in {
    "onnx": ("onnx", beside / "model.onnx"),
    "hub": ("hub", beside / "hub"),
    "a/hub": ("hub", export.Path("a/hub")),
    "a/b.onnx": ("onnx", export.Path("a/b.onnx")),
  }.items():
    assert export._kind_and_path(source, to) == expected


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_ways_agree(stride):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, 12, 5)).astype(np.float32)
  module = depthwise.DepthwiseConv(3, stride, jnp.float32)
  variables = module.init(jax.random.key(0), x)
  expected = module.apply(variables, x)
  for way in (depthwise.depthwise_by_conv, depthwise.depthwise_by_platform):
    with depthwise.computing_by(way):
      np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)
  with depthwise.computing_by(lambda x, kernel, stride: x):
    assert module.apply(variables, x).shape == x.shape


class TestHub:
  @pytest.fixture()
  def run(self, source, tmp_path):
    """(configuration, network, workdir with the files of a run)."""
    pytest.importorskip("huggingface_hub")
    config = configuration.get_config()
    config.data.source, config.data.root = "coco", "elsewhere/private/cells"
    config.train.num_steps = 7
    flat = configuration.flatten(config)
    (tmp_path / "config.json").write_text(json.dumps(flat))
    split = {"mask_ids": ["a"], "box_ids": ["b", "c", "d"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    metrics = {"iou/star": 0.5125, "miou": 0.25, "boxes/mask_iou": 0.875, "iou/crescent": np.nan}
    (tmp_path / "result.json").write_text(json.dumps(metrics))
    return config, saved.load(source), tmp_path

  def front(self, text):
    yaml = pytest.importorskip("yaml")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body

  def test_card_tells_figures_data_and_licences(self, run):
    config, network, workdir = run
    config.export.data_license = "cc-by-4.0"
    facts, body = self.front(card.model_card(config, network, workdir))
    assert facts["license"] == "unknown" and facts["pipeline_tag"] == "image-segmentation"
    assert facts["library_name"] == "boxseg_jax"
    (result,) = facts["model-index"][0]["results"]
    assert result["dataset"] == {"name": "cells", "type": "coco", "split": "test"}
    assert {m["name"]: m["value"] for m in result["metrics"]} == {"iou/star": 0.5125, "miou": 0.25}
    assert "| iou/star | 51.2 % |" in body and "| boxes/mask_iou | 87.5 % |" in body
    assert "| images learned from by their masks | 1 |" in body
    assert "| images learned from by their boxes alone | 3 |" in body
    assert "data that it was trained on: cc-by-4.0" in body and "parameters: **unknown**" in body
    assert (
      "elsewhere" not in body and "| iou/crescent | none |" in body and "neven2021weakly" in body
    )

  def test_card_does_not_count_images_that_were_not_used(self, run):
    config, network, workdir = run
    config.arm = "masks_only"
    (workdir / "config.json").write_text(json.dumps(configuration.flatten(config)))
    _, body = self.front(card.model_card(config, network, workdir))
    assert "| images not learned from | 3 |" in body and "boxes alone" not in body

  def test_figures_are_those_of_the_exported_step(self, run):
    config, network, workdir = run
    lines = [{"step": 7, "train/loss": 1.0}, {"step": 7, "eval/miou": 0.75}, {"step": 9}]
    log = "\n".join(map(json.dumps, lines)) + '\n{"step": 7, "eval/mi'
    (workdir / "metrics.jsonl").write_text(log)
    assert "| miou | 75.0 % |" in card.model_card(config, network, workdir)
    later = network._replace(description=network.description | {"step": 8})
    facts, body = self.front(card.model_card(config, later, workdir))
    assert "model-index" not in facts and "step 8 were not evaluated" in body

  def test_folder_loads_and_is_not_pushed(self, source, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", None)  # calling it would fail
    monkeypatch.setenv("HF_TOKEN", "given")
    folder = tmp_path / "hub"
    told = exported(source, "safetensors", folder)
    assert "Not pushed: config.export.repository not given" in told
    assert sorted(path.name for path in folder.iterdir()) == sorted(card.FILES)
    assert json.loads((folder / "config.json").read_text())["class_names"] == list(CLASSES)
    assert "Not known" in (folder / "README.md").read_text()
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, file: str(folder / file))
    for path in (folder, "hf://owner/name"):
      assert boxseg_jax.load(path).class_names == CLASSES

  def test_pushes_with_token_and_repository_alone(self, run, monkeypatch):
    hub, calls = pytest.importorskip("huggingface_hub"), []

    class Api:
      def __init__(self, token):
        calls.append(token)

      def create_repo(self, *arguments, **options):
        calls.append((arguments, options))

      def upload_folder(self, **options):
        if options["repo_id"] == "owner/refused":
          raise OSError("403")
        calls.append(options)

    monkeypatch.setattr(hub, "HfApi", Api)
    config, network, workdir = run
    folder = workdir / "hub"
    config.export.repository = "owner/name"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "HF_TOKEN not given" in card.complete_folder(config, network, workdir, folder)
    assert not calls
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "Pushed to owner/name" in card.complete_folder(config, network, workdir, folder)
    token, (arguments, options), upload = calls
    assert token == "secret" and arguments == ("owner/name",) and options["private"]
    assert upload["folder_path"] == str(folder) and upload["allow_patterns"] == list(card.FILES)
    assert not any("secret" in path.read_text() for path in folder.iterdir())
    config.export.repository = "owner/refused"
    with pytest.raises(InputError, match="owner/refused cannot be pushed to"):
      card.complete_folder(config, network, workdir, folder)
    assert pretrained.HUB + "owner/refused" in (folder / "README.md").read_text()
