"""The eight-bit search returns what the full search returns, also for ties, and its bounds are upper bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.retrieval import quantized, top_k

rng = np.random.default_rng(0)
M, D = 1000, 6
CATALOGUES = {
    "normal": rng.normal(size=(M, D)),
    "many ties": rng.integers(-1, 2, size=(M, D)),
    "one item repeated": np.ones((M, D)),  # all bounds are equal, so the full search is used
    "zeros": np.zeros((M, D)),
    "very different norms": rng.normal(size=(M, D)) * 10.0 ** rng.integers(-6, 6, size=(M, 1)),
    "one large component": rng.normal(size=(M, D)) * np.array([1e4, 1, 1, 1, 1, 1]),
}


def check_equal(queries, items, k, **filters):
    """Checks that the two searches agree; scores that are equal up to rounding may be in either order."""
    items = jnp.asarray(items, jnp.float32)
    got = top_k(queries, quantized.quantize(items), k, **filters)
    expected = top_k(queries, items, k, **filters)
    near = {"rtol": 1e-5, "atol": 1e-6 * np.abs(items).max()}
    np.testing.assert_allclose(got[0], expected[0], **near)
    swapped = np.asarray(got[1] != expected[1])
    assert swapped.mean() < 0.01
    found = np.take_along_axis(np.float64(queries) @ np.float64(items).T, np.asarray(got[1]), axis=-1)
    np.testing.assert_allclose(found[swapped], np.asarray(expected[0])[swapped], **near)


@pytest.mark.parametrize("k", [1, 7, M])
@pytest.mark.parametrize("name", CATALOGUES)
def test_the_result_is_that_of_the_full_search(name, k):
    queries = jnp.asarray(np.vstack([rng.integers(-2, 3, size=(2, D)), np.zeros(D)]), jnp.float32)
    check_equal(queries, CATALOGUES[name], k)


@pytest.mark.parametrize("n_allowed", [M, 5, 0])
def test_excluded_items_and_items_that_are_not_allowed_are_never_returned(n_allowed):
    items = jnp.asarray(CATALOGUES["normal"], jnp.float32)
    queries = jnp.asarray(rng.normal(size=(2, D)), jnp.float32)
    best = top_k(queries, items, 6)[1]
    exclude = best, jnp.ones(best.shape, bool).at[0, 0].set(False)
    check_equal(queries, items, 4, exclude=exclude, allowed=jnp.arange(M) < n_allowed)
    check_equal(queries[0], items, 4, exclude=(exclude[0][0], exclude[1][0]))


def test_it_works_under_jit_and_for_a_catalog_that_fills_no_group():
    items = jnp.asarray(rng.normal(size=(777, 3)), jnp.float32)
    queries = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    index = quantized.quantize(items)
    assert len(index) == 777
    _, ids = jax.jit(lambda queries, index: top_k(queries, index, 5))(queries, index)
    np.testing.assert_array_equal(ids, top_k(queries, items, 5)[1])


@pytest.mark.parametrize("d", [1, 6, 300])
def test_no_score_exceeds_its_bound_and_bounds_are_tight(d):
    items = rng.normal(size=(500, d)) * 10.0 ** rng.integers(-3, 4, size=(500, 1))
    index = quantized.quantize(jnp.asarray(items, jnp.float32))
    items = np.asarray(index.items, np.float64)
    for query in np.float32([rng.normal(size=d), np.eye(d)[0], 1e6 * rng.normal(size=d)]):
        bounds = np.asarray(quantized._bounds(jnp.asarray(query), index), np.float64)[:500]
        scores = items @ np.float64(query)
        assert (bounds >= scores).all()
        # twice the largest rounding error, which is half a step
        widest = np.abs(items).max(axis=1) / 127 * np.abs(np.float64(query)).sum()
        assert (bounds - scores <= 1.02 * widest).all()


def test_bounds_hold_where_a_step_would_be_a_denormal_number():
    """CPUs treat numbers below the smallest normal float32 as 0, and a step of 0 would bound every score by 0."""
    items = jnp.asarray(rng.normal(size=(64, D)) * 1e-37, jnp.float32)
    query = jnp.asarray(rng.normal(size=D) * 1e3, jnp.float32)
    bounds = np.asarray(quantized._bounds(query, quantized.quantize(items)), np.float64)
    assert (bounds >= np.asarray(items, np.float64) @ np.asarray(query, np.float64)).all()


def test_normal_vectors_need_no_full_search(monkeypatch):
    """Otherwise the tests above would not test the bounds at all."""
    broken = lambda *_, k, **__: (jnp.zeros((1, k)), jnp.full((1, k), -1, jnp.int32))
    monkeypatch.setattr(quantized, "two_pass", broken)
    quantized._search.clear_cache()
    items = jnp.asarray(rng.normal(size=(20_000, 8)), jnp.float32)
    queries = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    np.testing.assert_array_equal(top_k(queries, quantized.quantize(items), 10)[1], top_k(queries, items, 10)[1])
    quantized._search.clear_cache()


def test_another_score_than_its_own_is_refused():
    items = jnp.ones((40, 2))
    with pytest.raises(ValueError, match="an index has its own"):
        top_k(items[:1], quantized.quantize(items), 1, score=lambda q, x: q @ x.T)
