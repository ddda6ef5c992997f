"""Everything is read once before training; what is wrong is named."""

from dataclasses import replace

import numpy as np
import pytest
from data_cases import CLASSES, annotation, make_record, make_records, rectangle, write_set
from PIL import Image
from places import SHARED

from boxseg_jax.data import check, coco, findings, labels, survey
from boxseg_jax.errors import InputError


def run(records, on_bad_image="stop", max_bad_fraction=0.5, report=print, num_classes=3):
  """What a training makes of single images: the records to use, or an error."""
  facts = check.look_at(records, num_classes=num_classes, workers=2)
  found = findings.unusable(
    survey.summarize(facts, canvas=(20, 30)),
    on_bad_image=on_bad_image,
    max_bad_fraction=max_bad_fraction,
  )
  findings.refuse_or_report(found, split="train", report=report)
  return check.usable(records, facts)


def coco_records(root, *annotations):
  return coco.load(str(write_set(root / "train", list(annotations)).parent), "train", CLASSES)


def test_good_records_pass_in_their_order():
  records = make_records(5) + make_records(1, mask=False)
  assert [r.image_id for r in run(records)] == [r.image_id for r in records]


def test_a_missing_image_is_named(tmp_path):
  records = coco_records(tmp_path, annotation(1))
  (tmp_path / "train" / "images" / "b.png").unlink()
  with pytest.raises(InputError, match=r"1 of 2 images.*\n.*images/b.png: no such image file"):
    run(records)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_or_foreign_image_is_named(tmp_path, name):
  folder = write_set(tmp_path / "train", [], images=[name], size=(64, 64))
  records = coco.load(str(tmp_path), "train", CLASSES)
  path = folder / "images" / name
  content = path.read_bytes()
  for broken in (content[: len(content) // 2], b"<html>", b""):
    path.write_bytes(broken)
    with pytest.raises(InputError, match=f"images/{name}: cannot be read as an image"):
      run(records)


def test_an_image_of_another_size_is_named(tmp_path):
  records = coco_records(tmp_path, annotation(1))
  Image.new("RGB", (31, 20)).save(tmp_path / "train" / "images" / "a.png")
  words = "images/a.png: the file is 31 x 20 pixels .*, its annotation says 30 x 20"
  with pytest.raises(InputError, match=words):
    run(records)


def test_label_maps_are_checked(tmp_path):
  folder = write_set(tmp_path / "train", [])
  (folder / "labels").mkdir()
  values = np.zeros((20, 30), np.uint8)
  values[0, :4] = [2, 255, 3, 3]
  Image.fromarray(values).save(folder / "labels" / "a.png")
  Image.fromarray(values[:, :29]).save(folder / "labels" / "b.png")
  records = labels.load(str(tmp_path), "train", CLASSES)
  with pytest.raises(InputError) as error:
    run(records)
  first, second = str(error.value).splitlines()[1:]
  assert (
    "train/labels/a.png" in first
    and "2 pixels of its mask have label 3; the highest class is 2" in first
  )
  assert "train/labels/b.png: the file is 29 x 20" in second


@pytest.mark.parametrize(
  ("box", "words"),
  [
    (
      (20, 3, 11, 5),
      r"box 0 \[x 20, y 3, width 11, height 5\] lies outside of the image \(30 x 20",
    ),
    ((-2, 3, 10, 5), "lies outside"),
    ((2, 16, 10, 5), "lies outside"),
    ((2, -1, 10, 5), "lies outside"),
    ((40, 3, 10, 5), "lies outside"),
    ((2, 3, 0, 5), r"box 0 \[x 2, y 3, width 0, height 5\] has no area"),
    ((2, 3, 10, -5), "has no area"),
    ((30, 3, 0.4, 5), "has no area in the image"),  # inside by tolerance only
    ((2, 3, float("nan"), 5), "width nan, .* is no box"),
  ],
)
def test_boxes_outside_or_without_area_are_named(tmp_path, box, words):
  records = coco_records(tmp_path, annotation(1, box=box))
  with pytest.raises(InputError, match=r"train/instances.json: image a.png: .*" + words):
    run(records)


def test_boxes_are_clipped_by_up_to_half_a_pixel(tmp_path):
  records = coco_records(tmp_path, annotation(1, box=(-0.4, 3, 30.8, 5)))
  assert records[0].boxes[0, 1] < 0
  np.testing.assert_allclose(run(records)[0].boxes, [[0.15, 0, 0.4, 1]], rtol=1e-6)


def test_a_broken_mask_is_named(tmp_path):
  mask = {"size": [20, 30], "counts": [1, 2]}
  records = coco_records(tmp_path, annotation(4, segmentation=mask))
  with pytest.raises(InputError, match=r"instances.json: image a.png: annotation 4: .*3 pixels"):
    run(records)


def test_sources_without_files_are_checked_too():
  wrong_image = replace(make_record(0), read_image=lambda: np.zeros((20, 31, 3), np.uint8))
  with pytest.raises(InputError, match=r"image000.png: the image has shape \(20, 31, 3\)"):
    run([wrong_image])
  wrong_labels = replace(make_record(0), read_labels=lambda: np.zeros((21, 30), np.uint8))
  with pytest.raises(InputError, match=r"image000.png: the label map has shape \(21, 30\)"):
    run([wrong_labels])
  with pytest.raises(InputError, match="a box has class 3, the highest is 2"):
    run([make_record(0, classes=(3,))])


def test_the_message_lists_the_first_few():
  records = [make_record(n, classes=(3,)) for n in range(13)] + make_records(7)
  with pytest.raises(InputError) as error:
    run(records)
  lines = str(error.value).splitlines()
  assert lines[0].startswith("train: 13 of 20 images cannot be used (data.on_bad_image=skip")
  assert len(lines) == 12 and lines[-1].strip() == "and 3 more"


def test_skipping_leaves_out_counts_and_lists(tmp_path):
  records = coco_records(tmp_path, annotation(1, segmentation=rectangle(2, 3, 10, 5)))
  records += make_records(3)
  (tmp_path / "train" / "images" / "b.png").unlink()
  lines = []
  kept = run(records, "skip", max_bad_fraction=0.2, report=lines.append)
  assert [r.image_id for r in kept] == [r.image_id for r in records if r.image_id != "b.png"]
  text = "\n".join(lines)
  assert "1 of 5 images cannot be used and are left out" in text and "images/b.png" in text
  lines.clear()
  run(make_records(3), "skip", report=lines.append)
  assert not lines


def test_skipping_stops_above_the_limit():
  records = [make_record(0, classes=(3,)), make_record(1, classes=(3,)), *make_records(8)]
  with pytest.raises(InputError, match=r"2 of 10 images.*more than data.max_bad_fraction=0.19"):
    run(records, "skip", max_bad_fraction=0.19)
  assert len(run(records, "skip", max_bad_fraction=0.2, report=lambda _: None)) == 8
  with pytest.raises(InputError, match="2 of 2 images"):
    run(records[:2], "skip", max_bad_fraction=1.0)


def test_a_misspelt_mode_is_named():
  with pytest.raises(InputError, match="data.on_bad_image is 'ignore'.*'stop' or 'skip'"):
    run(make_records(1), on_bad_image="ignore")


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real data sets are not here")
def test_the_real_sets_pass():
  names = ("background", "car", "pedestrian", "bicyclist")
  for source, folder, classes in (
    (coco, "nuclei", ("background", "nucleus")),
    (labels, "camvid", names),
  ):
    records = source.load(str(SHARED / "data" / folder), "test", classes)[:30]
    assert len(run(records, max_bad_fraction=0, num_classes=len(classes))) == 30
