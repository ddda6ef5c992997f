"""TensorFlow Datasets by random access: the real builder on a made-up download."""

import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_cases import make_image, write_cityscapes
from fake_bucket import described
from ml_collections import ConfigDict
from PIL import Image

from boxseg_jax import data
from boxseg_jax.data import check, cityscapes, tfds
from boxseg_jax.errors import InputError

PET, BACKGROUND, BORDER = 1, 2, 3
NAMES = ("cat_1", "cat_2", "dog_1")


def write_download(root):
  """The folders that the archives of Oxford-IIIT Pet unpack to, with three pets."""
  for folder in ("images/images", "annotations/annotations/trimaps"):
    (root / folder).mkdir(parents=True)
  for number, name in enumerate(NAMES):
    Image.fromarray(make_image((20, 30), number)).save(root / f"images/images/{name}.jpg")
    trimap = np.full((20, 30), BACKGROUND, np.uint8)
    trimap[3:9, 5:15] = BORDER
    trimap[4:8, 6 + number : 14] = PET
    Image.fromarray(trimap).save(root / f"annotations/annotations/trimaps/{name}.png")
  for split, names in (("trainval", NAMES), ("test", NAMES[:1])):
    lines = "".join(f"{name} 1 1 1\n" for name in names)
    (root / f"annotations/annotations/{split}.txt").write_text(lines)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  library = pytest.importorskip("tensorflow_datasets")
  root = tmp_path_factory.mktemp("tfds")
  write_download(root)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      library.download.DownloadManager,
      "download_and_extract",
      lambda _, urls: {name: str(root / name) for name in urls},
    )
    tfds.load("oxford_iiit_pet", "train", ("background", "pet"), data_dir=str(root / "sets"))
  return str(root / "sets")


def test_pets_become_records_with_boxes_from_their_masks(data_dir):
  config = ConfigDict(
    {
      "source": "tfds",
      "tfds_name": "oxford_iiit_pet",
      "root": data_dir,
      "class_names": ("background", "pet"),
      "label_names": (),
    }
  )
  records = {record.image_id: record for record in data.load_records(config, "train")}
  assert sorted(records) == [f"{name}.jpg" for name in NAMES]
  for number, name in enumerate(NAMES):
    record = records[f"{name}.jpg"]
    box = [4 / 20, (6 + number) / 30, 8 / 20, 14 / 30]
    np.testing.assert_allclose(record.boxes, [box], rtol=1e-6)
    assert record.box_classes.tolist() == [1] and record.classes == {1}
    expected = np.zeros((20, 30), np.uint8)
    expected[3:9, 5:15] = 255
    expected[4:8, 6 + number : 14] = 1
    np.testing.assert_array_equal(record.read_labels(), expected)
    error = record.read_image().astype(int) - make_image((20, 30), number)
    assert record.read_image().shape == (20, 30, 3) and np.abs(error).mean() < 60
  facts = check.look_at(list(records.values()), num_classes=2, workers=2)
  assert len(facts) == 3 and not any(seen.problems for seen in facts)
  assert len(data.load_records(config, "test")) == 1


def test_wrong_names_are_named(data_dir):
  with pytest.raises(InputError, match="tfds_name is 'oxford_pet'.*oxford_iiit_pet"):
    tfds.load("oxford_pet", "train", ("background", "pet"))
  with pytest.raises(InputError, match=r"class_names is .*, but oxford_iiit_pet has 2 classes"):
    tfds.load("oxford_iiit_pet", "train", ("background", "cat", "dog"))
  with pytest.raises(InputError, match="oxford_iiit_pet has no split 'trian': .*test"):
    tfds.load("oxford_iiit_pet", "trian", ("background", "pet"), data_dir=data_dir)


def png(values):
  written = io.BytesIO()
  Image.fromarray(values).save(written, "PNG")
  return written.getvalue()


def test_a_mask_value_that_is_no_class_is_named():
  layout = tfds.SETS["oxford_iiit_pet"]
  examples = [{layout.mask: png(np.array([[1, 2, 4]], np.uint8))}]
  opened = tfds.Opened("pets", examples, layout, {1: 1, 2: 0, 3: 255}, ("background", "pet"))
  with pytest.raises(InputError, match="pets: image a: value 4 .* known are 1, 2, 3"):
    tfds.read_labels("pets: image a", opened, 0)


