"""Convolutions with gradients of our own against XLA's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boxseg_jax.models import kernel_gradient

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _operands(*shapes):
  rng = np.random.RandomState(0)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _plain(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (13, 4), (40, 7)])
@pytest.mark.parametrize("band_bytes", [1, 5_000, 10**9])
def test_gradients_of_3x3_are_those_of_xla(size, band_bytes, monkeypatch):
  monkeypatch.setattr(kernel_gradient, "BAND_BYTES", band_bytes)
  x, kernel, gradient = _operands((2, *size, 5), (3, 3, 5, 3), (2, *size, 3))
  expected_result, expected = jax.vjp(_plain, x, kernel)
  result, given = jax.vjp(kernel_gradient.convolve_3x3, x, kernel)
  np.testing.assert_array_equal(result, expected_result)
  for one, other in zip(given(gradient), expected(gradient), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (1, 3), (6, 6), (11, 4)])
@pytest.mark.parametrize("taps", [(3, 3), (3, 1), (1, 5)])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_gradients_of_dilated_kernels_are_those_of_xla(backend, taps, dilation, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  x, kernel, gradient = _operands((2, 9, 13, 5), (*taps, 5, 3), (2, 9, 13, 3))
  padding = [(count // 2 * rate,) * 2 for count, rate in zip(taps, dilation, strict=True)]
  options = {"rhs_dilation": dilation, "dimension_numbers": LAYOUT}

  def both(by):
    return jax.vjp(lambda x, kernel: by(x, kernel, (1, 1), padding, **options), x, kernel)

  expected_result, expected = both(jax.lax.conv_general_dilated)
  result, given = both(kernel_gradient.convolve_dilated)
  np.testing.assert_array_equal(result, expected_result)
  for one, other in zip(given(gradient), expected(gradient), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_gpus_take_the_gradient_of_a_dilated_kernel_from_a_plain_convolution(monkeypatch):
  x, kernel = _operands((1, 8, 8, 2), (3, 3, 2, 2))

  def dilations(backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    by = partial(kernel_gradient.convolve_dilated, rhs_dilation=(4, 4), dimension_numbers=LAYOUT)
    loss = jax.grad(lambda kernel: by(x, kernel, (1, 1), [(4, 4)] * 2).sum())
    equations = jax.make_jaxpr(loss)(kernel).jaxpr.eqns
    return [
      max(e.params["rhs_dilation"] + e.params["window_strides"])
      for e in equations
      if e.primitive.name == "conv_general_dilated"
    ]

  assert dilations("gpu")[-1] == 1 and dilations("tpu")[-1] == 4


def test_gradients_of_a_product_are_those_of_xla():
  x, kernel, gradient = _operands((2, 4, 3, 5), (5, 7), (2, 4, 3, 7))
  expected = jax.vjp(jnp.matmul, x, kernel)[1](gradient)
  given = jax.vjp(kernel_gradient.multiply, x, kernel)[1](gradient)
  for one, other in zip(given, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_in_half_precision_keep_their_dtypes():
  x, kernel, gradient = (
    one.astype(jnp.bfloat16) for one in _operands((1, 6, 5, 4), (3, 3, 4, 2), (1, 6, 5, 2))
  )
  to_x, to_kernel = jax.vjp(kernel_gradient.convolve_3x3, x, kernel)[1](gradient)
  assert to_x.dtype == to_kernel.dtype == jnp.bfloat16
  exact = jax.vjp(_plain, *(one.astype(jnp.float32) for one in (x, kernel)))[1](
    gradient.astype(jnp.float32)
  )[1]
  np.testing.assert_allclose(to_kernel.astype(jnp.float32), exact, rtol=2e-2, atol=2e-2)
