"""Cholesky factors and solves against NumPy, in the CPU's form (blocks of columns) and in the library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import cholesky


def positive_definite_matrices(batch, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, d + 2, d))
    return np.einsum("bnd,bne->bde", x, x) + 0.1 * np.eye(d)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(("batch", "d"), [(1, 1), (3, 2), (5, 17), (2, 64), (0, 3), (4, 0)])
def test_every_function_equals_numpy(x64, lowered_for, batch, d, platform):
    lowered_for(platform)
    a = positive_definite_matrices(batch, d)
    rhs = np.random.default_rng(1).normal(size=(batch, d))

    @jax.jit  # compiles one program per case instead of one per function
    def call_every_function(a, rhs):
        lower = cholesky.cholesky(a)
        solved, _ = cholesky.solve(a, (rhs, 2 * rhs))
        inverse = jax.vmap(cholesky.inverse)(lower)
        return lower, cholesky.cho_solve(lower, rhs), solved, cholesky.solve_transposed(lower, rhs), inverse

    lower, by_factor, solved, transposed, inverse = call_every_function(jnp.asarray(a), jnp.asarray(rhs))
    expected = np.array([np.linalg.cholesky(m) for m in a]).reshape(batch, d, d)
    np.testing.assert_allclose(lower, expected, atol=1e-10)
    for solution, scale in zip((by_factor, *solved), (1, 1, 2), strict=True):
        np.testing.assert_allclose(solution, scale * np.linalg.solve(a, rhs[..., None])[..., 0], rtol=1e-7, atol=1e-9)
    upper = np.linalg.solve(np.swapaxes(expected, 1, 2), rhs[..., None])[..., 0]
    np.testing.assert_allclose(transposed, upper, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(inverse @ a, np.broadcast_to(np.eye(d), a.shape), atol=1e-7)


@pytest.mark.parametrize("check_pivots", [True, False])
def test_solve_of_more_than_64_columns_equals_numpy(x64, check_pivots):
    """In blocks of 64 columns, each factorized by halves; the last one has 6."""
    a, rhs = positive_definite_matrices(3, 134), np.random.default_rng(1).normal(size=(3, 134))
    (solved,), ratio = cholesky.solve(jnp.asarray(a), (jnp.asarray(rhs),), check_pivots=check_pivots, platform="cpu")
    np.testing.assert_allclose(solved, np.linalg.solve(a, rhs[..., None])[..., 0], rtol=1e-7, atol=1e-9)
    diagonal = lambda matrices: np.diagonal(matrices, axis1=1, axis2=2)
    expected = (diagonal(np.linalg.cholesky(a)) ** 2 / diagonal(a)).min(axis=1)
    np.testing.assert_allclose(ratio, expected if check_pivots else 1, rtol=1e-9)


@pytest.mark.parametrize("batch", [6, 7, 8, 13])
def test_chunk_size_does_not_change_the_factors(monkeypatch, batch):
    a = jnp.asarray(positive_definite_matrices(batch, 3), jnp.float32)
    expected = cholesky.cholesky(a)
    # Two matrices per chunk. The last chunk of an odd batch begins one matrix early.
    monkeypatch.setattr(cholesky, "MATRIX_FLOATS", 2 * 9)
    jax.clear_caches()  # otherwise the program compiled above would run again
    np.testing.assert_allclose(cholesky.cholesky(a), expected, rtol=1e-6)


def test_any_leading_axes_and_vmap_give_the_same_factors():
    a = jnp.asarray(positive_definite_matrices(6, 4), jnp.float32)
    expected = cholesky.cholesky(a)
    np.testing.assert_allclose(cholesky.cholesky(a[0]), expected[0], rtol=1e-6)
    np.testing.assert_allclose(cholesky.cholesky(a.reshape(2, 3, 4, 4)).reshape(6, 4, 4), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(cholesky.cholesky)(a), expected, rtol=1e-6)


def test_a_matrix_that_is_not_positive_definite_gives_nan_and_does_not_affect_the_others():
    a = positive_definite_matrices(3, 3)
    a[1] = -np.eye(3)
    lower = cholesky.cholesky(jnp.asarray(a, jnp.float32))
    assert np.isnan(lower[1]).any()
    np.testing.assert_allclose(lower[2] @ lower[2].T, a[2], rtol=1e-5)


def test_gradient_equals_finite_differences(x64):
    a = jnp.asarray(positive_definite_matrices(2, 3))
    f = lambda s: jnp.sum(jnp.sin(cholesky.cholesky(a + s * jnp.ones_like(a))))
    step = 1e-6
    np.testing.assert_allclose(jax.grad(f)(0.0), (f(step) - f(-step)) / (2 * step), rtol=1e-6)


def test_pivot_ratio_equals_numpys_and_does_not_depend_on_the_scales_of_rows_and_columns(x64):
    a = positive_definite_matrices(2, 5)
    scale = 10.0 ** np.arange(-4.0, 6.0, 2.0)
    scaled = a * scale[:, None] * scale[None, :]
    ratio = cholesky.pivot_ratio(cholesky.cholesky(jnp.asarray(a)))
    np.testing.assert_allclose(cholesky.pivot_ratio(cholesky.cholesky(jnp.asarray(scaled))), ratio, rtol=1e-8)
    lower = np.linalg.cholesky(a)
    pivots = np.diagonal(lower, axis1=1, axis2=2) ** 2 / np.diagonal(a, axis1=1, axis2=2)
    np.testing.assert_allclose(ratio, pivots.min(axis=1), rtol=1e-8)
    np.testing.assert_allclose(cholesky.solve(jnp.asarray(scaled), (jnp.ones((2, 5)),))[1], ratio, rtol=1e-8)
    assert cholesky.pivot_ratio(jnp.full((1, 2, 2), jnp.nan)).tolist() != [0.0]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("d", [3, 20, 70])
def test_a_matrix_that_rounding_makes_singular_has_a_finite_solution_and_a_small_pivot_ratio(d, platform):
    x = np.random.default_rng(0).normal(size=(d, 1))
    a = jnp.asarray(np.stack([1e6 * x @ x.T, np.eye(d)]) + 1e-6 * np.eye(d), jnp.float32)
    (z,), ratio = cholesky.solve(a, (jnp.ones((2, d)),), platform=platform)
    assert np.isfinite(z).all()
    assert float(ratio[0]) < 2e-5
    np.testing.assert_allclose(ratio[1], 1, rtol=1e-5)
    np.testing.assert_allclose(z[1], np.ones(d), rtol=1e-5)
    gradient = jax.grad(lambda a: jnp.sum(cholesky.solve(a, (jnp.ones((2, d)),), platform=platform)[0][0]))(a)
    assert np.isfinite(gradient).all()