@contextlib.contextmanager
def mocked(examples):
  """TensorFlow Datasets gives these examples, coded and decoded by the features of the set."""
  library = pytest.importorskip("tensorflow_datasets")

  def as_data_source(builder, split, decoders):
    features = builder.info.features
    coded = [features.serialize_example(features.encode_example(one)) for one in examples]
    return [features.deserialize_example_np(one, decoders=decoders) for one in coded]

  policy = library.testing.MockPolicy.USE_CODE
  with library.testing.mock_data(as_data_source_fn=as_data_source, policy=policy):
    yield library


def voc_object(label, box):
  return {
    "label": label,
    "bbox": mocked_box(box),
    "pose": "left",
    "is_truncated": False,
    "is_difficult": False,
  }


def mocked_box(box):
  from tensorflow_datasets import features

  return features.BBox(*box)


CAR_BOX, DOG_BOX = (0.25, 0.1, 0.75, 0.5), (0.5, 0.5, 1.0, 0.8)


@pytest.mark.parametrize("name", ["voc", "voc/2012"])
def test_voc_gives_boxes(name):
  objects = [voc_object("car", CAR_BOX), voc_object("dog", DOG_BOX)]
  example = {"image": make_image((20, 30), 0), "image/filename": "000012.jpg", "objects": objects}
  example |= {"labels": ["car", "dog"], "labels_no_difficult": ["car", "dog"]}
  names = ("background", "dog", "car")
  with mocked([example]):
    (record,) = tfds.load(name, "train", names)
    assert record.image_id == "000012.jpg" and record.size == (20, 30)
    np.testing.assert_allclose(record.boxes, [CAR_BOX, DOG_BOX], rtol=1e-6)
    assert record.box_classes.tolist() == [2, 1] and record.read_labels is None
    assert not check.look_at([record], num_classes=3, workers=1)[0].problems
    with pytest.raises(InputError, match='voc.*: image 000012.jpg: unknown label "dog".*_names'):
      tfds.load(name, "train", ("background", "car"))
    pairs = (("*", "background"),)
    (record,) = tfds.load(name, "train", ("background", "car"), label_names=pairs)
    assert record.box_classes.tolist() == [1] and record.classes == {1}


def panoptic_example(unknown=False):
  """A car, sky, a crowd of people, and a row that is not annotated, or of an unknown segment."""
  segments = {
    70_000: (3, CAR_BOX, False),
    5: (0, (0.0, 0.0, 1.0, 1.0), False),
    300: (7, DOG_BOX, True),
  }
  values = np.full((20, 30), 5)
  values[5:15, 3:15], values[10:, 15:24], values[0] = 70_000, 300, 99 if unknown else 0
  colors = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1)
  objects = [
    {"id": key, "area": 1, "bbox": mocked_box(box), "label": label, "is_crowd": crowd}
    for key, (label, box, crowd) in segments.items()
  ]
  return values, {
    "image": make_image((20, 30), 0),
    "image/filename": "000012.jpg",
    "image/id": 12,
    "panoptic_image": colors.astype(np.uint8),
    "panoptic_image/filename": "000012.png",
    "panoptic_objects": objects,
  }


def test_panoptic_segments_become_masks():
  # The mock has no metadata: labels are called by their numbers.
  names, pairs = ("background", "3", "7"), (("0", "background"),)
  values, example = panoptic_example()
  with mocked([example]):
    (record,) = tfds.load("coco/2017_panoptic", "train", names, label_names=pairs)
    expected = np.select([values == 70_000, values == 5], [1, 0], 255)
    np.testing.assert_array_equal(record.read_labels(), expected)
    np.testing.assert_allclose(record.boxes, [CAR_BOX, DOG_BOX], rtol=1e-6)
    assert record.box_classes.tolist() == [1, 2] and record.box_is_crowd.tolist() == [False, True]
    assert record.classes == {1}
    assert not check.look_at([record], num_classes=3, workers=1)[0].problems
  with mocked([panoptic_example(unknown=True)[1]]):
    (record,) = tfds.load("coco/2017_panoptic", "train", names, label_names=pairs)
    with pytest.raises(InputError, match="000012.jpg: value 99 .* 30 pixels"):
      record.read_labels()


