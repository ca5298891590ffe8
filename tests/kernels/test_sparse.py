"""The sparse kernels against loops: dot products of sampled pairs, and sparse matrices times dense tables."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec import data
from jaxrec.kernels import csr
from jaxrec.kernels import sampled_dot as sampled_dot_module
from jaxrec.kernels.csr import csr_matmul, linked_matmul
from jaxrec.kernels.sampled_dot import sampled_dot
from jaxrec.types import Ratings


def tables(d, seed=0, n_users=7, n_items=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_users, d)), rng.normal(size=(n_items, d))


@pytest.mark.parametrize("n", [0, 1, 8, 21])
@pytest.mark.parametrize("d", [0, 3, 8])
def test_sampled_dot_equals_the_loop_in_chunks_and_all_at_once(x64, monkeypatch, n, d):
    # Chunks of 8 pairs: n is no chunk, a part of one, exactly one, and two chunks and a part.
    monkeypatch.setattr(sampled_dot_module, "GATHER_FLOATS", 8 * max(1, d))
    jax.clear_caches()
    w, x = tables(d)
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, len(w), n), rng.integers(0, len(x), n)
    expected = [sum(w[j, k] * x[i, k] for k in range(d)) for j, i in zip(user, item, strict=True)]
    arrays = [jnp.asarray(a) for a in (w, x, user.astype(np.int32), item.astype(np.int32))]
    for form in (sampled_dot, sampled_dot_module._all_at_once, jax.jit(sampled_dot)):
        np.testing.assert_allclose(form(*arrays), np.array(expected), rtol=1e-12)


def test_the_derivatives_of_sampled_dot_are_those_of_the_products_in_both_modes(x64, monkeypatch):
    monkeypatch.setattr(sampled_dot_module, "GATHER_FLOATS", 8 * 3)
    jax.clear_caches()
    w, x = map(jnp.asarray, tables(3))
    rng = np.random.default_rng(1)
    user, item = (jnp.asarray(rng.integers(0, n, (7, 3)), jnp.int32) for n in (len(w), len(x)))
    check_grads(lambda w, x: jnp.sin(sampled_dot(w, x, user, item)), (w, x), order=2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int8])
def test_sampled_dot_sums_narrow_types_in_float32(dtype):
    w, x = (jnp.full((3, 64), 30, dtype) for _ in range(2))  # 30 * 30 * 64 = 57,600 and 30 * 30 are not in int8
    ids = jnp.zeros((2, 2), jnp.int32)
    out = sampled_dot(w, x, ids, ids)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.full((2, 2), 57_600))


def test_sampled_dot_can_be_vmapped_over_models():
    w, x = (jnp.asarray(np.stack([a, 2 * a]), jnp.float32) for a in tables(3))
    user, item = jnp.array([0, 6, 3]), jnp.array([4, 0, 0])
    out = jax.vmap(sampled_dot, in_axes=(0, 0, None, None))(w, x, user, item)
    np.testing.assert_allclose(out[1], 4 * out[0], rtol=1e-6)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_sampled_dot_on_an_accelerator_has_no_loop(platform):
    w, x = (jax.ShapeDtypeStruct((n, 3), jnp.float32) for n in (7, 5))
    ids = jax.ShapeDtypeStruct((90_000,), jnp.int32)
    traced = jax.jit(sampled_dot).trace(w, x, ids, ids)
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in traced.lower(lowering_platforms=(platform,)).as_text()


FORMS = {
    "cpu": {"platform": "cpu"},
    "gpu": {"platform": "gpu"},
    "gpu, slow scatters": {"platform": "gpu"},
    "tpu": {"platform": "tpu"},
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    fast = request.param == "gpu"
    monkeypatch.setattr(csr, "fast_scatters", lambda on: fast)
    return FORMS[request.param]


def random_csr(lengths, d, k=5):
    rng = np.random.default_rng(0)
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    col, value = rng.integers(0, k, start[-1]).astype(np.int32), rng.normal(size=start[-1])
    return start, col, value, rng.normal(size=(k, d))


@pytest.mark.parametrize("lengths", [[2, 0, 3], [0, 0], [], [0, 31, 32, 33, 1000, 0, 64, 0], [1] * 70], ids=str)
@pytest.mark.parametrize("d", [0, 1, 3, 8, 9])
def test_csr_matmul_equals_the_loop(x64, form, lengths, d):
    start, col, value, table = random_csr(lengths, d)
    expected = np.zeros((len(lengths), d))
    for row in range(len(lengths)):
        for p in range(start[row], start[row + 1]):
            expected[row] += value[p] * table[col[p]]
    found = jax.jit(partial(csr_matmul, **form))(start, col, value, table)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_csr_matmul_has_the_derivatives_of_the_dense_product(x64, form):
    start, col, value, table = map(jnp.asarray, random_csr([2, 0, 40, 3], 3))
    row = jnp.repeat(jnp.arange(4), jnp.diff(start))
    total = lambda v, t: jnp.sum(csr_matmul(start, col, v, t, **form) ** 2)
    dense = lambda v, t: jnp.sum(jnp.zeros((4, 3)).at[row].add(v[:, None] * t[col]) ** 2)
    found, expected = (jax.grad(each, argnums=(0, 1))(value, table) for each in (total, dense))
    for gradient, expected_gradient in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def test_csr_matmul_can_be_vmapped_over_tables(form):
    start, col, value, table = random_csr([2, 0, 40, 3], 3)
    matrix = jnp.asarray(start), jnp.asarray(col), jnp.asarray(value, jnp.float32)
    tables = jnp.asarray(np.stack([table, 2 * table]), jnp.float32)
    found = jax.vmap(lambda table: csr_matmul(*matrix, table, **form))(tables)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)


@pytest.mark.parametrize("version", [(0, 9, 0), (0, 10, 1), (0, 10, 2), (0, 11, 0), (0, 11, 1), (0, 11, 2), (1, 0, 0)])
def test_scatters_are_fast_on_gpus_except_with_jaxlib_0_10_2_to_0_11_1(monkeypatch, version):
    monkeypatch.setattr(csr.jaxlib.version, "__version_info__", version)
    assert csr.fast_scatters("gpu") == (version in [(0, 9, 0), (0, 10, 1), (0, 11, 2), (1, 0, 0)])
    assert not csr.fast_scatters("cpu")
    assert not csr.fast_scatters("tpu")


@pytest.mark.parametrize("side", ["user", "item"])
def test_linked_matmul_and_its_derivative_equal_the_dense_products(x64, side):
    rng = np.random.default_rng(0)
    where = rng.random((6, 4)) < 0.5  # [users, items]
    where[2] = where[:, 1] = False  # a user and an item without ratings
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
