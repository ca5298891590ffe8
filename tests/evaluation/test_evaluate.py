"""Evaluation in chunks equals lists that NumPy makes by a full sort, one user at a time."""

import dataclasses
import itertools
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, evaluation, metrics
from jaxrec.evaluation import _evaluate

ALL = {
    "precision": metrics.precision,
    "recall": metrics.recall,
    "hit_rate": metrics.hit_rate,
    "ndcg": metrics.ndcg,
    "average_precision": metrics.average_precision,
    "reciprocal_rank": metrics.reciprocal_rank,
}


def draw(seed=0, n_users=23, n_items=31, spread=2):
    """Vectors of small integers, so that many scores tie; user 3 has no relevant items, and user 4 has seen none."""
    rng = np.random.default_rng(seed)
    vectors = [rng.integers(-spread, spread + 1, (n, 3)).astype(np.float32) for n in (n_users, n_items)]
    kind = rng.choice(3, (n_users, n_items), p=[0.6, 0.25, 0.15])
    kind[3][kind[3] == 2], kind[4][kind[4] == 1] = 0, 0
    pairs = lambda which: Ratings(*np.nonzero(kind == which), np.ones((kind == which).sum()), n_users, n_items)
    return *vectors, pairs(1), pairs(2)


def by_sorting(users, items, seen, relevant, k, allowed):
    """Metric -> [n_users], from each user's full sorted list."""
    out = {name: np.full(len(users), np.nan) for name in ALL}
    for j in range(len(users)):
        relevant_ids = relevant.item[relevant.user == j]
        if len(relevant_ids):
            score = users[j] @ items.T
            excluded = np.zeros(len(items), bool) if allowed is None else ~allowed
            if seen is not None:
                excluded[seen.item[seen.user == j]] = True
            order = [i for i in np.argsort(-score, kind="stable") if not excluded[i]][:k]
            hit = np.isin(order, relevant_ids).astype(float)
            hit = np.pad(hit, (0, k - len(hit)))
            position, n_ideal = np.arange(1, k + 1), min(k, len(relevant_ids))
            out["precision"][j], out["recall"][j], out["hit_rate"][j] = (
                hit.sum() / k,
                hit.sum() / len(relevant_ids),
                hit.max(),
            )
            out["ndcg"][j] = (hit / np.log2(position + 1)).sum() / (1 / np.log2(position + 1))[:n_ideal].sum()
            out["average_precision"][j] = (hit * np.cumsum(hit) / position).sum() / n_ideal
            out["reciprocal_rank"][j] = (hit / position).max()
    return out


@pytest.mark.parametrize("k", [1, 5, 31, 40])
@pytest.mark.parametrize("options", [{}, {"allowed": True}, {"seen": False}])
@pytest.mark.parametrize("batch_size", [4, None])
def test_the_metrics_equal_those_of_fully_sorted_lists(k, options, batch_size):
    users, items, seen, relevant = draw()
    allowed = np.random.default_rng(9).random(len(items)) < 0.6 if options.get("allowed") else None
    seen = seen if options.get("seen", True) else None
    found = evaluation.evaluate(
        (jnp.asarray(users), jnp.asarray(items)),
        seen,
        relevant,
        k=k,
        metrics=ALL,
        allowed=None if allowed is None else jnp.asarray(allowed),
        batch_size=batch_size,
    )
    expected = by_sorting(users, items, seen, relevant, k, allowed)
    for name in ALL:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
    assert np.isnan(found["ndcg"][3])


def test_buckets_hold_every_user_once_and_join_where_padding_is_cheap():
    """Few users or items: one bucket. Many: one for each power of two of relevant items, also past 2^31 comparisons."""
    count = np.random.default_rng(0).integers(1, 40, 5000).astype(np.int32)
    users = np.flatnonzero(np.random.default_rng(1).random(10_000) < 0.5)[: len(count)]
    count = count[: len(users)]
    assert [bucket.tolist() for bucket in _evaluate._buckets(users[:50], count[:50], 100)] == [users[:50].tolist()]
    limits = [0, 1, 2, 4, 8, 16, 32, 64]
    expected = [users[(count > low) & (count <= high)].tolist() for low, high in itertools.pairwise(limits)]
    assert [bucket.tolist() for bucket in _evaluate._buckets(users, count, 10**8)] == expected
    joined = _evaluate._buckets(users, count, 30_000)
    assert 1 < len(joined) < len(expected)
    assert np.sort(np.concatenate(joined)).tolist() == users.tolist()
    assert _evaluate._buckets(users[:0], count[:0], 100) == []


