"""The split into mask images and box images."""

import json

import numpy as np
import pytest
from data_cases import make_record, make_records

from boxseg_jax.data import split
from boxseg_jax.errors import InputError


def mixed_records(count=60):
  """Class 1 on most images, class 2 on every tenth, class 3 on one."""
  records = []
  for number in range(count):
    classes = [1] if number % 7 else []
    classes += [2] if number % 10 == 3 else []
    classes += [3] if number == 41 else []
    records.append(make_record(number, classes=tuple(classes)))
  return records


def classes_of(records, ids):
  return frozenset().union(*(r.classes for r in records if r.image_id in ids))


def test_the_order_of_records_does_not_matter():
  records = mixed_records()
  expected = split.split_masks(records, 0.2, 5)
  for seed in range(3):
    shuffled = [records[i] for i in np.random.default_rng(seed).permutation(len(records))]
    assert split.split_masks(shuffled, 0.2, 5) == expected


def test_every_image_is_in_one_list_and_the_share_is_right():
  records = mixed_records()
  drawn = split.split_masks(records, 0.18, 0)
  assert len(drawn.mask_ids) == 11  # 10.8
  assert sorted(drawn.mask_ids + drawn.box_ids) == [r.image_id for r in records]
  assert len(split.split_masks(records, 1e-6, 0).mask_ids) == 1
  assert split.split_masks(records, 0, 0).mask_ids == ()
  assert split.split_masks(records, 1, 0).box_ids == ()


def test_seeds_draw_different_images_and_this_draw_stays():
  records = make_records(40)
  draws = {split.split_masks(records, 0.25, seed).mask_ids for seed in range(10)}
  assert len(draws) == 10
  # Pinned: a study has to find the same images after an upgrade.
  expected = tuple(f"image{number:03}.png" for number in (8, 9, 13, 29))
  assert split.split_masks(records, 0.1, 0).mask_ids == expected


def test_smaller_fractions_are_nested_in_larger_ones():
  records = mixed_records()
  for seed in range(5):
    smaller = set()
    for fraction in (0.02, 0.05, 0.1, 0.18, 0.5, 1.0):
      larger = set(split.split_masks(records, fraction, seed).mask_ids)
      assert smaller < larger
      smaller = larger


def test_every_class_keeps_a_mask_image_where_possible():
  records = mixed_records()
  for seed in range(20):
    # 5 % are three images; only one has class 3, and chance would miss it 19 times in 20.
    drawn = split.split_masks(records, 0.05, seed)
    assert classes_of(records, drawn.mask_ids) == {1, 2, 3}
  # One image cannot show all; it shows as many as any can.
  assert max(len(r.classes) for r in records) == 2
  drawn = split.split_masks(records, 0.001, 0)
  assert len(classes_of(records, drawn.mask_ids)) == 2


def test_every_image_has_about_the_same_chance():
  records = make_records(50)
  counts = dict.fromkeys((r.image_id for r in records), 0)
  for seed in range(400):
    for name in split.split_masks(records, 0.2, seed).mask_ids:
      counts[name] += 1
  # Binomial(400, 0.2): mean 80, standard deviation 8.
  assert min(counts.values()) > 45 and max(counts.values()) < 115


def test_images_without_mask_are_box_images():
  records = make_records(10) + [make_record(n, mask=False) for n in range(10, 40)]
  everything = split.split_masks(records, 1, 0)
  assert everything.mask_ids == tuple(r.image_id for r in records[:10])
  assert len(split.split_masks(records, 0.5, 0).mask_ids) == 5


def test_nothing_to_draw_from_is_an_error_unless_asked_for():
  records = make_records(4, mask=False)
  with pytest.raises(InputError, match="none of the 4 images has a mask.*mask_fraction=0.18"):
    split.split_masks(records, 0.18, 0)
  assert len(split.split_masks(records, 0, 0).box_ids) == 4


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_is_a_fraction(fraction):
  with pytest.raises(InputError, match=f"mask_fraction is {fraction}"):
    split.split_masks(make_records(3), fraction, 0)


def test_an_image_twice_is_an_error():
  with pytest.raises(InputError, match=r"made/instances.json: image x.png is there twice"):
    split.split_masks([make_record(0, name="x.png"), make_record(1, name="x.png")], 0.5, 0)


def test_a_split_is_read_back(tmp_path):
  records = mixed_records()
  drawn = split.split_masks(records, 0.18, 3)
  path = tmp_path / "run" / "split.json"
  split.write_split(path, drawn)
  split.write_split(path, drawn)
  assert split.read_split(str(path), records[::-1]) == drawn
  assert [p.name for p in path.parent.iterdir()] == ["split.json"]


@pytest.mark.parametrize(
  ("mask_ids", "box_ids", "words"),
  [
    (["a", "x"], ["b", "c"], "image x is not in the data set"),
    (["a"], ["b"], "image c is in the data set, but in neither"),
    (["a", "b"], ["b", "c"], "image b is in mask_ids and in box_ids"),
    (["a", "c"], ["b"], "image c is in mask_ids, but has no mask"),
    (["x", "y", "z"], ["a", "b", "c"], r"image x \(and 2 more\) is not"),
  ],
)
def test_a_split_of_other_data_is_refused(tmp_path, mask_ids, box_ids, words):
  records = [make_record(n, name=name, mask=name != "c") for n, name in enumerate("abc")]
  path = tmp_path / "split.json"
  path.write_text(json.dumps({"mask_ids": mask_ids, "box_ids": box_ids}))
  with pytest.raises(InputError, match="split.json: " + words):
    split.read_split(str(path), records)


@pytest.mark.parametrize(
  ("text", "words"),
  [("{", "cannot be read as JSON"), ("[]", "not a split"), ('{"mask_ids": []}', "not a split")],
)
def test_a_file_that_is_no_split_is_named(tmp_path, text, words):
  path = tmp_path / "split.json"
  with pytest.raises(InputError, match=r"split.json: no such file \(data.split_file\)"):
    split.read_split(str(path), make_records(1))
  path.write_text(text)
  with pytest.raises(InputError, match="split.json: " + words):
    split.read_split(str(path), make_records(1))
