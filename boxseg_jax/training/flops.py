"""Floating-point operations: how many a program asks for, and how many a chip can do.

A program's are those of its convolutions and matrix products, read from its jaxpr, a multiply-add
being two. XLA's own analysis of a compiled program is no substitute: it counts the body of a loop
once, whatever its length (kernels' gradients on CPUs are such loops), and of a call into cuDNN or
cuBLAS it may know nothing. Where it sees all, it leaves out products with padding, which hardware
computes, and adds elementwise arithmetic, a few percent.
"""

import math

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Dense peaks in FLOP/s of one JAX device, without sparsity, by `device_kind`: (bfloat16, float32).
# float32 is what convolutions of float32 arrays are computed in by default: TF32 on NVIDIA since
# Ampere, one pass in bfloat16 on TPUs. None: bfloat16 is not in the hardware.
# Sources: NVIDIA's data sheets of T4, V100, A100, L4, L40S, H100, H200 and HGX B200 (of their
# figures with sparsity, half), its white papers on GA102 (RTX 3090) and Ada (RTX 4090; with float32
# accumulation); Google Cloud's pages "TPU v2" to "TPU v6e" (of v2 and v3, a device is half a chip).
PEAKS = {
  "Tesla T4": (None, 8.1e12),
  "Tesla V100-SXM2-16GB": (None, 15.7e12),
  "Tesla V100-SXM2-32GB": (None, 15.7e12),
  "NVIDIA A100-SXM4-40GB": (312e12, 156e12),
  "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
  "NVIDIA A100-PCIE-40GB": (312e12, 156e12),
  "NVIDIA A100 80GB PCIe": (312e12, 156e12),
  "NVIDIA L4": (121e12, 60e12),
  "NVIDIA L40S": (362e12, 183e12),
  "NVIDIA H100 80GB HBM3": (989e12, 494e12),
  "NVIDIA H100 PCIe": (756e12, 378e12),
  "NVIDIA H200": (989e12, 494e12),
  "NVIDIA B200": (2250e12, 1125e12),
  "NVIDIA GeForce RTX 3090": (71e12, 35.6e12),
  "NVIDIA GeForce RTX 4090": (165e12, 82.6e12),
  "TPU v2": (22.5e12, 22.5e12),
  "TPU v3": (61.5e12, 61.5e12),
  "TPU v4": (275e12, 275e12),
  "TPU v5 lite": (197e12, 197e12),
  "TPU v5": (459e12, 459e12),
  "TPU v6 lite": (918e12, 918e12),
}


def peak(device_kind: str, dtype: str) -> float | None:
  """The published peak of one device.

  Args:
    device_kind: as JAX and PyTorch name it.
    dtype: "float32" or "bfloat16", of the computation.

  Returns:
    FLOP/s, None where none is known.
  """
  bfloat16, float32 = PEAKS.get(device_kind, (None, None))
  return bfloat16 if dtype == "bfloat16" else float32


def count(jaxpr) -> int:
  """FLOPs of the convolutions and matrix products of a program.

  Args:
    jaxpr: a `Jaxpr`, open or closed; of one that is mapped over devices, what one device does.

  Returns:
    Their number. A scan counts as often as it runs, of a branch the dearest, a `while` once.
  """
  jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
  return sum(map(_of_equation, jaxpr.eqns))


def of_function(function, *arguments) -> int:
  """`count` of what a function computes of arguments like these; nothing is run.

  What no result needs, such as the gradient of the image, is not counted: XLA leaves it out.
  """
  traced = jax.make_jaxpr(function)(*arguments).jaxpr
  needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  return count(needed)


def _of_equation(equation) -> int:
  name = equation.primitive.name
  if name in _COUNTED:
    return _COUNTED[name](equation)
  inner = [count(jaxpr) for jaxpr in _inner(equation.params.values())]
  if name == "cond":
    return max(inner)
  return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner(values):
  """The programs among an equation's parameters."""
  for value in values:
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
      yield value
    elif isinstance(value, tuple | list):
      yield from _inner(value)


def _of_matrix_product(equation) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation) -> int:
  """Every tap of every output, padding too, as PyTorch counts; not the holes of dilated inputs.

  So the gradient of an input of stride 2 costs what the convolution itself costs.
  """
  x, kernel = (variable.aval.shape for variable in equation.invars)
  result = equation.outvars[0].aval.shape
  params = equation.params
  places = params["dimension_numbers"]
  images = x[places.lhs_spec[0]] // params["batch_group_count"]
  pairs = 1
  for axis, dilation in enumerate(params["lhs_dilation"]):
    sources = x[places.lhs_spec[2 + axis]] if dilation > 1 else result[places.out_spec[2 + axis]]
    pairs *= sources * kernel[places.rhs_spec[2 + axis]]
  return 2 * images * pairs * int(np.prod([kernel[i] for i in places.rhs_spec[:2]]))


_COUNTED = {"dot_general": _of_matrix_product, "conv_general_dilated": _of_convolution}
