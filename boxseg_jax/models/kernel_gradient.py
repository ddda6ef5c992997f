"""Convolutions whose gradients suit CPUs, dilated ones whose gradients suit GPUs.

XLA computes the gradient of a kernel as a convolution with an image-sized kernel, which on CPUs
runs at a fifth to a half of the speed of the convolution itself. Here it is a sum of matrix
products over bands of rows that stay in the cache. On GPUs and TPUs XLA's own is the right one, but
for dilated kernels on GPUs, where it took most of a layer's time (launch/results/gpu-profile.md):
here it is that of a plain one.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

BAND_BYTES = 1_000_000  # of what one matrix product reads: half of a usual L2 cache
SIDE = 3


def convolve(x, kernel, strides, padding, **options):
  """`jax.lax.conv_general_dilated`, for `nn.Conv`'s argument of that name; 3x3 at stride 1 only.

  Args:
    x: [batch, height, width, in].
    kernel: [3, 3, in, out], of the same dtype.
    strides: (1, 1).
    padding: ((1, 1), (1, 1)).
    **options: what `nn.Conv` passes on besides, at its defaults.

  Returns:
    [batch, height, width, out].
  """
  if jax.default_backend() == "cpu":
    return convolve_3x3(x, kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _plain(x, kernel, dilation=(1, 1)):
  """XLA's convolution with taps `dilation` apart, zeros around the image."""
  taps = zip(kernel.shape[:2], dilation, strict=True)
  halves = [(count // 2 * rate, count // 2 * rate) for count, rate in taps]
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x, kernel, (1, 1), halves, rhs_dilation=dilation, dimension_numbers=layout
  )


@jax.custom_vjp
def convolve_3x3(x, kernel):
  """3x3 convolution, zeros around the image; arguments as `convolve`."""
  return _plain(x, kernel)


def _forward(x, kernel):
  return _plain(x, kernel), (x, kernel)


def _backward(saved, gradient):
  x, kernel = saved
  # Read several times below: without a barrier what it comes from is computed each time.
  gradient = lax.optimization_barrier(gradient)
  to_x = jax.vjp(lambda x: _plain(x, kernel), x)[1](gradient)[0]
  return to_x, gradient_of_3x3(x, gradient).astype(kernel.dtype)


convolve_3x3.defvjp(_forward, _backward)


def gradient_of_3x3(x, gradient):
  """Gradient of the kernel.

  Args:
    x: [batch, height, width, in], what was convolved.
    gradient: [batch, height, width, out], of the result.

  Returns:
    float32 [3, 3, in, out].
  """
  batch, height, width, inputs = x.shape
  outputs = gradient.shape[-1]
  row_bytes = 4 * width * (SIDE * inputs + outputs)
  bands = -(-height // max(1, BAND_BYTES // row_bytes))
  rows = -(-height // bands)
  below = bands * rows - height  # rows of zeros add nothing
  x = jnp.pad(x, ((0, 0), (0, below), (1, 1), (0, 0)))
  gradient = jnp.pad(gradient, ((0, 0), (1, 1 + below), (0, 0), (0, 0)))

  def add_band(total, index):
    image, first = index // bands, index % bands * rows
    seen = lax.dynamic_slice(x, (image, first, 0, 0), (1, rows, width + 2, inputs))[0]
    # What the three columns of the kernel see, beside each other.
    columns = jnp.concatenate([seen[:, j : j + width] for j in range(SIDE)], axis=-1)
    columns = columns.reshape(rows * width, SIDE * inputs)
    shape = (1, rows + 2, width, outputs)
    wanted = lax.dynamic_slice(gradient, (image, first, 0, 0), shape)[0]
    products = [
      lax.dot_general(
        wanted[2 - i : 2 - i + rows].reshape(rows * width, outputs),
        columns,
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
      for i in range(SIDE)
    ]
    return total + jnp.stack(products), None

  # Varies over devices as x does, which shard_map wants of a scan's carry.
  zeros = jnp.zeros((SIDE, outputs, SIDE * inputs)) + 0.0 * x[0, 0, 0, 0].astype(jnp.float32)
  total, _ = lax.scan(add_band, zeros, jnp.arange(batch * bands))
  return total.reshape(SIDE, outputs, SIDE, inputs).transpose(0, 2, 3, 1)


def convolve_dilated(x, kernel, strides, padding, *, rhs_dilation, **options):
  """`jax.lax.conv_general_dilated`, for `nn.Conv`'s argument of that name; stride 1 only.

  Args:
    x: [batch, height, width, in].
    kernel: [rows, columns, in, out], both odd, of the same dtype.
    strides: (1, 1).
    padding: as many zeros on each side as keep the size.
    rhs_dilation: (vertical, horizontal) distance between taps.
    **options: what `nn.Conv` passes on besides, at its defaults.

  Returns:
    [batch, height, width, out].
  """
  if jax.default_backend() == "gpu":
    return convolve_phases(x, kernel, tuple(rhs_dilation))
  options["rhs_dilation"] = rhs_dilation
  return lax.conv_general_dilated(x, kernel, strides, padding, **options)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_phases(x, kernel, dilation: tuple[int, int]):
  """The dilated convolution; its kernel's gradient is that of a plain one, see `phases`.

  Args:
    x: [batch, height, width, in].
    kernel: [rows, columns, in, out], both odd, of the same dtype.
    dilation: (vertical, horizontal) distance between taps.

  Returns:
    [batch, height, width, out].
  """
  return _plain(x, kernel, dilation)


def _forward_phases(x, kernel, dilation):
  return _plain(x, kernel, dilation), (x, kernel)


def _backward_phases(dilation, saved, gradient):
  x, kernel = saved
  to_x = jax.vjp(lambda x: _plain(x, kernel, dilation), x)[1](gradient)[0]
  seen = phases(x, dilation)
  of_kernel = jax.vjp(lambda kernel: _plain(seen, kernel), kernel)[1]
  return to_x, of_kernel(phases(gradient, dilation))[0]


convolve_phases.defvjp(_forward_phases, _backward_phases)


def phases(x, dilation: tuple[int, int]):
  """Every r-th row and column as an image of its own, where taps r apart are neighbours.

  Args:
    x: [batch, height, width, channels].
    dilation: (vertical, horizontal) r.

  Returns:
    [batch * r * r, ceil(height / r), ceil(width / r), channels], zeros where the size is no
    multiple of r.
  """
  batch, *size, channels = x.shape
  rows, columns = (-(-length // rate) for length, rate in zip(size, dilation, strict=True))
  below, right = rows * dilation[0] - size[0], columns * dilation[1] - size[1]
  x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
  x = x.reshape(batch, rows, dilation[0], columns, dilation[1], channels)
  return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)


def multiply(x, kernel):
  """`x @ kernel`, a 1x1 convolution; x [..., in], kernel [in, out], of one dtype."""
  by = _multiply if jax.default_backend() == "cpu" else jnp.matmul
  return by(x, kernel)


@jax.custom_vjp
def _multiply(x, kernel):
  return jnp.matmul(x, kernel)


def _forward_product(x, kernel):
  return jnp.matmul(x, kernel), (x, kernel)


def _backward_product(saved, gradient):
  x, kernel = saved
  # Otherwise what the gradient comes from is computed twice, once of it transposed.
  gradient = lax.optimization_barrier(gradient)
  flat_x, flat_gradient = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
  to_kernel = lax.dot_general(flat_x, flat_gradient, (((0,), (0,)), ((), ())))
  return jnp.matmul(gradient, kernel.T), to_kernel


_multiply.defvjp(_forward_product, _backward_product)
