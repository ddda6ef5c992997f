"""Predicts the time per step on many chips, and what their input takes, from images/s on one.

    python launch/scaling.py --rates 25 100 400 --images-per-chip 4

Prints the tables of launch/SCALING.md, which says where the numbers come from and which of them are
assumptions. The rates are yours to give.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from boxseg_jax import config as configuration
from boxseg_jax.training import build

RESULTS = Path(__file__).parent / "results"
CHIPS = (8, 64, 512)
MODELS = {
  "U-Net, EfficientNet-Lite0": ("unet", "efficientnet_lite0"),
  "U-Net, ResNet-34": ("unet", "resnet34"),
  "DeepLabV3+, ResNet-50": ("deeplabv3plus", "resnet50"),
}
CLASSES = ("background", *(f"class {n}" for n in range(1, 9)))  # as many as CityScapes' task has
FLOAT = 4  # bytes; gradients, statistics and metrics are float32 whatever the compute dtype


class Machine(NamedTuple):
  """Chips in groups with fast links inside and slower ones between.

  Attributes:
    chips_per_host: that share the cores of one host.
    cores_per_host: whole ones, not their threads.
    group: chips that the fast links join.
    inside: bytes/s that a chip sends over them, one way.
    between: bytes/s that a chip sends beyond its group, one way.
    wait_inside: seconds that a small sum takes in a full group. ASSUMED.
    wait_between: seconds that it takes longer over several groups. ASSUMED.
  """

  chips_per_host: int
  cores_per_host: int
  group: int
  inside: float
  between: float
  wait_inside: float
  wait_between: float


MACHINES = {
  "TPU v5e": Machine(4, 56, 256, 200e9, 6.4e12 / 8 / 256, 32e-6, 100e-6),
  "DGX H100": Machine(8, 112, 8, 450e9, 50e9, 20e-6, 40e-6),
}


class Sizes(NamedTuple):
  """Of a network with the decoder that is shown boxes, as it is trained.

  Attributes:
    parameters: how many.
    statistics: numbers in the running means and variances.
    norms: layers that have such.
  """

  parameters: int
  statistics: int
  norms: int


def sizes(variables) -> Sizes:
  """Counts the variables of a network, or their shapes."""
  stats = jax.tree.leaves(variables.get("batch_stats", {}))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  return Sizes(parameters, sum(leaf.size for leaf in stats), len(stats) // 2)


def shapes(name: str, encoder: str):
  """Variables of a network in its default configuration, without computing them."""
  config = configuration.get_config()
  config.data.class_names, config.train.best_metric = CLASSES, "miou"
  config.model.name, config.model.encoder.name = name, encoder
  settings = build.loss_settings(config, (1.0,) * len(CLASSES), mask_images=2)
  init = partial(build.init, build.make_model(config), (96, 96), settings)
  return jax.eval_shape(init, jax.random.key(0))


def all_reduced(size: Sizes, num_classes: int) -> dict[str, int]:
  """Bytes that each chip gives to sums over all chips in one step.

  Args:
    size: of the network.
    num_classes: with the background.

  Returns:
    "gradient"; "statistics": a mean and a mean square per channel, and their gradients;
    "metrics": six terms of the loss, its weight, certainty in boxes and their pixels, overlap
    and union of each class of the foreground.
  """
  return {
    "gradient": FLOAT * size.parameters,
    "statistics": 2 * FLOAT * size.statistics,
    "metrics": FLOAT * (9 + 2 * (num_classes - 1)),
  }


def seconds_to_sum(machine: Machine, chips: int, size: Sizes) -> tuple[float, float]:
  """(seconds for the gradient, seconds for the statistics) of one step.

  The gradient goes by bandwidth: rings inside groups, then between them, where each chip has its
  part of the group's sum to send. Statistics are many small sums and go by latency, each forth in
  the forward and once in the backward pass, and nothing can be done meanwhile.
  """
  inside, groups = min(chips, machine.group), -(-chips // machine.group)
  gradient = all_reduced(size, len(CLASSES))["gradient"]
  ring = 2 * gradient * (inside - 1) / inside / machine.inside
  ring += 2 * gradient / inside * (groups - 1) / groups / machine.between
  wait = machine.wait_inside * (inside / machine.group) ** 0.5
  wait += machine.wait_between if groups > 1 else 0.0
  return ring, 2 * size.norms * wait


def _table(head, rows):
  aligned = ["---", *["---:"] * (len(head) - 1)]
  return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, aligned, *rows])


def size_table(by_name) -> str:
  """What each network gives to sums in one step."""
  rows = []
  for name, size in by_name.items():
    parts = all_reduced(size, len(CLASSES))
    megabytes = f"{parts['gradient'] / 1e6:.1f}"
    kilobytes = f"{parts['statistics'] / 1e3:.0f}"
    rows.append([name, f"{size.parameters:,}", size.norms, megabytes, kilobytes, parts["metrics"]])
  head = ["", "parameters", "norms", "gradient, MB", "statistics, kB", "metrics, bytes"]
  return _table(head, rows)


def sum_table(by_name) -> str:
  """Milliseconds that sums take, gradient + statistics."""
  rows = [
    [f"{kind}: {name}"]
    + [
      " + ".join(f"{1e3 * part:.2f}" for part in seconds_to_sum(machine, chips, size))
      for chips in CHIPS
    ]
    for kind, machine in MACHINES.items()
    for name, size in by_name.items()
  ]
  return _table(["ms, gradient + statistics", *(f"{chips} chips" for chips in CHIPS)], rows)


def step_table(size: Sizes, rates, images_per_chip: int) -> str:
  """Milliseconds per step and share of the chips' own speed, at each rate that is given."""
  rows = []
  for kind, machine in MACHINES.items():
    for rate in rates:
      compute, cells = images_per_chip / rate, []
      for chips in CHIPS:
        step = compute + sum(seconds_to_sum(machine, chips, size))
        cells.append(f"{1e3 * step:.1f} ({compute / step:.0%})")
      rows.append([f"{kind}, {rate:g} images/s per chip ASSUMED", *cells])
  return _table(["ms per step", *(f"{chips} chips" for chips in CHIPS)], rows)


