"""The sparse kernels against loops: sampled dots in chunks and whole, sparse times dense at any number of columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import data
from jaxrec.kernels import sampled_dot as sampled_dot_file
from jaxrec.kernels.csr import csr_matmul, linked_matmul
from jaxrec.kernels.sampled_dot import sampled_dot
from jaxrec.types import Ratings


def tables(d, seed=0, n_users=7, n_items=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_users, d)), rng.normal(size=(n_items, d))


@pytest.mark.parametrize("n", [0, 1, 8, 21])
@pytest.mark.parametrize("d", [0, 3, 8])
def test_sampled_dot_is_the_loop_in_chunks_and_whole(x64, monkeypatch, n, d):
    monkeypatch.setattr(
        sampled_dot_file, "CHUNK", 8 * max(1, d)
    )  # none, a part of one, one, and two with something left over
    w, x = tables(d)
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, len(w), n), rng.integers(0, len(x), n)
    expected = [sum(w[j, k] * x[i, k] for k in range(d)) for j, i in zip(user, item, strict=True)]
    arrays = [jnp.asarray(a) for a in (w, x, user.astype(np.int32), item.astype(np.int32))]
    for form in (sampled_dot, sampled_dot_file._whole, jax.jit(sampled_dot)):
        np.testing.assert_allclose(form(*arrays), np.array(expected), rtol=1e-12)


def test_sampled_dot_takes_a_vmap_over_models():
    w, x = (jnp.asarray(np.stack([a, 2 * a]), jnp.float32) for a in tables(3))
    user, item = jnp.array([0, 6, 3]), jnp.array([4, 0, 0])
    out = jax.vmap(sampled_dot, in_axes=(0, 0, None, None))(w, x, user, item)
    np.testing.assert_allclose(out[1], 4 * out[0], rtol=1e-6)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_accelerator_gets_it_whole(platform):
    shape = jax.ShapeDtypeStruct
    structs = (
        shape((7, 3), jnp.float32),
        shape((5, 3), jnp.float32),
        shape((90_000,), jnp.int32),
        shape((90_000,), jnp.int32),
    )
    traced = jax.jit(sampled_dot).trace(*structs)
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("d", [0, 1, 3, 8, 9])
def test_csr_matmul_is_the_loop(d):
    _, table = tables(d)
    start, col, value = np.array([0, 2, 2, 5]), np.array([1, 4, 0, 0, 2]), np.array([1.0, -2.0, 0.5, 3.0, 0.0])
    expected = np.zeros((3, d))
    for row in range(3):
        for p in range(start[row], start[row + 1]):
            expected[row] += value[p] * table[col[p]]
    arrays = jnp.asarray(start, jnp.int32), jnp.asarray(col, jnp.int32), jnp.asarray(value, jnp.float32)
    np.testing.assert_allclose(csr_matmul(*arrays, jnp.asarray(table, jnp.float32)), expected, rtol=1e-5, atol=1e-6)


def test_csr_matmul_differentiates_in_its_table_and_values():
    _, table = tables(3)
    start, col = jnp.array([0, 2, 2, 5]), jnp.array([1, 4, 0, 0, 2])
    value, table = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0]), jnp.asarray(table, jnp.float32)
    by_value, by_table = jax.grad(lambda v, t: jnp.sum(csr_matmul(start, col, v, t) ** 2), argnums=(0, 1))(value, table)
    row = jnp.array([0, 0, 2, 2, 2])
    dense = lambda v, t: jnp.sum(jnp.zeros((3, 3)).at[row].add(v[:, None] * t[col]) ** 2)
    expected = jax.grad(dense, argnums=(0, 1))(value, table)
    np.testing.assert_allclose(by_value, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_table, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["user", "item"])
def test_linked_matmul_is_the_dense_product_and_so_is_its_derivative(x64, side):
    rng = np.random.default_rng(0)
    where = rng.random((6, 4)) < 0.5  # users, items
    where[2] = where[:, 1] = False
    user, item = np.nonzero(where)
    order = rng.permutation(len(user))
    ratings = data.linked(Ratings(user[order], item[order], np.ones(len(user)), n_users=6, n_items=4))
    value = rng.normal(size=len(user))
    dense = np.zeros((6, 4))
    dense[np.asarray(ratings.user), np.asarray(ratings.item)] = value
    matrix = dense if side == "user" else dense.T
    table, g = rng.normal(size=(matrix.shape[1], 3)), rng.normal(size=(matrix.shape[0], 3))
    out, back = jax.vjp(lambda table: linked_matmul(jnp.asarray(value), ratings, table, side), jnp.asarray(table))
    np.testing.assert_allclose(out, matrix @ table, rtol=1e-12)
    np.testing.assert_allclose(back(jnp.asarray(g))[0], matrix.T @ g, rtol=1e-12)
