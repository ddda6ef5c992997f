"""Sets a part of a training split aside, so that settings can be chosen without the test split.

    python launch/hold_out.py ../shared/data/nuclei --to=runs/nuclei_held_out --images=100

reads `<root>/train/{instances.json,images/}` (COCO) and writes a root of the same layout whose
`train` is the rest and whose `test` is the part: the configuration needs another root only,
`--config.data.root=runs/nuclei_held_out`. Images are links, not copies. Which images are set
aside depends on the seed and their names alone.
"""

import argparse
import hashlib
import json
from pathlib import Path


def hold_out(root: Path, to: Path, *, images: int, seed: int) -> None:
  split = json.loads((root / "train" / "instances.json").read_text())
  drawn = sorted(split["images"], key=lambda image: _draw(image["file_name"], seed))
  _write(root / "train", to / "test", split, drawn[:images])
  _write(root / "train", to / "train", split, drawn[images:])


def _draw(name, seed):
  return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _write(source, target, split, images):
  """A split of those images alone."""
  (target / "images").mkdir(parents=True, exist_ok=True)
  ids = {image["id"] for image in images}
  kept = [one for one in split["annotations"] if one["image_id"] in ids]
  content = split | {"images": images, "annotations": kept}
  (target / "instances.json").write_text(json.dumps(content))
  for image in images:
    link = target / "images" / image["file_name"]
    if not link.exists():
      link.symlink_to((source / "images" / image["file_name"]).resolve())


if __name__ == "__main__":
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("root", type=Path)
  parser.add_argument("--to", type=Path, required=True)
  parser.add_argument("--images", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  hold_out(given.root, given.to, images=given.images, seed=given.seed)