def test_a_user_without_candidates_has_metrics_of_zero():
    users, items = jnp.ones((1, 1)), jnp.arange(3.0)[:, None]
    seen, allowed = Ratings([0, 0], [0, 1], [1, 1], 1, 3), np.array([True, True, False])
    found = evaluation.evaluate((users, items), seen, Ratings([0], [2], [1], 1, 3), k=2, metrics=ALL, allowed=allowed)
    assert all(each[0] == 0 for each in found.values())


def lists(users, items, seen, k, allowed=None):
    """Every user's list by a full sort: ids, and -1 at empty positions."""
    out = np.full((len(users), k), -1)
    for j in range(len(users)):
        candidates = np.ones(len(items), bool) if allowed is None else allowed.copy()
        if seen is not None:
            candidates[seen.item[seen.user == j]] = False
        order = [i for i in np.argsort(-(users[j] @ items.T), kind="stable") if candidates[i]][:k]
        out[j, : len(order)] = order
    return out


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("k", [1, 7])
def test_a_user_defined_metric_receives_the_lists(k, batch_size):
    """For example a popularity weighted by position, which needs the ids, best first."""
    users, items, seen, relevant = draw()
    popularity = np.random.default_rng(0).random(len(items)).astype(np.float32)
    weights = np.arange(1, k + 1, dtype=np.float32)

    def by_position(ids, relevant, *, where):
        return jnp.sum(jnp.asarray(popularity)[ids] * weights)

    found = evaluation.evaluate(
        (users, items), seen, relevant, k=k, metrics={"own": by_position, "ndcg": metrics.ndcg}, batch_size=batch_size
    )
    expected = (popularity[lists(users, items, seen, k)] * weights).sum(1)
    has_relevant = np.bincount(relevant.user, minlength=len(users)) > 0
    np.testing.assert_allclose(found["own"], np.where(has_relevant, expected, np.nan), rtol=1e-5)
    alone = evaluation.evaluate((users, items), seen, relevant, k=k, metrics={"ndcg": metrics.ndcg})["ndcg"]
    np.testing.assert_array_equal(found["ndcg"], alone)


@pytest.mark.slow
def test_the_metrics_are_equal_whether_computed_from_hits_or_from_lists():
    users, items, seen, relevant = draw(1)
    arguments = {"k": (1, 5, 40), "metrics": ALL | {"auc": metrics.auc_at_k}}
    by_lists = {name: partial(metric) for name, metric in arguments["metrics"].items()}
    assert not set(by_lists.values()) & set(metrics.ranking.HIT_FORMULAS)
    fast = evaluation.evaluate((users, items), seen, relevant, **arguments)
    slow = evaluation.evaluate((users, items), seen, relevant, **arguments | {"metrics": by_lists})
    assert list(fast) == [f"{name}@{k}" for k in (1, 5, 40) for name in by_lists]
    for name in fast:
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-6, err_msg=name)


def test_auc_at_k_of_the_full_catalog_equals_auc():
    users, items, seen, relevant = draw(2, spread=9)
    allowed = np.random.default_rng(3).random(len(items)) < 0.7
    options = {"k": len(items), "metrics": {"auc": metrics.auc_at_k}, "allowed": allowed}
    found = evaluation.evaluate((users, items), seen, relevant, **options)["auc"]
    for j in np.flatnonzero(np.bincount(relevant.user, minlength=len(users))):
        relevant_ids = relevant.item[relevant.user == j]
        if not allowed[relevant_ids].all():
            continue  # items that are not allowed have no rank
        ranked = allowed.copy()
        ranked[seen.item[seen.user == j]] = False
        score = users[j] @ items.T
        order = -np.argsort(np.argsort(-score, kind="stable"))  # ties go to the lower id
        expected = metrics.auc(order[ranked], np.isin(np.arange(len(items)), relevant_ids)[ranked])
        np.testing.assert_allclose(found[j], expected, rtol=1e-5)


def test_a_metric_without_filled_is_refused_if_a_list_has_empty_positions():
    users, items, seen, relevant = draw()
    without_filled = lambda ids, relevant, *, where: jnp.sum(ids)
    with pytest.raises(ValueError, match=r"own: expected lists of k=31 items, got one of \d+ for user \d+, .* filled="):
        evaluation.evaluate((users, items), seen, relevant, k=31, metrics={"own": without_filled})
    length = lambda ids, relevant, *, where, filled: jnp.sum(filled)
    found = evaluation.evaluate((users, items), seen, relevant, k=31, metrics={"own": length})["own"]
    n_candidates = 31 - np.bincount(seen.user, minlength=len(users))
    np.testing.assert_array_equal(found[~np.isnan(found)], n_candidates[~np.isnan(found)])
    ranked = lambda ids, relevant, **more: more["n_candidates"] - jnp.sum(more["filled"])
    assert np.nansum(evaluation.evaluate((users, items), seen, relevant, k=31, metrics={"own": ranked})["own"]) == 0


