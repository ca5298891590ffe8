"""Ranking metrics equal sets and loops, for padding, repeated ids, empty positions and empty lists too."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import metrics
from jaxrec.metrics import ranking

METRICS = ("precision", "recall", "hit_rate", "average_precision", "reciprocal_rank", "ndcg", "auc_at_k")
N_ITEMS, CASES = 12, 1000


def brute(name, listed, relevant):
    """The metric by its definition, with sets and loops; None if undefined. `listed` has None at empty positions."""
    k, R = len(listed), len(relevant)
    if R == 0:
        return None
    hit, met = [], set()
    for item in listed:
        hit.append(item is not None and item in relevant and item not in met)
        met.add(item)
    if name == "precision":
        return sum(hit) / k
    if name == "recall":
        return sum(hit) / R
    if name == "hit_rate":
        return float(any(hit))
    if name == "average_precision":
        return sum(sum(hit[: r + 1]) / (r + 1) for r in range(k) if hit[r]) / min(k, R)
    if name == "reciprocal_rank":
        return max(h / (r + 1) for r, h in enumerate(hit))
    if name == "ndcg":
        return sum(h / math.log2(r + 2) for r, h in enumerate(hit)) / sum(
            1 / math.log2(r + 2) for r in range(min(k, R))
        )
    # auc_at_k compares every relevant item with every other item; unlisted items share one position after the list
    position = {item: r for r, item in enumerate(listed) if item is not None}
    won = pairs = 0.0
    for one, other in itertools.product(relevant, set(range(N_ITEMS)) - relevant):
        a, b = position.get(one, k), position.get(other, k)
        won += 1.0 if a < b else 0.5 if a == b else 0.0
        pairs += 1
    return won / pairs if pairs else None


def call(name, *args, **options):
    more = {"n_candidates": N_ITEMS} if name == "auc_at_k" else {}
    return getattr(metrics, name)(*args, **more, **options)


@pytest.fixture(scope="module")
def lists():
    """1,000 lists of 5 of 12 items with empty positions, 0 to 12 relevant items, and padding that would be hits."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(N_ITEMS)[:5] for _ in range(CASES)])
    relevant = np.stack([rng.permutation(N_ITEMS) for _ in range(CASES)])
    count = rng.integers(0, N_ITEMS + 1, CASES)
    count[:3] = 0, 1, N_ITEMS
    filled = rng.random((CASES, 5)) < 0.8
    return ids, relevant, np.arange(N_ITEMS)[None, :] < count[:, None], filled


@pytest.mark.parametrize("name", METRICS)
def test_the_metrics_equal_sets_and_loops(name, lists):
    ids, relevant, where, filled = lists
    got = np.asarray(call(name, *map(jnp.asarray, lists[:2]), where=jnp.asarray(where), filled=jnp.asarray(filled)))
    assert got.shape == (CASES,)
    for n in range(CASES):
        listed = [int(i) if full else None for i, full in zip(ids[n], filled[n], strict=True)]
        expected = brute(name, listed, set(relevant[n][where[n]].tolist()))
        assert np.isnan(got[n]) if expected is None else abs(got[n] - expected) < 1e-6, (n, got[n], expected)
    assert np.nanmin(got) >= 0
    assert np.nanmax(got) <= 1 + 1e-6


@pytest.mark.parametrize("name", METRICS)
def test_one_list_and_many_lists_and_jit_agree(name, lists):
    ids, relevant, where, filled = map(jnp.asarray, lists)
    many = call(name, ids, relevant, where=where, filled=filled)
    one = call(name, ids[3], relevant[3], where=where[3], filled=filled[3])
    grid = call(name, *(a.reshape(20, 50, -1) for a in (ids, relevant)), where=where.reshape(20, 50, -1))
    jitted = jax.jit(lambda *a: call(name, a[0], a[1], where=a[2], filled=a[3]))(ids, relevant, where, filled)
    np.testing.assert_allclose(one, many[3], rtol=1e-6)
    np.testing.assert_allclose(jitted, many, rtol=1e-6)
    np.testing.assert_allclose(grid.reshape(-1), call(name, ids, relevant, where=where), rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_by_default_all_ids_and_positions_count(name):
    ids, relevant = jnp.array([4, 1, 0]), jnp.array([0, 4])
    ones = {"where": jnp.ones(2, bool), "filled": jnp.ones(3, bool)}
    assert call(name, ids, relevant) == call(name, ids, relevant, **ones)


def test_the_metrics_equal_the_calculation_by_hand():
    ids, liked = jnp.array([5, 2, 7, 9]), jnp.array([2, 9, 3])
    want = {
        "precision": 2 / 4,
        "recall": 2 / 3,
        "hit_rate": 1,
        "average_precision": (1 / 2 + 2 / 4) / 3,
        "reciprocal_rank": 1 / 2,
        "ndcg": (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / math.log2(4)),
        # nine other items: no hit is above 5; 2 is above 7; 2 and 9 are above the other seven, with which 3 ties
        "auc_at_k": (1 + 2 * 7 + 7 / 2) / 27,
    }
    for name, value in want.items():
        assert float(call(name, ids, liked)) == pytest.approx(value, abs=1e-6), name


def test_padding_is_no_hit_and_a_repeated_id_counts_once():
    # implicit, issue 330: the padding id 0 was counted as a hit
    liked, where = jnp.array([3, 0, 0]), jnp.array([True, False, False])
    assert float(metrics.precision(jnp.array([0, 1]), liked, where=where)) == 0
    assert ranking.hits(jnp.array([3, 3, 3]), liked, where=where).tolist() == [True, False, False]
    filled = jnp.array([False, True])  # an empty position has id 0
    assert float(metrics.recall(jnp.array([0, 1]), jnp.array([0]), filled=filled)) == 0


def test_ndcg_is_at_most_one_and_reaches_it_with_more_relevant_items_than_positions():
    # lkpy, issue 309: an NDCG of 1.21
    assert float(metrics.ndcg(jnp.array([1, 2]), jnp.array([1, 2, 3, 4]))) == pytest.approx(1)
    assert float(metrics.average_precision(jnp.array([1, 2]), jnp.array([1, 2, 3, 4]))) == pytest.approx(1)


def test_auc_at_k_of_the_full_catalog_equals_auc():
    rng = np.random.default_rng(1)
    score, liked = rng.random(N_ITEMS).astype(np.float32), rng.permutation(N_ITEMS)[:4]
    ids = jnp.asarray(np.argsort(-score))
    label = np.isin(np.arange(N_ITEMS), liked).astype(np.float32)
    got = call("auc_at_k", ids, jnp.asarray(liked))
    assert float(got) == pytest.approx(float(metrics.auc(jnp.asarray(score), jnp.asarray(label))), abs=1e-6)
    each = metrics.auc_at_k(ids[None], jnp.asarray(liked)[None], n_candidates=jnp.array([N_ITEMS]))
    assert float(each[0]) == float(got)


@pytest.mark.parametrize(
    ("ids", "relevant", "options"),
    [
        ((2, 3), (4,), {}),
        ((2, 3), (3, 4), {}),
        ((2, 0), (2, 4), {}),
        ((2, 3), (2, 4), {"where": (2, 3)}),
        ((2, 3), (2, 4), {"filled": (2, 4)}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(as_users_run, ids, relevant, options):
    options = {name: jnp.ones(shape, bool) for name, shape in options.items()}
    with pytest.raises(ValueError, match=r"expected ids \[\*n, k\].*got ids"):
        metrics.recall(jnp.zeros(ids, jnp.int32), jnp.zeros(relevant, jnp.int32), **options)
