"""NaN wins no order: it is never returned, hides no other, and is refused where it is known on the host."""

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


def without_nan(scores, k):
    """The k best of what is a number, ties to the lowest id; -inf and id 0 beyond."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    ids = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    best = np.take_along_axis(scores, ids, axis=-1)
    return best, np.where(best == -np.inf, 0, ids)


def assert_is(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(got[1], expected[1])


# 300 items: one merge of sorted blocks; 5,000: two passes of group maxima; 40,000: more than one block of them.
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
def test_top_k(path, score):
    m, options = PATHS[path]
    options = {"n": 3, "k": 5} | options
    n, k = options.pop("n"), options.pop("k")
    items = rng.normal(size=(m, 4)).astype(np.float32)
    queries = rng.normal(size=(n, 4)).astype(np.float32)
    best = np.argsort(-(queries[0] @ items.T))[:3]
    neighbors = (best[:, None] + np.array([-1, 1, 16])).ravel() % m  # in the groups of the best, which must not be lost
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
    assert_is(got, without_nan(scores, k))
    assert (np.asarray(got[0])[-1] == -np.inf).all()


def test_the_issues_example():
    items = np.zeros((5_000, 1), np.float32)
    items[100], items[116] = 1, np.nan
    for catalogue in (items, np.tile(items, 4)):
        queries = np.ones((1, catalogue.shape[1]), np.float32)
        assert retrieval.top_k(queries, catalogue, 3)[1].tolist() == [[100, 0, 1]]
        assert np.asarray(topk.reference(queries, catalogue, None, None, score=topk.dot, k=3)[1]).tolist() == [
            [100, 0, 1]
        ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_index_of_eight_bits_and_a_query_that_is_not_finite(bad):
    items = rng.normal(size=(6_000, 4)).astype(np.float32)
    items[:, 3] = np.abs(items[:, 3]) + 1
    queries = np.array([[1, 2, 3, 4], [1, 2, 3, bad]], np.float32)
    got, expected = (retrieval.top_k(queries, each, 4) for each in (quantized.quantize(items), items))
    assert_is(got, expected)


@given(
    st.lists(st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0, 2.5]), min_size=1, max_size=12), st.data()
)
@settings(max_examples=60, deadline=None)
def test_lists_of_candidates(scores, more):
    n = len(scores)
    k = more.draw(st.integers(1, n))
    where = np.array(more.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ids = np.arange(n) * 3
    expected_scores, places = without_nan(np.where(where, np.array(scores, np.float32), -np.inf), k)
    got = rerank.order(np.array(scores, np.float32), ids, where, k=k)
    np.testing.assert_array_equal(got[0], expected_scores)
    np.testing.assert_array_equal(got[1], np.where(expected_scores > -np.inf, places * 3, 0))
    table = candidates.top_of_groups(np.array(scores, np.float32), where[None], k)
    np.testing.assert_array_equal(table.ids[0], np.where(expected_scores > -np.inf, places, 0))
    np.testing.assert_array_equal(table.where[0], expected_scores > -np.inf)
    groups, real = candidates.favorites(np.array(scores, np.float32), k)
    best, expected = without_nan(np.array(scores, np.float32), k)
    np.testing.assert_array_equal(real, best > 0)
    np.testing.assert_array_equal(np.asarray(groups)[best > 0], expected[best > 0])


def test_rank_passes_over_a_candidate_of_nan():
    items = np.array([[1.0], [np.nan], [3.0]], np.float32)
    scores, ids = rerank.rank(np.ones(1), items, np.array([1, 0, 2]), np.ones(3, bool), k=3)
    assert (scores.tolist(), ids.tolist()) == ([3, 1, -np.inf], [2, 0, 0])


def test_diversify_takes_what_is_no_number_last():
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
