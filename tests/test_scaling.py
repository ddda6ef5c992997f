"""What a training step sends between devices, against what `launch/SCALING.md` predicts of it."""

import math
import re
import runpy
from functools import partial

import jax
import pytest
from places import ROOT
from test_step import CANVAS, a_batch, a_model, a_step, settings

from boxseg_jax.parallel import KINDS, Parallel
from boxseg_jax.training import build
from boxseg_jax.training.state import create_state

scaling = runpy.run_path(str(ROOT / "launch" / "scaling.py"))
COLLECTIVES = ("all_gather", "all_to_all", "collective_permute", "reduce_scatter")


def lowered(kind, devices, *, norm="batch", **changes):
  """(the training step, lowered; shapes of its state)."""
  parallel, model = Parallel(kind, jax.devices()[:devices]), a_model(norm)
  step, optimizer = a_step(model, clip_norm=1.0, **changes)
  init = partial(build.init, model, CANVAS, settings(**changes))
  state = jax.eval_shape(
    lambda key: create_state(init(key), optimizer=optimizer), jax.random.key(0)
  )
  return parallel.compile(step).lower(state, parallel.put_batch(a_batch())), state


def sums_in(text):
  """Number of elements of each all-reduce in a lowered step; all are float32."""
  types = re.findall(r'"stablehlo\.all_reduce"\(.*?\}\) : \((.*?)\) ->', text, re.DOTALL)
  shapes = [re.fullmatch(r"tensor<((?:\d+x)*)f32>", one.strip()).group(1) for one in types]
  return [math.prod(int(side) for side in shape.split("x") if side) for shape in shapes]


def predicted(state):
  size = scaling["sizes"]({"params": state.params, "batch_stats": state.batch_stats})
  return size, scaling["all_reduced"](size, settings().num_classes)


@pytest.mark.parametrize(
  ("kind", "devices", "norm"),
  [("jit", 2, "batch"), ("pmap", 4, "batch"), ("jit", 8, "batch"), ("jit", 2, "group")],
)
def test_devices_exchange_gradient_statistics_metrics_and_nothing_else(kind, devices, norm):
  """To the byte, whatever the number of devices, and so of images on each."""
  step, state = lowered(kind, devices, norm=norm)
  text = step.as_text()
  sums, (size, parts) = sums_in(text), predicted(state)
  assert not [name for name in COLLECTIVES if f"stablehlo.{name}" in text]
  assert 4 * sum(sums) == sum(parts.values())
  assert (size.norms > 0) == (norm == "batch")
  # One for each array of parameters, one forth and one back for each norm, eleven metrics.
  assert len(sums) == len(jax.tree.leaves(state.params)) + 2 * size.norms + 11


# Bootstrapping sends nothing, and compiles for long; without it this is cheap.
PLAIN = {
  "bootstrap": "none",
  "teacher": "self",
  "inside_boxes": "uncertainty",
  "projection_weight": 0.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiler_gathers_the_gradient_and_adds_nothing(kind):
  step, state = lowered(kind, 2, **PLAIN)
  text = step.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
  kinds = "|".join(name.replace("_", "-") for name in ("all_reduce", *COLLECTIVES))
  found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
  assert {kind for _, kind in found} == {"all-reduce"}
  elements = [
    [
      math.prod(map(int, filter(None, sides.split(","))))
      for sides in re.findall(r"f32\[(.*?)\]", one)
    ]
    for one, _ in found
  ]
  size, parts = predicted(state)
  without = 12  # bytes: the loss has no terms of the teacher, of sigma and of BoxInst
  assert 4 * sum(map(sum, elements)) == sum(parts.values()) - without
  # Norms wait for one another; gradient and metrics go with them or in two sums of their own.
  assert len(found) <= 2 * size.norms + 2


def test_rings_by_hand():
  """Ten million parameters, 40 MB, no statistics."""
  machine = scaling["Machine"](8, 64, 4, 1e9, 1e8, 1.0, 1.0)
  size = scaling["Sizes"](10_000_000, 0, 0)
  assert scaling["seconds_to_sum"](machine, 1, size) == (0.0, 0.0)
  # Four chips: each sends 3 quarters twice. Two such groups: each chip half of its quarter twice.
  assert scaling["seconds_to_sum"](machine, 4, size)[0] == pytest.approx(0.06)
  assert scaling["seconds_to_sum"](machine, 8, size)[0] == pytest.approx(0.06 + 0.1)
  waits = scaling["Sizes"](0, 200, 5)
  assert scaling["seconds_to_sum"](machine, 8, waits) == (0.0, pytest.approx(10 * 2.0))


def test_the_page_shows_what_the_script_prints(monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["scaling.py"])
  scaling["main"]()
  page = (ROOT / "launch" / "SCALING.md").read_text()
  for table in capsys.readouterr().out.strip().split("\n\n"):
    assert table in page
