"""Depthwise convolution: one small kernel per channel.

XLA's grouped convolution is the right operation on GPUs and TPUs. On CPUs it and above all its
gradient take 5 to 30 times as long as the same sum written out over the kernel's taps, which the
compiler fuses into one elementwise loop.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
  """TensorFlow's "SAME": ceil(size / stride) results, the odd padding cell at the end."""
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def taps(x, kernel: int, stride: int) -> list[jax.Array]:
  """What each of the kernel's kernel * kernel cells sees, row by row.

  Args:
    x: [batch, height, width, channels].
    kernel: side of the square kernel.
    stride: of the convolution.

  Returns:
    kernel * kernel arrays [batch, ceil(height / stride), ceil(width / stride), channels].
  """
  height, width = x.shape[1:3]
  pads = [same_padding(size, kernel, stride) for size in (height, width)]
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  rows, columns = (stride * (-(-size // stride) - 1) + 1 for size in (height, width))
  return [
    x[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(kernel)
    for j in range(kernel)
  ]


def weighted_taps(x, kernel, stride: int):
  """The convolution as a sum over the kernel's cells; arguments as `depthwise`."""
  weights = kernel.reshape(-1, kernel.shape[-1])
  seen = taps(x, kernel.shape[0], stride)
  return sum(tap * weight for tap, weight in zip(seen, weights, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_by_taps(x, kernel, stride: int):
  """`weighted_taps` with a gradient that reads its operands once."""
  return weighted_taps(x, kernel, stride)


def _forward(x, kernel, stride):
  return weighted_taps(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
  x, kernel = saved
  # Read once for each tap below: without a barrier what it comes from is computed each time.
  gradient = lax.optimization_barrier(gradient)
  to_x = jax.vjp(lambda x: weighted_taps(x, kernel, stride), x)[1](gradient)[0]
  gradient = gradient.astype(jnp.float32)
  products = tuple(tap * gradient for tap in taps(x, kernel.shape[0], stride))
  # One reduction over the width with as many operands as taps: as separate sums, each would
  # read x and the gradient from memory again. The rest is small.
  zeros = (jnp.float32(0),) * len(products)
  sums = lax.reduce(products, zeros, lambda a, b: tuple(map(jnp.add, a, b)), (2,))
  to_kernel = jnp.stack(sums).sum((1, 2)).reshape(kernel.shape)
  return to_x, to_kernel.astype(kernel.dtype)


depthwise_by_taps.defvjp(_forward, _backward)


def depthwise_by_conv(x, kernel, stride: int):
  """The convolution as XLA's grouped convolution; arguments as `depthwise`."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def depthwise(x, kernel, stride: int):
  """Depthwise convolution with TensorFlow's "SAME" padding, by the backend's faster way.

  Args:
    x: [batch, height, width, channels].
    kernel: [side, side, 1, channels], of the same dtype.
    stride: in both directions.

  Returns:
    [batch, ceil(height / stride), ceil(width / stride), channels].
  """
  by = depthwise_by_taps if jax.default_backend() == "cpu" else depthwise_by_conv
  return by(x, kernel, stride)


def depthwise_by_platform(x, kernel, stride: int):
  """`depthwise` for programs that run elsewhere than they are traced; arguments as there."""
  return lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, kernel: depthwise_by_taps(x, kernel, stride),
    default=lambda x, kernel: depthwise_by_conv(x, kernel, stride),
  )


class DepthwiseConv(nn.Module):
  """`depthwise` with a parameter "kernel", laid out as a grouped `nn.Conv` has it."""

  kernel: int
  stride: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """Maps [batch, height, width, channels] to [batch, ceil(height / stride), ...]."""
    shape = (self.kernel, self.kernel, 1, x.shape[-1])
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    return depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def computing_by(way):
  """A context in which every `DepthwiseConv` computes in a given way; for exported graphs.

  Args:
    way: a function with the arguments of `depthwise`.
  """

  def intercept(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, DepthwiseConv) or context.method_name != "__call__":
      return call(*args, **kwargs)
    kernel: jax.Array = module.get_variable("params", "kernel")
    return way(args[0].astype(module.dtype), kernel.astype(module.dtype), module.stride)

  return nn.intercept_methods(intercept)
