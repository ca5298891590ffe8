"""The normal equations of a dense, masked matrix and their solutions against NumPy, one row at a time."""

import jax
import numpy as np
import pytest

from jaxrec.kernels import dense


@pytest.mark.parametrize("sizes", [(5, 1, 3), (7, 4, 6), (3, 5, 2), (4, 2, 0)], ids=str)
def test_normal_equations_and_solutions_equal_numpys(x64, sizes):
    m, k, n = sizes
    rng = np.random.default_rng(0)
    table, y = rng.normal(size=(m, k)), rng.normal(size=(m, n))
    weight = rng.integers(0, 3, (m, n)).astype(float)
    table_weight = rng.random(m)
    gram, rhs = jax.jit(dense.dense_normal_equations)(table, weight, y)
    scaled = jax.jit(dense.dense_normal_equations)(table, weight, y, table_weight)
    for got, expected in zip(
        scaled, dense.dense_normal_equations(table, weight * table_weight[:, None], y), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    z, _ = jax.jit(dense.solve)(gram + np.eye(k)[:, :, None], rhs)
    assert gram.shape == (k, k, n)
    assert rhs.shape == z.shape == (k, n)
    for r in range(n):
        expected = table.T @ np.diag(weight[:, r]) @ table
        np.testing.assert_allclose(gram[:, :, r], expected, atol=1e-12)
        np.testing.assert_allclose(rhs[:, r], table.T @ (weight[:, r] * y[:, r]), atol=1e-12)
        np.testing.assert_allclose(z[:, r], np.linalg.solve(expected + np.eye(k), rhs[:, r]), atol=1e-10)
