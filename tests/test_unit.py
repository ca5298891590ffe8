"""Unit vectors: against float64 NumPy at every size that float32 holds, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxrec.numerics import unit_vectors

number = st.floats(-1, 1, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
vectors = arrays(np.float32, 3, elements=number)


def in_float64(x, g):
    """(x / ‖x‖, the gradient of g . x / ‖x‖)."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    length = np.linalg.norm(x)
    if length == 0:
        return x, np.zeros_like(x)
    u = x / length
    return u, (g - u * (u @ g)) / length


value_and_gradient = jax.jit(lambda x, g: (unit_vectors(x), jax.grad(lambda x: jnp.sum(g * unit_vectors(x)))(x)))


@given(x=vectors, g=vectors, exponent=st.integers(-90, 126))
@example(x=np.float32([1, 0, 0.5]), g=np.float32([1, 1, 1]), exponent=83)  # 1e25, whose square is infinite
@example(x=np.float32([1, 0, 0.5]), g=np.float32([1, 1, 1]), exponent=-100)  # 1e-30, whose square is 0
@example(x=np.float32([1, 1, -1]), g=np.float32([1, 0, 0]), exponent=127)
@example(x=np.float32([0, 0, 0]), g=np.float32([1, 1, 1]), exponent=0)
@settings(max_examples=300, deadline=None)
def test_value_and_gradient_are_those_of_float64_at_every_size(x, g, exponent):
    x = np.ldexp(x, exponent).astype(np.float32)
    value, gradient = value_and_gradient(x, g)
    expected, slope = in_float64(x, g)
    np.testing.assert_allclose(value, expected, atol=5e-7)
    scale = np.linalg.norm(x.astype(np.float64))
    flushed = 1.2e-38 * scale  # of a vector of 1e38 the gradient is too small for a normal number
    np.testing.assert_allclose(np.asarray(gradient, np.float64) * scale, slope * scale, atol=3e-6 + flushed)


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-39, 1.2e-38, 1e-37, 1e38, 3.4e38])
def test_no_finite_vector_gives_a_nan_in_value_or_derivatives(largest):
    x = jnp.array([largest, 0.0, -largest])
    value, gradient = value_and_gradient(x, jnp.array([1.0, 0.5, -0.25]))
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.jvp(unit_vectors, (x,), (jnp.ones(3),))[1]).all()
    if largest >= 1.2e-38:
        np.testing.assert_allclose(value, [np.sqrt(0.5), 0, -np.sqrt(0.5)], rtol=1e-6)


def test_at_zero_value_and_gradient_are_zero():
    value, gradient = value_and_gradient(jnp.zeros(3), jnp.ones(3))
    assert value.tolist() == gradient.tolist() == [0, 0, 0]


def test_it_does_not_depend_on_a_power_of_two():
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    for exponent in (-100, -3, 60, 120):
        np.testing.assert_array_equal(unit_vectors(np.ldexp(x, exponent)), unit_vectors(x))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.float16, jnp.bfloat16])
def test_narrow_types_are_computed_in_float32(dtype):
    x = np.array([[100, 0, 100], [0, 0, 0]]).astype(dtype)
    assert unit_vectors(x).dtype == jnp.float32
    np.testing.assert_allclose(unit_vectors(x), [[np.sqrt(0.5), 0, np.sqrt(0.5)], [0, 0, 0]], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64_at_its_ends():
    for size in (1e-300, 1.0, 1e300):
        value, gradient = value_and_gradient(np.array([3 * size, 4 * size]), np.array([1.0, 0.0]))
        np.testing.assert_allclose(value, [0.6, 0.8], rtol=1e-14)
        np.testing.assert_allclose(gradient * size, [0.64 / 5, -0.48 / 5], rtol=1e-13)


def test_nan_and_infinity_are_not_made_numbers():
    assert np.isnan(unit_vectors(jnp.array([1.0, np.nan]))).all()
    assert np.isnan(unit_vectors(jnp.array([1.0, np.inf]))).any()
    assert unit_vectors(jnp.zeros((2, 0))).shape == (2, 0)
