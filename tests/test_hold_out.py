"""launch/hold_out.py: a part of a training split, set aside."""

import json
import subprocess
import sys
from pathlib import Path

from data_cases import write_set

SCRIPT = Path(__file__).parents[1] / "launch" / "hold_out.py"


def _held_out(root, to, *options):
  subprocess.run([sys.executable, SCRIPT, root, f"--to={to}", *options], check=True)
  parts = {}
  for part in ("train", "test"):
    content = json.loads((to / part / "instances.json").read_text())
    parts[part] = {image["file_name"]: image["id"] for image in content["images"]}
    assert {path.name for path in (to / part / "images").iterdir()} == parts[part].keys()
    assert all((to / part / "images" / name).read_bytes() for name in parts[part])
    ids = [one["image_id"] for one in content["annotations"]]
    assert sorted(ids) == sorted(parts[part].values())
  return parts


def test_every_image_is_in_one_part_and_its_annotations_with_it(tmp_path):
  names = [f"{letter}.png" for letter in "abcdefgh"]
  boxes = [{"id": i, "image_id": i, "category_id": 3, "bbox": [1, 2, 9, 9]} for i in range(1, 9)]
  write_set(tmp_path / "root" / "train", boxes, images=names)
  first = _held_out(tmp_path / "root", tmp_path / "a", "--images=3")
  assert (len(first["test"]), len(first["train"])) == (3, 5)
  assert first["test"].keys() | first["train"].keys() == set(names)
  assert _held_out(tmp_path / "root", tmp_path / "b", "--images=3") == first
  assert _held_out(tmp_path / "root", tmp_path / "c", "--images=3", "--seed=1") != first
