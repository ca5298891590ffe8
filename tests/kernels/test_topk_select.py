"""Every form of the k largest of each column against a stable sort: values, positions, ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import topk_select
from tests import reference

# Compiled as one program per shape, instead of one per operation.
FORMS = (topk_select.largest, topk_select.by_groups, topk_select.by_threshold, topk_select.shortlist)
LARGEST, BY_GROUPS, BY_THRESHOLD, SHORTLIST = (jax.jit(form, static_argnums=1) for form in FORMS)
SIZES = [(64, 1), (100, 3), (129, 3), (1000, 5), (1031, 7), (3000, 40), (5000, 400), (20_000, 9)]


def by_sorting(scores, k):
    order = np.argsort(-np.asarray(scores), axis=0, kind="stable")[:k]
    return np.take_along_axis(np.asarray(scores), order, axis=0).T, order.T


@pytest.mark.parametrize("form", [LARGEST, BY_GROUPS, BY_THRESHOLD], ids=["largest", "by_groups", "by_threshold"])
@pytest.mark.parametrize(("m", "k"), SIZES)
@pytest.mark.parametrize("max_score", [50, 2**20])
def test_every_form_equals_a_stable_sort(form, m, k, max_score):
    rng = np.random.default_rng(m)
    scores = rng.integers(-max_score, max_score, (m, 9)).astype(np.float32)
    scores[::7] = -np.inf
    reference.assert_same_top_k(form(jnp.asarray(scores), k), by_sorting(scores, k))


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6, 1e30])
def test_scores_far_from_zero_and_outliers_equal_a_stable_sort(offset):
    scores = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float32) + np.float32(offset)
    scores[17, 2], scores[800, 2], scores[3, 4] = 3e38, 2e38, -3e38
    reference.assert_same_top_k(BY_THRESHOLD(jnp.asarray(scores), 20), by_sorting(scores, 20))


def test_a_shortlist_contains_the_k_largest_and_at_most_half_as_many_others():
    scores = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    values, positions, count = map(np.asarray, SHORTLIST(jnp.asarray(scores), 100))
    assert (count >= 100).all()
    assert (count <= 150).all()
    assert len(values) == 150
    for column in range(16):
        listed = positions[: count[column], column]
        assert len(set(listed)) == count[column]
        np.testing.assert_array_equal(values[: count[column], column], scores[listed, column])
        assert set(np.argsort(-scores[:, column])[:100]) <= set(listed)
        assert (values[count[column] :, column] == -np.inf).all()
        assert (positions[count[column] :, column] == 0).all()


def test_the_count_of_a_shortlist_shows_when_it_is_incomplete_and_when_it_has_fewer_than_k():
    tied = np.zeros((1000, 8), np.float32)
    assert (np.asarray(SHORTLIST(jnp.asarray(tied), 10)[2]) == 1000).all()
    few = np.full((1000, 8), -np.inf, np.float32)
    few[5:8] = 1
    values, positions, count = map(np.asarray, SHORTLIST(jnp.asarray(few), 10))
    assert (count == 3).all()
    assert (np.sort(positions[:3], axis=0) == np.array([[5], [6], [7]])).all()
    assert (values[3:] == -np.inf).all()


@pytest.mark.parametrize("n", [2, 8])
def test_a_column_of_minus_infinity_gives_its_first_positions(n):
    _, positions = LARGEST(jnp.full((1001, n), -jnp.inf), 4)
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3]] * n)


def test_one_column_with_fewer_than_k_does_not_affect_the_others():
    scores = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    scores[4:, 3] = -np.inf
    reference.assert_same_top_k(BY_THRESHOLD(jnp.asarray(scores), 6), by_sorting(scores, 6))


def test_float64_is_compared_in_float64(x64):
    scores = 1 + np.random.default_rng(0).permutation(700 * 8).reshape(700, 8) * 1e-13
    reference.assert_same_top_k(BY_THRESHOLD(jnp.asarray(scores), 6), by_sorting(scores, 6))


def test_vmap_equals_a_loop():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(3, 200, 8)), jnp.float32)
    batch = jax.jit(jax.vmap(lambda matrix: topk_select.largest(matrix, 5)))(scores)
    for matrix, *found in zip(scores, *batch, strict=True):
        reference.assert_same_top_k(found, LARGEST(matrix, 5))
