"""Rows of a table: what is masked is 0 and inert, at widths that take no, one and many products by the mask."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.gather import rows_where


def some(d):
    rng = np.random.default_rng(d)
    table = rng.normal(size=(7, d)).astype(np.float32)
    return table, rng.integers(0, 6, (4, 5)).astype(np.int32), rng.random((4, 5)) < 0.6  # row 6 is read by nobody


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("d", [0, 1, 31, 32, 56, 64, 75, 130])
def test_is_indexing_and_zero_where_masked(d, platform):
    table, ids, where = some(d)
    found = jax.jit(partial(rows_where, platform=platform))(table, ids, where)
    assert found.shape == (4, 5, d)
    np.testing.assert_array_equal(found, np.where(where[:, :, None], table[ids], 0))


@pytest.mark.parametrize("d", [3, 32, 64])
def test_what_is_masked_reaches_neither_value_nor_gradient(d):
    table, ids, where = some(d)
    bad = table.copy()
    bad[6] = np.nan
    total = lambda table, ids: jnp.sum(rows_where(table, ids, jnp.asarray(where), platform="cpu") ** 2)
    value, gradient = jax.value_and_grad(total)(jnp.asarray(bad), jnp.where(where, ids, 6))
    right = np.zeros_like(table)
    np.add.at(right, ids[where], 2 * table[ids[where]])
    np.testing.assert_allclose(value, np.sum(table[ids[where]] ** 2), rtol=1e-5)
    np.testing.assert_allclose(gradient, right, rtol=1e-5)


def test_what_is_not_finite_stays_so_where_it_counts():
    table = jnp.array([[jnp.inf] * 32, [jnp.nan] * 32])
    found = rows_where(table, jnp.array([0, 1]), jnp.array([True, True]), platform="cpu")
    assert jnp.isposinf(found[0]).all()
    assert jnp.isnan(found[1]).all()