def test_a_pair_that_occurs_twice_counts_once():
    users, items, seen, relevant = draw()
    twice = Ratings(*(np.tile(column, 2) for column in (relevant.user, relevant.item, relevant.value)), 23, 31)
    by = {k: evaluation.evaluate((users, items), seen, r, k=3, metrics=ALL) for k, r in ((1, relevant), (2, twice))}
    for name in ALL:
        np.testing.assert_array_equal(by[1][name], by[2][name])


def test_pairs_in_train_and_test_are_an_error_or_dropped():
    users, items, seen, relevant = draw()
    rows = np.flatnonzero(np.isin(relevant.user, [0, 7]))[:3]
    ids = {"user_ids": [f"u{j}" for j in range(23)], "item_ids": np.arange(31) + 100}
    seen, relevant = (dataclasses.replace(each, **ids) for each in (seen, relevant))
    both = Ratings(
        *(
            np.concatenate([a, b[rows]])
            for a, b in zip(*((r.user, r.item, r.value) for r in (seen, relevant)), strict=True)
        ),
        *(23, 31),
        **ids,
    )
    first = f"user 'u{relevant.user[rows[0]]}' and item {relevant.item[rows[0]] + 100}"
    with pytest.raises(ValueError, match=f"^test: 3 pairs are in `train` too, such as {first}"):
        evaluation.evaluate((users, items), both, relevant, k=3, metrics=ALL)
    rest = relevant.take(np.setdiff1d(np.arange(len(relevant)), rows))
    expected = evaluation.evaluate((users, items), both, rest, k=3, metrics=ALL)
    dropped = evaluation.evaluate((users, items), both, relevant, k=3, metrics=ALL, overlap="drop")
    for name in ALL:
        np.testing.assert_array_equal(dropped[name], expected[name])


def test_train_and_test_with_different_ids_are_refused():
    """Train has the users [1, 2, 3] and test the users [1, 2, 4]: other ids, although as many."""
    columns = [0, 1, 2], [0, 1, 2], [1, 1, 1], 3, 3
    seen, relevant = (Ratings(*columns, user_ids=ids, item_ids=[7, 8, 9]) for ids in ([1, 2, 3], [1, 2, 4]))
    with pytest.raises(ValueError, match="expected the same user ids, got 3 in train and 4 in test at position 2"):
        evaluation.evaluate((np.ones((3, 1)), np.ones((3, 1))), seen, relevant, k=1, metrics=ALL, overlap="drop")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, jnp.bfloat16, np.float64])
def test_vectors_may_have_any_numeric_type(dtype):
    users, items, seen, relevant = draw()
    users, items = np.abs(users), np.abs(items)
    expected = evaluation.evaluate((users, items), seen, relevant, k=5, metrics=ALL)
    found = evaluation.evaluate((users.astype(dtype), items.astype(dtype)), seen, relevant, k=5, metrics=ALL)
    for name in ALL:
        np.testing.assert_array_equal(found[name], expected[name])


def test_without_relevant_items_all_metrics_are_nan():
    none = Ratings(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 2, 3)
    found = evaluation.evaluate((jnp.ones((2, 1)), jnp.ones((3, 1))), none, none, k=2, metrics=ALL)
    assert all(np.isnan(each).all() for each in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k and batch_size >= 1"),
        ({"batch_size": 0}, "k and batch_size >= 1"),
        ({"users": jnp.ones((23, 2))}, "of one dimension"),
        ({"users": jnp.ones((22, 3))}, "train: expected ratings of 22 users"),
        ({"items": jnp.full((31, 3), jnp.nan)}, "items"),
        ({"allowed": jnp.ones(30, bool)}, "allowed: expected one flag per item"),
        (
            {"users": jnp.full((23, 3), 1e20), "items": jnp.full((31, 3), 1e20)},
            "users, items: their products may reach",
        ),
        ({"k": (3, 0)}, "k and batch_size >= 1"),
        ({"k": ()}, "k and batch_size >= 1"),
        ({"overlap": "ignore"}, "overlap: expected one of 'error', 'drop'"),
        ({"relevant": Ratings([0], [0], [1], 23, 30)}, "test: expected ratings of 23 users and 31 items"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    users, items, seen, relevant = draw()
    arguments = {"users": jnp.asarray(users), "items": jnp.asarray(items), "seen": seen, "relevant": relevant}
    arguments |= {"k": 5, "metrics": ALL} | change
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(
            (arguments.pop("users"), arguments.pop("items")),
            arguments.pop("seen"),
            arguments.pop("relevant"),
            **arguments,
        )