def test_cityscapes_has_boxes_of_the_parts_of_each_class():
  ids = {name: number for number, name in enumerate(cityscapes.LABELS)}
  values = np.full((1024, 2048), ids["road"], np.uint8)
  values[100:200, 300:500] = values[100:200, 700:800] = ids["car"]
  values[600:700, 10:20] = ids["caravan"]
  values[0, 0] = ids["static"]
  example = {"image_id": "ulm_1", "image_left": np.zeros((1024, 2048, 3), np.uint8)}
  example["segmentation_label"] = values[..., None]
  with mocked([example]):
    (record,) = tfds.load("cityscapes", "validation", ("background", "person", "car"))
    expected = np.select([values == ids["car"], values == ids["road"]], [2, 0], 255)
    np.testing.assert_array_equal(record.read_labels(), expected)
    pixels = record.boxes * [1024, 2048, 1024, 2048]
    wanted = [[100, 300, 200, 500], [100, 700, 200, 800], [600, 10, 700, 20]]
    np.testing.assert_allclose(sorted(pixels.tolist()), wanted, rtol=1e-4)
    assert record.box_is_crowd.sum() == 1 and record.classes == {2}
    assert not check.look_at([record], num_classes=3, workers=1)[0].problems
    with pytest.raises(InputError, match='"cat" is no label of CityScapes'):
      tfds.load("cityscapes", "validation", ("background", "cat"))


def test_cityscapes_is_prepared_from_the_official_archives(tmp_path):
  """Zips of the official layout in the folder where TensorFlow Datasets wants them."""
  pytest.importorskip("tensorflow_datasets")
  values = np.full((1024, 2048), cityscapes.LABELS.index("road"), np.uint16)
  values[100:200, 300:500] = 1000 * cityscapes.LABELS.index("car")
  for split in ("train", "val", "test"):
    write_cityscapes(tmp_path / "official", split, [values])
  archives = tmp_path / "sets" / "downloads" / "manual"
  archives.mkdir(parents=True)
  for kind in ("leftImg8bit", "gtFine"):
    name = str(archives / f"{kind}_trainvaltest")
    shutil.make_archive(name, "zip", tmp_path / "official", kind)
  (record,) = tfds.load(
    "cityscapes", "validation", ("background", "car"), data_dir=str(tmp_path / "sets")
  )
  assert record.image_id == "ulm_000000_000019"
  np.testing.assert_array_equal(record.read_image(), make_image(values.shape, 0))
  assert (record.read_labels()[100:200, 300:500] == 1).all()
  assert (record.read_labels() == 1).sum() == 100 * 200
  np.testing.assert_allclose(record.boxes[0] * [1024, 2048, 1024, 2048], [100, 300, 200, 500])


def test_a_bucket_is_passed_on_as_it_is(monkeypatch):
  """A local path operation would make gs:/bucket of it."""
  config = ConfigDict({"source": "tfds", "tfds_name": "voc", "root": "gs://bucket/sets"})
  config.class_names, config.label_names = ("background", "car"), ()
  example = {"image": make_image((20, 30), 0), "image/filename": "1.jpg"}
  example |= dict.fromkeys(("objects", "labels", "labels_no_difficult"), [])
  asked = []
  with mocked([example]) as library:
    original = library.builder

    def builder(name, *, data_dir, **options):
      asked.append(data_dir)
      return original(name, data_dir=data_dir, **options)

    monkeypatch.setattr(library, "builder", builder)
    assert len(data.load_records(config, "train")) == 1
  assert asked == ["gs://bucket/sets"]


def test_a_bucket_is_read_as_a_disk_is(data_dir):
  script = Path(__file__).with_name("fake_bucket.py")
  done = subprocess.run(
    [sys.executable, script, Path(data_dir).parent], capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  of_disk = tfds.load("oxford_iiit_pet", "train", ("background", "pet"), data_dir=data_dir)
  assert found["asked"] > 0 and found["records"] == described(of_disk)


def test_sets_that_cannot_be_prepared_are_named(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(InputError, match="cityscapes cannot be prepared: .*[Mm]anual"):
    tfds.load("cityscapes", "train", ("background", "car"), data_dir=str(tmp_path))
  with pytest.raises(InputError, match="data.tfds_name is 'voc/1999': .*1999"):
    tfds.load("voc/1999", "train", ("background", "car"), data_dir=str(tmp_path))


def test_a_set_that_is_there_needs_no_network(data_dir, monkeypatch):
  """The library could ask its bucket for what it knows of a set."""
  from tensorflow_datasets.core.utils import gcs_utils

  def refuse(*_):
    raise AssertionError("reached for the network")

  monkeypatch.setattr(gcs_utils, "exists", refuse)
  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  assert len(tfds.load("oxford_iiit_pet", "train", ("background", "pet"), data_dir=data_dir)) == 3
