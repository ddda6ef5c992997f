"""Convolutions with gradients of our own against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boxseg_jax.models import kernel_gradient


def _operands(*shapes):
  rng = np.random.RandomState(0)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _plain(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


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
