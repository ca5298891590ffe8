"""Samplers of negatives: their distributions against the exact ones, masks against sets, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxrec.training import negatives

COUNT = np.array([1000, 0, 3, 1, 40, 40, 7])
KEY = jax.random.key(3)


def distribution(table):
    """The probabilities that an alias table draws, from its cells."""
    accept, alias = np.asarray(table.accept, np.float64), np.asarray(table.alias)
    q = accept + np.bincount(alias, weights=1 - accept, minlength=len(accept))
    return q / len(accept)


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75, 1.0, 3.0])
@pytest.mark.parametrize(
    "count", [COUNT, [5], [1, 1, 1], [0, 0, 9], [1, 2], np.random.default_rng(0).zipf(1.3, 3000) % 10**6],
    ids=["seven", "one item", "equal", "one that occurs", "two", "zipf"],
)  # fmt: skip
def test_an_alias_table_holds_the_distribution(count, power):
    table = negatives.alias_table(count, power=power)
    weight = np.asarray(count, np.float64) ** power
    q = weight / weight.sum()
    np.testing.assert_allclose(distribution(table), q, atol=1e-7 / len(q), rtol=1e-5)
    np.testing.assert_allclose(np.exp(np.asarray(table.log_q, np.float64)), q, rtol=2e-5)
    assert ((np.asarray(table.accept) >= 0) & (np.asarray(table.accept) <= 1)).all()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any))
@settings(max_examples=200, deadline=None)
def test_alias_tables_of_small_counts_hold_the_distribution(count):
    """Among them items whose cell is exactly full, which lend nothing."""
    np.testing.assert_allclose(
        distribution(negatives.alias_table(count, power=1.0)), np.array(count) / sum(count), atol=1e-7
    )


@pytest.mark.parametrize("shape", [(20_000,), (200, 100)])
@pytest.mark.parametrize("power", [None, 0.75, 1.0])
def test_draws_follow_the_distribution_and_carry_its_logarithm(shape, power):
    """Chi-square: by chance it would exceed this level once in 10,000 keys, and the key is fixed."""
    if power is None:
        drawn, q = negatives.uniform(shape, len(COUNT), key=KEY), np.full(len(COUNT), 1 / len(COUNT))
    else:
        drawn = negatives.by_popularity(shape, negatives.alias_table(COUNT, power=power), key=KEY)
        q = COUNT**power / (COUNT**power).sum()
    assert drawn.ids.shape == drawn.log_q.shape == shape
    assert (drawn.ids.dtype, drawn.log_q.dtype) == (jnp.int32, jnp.float32)
    found = np.bincount(np.ravel(drawn.ids), minlength=len(COUNT))
    assert found[q == 0].sum() == 0
    assert stats.chisquare(found[q > 0], q[q > 0] * found.sum()).pvalue > 1e-4
    np.testing.assert_allclose(np.exp(drawn.log_q), q[np.asarray(drawn.ids)], rtol=1e-5)


def test_keys_decide_the_draws():
    table = negatives.alias_table(COUNT)
    for draw in (
        lambda key: negatives.uniform((50,), 7, key=key),
        lambda key: negatives.by_popularity((50,), table, key=key),
    ):
        np.testing.assert_array_equal(draw(KEY).ids, draw(KEY).ids)
        assert (draw(KEY).ids != draw(jax.random.key(4)).ids).any()


def test_a_mask_of_the_batch_leaves_out_accidental_hits_and_padding():
    item, user = np.array([7, 9, 7, 5]), np.array([0, 1, 2, 1])
    where = np.array([True, True, True, False])
    for users, mask in ((None, None), (user, None), (None, where), (user, where)):
        expected = [
            [
                item[n] != item[m]
                and (users is None or users[n] != users[m])
                and (mask is None or bool(mask[n] and mask[m]))
                for m in range(4)
            ]
            for n in range(4)
        ]
        got = negatives.in_batch_mask(item, user=users, where=None if mask is None else jnp.asarray(mask))
        assert got.tolist() == expected


def test_hard_negatives_are_the_best_of_a_sort():
    rng = np.random.default_rng(0)
    scores, ids, where = rng.normal(size=(3, 2, 9)), rng.integers(0, 50, (3, 2, 9)), rng.random((3, 2, 9)) < 0.7
    where[0, 0] = np.arange(9) < 2  # fewer than three
    scores[1, 1, 0], where[1, 1, 0] = np.nan, True
    got = negatives.hard(scores.astype(np.float32), ids, 3, where=jnp.asarray(where))
    for row in np.ndindex(3, 2):
        valid = where[row] & ~np.isnan(scores[row])
        order = [k for k in np.argsort(-np.where(np.isnan(scores[row]), -np.inf, scores[row])) if valid[k]][:3]
        assert got.ids[row][np.asarray(got.where[row])].tolist() == ids[row][order].tolist()
        assert got.where[row].tolist() == [True] * len(order) + [False] * (3 - len(order))
    shared = negatives.hard(scores.astype(np.float32), ids[0, 0], 2)
    assert shared.ids[0, 0].tolist() == ids[0, 0][np.argsort(-scores[0, 0])[:2]].tolist()


@pytest.mark.parametrize("shared", [True, False])
def test_seen_items_are_those_of_the_set(shared):
    rng = np.random.default_rng(1)
    items, where = rng.integers(0, 12, (2, 4, 5)), rng.random((2, 4, 5)) < 0.6
    where[0, 1] = False
    candidates = rng.integers(0, 12, (6,) if shared else (2, 4, 6))
    got = negatives.is_seen(candidates, items, jnp.asarray(where))
    assert got.shape == (2, 4, 6)
    for row in np.ndindex(2, 4):
        seen = set(items[row][where[row]].tolist())
        assert got[row].tolist() == [c in seen for c in (candidates if shared else candidates[row]).tolist()]
    assert not negatives.is_seen(candidates, items[..., :0], jnp.asarray(where[..., :0])).any()


def test_ids_of_64_bits_are_compared_exactly():
    items = np.array([[5, 2**40 + 5]])
    got = negatives.is_seen(np.array([2**40 + 5, 2**33 + 5, 5]), items, jnp.array([[False, True]]))
    assert got.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: negatives.uniform((3,), 0, key=KEY), "n_items"),
        (lambda: negatives.uniform((3,), 5, key=0), "key"),
        (lambda: negatives.alias_table([1, -1]), "count: expected numbers >= 0"),
        (lambda: negatives.alias_table([0, 0]), "count: expected numbers >= 0"),
        (lambda: negatives.alias_table([1, np.nan]), "count: expected finite"),
        (lambda: negatives.alias_table([1, 2], power=-1.0), "power"),
        (lambda: negatives.in_batch_mask([1, 2], user=[1]), "one shape"),
        (lambda: negatives.in_batch_mask([1.0, 2.0]), "integer"),
        (lambda: negatives.hard(np.ones((2, 3)), np.ones((2, 2), int), 1), "candidates: expected"),
        (lambda: negatives.hard(np.ones((2, 3)), np.ones(3, int), 4), "k: expected"),
        (lambda: negatives.is_seen([1, 2], np.ones((2, 3), int), np.ones((2, 2), bool)), "one shape"),
        (lambda: negatives.is_seen(np.ones((3, 2), int), np.ones((2, 3), int), np.ones((2, 3), bool)), "candidates"),
    ],
)
def test_wrong_arguments_are_refused(as_users_run, call, message):
    with pytest.raises(ValueError, match=message):
        call()
