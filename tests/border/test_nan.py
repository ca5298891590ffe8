"""A NaN score is never returned and does not affect other scores; models that are not finite are refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrec
from jaxrec import evaluation, metrics, retrieval
from jaxrec.kernels import topk
from jaxrec.retrieval import candidates, quantized, rerank
from tests.border.calls import FACTORS, TEST, TRAIN, W, X

pytestmark = pytest.mark.usefixtures("as_users_run")
rng = np.random.default_rng(0)


def top_k_by_sorting(scores, k):
    """(scores, ids) of the k largest, NaN excluded, ties to the lowest id; unfilled positions have -inf and id 0."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    ids = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    best = np.take_along_axis(scores, ids, axis=-1)
    return best, np.where(best == -np.inf, 0, ids)


def assert_top_k_close(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(got[1], expected[1])


# 300 items: a merge of the best of each block. 5,000: two passes, with group maxima. 40,000: several blocks of them.
PATHS = {
    "merging": (300, {}),
    "small blocks": (300, {"block": 7}),
    "two passes": (5_000, {"block": 1024}),
    "blocks": (40_000, {}),
    "excluding": (5_000, {"exclude": True}),
    "allowing": (5_000, {"allowed": True}),
    "many queries": (5_000, {"n": 70}),
    "large k": (5_000, {"k": 200}),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("score", [retrieval.dot, retrieval.negative_squared_distance])
def test_top_k_with_nan_scores_equals_a_sort_without_them(path, score):
    m, options = PATHS[path]
    options = {"n": 3, "k": 5} | options
    n, k = options.pop("n"), options.pop("k")
    items = rng.normal(size=(m, 4)).astype(np.float32)
    queries = rng.normal(size=(n, 4)).astype(np.float32)
    best = np.argsort(-(queries[0] @ items.T))[:3]
    neighbors = (best[:, None] + np.array([-1, 1, 16])).ravel() % m  # in the same groups of items as the best
    items[neighbors, rng.integers(0, 4, len(neighbors))] = np.nan
    items[best[1]] = np.nan
    queries[-1, 0] = np.nan
    scores = np.array(score(jnp.asarray(queries), jnp.asarray(items)))
    if options.get("allowed"):
        options["allowed"] = np.arange(m) % 5 != 0
        scores = np.where(options["allowed"], scores, -np.inf)
    if options.get("exclude"):
        options["exclude"] = np.tile(best[2:], (n, 1)), np.ones((n, 1), bool)
        scores[:, best[2]] = -np.inf
    got = retrieval.top_k(queries, items, k, score=score, **options)
    assert_top_k_close(got, top_k_by_sorting(scores, k))
    assert (np.asarray(got[0])[-1] == -np.inf).all()


def test_a_nan_score_does_not_hide_the_best_item_of_its_group():
    items = np.zeros((5_000, 1), np.float32)
    items[100], items[116] = 1, np.nan
    for catalog in (items, np.tile(items, 4)):
        queries = np.ones((1, catalog.shape[1]), np.float32)
        assert retrieval.top_k(queries, catalog, 3)[1].tolist() == [[100, 0, 1]]
        _, ids = topk.reference(queries, catalog, None, None, score=topk.dot, k=3)
        assert np.asarray(ids).tolist() == [[100, 0, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_quantized_index_equals_the_full_search_for_a_query_that_is_not_finite(bad):
    items = rng.normal(size=(6_000, 4)).astype(np.float32)
    items[:, 3] = np.abs(items[:, 3]) + 1
    queries = np.array([[1, 2, 3, 4], [1, 2, 3, bad]], np.float32)
    expected = retrieval.top_k(queries, items, 4)
    got = retrieval.top_k(queries, quantized.quantize(items), 4)
    assert_top_k_close(got, expected)


@given(
    st.lists(st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0, 2.5]), min_size=1, max_size=12), st.data()
)
@settings(max_examples=60, deadline=None)
def test_lists_of_candidates_equal_a_sort_without_nan(scores, drawn):
    n = len(scores)
    k = drawn.draw(st.integers(1, n))
    where = np.array(drawn.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ids = np.arange(n) * 3
    expected_scores, positions = top_k_by_sorting(np.where(where, np.array(scores, np.float32), -np.inf), k)
    got = rerank.order(np.array(scores, np.float32), ids, where, k=k)
    np.testing.assert_array_equal(got[0], expected_scores)
    np.testing.assert_array_equal(got[1], np.where(expected_scores > -np.inf, positions * 3, 0))
    table = candidates.top_of_groups(np.array(scores, np.float32), where[None], k)
    np.testing.assert_array_equal(table.ids[0], np.where(expected_scores > -np.inf, positions, 0))
    np.testing.assert_array_equal(table.where[0], expected_scores > -np.inf)
    groups, valid = candidates.favorites(np.array(scores, np.float32), k)
    best, expected = top_k_by_sorting(np.array(scores, np.float32), k)
    np.testing.assert_array_equal(valid, best > 0)
    np.testing.assert_array_equal(np.asarray(groups)[best > 0], expected[best > 0])


def test_rank_does_not_return_a_candidate_with_nan():
    items = np.array([[1.0], [np.nan], [3.0]], np.float32)
    scores, ids = rerank.rank(np.ones(1), items, np.array([1, 0, 2]), np.ones(3, bool), k=3)
    assert (scores.tolist(), ids.tolist()) == ([3, 1, -np.inf], [2, 0, 0])


def test_diversify_chooses_candidates_with_nan_last():
    scores, vectors = np.array([np.nan, 1.0, 2.0, 3.0]), np.eye(4, dtype=np.float32)
    vectors[3, 0] = np.nan
    assert rerank.diversify(scores, vectors, k=4, trade_off=0.5)[1].tolist() == [2, 1, 0, 3]


REFUSED = {
    "recommend": lambda x: jaxrec.recommend(dataclasses.replace(FACTORS, x=x), TRAIN, 0, k=1),
    "recommend, the user": lambda x: jaxrec.recommend(
        dataclasses.replace(FACTORS, w=W.at[0, 0].set(x[4, 0])), TRAIN, 0, k=1
    ),
    "related": lambda x: jaxrec.related(dataclasses.replace(FACTORS, x=x), TRAIN, 0, k=1),
    "retrieval.related_ids": lambda x: retrieval.related_ids(x, 0, 1),
    "candidates.nearest": lambda x: candidates.nearest(x, 1, progress=False),
    "quantized.quantize": quantized.quantize,
    "evaluation items": lambda x: evaluation.evaluate((W, x), TRAIN, TEST, k=1, metrics={"ndcg": metrics.ndcg}),
    "evaluation users": lambda x: evaluation.evaluate(
        (W.at[0].set(x[4]), X), TRAIN, TEST, k=1, metrics={"ndcg": metrics.ndcg}
    ),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_not_finite_are_refused(name, bad):
    with pytest.raises(ValueError, match=r"finite|their predictions are NaN"):
        REFUSED[name](X.at[4, 0].set(bad))
