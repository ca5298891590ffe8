"""Normal equations from a table's cells, against one row at a time in NumPy and against those from lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import dense, least_squares
from jaxrec.kernels.least_squares import Lists

N, M = 6, 9


def draw(d, seed=0):
    """Features, what their owners add and weigh, a mask with an empty and a full row, targets of 0 outside it."""
    rng = np.random.default_rng(seed)
    where = rng.random((N, M)) < 0.5
    where[0], where[1] = False, True
    y = np.where(where, rng.normal(size=(N, M)), 0)
    given = rng.normal(size=(M, d)), rng.normal(size=M), rng.uniform(0.5, 2, M), where, y
    return tuple(jnp.asarray(a, jnp.float64) for a in given)


@pytest.mark.parametrize("d", [1, 3])
def test_the_sums_are_those_of_each_row(x64, d):
    table, others, weights, where, y = draw(d)
    gram, rhs, sums = dense.normal_equations(table, others, weights, where, y)
    for n in range(N):
        mine = np.asarray(where[n]) > 0
        x, target, w = np.asarray(table)[mine], np.asarray(y[n] - others)[mine], np.asarray(weights)[mine]
        np.testing.assert_allclose(gram[n], x.T @ (w[:, None] * x), atol=1e-12)
        np.testing.assert_allclose(rhs[0][n], x.T @ (w * target), atol=1e-12)
        np.testing.assert_allclose(rhs[1][n], x.T @ w, atol=1e-12)
        np.testing.assert_allclose(sums[n], [w @ target**2, w @ target, w.sum()], atol=1e-12)


def test_they_are_those_from_lists(x64):
    table, others, weights, where, y = draw(3)
    everybody = jnp.broadcast_to(jnp.arange(M, dtype=jnp.int32), (N, M))
    lists = Lists(everybody, y - others[None], where > 0, jnp.broadcast_to(weights, (N, M)))
    expected = least_squares.normal_equations(table, lists, intercept=True)
    for one, other in zip(
        jax.tree.leaves(dense.normal_equations(table, others, weights, where, y)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_members_of_a_grid_share_the_mask(x64):
    members = [draw(3, seed) for seed in range(4)]
    where, y = members[0][3:]
    given = [jnp.stack([member[n] for member in members]) for n in range(3)]
    together = jax.vmap(dense.normal_equations, in_axes=(0, 0, 0, None, None))(*given, where, y)
    for k in range(4):
        alone = dense.normal_equations(*(a[k] for a in given), where, y)
        for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[k], other, atol=1e-12)
