"""Both forms of the k largest against a stable sort: values, places, ties, empty places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import topk_select

# jitted: a program of each shape, in place of one of each operation in it
FORMS = (topk_select.largest, topk_select.by_groups, topk_select.by_threshold, topk_select.shortlist)
LARGEST, BY_GROUPS, BY_THRESHOLD, SHORTLIST = (jax.jit(form, static_argnums=1) for form in FORMS)
SIZES = [(64, 1), (100, 3), (129, 3), (1000, 5), (1031, 7), (3000, 40), (5000, 400), (20_000, 9)]


def by_sorting(scores, k):
    order = np.argsort(-np.asarray(scores), axis=0, kind="stable")[:k]
    return np.take_along_axis(np.asarray(scores), order, axis=0).T, order.T


def same(found, right):
    np.testing.assert_array_equal(found[0], right[0])
    np.testing.assert_array_equal(found[1], right[1])
    assert found[1].dtype == jnp.int32


@pytest.mark.parametrize("form", [LARGEST, BY_GROUPS, BY_THRESHOLD], ids=["largest", "by_groups", "by_threshold"])
@pytest.mark.parametrize(("m", "k"), SIZES)
@pytest.mark.parametrize("spread", [50, 2**20])
def test_is_a_stable_sort(form, m, k, spread):
    rng = np.random.default_rng(m)
    scores = rng.integers(-spread, spread, (m, 9)).astype(np.float32)
    scores[::7] = -np.inf
    same(form(jnp.asarray(scores), k), by_sorting(scores, k))


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6, 1e30])
def test_far_from_zero_and_with_outliers(offset):
    scores = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float32) + np.float32(offset)
    scores[17, 2], scores[800, 2], scores[3, 4] = 3e38, 2e38, -3e38
    same(BY_THRESHOLD(jnp.asarray(scores), 20), by_sorting(scores, 20))


def test_a_shortlist_holds_the_best_and_is_short():
    scores = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    values, places, count = map(np.asarray, SHORTLIST(jnp.asarray(scores), 100))
    assert (count >= 100).all()
    assert (count <= 150).all()
    assert len(values) == 150
    for column in range(16):
        mine = places[: count[column], column]
        assert len(set(mine)) == count[column]
        np.testing.assert_array_equal(values[: count[column], column], scores[mine, column])
        assert set(np.argsort(-scores[:, column])[:100]) <= set(mine)
        assert (values[count[column] :, column] == -np.inf).all()
        assert (places[count[column] :, column] == 0).all()


def test_a_shortlist_says_when_it_is_not_whole_and_when_too_few_are_there():
    tied = np.zeros((1000, 8), np.float32)
    assert (np.asarray(SHORTLIST(jnp.asarray(tied), 10)[2]) == 1000).all()
    few = np.full((1000, 8), -np.inf, np.float32)
    few[5:8] = 1
    values, places, count = map(np.asarray, SHORTLIST(jnp.asarray(few), 10))
    assert (count == 3).all()
    assert (np.sort(places[:3], axis=0) == np.array([[5], [6], [7]])).all()
    assert (values[3:] == -np.inf).all()


@pytest.mark.parametrize("n", [2, 8])
def test_where_nothing_is_there_the_places_exist(n):
    _, places = LARGEST(jnp.full((1001, n), -jnp.inf), 4)
    np.testing.assert_array_equal(places, [[0, 1, 2, 3]] * n)


def test_one_column_without_enough_leaves_the_others_right():
    scores = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    scores[4:, 3] = -np.inf
    same(BY_THRESHOLD(jnp.asarray(scores), 6), by_sorting(scores, 6))


def test_float64_is_compared_in_float64(x64):
    scores = 1 + np.random.default_rng(0).permutation(700 * 8).reshape(700, 8) * 1e-13
    same(BY_THRESHOLD(jnp.asarray(scores), 6), by_sorting(scores, 6))


def test_vmap_is_a_loop():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(3, 200, 8)), jnp.float32)
    found = jax.jit(jax.vmap(lambda each: topk_select.largest(each, 5)))(scores)
    for one, *right in zip(scores, *found, strict=True):
        same(LARGEST(one, 5), right)
