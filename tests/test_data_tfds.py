"""TensorFlow Datasets by random access: the real builder on a made-up download."""

import numpy as np
import pytest
from data_cases import make_image
from ml_collections import ConfigDict
from PIL import Image

from boxseg_jax import data
from boxseg_jax.data import check, tfds
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
  with pytest.raises(InputError, match=r"oxford_iiit_pet/trian cannot be opened: .*trian"):
    tfds.load("oxford_iiit_pet", "trian", ("background", "pet"), data_dir=data_dir)


def png(values, folder):
  path = folder / "mask.png"
  Image.fromarray(values).save(path)
  return path.read_bytes()


def test_a_mask_value_that_is_no_class_is_named(tmp_path):
  layout = tfds.SETS["oxford_iiit_pet"]
  source = [{layout.mask: png(np.array([[1, 2, 4]], np.uint8), tmp_path)}]
  with pytest.raises(InputError, match="pets: image a: the mask has value 4; known are 1, 2, 3"):
    tfds.read_labels("pets: image a", source, layout, 0)
