"""Ranking of candidates and maximal marginal relevance equal loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.retrieval import rerank, top_k


def test_ranking_all_items_equals_top_k():
    rng = np.random.default_rng(0)
    items, query = jnp.asarray(rng.integers(-2, 3, (20, 3)), jnp.float32), jnp.array([1.0, -1.0, 2.0])
    ids = jnp.arange(20)
    got, expected = rerank.rank(query, items, ids, ids >= 0, k=7), top_k(query, items, 7)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_empty_positions_are_never_ranked():
    items = jnp.array([[9.0], [1.0], [2.0]])
    scores, ids = rerank.rank(jnp.ones(1), items, jnp.array([0, 1, 2]), jnp.array([False, True, True]), k=3)
    assert ids.tolist() == [2, 1, 0]
    assert scores.tolist() == [2, 1, -np.inf]
    with pytest.raises(ValueError, match="between 1 and the 2 candidates, got 3"):
        rerank.order(jnp.ones(2), jnp.arange(2), jnp.ones(2, bool), k=3)


def mmr_by_loops(scores, vectors, k, trade_off):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    chosen, remaining = [], list(range(len(scores)))
    while len(chosen) < k:
        value = lambda p: (
            (1 - trade_off) * scores[p] - trade_off * max((unit[p] @ unit[c] for c in chosen), default=0.0)
        )
        filled = [p for p in remaining if scores[p] > -np.inf]
        best = max(filled, key=lambda p: (value(p), -p)) if filled else remaining[0]
        chosen.append(best)
        remaining.remove(best)
    return chosen


@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_diversify_equals_greedy_maximal_marginal_relevance(trade_off, k):
    rng = np.random.default_rng(1)
    scores, vectors = np.sort(rng.normal(size=12))[::-1].copy(), rng.normal(size=(12, 3))
    scores[-2:] = -np.inf
    vectors[3] = 0
    got = rerank.diversify(
        jnp.asarray(scores, jnp.float32), jnp.asarray(vectors, jnp.float32), k=k, trade_off=trade_off
    )
    assert got[1].tolist() == mmr_by_loops(scores, vectors, k, trade_off)
    np.testing.assert_allclose(got[0], scores[np.asarray(got[1])], rtol=1e-6)


def test_diversify_makes_the_items_of_a_list_less_similar():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(50, 4)) + np.array([3.0, 0, 0, 0])
    scores = jnp.asarray(np.sort(rng.random(50))[::-1], jnp.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean_similarity = lambda positions: np.mean([unit[a] @ unit[b] for a in positions for b in positions if a != b])
    lists = [
        rerank.diversify(scores, jnp.asarray(vectors, jnp.float32), k=10, trade_off=t)[1].tolist() for t in (0.0, 0.8)
    ]
    assert lists[0] == list(range(10))
    assert mean_similarity(lists[1]) < mean_similarity(lists[0]) - 0.05
    with pytest.raises(ValueError, match="between 1 and the list's 50 entries"):
        rerank.diversify(scores, jnp.asarray(vectors, jnp.float32), k=51, trade_off=0.5)
