"""The plain-JAX Cholesky against NumPy's, at sizes around its chunk, and where it must say NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import cholesky as kernel


def matrices(batch, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, d + 2, d))
    return np.einsum("bnd,bne->bde", x, x) + 0.1 * np.eye(d)


@pytest.mark.parametrize(("batch", "d"), [(1, 1), (3, 2), (5, 17), (2, 64), (0, 3), (4, 0)])
def test_is_numpys(x64, batch, d):
    a = matrices(batch, d)
    rhs = np.random.default_rng(1).normal(size=(batch, d))

    @jax.jit  # eagerly every block of 8 is a program of its own, of a shape of its own
    def every_form(a, rhs):
        lower = kernel.cholesky(a)
        solved, _ = kernel.solve(a, (rhs, 2 * rhs))
        return lower, kernel.cho_solve(lower, rhs), solved, kernel.solve_transposed(lower, rhs)

    lower, by_factor, solved, transposed = every_form(jnp.asarray(a), jnp.asarray(rhs))
    expected = np.array([np.linalg.cholesky(m) for m in a]).reshape(batch, d, d)
    np.testing.assert_allclose(lower, expected, atol=1e-10)
    for each, times in zip((by_factor, *solved), (1, 1, 2), strict=True):
        np.testing.assert_allclose(each, times * np.linalg.solve(a, rhs[..., None])[..., 0], rtol=1e-7, atol=1e-9)
    upper = np.linalg.solve(np.swapaxes(expected, 1, 2), rhs[..., None])[..., 0]
    np.testing.assert_allclose(transposed, upper, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("batch", [6, 7, 8, 13])
def test_chunks_do_not_show(monkeypatch, batch):
    a = jnp.asarray(matrices(batch, 3), jnp.float32)
    whole = kernel.cholesky(a)
    monkeypatch.setattr(kernel, "CHUNK", 2 * 9)  # two matrices at once; odd batches are padded
    np.testing.assert_allclose(kernel.cholesky(a), whole, rtol=1e-6)


def test_any_leading_axes_and_vmap():
    a = jnp.asarray(matrices(6, 4), jnp.float32)
    whole = kernel.cholesky(a)
    np.testing.assert_allclose(kernel.cholesky(a[0]), whole[0], rtol=1e-6)
    np.testing.assert_allclose(kernel.cholesky(a.reshape(2, 3, 4, 4)).reshape(6, 4, 4), whole, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(kernel.cholesky)(a), whole, rtol=1e-6)


def test_not_positive_definite_is_nan_and_leaves_the_rest_alone():
    a = matrices(3, 3)
    a[1] = -np.eye(3)
    lower = kernel.cholesky(jnp.asarray(a, jnp.float32))
    assert np.isnan(lower[1]).any()
    np.testing.assert_allclose(lower[2] @ lower[2].T, a[2], rtol=1e-5)


def test_gradient_is_finite_differences(x64):
    a = jnp.asarray(matrices(2, 3))
    symmetric = lambda s: jnp.sum(jnp.sin(kernel.cholesky(a + s * jnp.ones_like(a))))
    step = 1e-6
    np.testing.assert_allclose(jax.grad(symmetric)(0.0), (symmetric(step) - symmetric(-step)) / (2 * step), rtol=1e-6)
