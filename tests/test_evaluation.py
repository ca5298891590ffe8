"""Streamed evaluation against lists made by a full sort, one user at a time, in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, evaluation, metrics

ALL = {
    "precision": metrics.precision,
    "recall": metrics.recall,
    "hit_rate": metrics.hit_rate,
    "ndcg": metrics.ndcg,
    "average_precision": metrics.average_precision,
    "reciprocal_rank": metrics.reciprocal_rank,
}


def draw(seed=0, n_users=23, n_items=31, spread=2):
    """Vectors of small integers, so that many scores tie; user 3 has nothing relevant, user 4 has seen nothing."""
    rng = np.random.default_rng(seed)
    vectors = [rng.integers(-spread, spread + 1, (n, 3)).astype(np.float32) for n in (n_users, n_items)]
    kind = rng.choice(3, (n_users, n_items), p=[0.6, 0.25, 0.15])
    kind[3][kind[3] == 2], kind[4][kind[4] == 1] = 0, 0
    pairs = lambda which: Ratings(*np.nonzero(kind == which), np.ones((kind == which).sum()), n_users, n_items)
    return *vectors, pairs(1), pairs(2)


def by_sorting(users, items, seen, relevant, k, allowed):
    """Metric -> [n_users], from each user's whole sorted list."""
    out = {name: np.full(len(users), np.nan) for name in ALL}
    for j in range(len(users)):
        right = relevant.item[relevant.user == j]
        if len(right):
            score = users[j] @ items.T
            out_of_it = np.zeros(len(items), bool) if allowed is None else ~allowed
            if seen is not None:
                out_of_it[seen.item[seen.user == j]] = True
            order = [i for i in np.argsort(-score, kind="stable") if not out_of_it[i]][:k]
            hit = np.isin(order, right).astype(float)
            hit = np.pad(hit, (0, k - len(hit)))
            place, least = np.arange(1, k + 1), min(k, len(right))
            out["precision"][j], out["recall"][j], out["hit_rate"][j] = hit.sum() / k, hit.sum() / len(right), hit.max()
            out["ndcg"][j] = (hit / np.log2(place + 1)).sum() / (1 / np.log2(place + 1))[:least].sum()
            out["average_precision"][j] = (hit * np.cumsum(hit) / place).sum() / least
            out["reciprocal_rank"][j] = (hit / place).max()
    return out


@pytest.mark.parametrize("k", [1, 5, 31, 40])
@pytest.mark.parametrize("options", [{}, {"allowed": True}, {"seen": False}])
@pytest.mark.parametrize("at_once", [4, None])
def test_is_what_sorting_gives(k, options, at_once):
    users, items, seen, relevant = draw()
    allowed = np.random.default_rng(9).random(len(items)) < 0.6 if options.get("allowed") else None
    seen = seen if options.get("seen", True) else None
    found = evaluation.ranking(
        jnp.asarray(users),
        jnp.asarray(items),
        seen,
        relevant,
        k=k,
        metrics=ALL,
        allowed=None if allowed is None else jnp.asarray(allowed),
        at_once=at_once,
    )
    right = by_sorting(users, items, seen, relevant, k, allowed)
    for name in ALL:
        np.testing.assert_allclose(found[name], right[name], rtol=1e-6, err_msg=name)
    assert np.isnan(found["ndcg"][3])


def test_a_user_who_has_seen_everything_finds_nothing():
    users, items = jnp.ones((1, 1)), jnp.arange(3.0)[:, None]
    seen = Ratings([0, 0, 0], [0, 1, 2], [1, 1, 1], 1, 3)
    found = evaluation.ranking(users, items, seen, Ratings([0], [2], [1], 1, 3), k=2, metrics=ALL)
    assert all(each[0] == 0 for each in found.values())


def test_nothing_relevant_at_all():
    none = Ratings(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 2, 3)
    found = evaluation.ranking(jnp.ones((2, 1)), jnp.ones((3, 1)), none, none, k=2, metrics=ALL)
    assert all(np.isnan(each).all() for each in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k and at_once >= 1"),
        ({"at_once": 0}, "k and at_once >= 1"),
        ({"users": jnp.ones((23, 2))}, "of one dimension"),
        ({"users": jnp.ones((22, 3))}, "seen: expected ratings of 22 users"),
        ({"items": jnp.full((31, 3), jnp.nan)}, "items"),
        ({"allowed": jnp.ones(30, bool)}, "allowed: expected one flag per item"),
        ({"relevant": Ratings([0], [0], [1], 23, 30)}, "relevant: expected ratings of 23 users and 31 items"),
    ],
)
def test_what_is_refused(change, message):
    users, items, seen, relevant = draw()
    given = {"users": jnp.asarray(users), "items": jnp.asarray(items), "seen": seen, "relevant": relevant}
    given |= {"k": 5, "metrics": ALL} | change
    with pytest.raises(ValueError, match=message):
        evaluation.ranking(given.pop("users"), given.pop("items"), given.pop("seen"), given.pop("relevant"), **given)
