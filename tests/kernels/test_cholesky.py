"""The plain-JAX Cholesky against NumPy's, at sizes around its chunk, and where it must say NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import cholesky as kernel


def matrices(batch, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, d + 2, d))
    return np.einsum("bnd,bne->bde", x, x) + 0.1 * np.eye(d)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(("batch", "d"), [(1, 1), (3, 2), (5, 17), (2, 64), (0, 3), (4, 0)])
def test_is_numpys(x64, lowered_for, batch, d, platform):
    lowered_for(platform)
    a = matrices(batch, d)
    rhs = np.random.default_rng(1).normal(size=(batch, d))

    @jax.jit  # eagerly every block of 8 is a program of its own, of a shape of its own
    def every_form(a, rhs):
        lower = kernel.cholesky(a)
        solved, _ = kernel.solve(a, (rhs, 2 * rhs))
        inverse = jax.vmap(kernel.inverse)(lower)
        return lower, kernel.cho_solve(lower, rhs), solved, kernel.solve_transposed(lower, rhs), inverse

    lower, by_factor, solved, transposed, inverse = every_form(jnp.asarray(a), jnp.asarray(rhs))
    expected = np.array([np.linalg.cholesky(m) for m in a]).reshape(batch, d, d)
    np.testing.assert_allclose(lower, expected, atol=1e-10)
    for each, times in zip((by_factor, *solved), (1, 1, 2), strict=True):
        np.testing.assert_allclose(each, times * np.linalg.solve(a, rhs[..., None])[..., 0], rtol=1e-7, atol=1e-9)
    upper = np.linalg.solve(np.swapaxes(expected, 1, 2), rhs[..., None])[..., 0]
    np.testing.assert_allclose(transposed, upper, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(inverse @ a, np.broadcast_to(np.eye(d), a.shape), atol=1e-7)


@pytest.mark.parametrize("batch", [6, 7, 8, 13])
def test_chunks_do_not_show(monkeypatch, batch):
    a = jnp.asarray(matrices(batch, 3), jnp.float32)
    whole = kernel.cholesky(a)
    monkeypatch.setattr(kernel, "MATRIX_FLOATS", 2 * 9)  # two matrices at once; odd batches are padded
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


def test_pivot_ratios_have_no_scale_and_are_small_where_others_explain_a_column(x64):
    a = matrices(2, 5)
    scale = 10.0 ** np.arange(-4.0, 6.0, 2.0)
    scaled = a * scale[:, None] * scale[None, :]
    ratio = kernel.pivot_ratio(kernel.cholesky(jnp.asarray(a)))
    np.testing.assert_allclose(kernel.pivot_ratio(kernel.cholesky(jnp.asarray(scaled))), ratio, rtol=1e-8)
    lower = np.linalg.cholesky(a)
    pivots = np.diagonal(lower, axis1=1, axis2=2) ** 2 / np.diagonal(a, axis1=1, axis2=2)
    np.testing.assert_allclose(ratio, pivots.min(axis=1), rtol=1e-8)
    np.testing.assert_allclose(kernel.solve(jnp.asarray(scaled), (jnp.ones((2, 5)),))[1], ratio, rtol=1e-8)
    assert kernel.pivot_ratio(jnp.full((1, 2, 2), jnp.nan)).tolist() != [0.0]


@pytest.mark.parametrize("on", ["cpu", "gpu"])
@pytest.mark.parametrize("d", [3, 20, 70])
def test_what_rounding_makes_singular_is_solved_to_finite_numbers_and_said(d, on):
    x = np.random.default_rng(0).normal(size=(d, 1))
    a = jnp.asarray(np.stack([1e6 * x @ x.T, np.eye(d)]) + 1e-6 * np.eye(d), jnp.float32)
    (z,), ratio = kernel.solve(a, (jnp.ones((2, d)),), on=on)
    assert np.isfinite(z).all()
    assert float(ratio[0]) < 2e-5
    np.testing.assert_allclose(ratio[1], 1, rtol=1e-5)
    np.testing.assert_allclose(z[1], np.ones(d), rtol=1e-5)
    gradient = jax.grad(lambda a: jnp.sum(kernel.solve(a, (jnp.ones((2, d)),), on=on)[0][0]))(a)
    assert np.isfinite(gradient).all()
