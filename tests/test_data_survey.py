"""What one look at the data finds, what is an error, what a warning, and how it is told."""

import html.parser
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from data_cases import annotation, make_image, make_record, write_set
from PIL import Image
from places import ROOT, SHARED
from test_progress import Clock, Terminal

from boxseg_jax import config as configuration
from boxseg_jax.apps import check_data
from boxseg_jax.data import check, findings, survey, training_set
from boxseg_jax.errors import InputError
from boxseg_jax.training.loop import train
from boxseg_jax.training.progress import Count

SIZE = (20, 30)
CAR, PERSON = 3, 7  # category ids that write_set gives
LEARNED = findings.Use(is_learned=True, boxes_are_learned=True, masks_are_hidden=True)


def painted(*boxes, ground=0):
  """A label map with (x, y, width, height, value) painted in their order."""
  labels = np.full(SIZE, ground, np.uint8)
  for x, y, w, h, value in boxes:
    labels[y : y + h, x : x + w] = value
  return labels


def record_of(labels, boxes, classes, number=0, **fields):
  """A record in memory; boxes (x, y, width, height) in pixels."""
  x, y, w, h = np.array(boxes, float).reshape(-1, 4).T
  shares = np.stack([y, x, y + h, x + w], axis=-1) / [*SIZE, *SIZE]
  plain = make_record(number, size=SIZE, boxes=shares, classes=classes)
  read = None if labels is None else lambda: labels
  return replace(plain, read_labels=read, **fields)


def look(*records):
  return check.look_at(records, num_classes=3, workers=2)


def summary(*records, canvas=SIZE):
  return survey.summarize(look(*records), canvas)


def judged(*records, use=LEARNED, names=("background", "car", "person"), canvas=SIZE):
  return findings.judge(summary(*records, canvas=canvas), names, use)


def one(found, words):
  """The finding whose text has these words."""
  matching = [finding for finding in found if re.search(words, finding.text)]
  assert len(matching) == 1, [finding.text for finding in found]
  return matching[0]


def good(number):
  """An image with a car and a person, each in its box."""
  labels = painted((2, 3, 10, 5, 1), (15, 4, 6, 8, 2))
  return record_of(labels, [(2, 3, 10, 5), (15, 4, 6, 8)], (1, 2), number)