def input_table(rates, sets) -> str:
  """Cores of a host and bytes/s from storage that each rate takes.

  Args:
    rates: images/s per chip.
    sets: (name, images/s of one core, bytes per image).
  """
  rows = []
  for kind, machine in MACHINES.items():
    for name, per_core, size in sets:
      for rate in rates:
        cores = rate * machine.chips_per_host / per_core
        of_all = [f"{chips * rate * size / 1e9:.2f}" for chips in CHIPS]
        rows.append([f"{kind}, {name}", f"{rate:g}", f"{cores:.1f} of {machine.cores_per_host}"])
        rows[-1] += of_all
  head = [
    "",
    "images/s per chip",
    "cores of each host",
    *(f"GB/s, {chips} chips" for chips in CHIPS),
  ]
  return _table(head, rows)


def measured_sets():
  """(name, images/s of one core, bytes per image with its mask) of what has been measured."""
  fed = json.loads((RESULTS / "input-480x360.json").read_text())["rows"]["feed tf"]["per_core"]
  return [("CamVid at 480x360", fed, 64101 + 2408), ("CityScapes, stand-in", STAND_IN, 2.25e6)]


STAND_IN = 17.4  # images/s of one core, decoding alone; see SCALING.md


def main():
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("--rates", type=float, nargs="+", default=[25, 100, 400])
  parser.add_argument("--images-per-chip", type=int, default=4)
  given = parser.parse_args()
  by_name = {name: sizes(shapes(*choice)) for name, choice in MODELS.items()}
  largest = max(by_name.values())
  print(size_table(by_name), sum_table(by_name), sep="\n\n", end="\n\n")
  print(step_table(largest, given.rates, given.images_per_chip), end="\n\n")
  print(input_table(given.rates, measured_sets()))


if __name__ == "__main__":
  main()
