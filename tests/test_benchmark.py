"""--mode=benchmark: FLOPs by hand, numbers that agree with each other, a table that fits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_run import small

from boxseg_jax import config as configuration
from boxseg_jax import models
from boxseg_jax.apps import benchmark
from boxseg_jax.data.box_priors import box_priors
from boxseg_jax.errors import InputError
from boxseg_jax.models import kernel_gradient
from boxseg_jax.training import flops, speed

OF_DATA = {"class_weights": (1.0,) * 4, "mask_images": 3, "box_priors": box_priors([], 4)}


def convolve(x, kernel, strides=(1, 1), **options):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)


class TestFlops:
  def test_matrix_products(self):
    left, right = jnp.zeros((5, 2, 3)), jnp.zeros((5, 3, 4))
    assert flops.of_function(jnp.matmul, left, right) == 2 * 5 * 2 * 3 * 4

  @pytest.mark.parametrize("stride", [1, 2])
  def test_both_gradients_of_a_convolution_cost_what_it_costs(self, stride):
    x, kernel = jnp.zeros((2, 8, 6, 3)), jnp.zeros((3, 3, 3, 5))

    def loss(x, kernel):
      return convolve(x, kernel, (stride, stride)).sum()

    once = 2 * 2 * (8 // stride) * (6 // stride) * 9 * 3 * 5
    assert flops.of_function(loss, x, kernel) == once
    assert flops.of_function(jax.value_and_grad(loss, argnums=(0, 1)), x, kernel) == 3 * once

  def test_loops_and_branches(self):
    square = jnp.zeros((4, 4))

    def looped(x):
      return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=7)[0]

    def branched(x):
      return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.of_function(looped, square) == 7 * 128
    assert flops.of_function(branched, square) == 2 * 128
    assert flops.of_function(jax.jit(looped), square) == 7 * 128

  def test_the_gradient_of_kernels_in_bands_costs_what_the_plain_one_does(self):
    x, kernel = jnp.zeros((1, 64, 64, 32)), jnp.zeros((3, 3, 32, 16))
    by = kernel_gradient.convolve

    def loss(kernel):
      return by(x, kernel, (1, 1), "SAME").sum()

    # On CPUs a loop over bands, whose body XLA would count once.
    once = 2 * 64 * 64 * 9 * 32 * 16
    assert flops.of_function(jax.value_and_grad(loss), kernel) == pytest.approx(2 * once, rel=0.05)

  def test_a_network_s_grow_with_the_batch(self):
    model = models.build("unet", num_classes=4, encoder="conv", width=2)
    variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )

    def count(batch):
      image = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
      return flops.of_function(lambda v, x: model.apply(v, x, train=False), variables, image)

    assert 0 < count(1) * 6 == count(2) * 3 == count(6)

  def test_peaks_are_known_by_device_and_dtype(self):
    kind = "NVIDIA H100 80GB HBM3"
    assert flops.peak(kind, "bfloat16") > flops.peak(kind, "float32") > 1e14
    assert flops.peak("cpu", "float32") is None and flops.peak("Tesla T4", "bfloat16") is None


def test_turns_and_waiting():
  order = []

  def timing(name, seconds):
    return lambda: order.append(name) or seconds.pop()

  timings = {"one": timing("one", [2.0, 1.0, 3.0]), "other": timing("other", [5.0, 6.0, 4.0])}
  assert speed.take_turns(timings, 3) == {"one": [1.0, 2.0, 3.0], "other": [4.0, 5.0, 6.0]}
  assert order == ["one", "other"] * 3
  state, seconds = speed.run_steps(lambda s, b: (s + b, {"loss": s}), 0, iter([1, 2, 3]))
  assert state == 6 and seconds > 0


class TestCases:
  def titles(self, **changes):
    return [case.title for case in benchmark.cases(small(**changes), **OF_DATA)]

  def test_each_has_one_thing_more(self):
    whole = ["cross entropy", "+ loss inside boxes", "+ bootstrapping", "+ decoder shown the boxes"]
    assert self.titles() == whole
    assert self.titles(loss__teacher="self") == whole[:3]
    assert self.titles(loss__bootstrap="none") == whole[:2]
    assert self.titles(arm="boxes_as_masks") == whole[:1]

  def test_before_and_after_share_a_program(self):
    _, before, after, last = benchmark.cases(small(), **OF_DATA)
    assert before.settings == after.settings and before.step < after.step == last.step
    assert last.settings.teacher == "boxes"

  def test_costs_are_shares_of_cross_entropy(self):
    rows = benchmark.costs({"cross entropy": 0.2, "+ loss": 0.25, "+ all": 0.3})
    assert [row["over_cross_entropy"] for row in rows] == pytest.approx([0.0, 0.25, 0.5])


def test_utilisation_where_a_peak_is_known():
  known = benchmark.flop_rates(10**12, 0.01, "NVIDIA A100-SXM4-40GB", "bfloat16")
  assert known["flops_per_second"] == pytest.approx(1e14)
  assert known["utilisation"] == pytest.approx(100 / 312) and not known["left_out"]
  unknown = benchmark.flop_rates(10**12, 0.01, "cpu", "float32")
  assert "utilisation" not in unknown and "'cpu'" in unknown["left_out"]["utilisation"]


def test_a_run(tmp_path):
  config = small(arm="full", benchmark__steps=2, benchmark__repeats=1)
  shown = benchmark.run(config, tmp_path, report=lambda line: None)
  found = json.loads((tmp_path / "benchmark.json").read_text())
  times = found["seconds_per_step"]
  assert list(times) == ["on the device", "pipeline, first epoch", "pipeline, later epochs"]
  assert all(seconds > 0 for seconds in times.values())
  images = found["images_per_second_per_device"] * found["devices"] * times["on the device"]
  assert images == pytest.approx(config.data.batch_size)
  rate = found["flops_per_second"] * times["on the device"]
  assert rate == pytest.approx(found["flops_per_step"]) and rate > 0
  assert found["cases"][0]["seconds"] == times["on the device"]
  assert found["memory_bytes"]["program"] > 0 and found["memory_bytes"]["device_peak"] is None
  assert found["compile_seconds"] > 0 and {"command", "device", "jax"} <= found.keys()
  assert max(map(len, shown.splitlines()[:-1])) <= 80  # the last line is a path
  assert "utilisation left out" in shown
  assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]
  # What was compiled here must not have switched the cache off.
  assert jax.config.jax_compilation_cache_dir is not None


def test_the_longest_table_fits_a_terminal():
  found = {
    "model": {"name": "deeplabv3plus", "encoder": "resnet50", "dtype": "bfloat16"},
    "arm": "uncertainty",
    "canvas": [1024, 2048],
    "batch_size": 128,
    "device": "8 x NVIDIA H100 80GB HBM3",
    "seconds_per_step": {"on the device": 1.23456, "pipeline, later epochs": 1.34567},
    "images_per_second_per_device": 1234.567,
    "flops_per_step": 10**13,
    "flops_per_second": 4.5e14,
    "peak_flops_per_second": 9.89e14,
    "utilisation": 0.455,
    "xla_flops_per_step": None,
    "trace_seconds": 12.3456,
    "compile_seconds": 123.456,
    "memory_bytes": {"program": 10**10, "device_peak": 10**10},
    "cases": benchmark.costs({"cross entropy": 1.0, "+ decoder shown the boxes": 1.23456}),
    "left_out": {},
  }
  found["model"]["parameters"] = 40_348_069
  shown = benchmark.table(found)
  assert max(map(len, shown.splitlines())) <= 80
  assert "45.5%" in shown and "+23.5%" in shown and "+9.0%" in shown


@pytest.mark.parametrize("key", ["benchmark.steps", "benchmark.repeats"])
def test_counts_below_one_are_refused(key):
  config = small(**{key: 0})
  with pytest.raises(InputError, match=f"config.{key} is 0"):
    benchmark.run(config, "unused")


def test_it_is_no_part_of_a_run():
  from boxseg_jax.training import run

  flat = configuration.flatten(configuration.get_config())
  assert not any(key.startswith("benchmark.") for key in run._of_one_run(flat))


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
  with pytest.raises(InputError, match="data.batch_size = 9 does not divide"):
    benchmark.run(small(data__batch_size=9), tmp_path)
  assert np.array_equal(list(tmp_path.iterdir()), [])