class TestFacts:
  def test_of_a_good_image(self):
    (seen,) = look(good(0))
    assert seen.values == {0: 600 - 50 - 48, 1: 50, 2: 48} and seen.object_pixels == 98
    assert not seen.problems and not seen.uncovered and seen.has_mask and seen.has_boxes
    np.testing.assert_allclose(seen.fits, 1, rtol=1e-6)
    np.testing.assert_allclose(seen.sides, [(5, 10), (8, 6)], rtol=1e-6)

  def test_fit_is_by_the_bounds_of_the_own_class(self):
    """A box twice as wide as its object, one around another class, one half around nothing."""
    labels = painted((2, 3, 5, 5, 1), (15, 4, 6, 8, 2))
    boxes = [(2, 3, 10, 5), (15, 4, 6, 8), (2.5, 3, 4.5, 5)]
    (seen,) = look(record_of(labels, boxes, (1, 1, 1)))
    np.testing.assert_allclose(seen.fits, [0.5, 0, 22.5 / 25], rtol=1e-5)
    assert np.isnan(seen.fills).all()  # all have a side of less than 8 pixels

  def test_fill_is_by_the_area_of_the_own_class(self):
    labels = painted((2, 3, 10, 4, 1), (2, 7, 10, 6, 2), (15, 4, 10, 10, 255))
    (seen,) = look(record_of(labels, [(2, 3, 10, 10), (1.5, 3, 8, 8), (15, 4, 10, 10)], (1, 2, 1)))
    np.testing.assert_allclose(seen.fills, [0.4, 8 * 4 / 64, 0], rtol=1e-5)

  def test_around_void_alone_the_fit_is_not_known(self):
    (seen,) = look(record_of(painted((2, 3, 10, 5, 255)), [(2, 3, 10, 5)], (1,)))
    assert np.isnan(seen.fits).all()

  def test_uncovered_pixels_lie_outside_of_boxes_of_their_class(self):
    labels = painted((2, 3, 10, 5, 1), (15, 4, 6, 8, 2), (26, 0, 4, 2, 255))
    boxes = [(2, 3, 5, 5), (15, 4, 6, 8)]
    (seen,) = look(record_of(labels, boxes, (1, 1)))
    # One column beside the box is rounding; void is never an object.
    assert seen.uncovered == {1: 5 * 4, 2: 48}

  def test_crowds_cover_but_are_no_boxes_to_judge(self):
    crowd = np.array([True, False])
    labels = painted((2, 3, 10, 5, 1), (15, 4, 6, 8, 2))
    boxes = [(0, 0, 14, 10), (15, 4, 6, 8)]
    (seen,) = look(record_of(labels, boxes, (1, 2), box_is_crowd=crowd))
    assert not seen.uncovered and seen.crowds == 1
    assert seen.box_classes.tolist() == [2] and len(seen.fits) == len(seen.sides) == 1

  def test_problems_are_all_told_and_faulty_boxes_counted(self):
    labels = painted((2, 3, 10, 5, 9))
    boxes = [(2, 3, 10, 5), (25, 3, 10, 5), (2, 3, 0, 5)]
    (seen,) = look(record_of(labels, boxes, (1, 1, 1)))
    assert (seen.outside, seen.no_area) == (1, 1)
    first, second = seen.problems
    assert "box 1 [x 25, y 3" in first and "(and 1 more of its boxes)" in first
    assert "50 pixels of its mask have label 9" in second
    assert seen.values == {0: 550, 9: 50} and not seen.uncovered and not len(seen.fits)

  def test_equal_images_are_known_by_their_content(self, tmp_path):
    folder = write_set(tmp_path / "train", [], images=["a.jpg", "b.jpg", "c.jpg"], size=(64, 96))
    (folder / "images" / "c.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes())
    config = configured(tmp_path)
    facts = training_set.read_split(config, "train").facts
    assert facts[0].digest == facts[2].digest != facts[1].digest and len(facts[0].digest) == 16
    assert survey.summarize(facts, SIZE).duplicates == [("a.jpg", "c.jpg")]
    assert survey.shared_images(facts[:2], facts[1:]) == [("b.jpg", "b.jpg"), ("a.jpg", "c.jpg")]

  def test_progress_hears_of_every_image(self):
    done = []
    check.look_at([good(n) for n in range(4)], num_classes=3, workers=2, progress=done.append)
    assert done == [1, 2, 3, 4]


class TestSummary:
  def test_counts_by_hand(self):
    empty = record_of(painted(), [], ())
    boxes_only = record_of(None, [(2, 3, 10, 5)], (1,), 1)
    neither = record_of(None, [], (), 2)
    found = summary(good(3), empty, boxes_only, neither)
    kinds = found.mask_and_boxes, found.mask_only, found.boxes_only, found.neither
    assert kinds == (1, 1, 1, 1) and found.images == 4
    assert found.values == {0: 1200 - 98, 1: 50, 2: 48} and found.images_by_value[1] == 1
    assert found.boxes == {1: 2, 2: 1} and found.void_share == 0
    assert not found.duplicates and not found.problems

  def test_sizes_are_those_on_the_canvas(self):
    """The image of 20 x 30 fits a canvas of 10 x 10 at a third, 7 x 10 pixels."""
    found = summary(good(0), canvas=(10, 10))
    car, person = (5 * 7 / 20, 10 / 3), (8 * 7 / 20, 6 / 3)
    named = [(name, label) for name, label, *_ in found.smallest]
    assert named == [("image000.png", 2), ("image000.png", 1)]
    sides = [side for *_, h, w in found.smallest for side in (h, w)]
    np.testing.assert_allclose(sides, [*person, *car], rtol=1e-6)
    np.testing.assert_allclose(sorted(found.thin_sides), [car[0], person[1]], rtol=1e-6)

  def test_a_split_without_masks_and_boxes_adds_up_too(self):
    found = summary(record_of(None, [], ()))
    assert np.isnan(found.void_share) and not found.fits.size and not found.smallest


class TestErrors:
  def test_masks_of_0_and_255(self):
    """One line: the mask tool wrote 255 where the class was meant."""
    records = [record_of(painted((2, 3, 10, 5, 255)), [(2, 3, 10, 5)], (1,), n) for n in range(3)]
    found = one(judged(*records), "no mask shows an object, of 3")
    assert found.is_error and "all pixels are 0 or 255; 255 means void" in found.text
    assert len(found.items) == 3

  def test_masks_of_empty_images_beside_boxes_may_be_meant(self):
    empty = [record_of(painted(), [], (), number) for number in range(3)]
    boxes = record_of(None, [(2, 3, 10, 5)], (1,), 3)
    assert not one(judged(*empty, boxes), "no mask shows an object, of 3").is_error
    assert one(judged(*empty), "the value of every pixel is 0").is_error

  def test_most_masks_empty_although_there_are_boxes(self):
    empty = [record_of(painted(), [(2, 3, 10, 5)], (1,), n) for n in (1, 2)]
    found = one(judged(good(0), *empty), "masks of 2 of 3 images with boxes show no object")
    assert found.is_error and found.items == ("image001.png", "image002.png")
    assert not one(judged(good(0), good(3), *empty[:1]), "show no object").is_error

  def test_boxes_in_another_order(self):
    """[y, x, height, width] where [x, y, width, height] is expected."""
    labels = painted((18, 2, 10, 3, 1))
    swapped = record_of(labels, [(2, 17, 10, 3)], (1,))
    found = one(judged(swapped), "outside of all boxes")
    assert found.is_error and found.text.startswith("100 % of the pixels of objects")
    assert "car: 100 %" in found.items and "see image000.png" in found.items

  def test_of_boxes_that_nothing_is_learned_from_only_a_warning(self):
    swapped = record_of(painted((18, 2, 10, 3, 1)), [(2, 17, 10, 3)], (1,))
    use = LEARNED._replace(boxes_are_learned=False)
    assert not one(judged(swapped, use=use), "outside of all boxes").is_error

  def test_most_mask_images_without_boxes(self):
    unboxed = [record_of(painted((2, 3, 10, 5, 1)), [], (), n) for n in (1, 2)]
    found = one(judged(good(0), *unboxed), "2 of 3 images with objects in their masks have no box")
    assert found.is_error and found.items == ("image001.png", "image002.png")
    assert not one(judged(good(0), good(3), unboxed[0]), "have no box").is_error
    for use in (
      LEARNED._replace(masks_are_hidden=False),
      LEARNED._replace(boxes_are_learned=False),
    ):
      assert not any("no box;" in one.text for one in judged(*unboxed, use=use))

  def test_nothing_to_learn(self):
    records = [record_of(None, [], (), number) for number in range(2)]
    assert one(judged(*records), "none of the 2 images has a mask or a box").is_error

  def test_unusable_images_stop_or_are_left_out(self):
    bad = record_of(painted(), [(0, 0, 30, 20)], (3,))
    found = summary(bad, *map(good, range(1, 5)))
    settings = {"on_bad_image": "stop", "max_bad_fraction": 0.2}
    assert findings.unusable(found, **settings)[0].is_error
    skipped = findings.unusable(found, **settings | {"on_bad_image": "skip"})
    assert not skipped[0].is_error and skipped[0].items == tuple(found.problems)
    few = {"on_bad_image": "skip", "max_bad_fraction": 0.1}
    assert findings.unusable(found, **few)[0].is_error

  def test_all_errors_are_in_the_message_and_warnings_are_not(self):
    found = [
      findings.Finding(True, "one", ("a", "b")),
      findings.Finding(False, "two"),
      findings.Finding(True, "three"),
    ]
    lines = []
    with pytest.raises(InputError) as error:
      findings.refuse_or_report(found, split="train", report=lines.append)
    assert str(error.value) == "train: one\n  a\n  b\ntrain: three"
    findings.refuse_or_report(found[1:2], split="train", report=lines.append)
    assert lines == ["warning: train: two"]


class TestWarnings:
  def test_a_good_set_has_none(self):
    assert judged(good(0), good(1)) == []

  def test_a_part_of_the_objects_without_boxes(self):
    labels = painted((2, 3, 10, 5, 1), (15, 4, 6, 8, 2))
    partial = record_of(labels, [(2, 3, 10, 5)], (1,))
    found = one(judged(good(1), good(2), partial), "outside of all boxes")
    assert not found.is_error and found.items == ("person: 33.3 %", "see image000.png")

  def test_masks_hidden_where_some_images_have_none(self):
    boxed = record_of(None, [(2, 3, 10, 5)], (1,), 1)
    found = one(judged(good(0), good(2), boxed), "1 image has boxes only, and masks of the other 2")
    assert not found.is_error and "data.mask_fraction=1" in found.text
    assert judged(good(0), good(2), boxed, use=LEARNED._replace(masks_are_hidden=False)) == []

  def test_one_rare_class_without_boxes(self):
    labels = painted((0, 0, 29, 20, 1), (29, 0, 1, 4, 2))
    found = one(judged(record_of(labels, [(0, 0, 28, 20)], (1,))), "outside of all boxes")
    assert not found.is_error and found.items[0] == "person: 100 %"

  def test_single_masks_of_0_and_255(self):
    white = record_of(painted((2, 3, 10, 5, 255)), [(2, 3, 10, 5)], (1,), 1)
    found = one(judged(good(0), white), "masks of 1 of 2 images .* no object \\(1 hold 255, void")
    assert not found.is_error and found.items == ("image001.png",)

  def test_masks_that_are_the_boxes_over_again(self):
    """Of one class all, of the other, a disk, none."""
    rows, columns = np.ogrid[:10, :10]
    disk = 2 * ((rows - 4.5) ** 2 + (columns - 4.5) ** 2 < 25)
    labels = painted((1, 1, 12, 9, 1))
    labels[5:15, 16:26] = disk
    records = [record_of(labels, [(1, 1, 12, 9), (16, 5, 10, 10)], (1, 2), n) for n in range(10)]
    found = one(judged(*records), "masks fill the boxes of a class")
    assert not found.is_error and found.items == ("car: 100 % of 10 boxes",)
    assert not any("masks fill" in few.text for few in judged(*records[:9]))

  def test_loose_boxes(self):
    loose = record_of(painted((8, 8, 5, 5, 1)), [(4, 4, 12, 12)], (1,))
    found = one(judged(loose, names=("background", "car")), "agree .* to an IoU of 0.17")
    assert not found.is_error

  def test_a_class_without_examples(self):
    names = ("background", "car", "person", "tram", "bus")
    found = one(judged(good(0), names=names), "no mask and no box shows tram, bus: they cannot")
    assert not found.is_error
    use = LEARNED._replace(is_learned=False)
    assert one(judged(good(0), names=names[:4], use=use), "shows tram: it cannot be judged")

  def test_much_void(self):
    record = record_of(painted((2, 3, 10, 5, 1), ground=255), [(2, 3, 10, 5)], (1,))
    assert not one(judged(record), "91.7 % of the pixels of masks are void").is_error

  def test_objects_that_vanish_on_the_canvas(self):
    found = one(judged(good(0), canvas=(5, 5)), "thinner than 2 pixels on data.canvas")
    assert not found.is_error
    assert found.items == ("car: 100 % of 1 boxes", "person: 100 % of 1 boxes")

  def test_most_images_without_any_annotation(self):
    blank = [record_of(None, [], (), number) for number in (1, 2)]
    found = one(judged(good(0), *blank), "2 of 3 images have neither mask nor box")
    assert not found.is_error

  def test_images_that_are_there_twice(self):
    twin = replace(good(0), image_id="twin.png")
    found = one(judged(good(0), good(1), twin), "1 image is there more than once")
    assert not found.is_error and found.items == ("image000.png = twin.png",)

  def test_images_in_two_splits(self):
    (found,) = findings.leaks([("a", "a"), ("b", "c")], "train")
    assert found.text.startswith("2 images are in train, too")
    assert not found.is_error and found.items == ("a", "c = train/b")
    assert findings.leaks([], "train") == []


def configured(root, **changes):
  """The configuration of a small set of the source `labels`."""
  config = configuration.get_config()
  config.update_from_flattened_dict(
    {
      "data.source": "labels",
      "data.root": str(root),
      "data.class_names": ("background", "car", "person"),
      "data.canvas": (32, 48),
      "data.mask_fraction": 0.5,
      "data.batch_size": 8,
      "eval.batch_size": 8,
      "model.width": 2,
      **{key.replace("__", "."): value for key, value in changes.items()},
    }
  )
  return config


def write_splits(root, *, values=(1, 2), suffix=""):
  """Two splits of three images each, with a car and a person whose masks have these values."""
  for split, first in (("train", 0), ("test", 3)):
    names = [f"{number}{suffix}.png" for number in range(first, first + 3)]
    boxes = [
      annotation(2 * n + k, image=n, category=category, box=box)
      for n in (1, 2, 3)
      for k, (category, box) in enumerate([(CAR, (2, 3, 10, 5)), (PERSON, (15, 4, 6, 8))])
    ]
    folder = write_set(root / split, boxes, images=names, size=SIZE)
    (folder / "labels").mkdir()
    labels = painted((2, 3, 10, 5, values[0]), (15, 4, 6, 8, values[1]))
    for seed, name in enumerate(names, start=first):
      Image.fromarray(make_image(SIZE, seed)).save(folder / "images" / name)
      Image.fromarray(labels).save(folder / "labels" / name)


def run(config, workdir):
  lines = []
  return check_data.run(config, workdir, report=lines.append), lines


class Page(html.parser.HTMLParser):
  """Tags, their attributes, and the text of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


class TestTheReport:
  def test_of_a_good_set(self, tmp_path):
    write_splits(tmp_path)
    text, _ = run(configured(tmp_path), tmp_path / "run")
    assert "Nothing is wrong with these data." in text
    for line in (
      r"- with mask and boxes +3 +3",
      r"boxes against masks, median IoU +1.00 +1.00",
      r"2 +person +144 +8.0 % +3 +3",
      r"all mask images once +1 step; 1050 epochs in 300 steps",
      r"all box images once +1 step; 300 epochs in 300 steps",
      r"parameters +11,\d\d\d",  # the teacher's among them
      r"memory of each device +about \d+ [KM]iB, \d+ KiB of it parameters",
    ):
      assert re.search(line, text), text
    short = [line for line in text.splitlines() if not line.startswith("Page: ")]
    assert max(map(len, short)) < 80
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data.html"]

  def test_the_page_stands_alone_and_has_pictures(self, tmp_path):
    write_splits(tmp_path)
    run(configured(tmp_path), tmp_path)
    page = Page((tmp_path / "data.html").read_text())
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 6
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert not [tag for tag, attrs in page.tags if tag in ("script", "link") or "href" in attrs]
    assert "Nothing is wrong" in page.text and "Labels of train" in page.text

  def test_names_cannot_become_tags(self, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>'\""
    write_splits(tmp_path, values=(9, 2), suffix="<b>&'")
    categories = [{"id": CAR, "name": evil}, {"id": PERSON, "name": "person"}]
    for split in ("train", "test"):
      path = tmp_path / split / "instances.json"
      content = path.read_text().replace('"car"', '"' + evil.replace('"', '\\"') + '"')
      path.write_text(content)
    names = ("background", categories[0]["name"], "person")
    with pytest.raises(InputError):
      run(configured(tmp_path, data__class_names=names), tmp_path)
    page = Page((tmp_path / "data.html").read_text())
    assert evil in page.text and "0<b>&'.png" in page.text
    assert not [tag for tag, attrs in page.tags if tag == "script" or "onerror" in attrs]
    own = (tmp_path / "data.html").read_text().count("<div class='finding ")
    assert [tag for tag, _ in page.tags].count("b") == own, "a name has become a tag"

  def test_every_error_is_listed_after_the_report(self, tmp_path):
    write_splits(tmp_path, values=(255, 255))
    (tmp_path / "train" / "images" / "0.png").write_bytes(b"no image")
    lines = []
    with pytest.raises(InputError) as error:
      check_data.run(configured(tmp_path), tmp_path / "run", report=lines.append)
    text = str(error.value)
    assert text.startswith("3 things must be put right before a training:\ntrain: 1 of 3 images")
    assert "images/0.png: cannot be read as an image" in text
    assert "test: no mask shows an object, of 3" in text
    assert re.search(r"- that cannot be used +1 +0", lines[0])
    assert (tmp_path / "run" / "data.html").exists()

  def test_what_only_a_run_would_find_is_an_error_too(self, tmp_path):
    write_splits(tmp_path)
    with pytest.raises(InputError, match="(?s)the configuration: .*data.max_boxes=1; set it"):
      run(configured(tmp_path, data__max_boxes=1), tmp_path)
    (tmp_path / "test" / "labels" / "4.png").unlink()
    with pytest.raises(InputError, match="(?s)the configuration: .*image 4.png has no mask"):
      run(configured(tmp_path), tmp_path)

  def test_a_split_that_is_not_there_does_not_hide_the_other(self, tmp_path):
    write_splits(tmp_path, values=(255, 255))
    with pytest.raises(InputError) as error:
      run(configured(tmp_path, data__eval_split="val"), tmp_path)
    assert "val/instances.json: no such file" in str(error.value)
    assert "train: no mask shows" in str(error.value)

  def test_an_image_in_both_splits_is_a_warning(self, tmp_path):
    write_splits(tmp_path)
    folder = tmp_path / "test" / "images"
    (folder / "4.png").write_bytes((tmp_path / "train" / "images" / "1.png").read_bytes())
    text, _ = run(configured(tmp_path), tmp_path)
    assert "warning: test: 1 image is in train, too" in text
    assert "  4.png = train/1.png" in text

  def test_one_split_for_both_is_read_once(self, tmp_path, monkeypatch):
    write_splits(tmp_path)
    read, look_at = [], check.look_at
    monkeypatch.setattr(check, "look_at", lambda *a, **k: read.append(a) or look_at(*a, **k))
    text, _ = run(configured(tmp_path, data__eval_split="train"), tmp_path)
    assert len(read) == 1 and "train: 3 images are in train, too" in text

  def test_nothing_is_left_of_a_page_that_cannot_be_written(self, tmp_path):
    write_splits(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/data.html cannot be written"):
      run(configured(tmp_path), tmp_path / "file")

  @pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real data sets are not here")
  def test_the_boxes_of_a_real_set_are_found_right(self, tmp_path):
    config = configured(
      SHARED / "data" / "camvid",
      data__train_split="train[:12]",
      data__eval_split="test[:6]",
      data__class_names=("background", "car", "pedestrian", "bicyclist"),
      data__canvas=(180, 240),
    )
    text, _ = run(config, tmp_path)
    assert "ERROR" not in text and "outside of all boxes" not in text
    assert re.search(r"boxes against masks, median IoU +1.00 +1.00", text)


class TestBeforeTraining:
  def test_the_same_errors_stop_a_training(self, tmp_path):
    write_splits(tmp_path, values=(255, 255))
    with pytest.raises(InputError, match="train: no mask shows an object, of 3"):
      train(configured(tmp_path), tmp_path / "run", report=lambda line: None)
    assert not list((tmp_path / "run").glob("*.json"))

  def test_warnings_are_told_and_do_not_stop(self, tmp_path):
    write_splits(tmp_path)
    names = ("background", "car", "person", "tram")
    lines = []
    config = configured(tmp_path, data__class_names=names)
    training = training_set.open_training_set(config, report=lines.append)
    assert len(training.reader) == 3
    assert lines[0] == "warning: train: no mask and no box shows tram: it cannot be learned"

  def test_images_in_both_splits_are_told(self, tmp_path):
    write_splits(tmp_path)
    config = configured(tmp_path, data__eval_split="train")
    training = training_set.open_training_set(config, report=lambda line: None)
    lines = []
    training_set.open_evaluation_set(config, training, report=lines.append)
    assert len(lines) == 1 and lines[0].startswith("warning: train: 3 images are in train, too")


class TestTheCount:
  def test_a_terminal_gets_a_bar(self):
    stream, clock = Terminal(), Clock()
    count = Count("train", stream, clock=clock)
    for done in range(1, 5):
      clock.now += 0.5
      count(done, 8)
    (line,) = stream.screen()
    assert line == "[############............]  train 4/8 images  2.0 images/s  0:02 left"
    count.close()
    assert stream.getvalue().endswith("\n") and len(line) < 80

  def test_a_log_file_gets_one_line(self):
    stream, clock = io.StringIO(), Clock()
    count = Count("train", stream, clock=clock)
    for done in range(1, 5):
      clock.now += 0.001
      count(done, 4)
    count.close()
    assert stream.getvalue() == "train 4/4 images  1000 images/s\n"


@pytest.mark.parametrize(("values", "status"), [((1, 2), 0), ((255, 255), 2)])
def test_the_command_says_by_its_status(tmp_path, values, status):
  write_splits(tmp_path, values=values)
  flags = [
    "--mode=check_data",
    f"--workdir={tmp_path / 'run'}",
    "--config.data.source=labels",
    f"--config.data.root={tmp_path}",
    "--config.data.class_names=('background', 'car', 'person')",
    "--config.data.mask_fraction=0.5",
    "--config.model.width=2",
  ]
  done = subprocess.run(
    [sys.executable, "-m", "boxseg_jax.main", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == status, done.stderr
  assert "Images and annotations" in done.stdout and "Traceback" not in done.stderr
  assert (tmp_path / "run" / "data.html").exists()
  if status:
    assert done.stderr.startswith("error: 2 things must be put right")
    assert "no mask shows an object, of 3" in done.stderr
