"""Ids are never truncated, clamped or wrapped: concrete ids out of range are refused, unless they are masked."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import Ratings, data, losses, metrics, models, retrieval, training
from jaxrec.data import normalize
from jaxrec.losses import closed_form, penalty, softmax
from jaxrec.models import bag_of_items
from jaxrec.retrieval import candidates, quantized, rerank
from jaxrec.types import Observed
from tests.border.calls import (
    BAG,
    FACTORS,
    IMPLICIT_COSTS,
    INDEX,
    LARGE_CATALOGUE,
    N_ITEMS,
    N_USERS,
    RATINGS,
    TABLE,
    D,
    W,
    X,
)

pytestmark = pytest.mark.usefixtures("as_users_run")


def observed(user, item, where=None):
    """Observed ratings of 1 for the pairs."""
    n = np.size(user)
    return Observed(user, item, jnp.ones(n), jnp.ones(n, bool) if where is None else where)


def by_ids_of_one_side(function):
    """A function of Observed ratings as a function of user ids, and of item ids."""
    return {
        "users": (lambda ids, where: function(observed(ids, np.zeros(ids.shape, int), where)), N_USERS),
        "items": (lambda ids, where: function(observed(np.zeros(ids.shape, int), ids, where)), N_ITEMS),
    }


TAKES_OBSERVED = {
    "losses.cost": lambda layout: losses.cost(FACTORS, layout, l2=0.1),
    "losses.data_term": lambda layout: losses.data_term(FACTORS, layout),
    "closed_form.cost": lambda layout: closed_form.cost(FACTORS, layout, l2=0.1),
    "closed_form.gradient": lambda layout: closed_form.gradient(FACTORS, layout, l2=0.1),
    "closed_form.value_and_gradient": lambda layout: closed_form.value_and_gradient(FACTORS, layout, l2=0.1),
    **{name: partial(cost, FACTORS) for name, cost in IMPLICIT_COSTS.items()},
}
MEANS = normalize.means_by_item_then_user(RATINGS)
# name -> (function of ids [n] and their mask, which it does not read; size of the table)
TAKES_IDS = {
    "models.predict users": (lambda ids, _: models.predict(FACTORS, ids, np.zeros(ids.shape, int)), N_USERS),
    "models.predict items": (lambda ids, _: models.predict(FACTORS, np.zeros(ids.shape, int), ids), N_ITEMS),
    "Means.at users": (lambda ids, _: MEANS.at(ids, np.zeros(ids.shape, int)), N_USERS),
    "Means.at items": (lambda ids, _: MEANS.at(np.zeros(ids.shape, int), ids), N_ITEMS),
    "data.padded_items": (lambda ids, _: data.padded_items(RATINGS, ids), N_USERS),
    "ratings.user_index": (lambda ids, _: RATINGS.user_index(ids), N_USERS),
    "ratings.item_index": (lambda ids, _: RATINGS.item_index(ids), N_ITEMS),
    "Ratings": (lambda ids, _: Ratings(ids, ids, np.ones(ids.shape), N_USERS, N_USERS).item, N_USERS),
    "retrieval.related_ids": (lambda ids, _: retrieval.related_ids(X, ids, 2), N_ITEMS),
    "sampled_cost negative": (
        lambda ids, _: losses.sampled_cost(FACTORS, observed(np.zeros(1, int), np.zeros(1, int)), ids),
        N_ITEMS,
    ),
    "bpr_cost negative": (
        lambda ids, _: losses.bpr_cost(FACTORS, observed(np.zeros(1, int), np.zeros(1, int)), ids),
        N_ITEMS,
    ),
}
# name -> (function of ids [n] and their mask, under which any id is accepted; size of the table)
TAKES_MASKED_IDS = {
    "top_k exclude": (lambda ids, where: retrieval.top_k(W[0], X, 2, exclude=(ids, where)), N_ITEMS),
    "top_k exclude, two passes": (
        lambda ids, where: retrieval.top_k(LARGE_CATALOGUE[0], LARGE_CATALOGUE, 2, exclude=(ids, where), block=1024),
        len(LARGE_CATALOGUE),
    ),
    "top_k exclude, quantized": (
        lambda ids, where: retrieval.top_k(LARGE_CATALOGUE[0], INDEX, 2, exclude=(ids, where)),
        len(LARGE_CATALOGUE),
    ),
    "candidates.look_up": (lambda ids, where: candidates.look_up(TABLE, ids, where=where), len(TABLE.ids)),
    "catalogue_softmax": (
        lambda ids, where: losses.catalogue_softmax(W[: len(ids)], X, ids, where=where),
        N_ITEMS,
    ),
    "catalogue_softmax of lists": (
        lambda ids, where: losses.catalogue_softmax(W[:1], X, ids[None], where=where[None]),
        N_ITEMS,
    ),
    "bag_of_items.user_vectors": (
        lambda ids, where: bag_of_items.user_vectors(BAG, ids[None], where[None]),
        N_ITEMS,
    ),
    "candidates.merge": (
        lambda ids, where: candidates.merge([(ids, where)], size=2, allowed=np.ones(N_ITEMS, bool)),
        N_ITEMS,
    ),
    "candidates.merge exclude": (
        lambda ids, where: candidates.merge(
            [(np.zeros(1, int), np.ones(1, bool))], size=1, exclude=(ids, where), allowed=np.ones(N_ITEMS, bool)
        ),
        N_ITEMS,
    ),
    "rerank.rank": (lambda ids, where: rerank.rank(W[0], X, ids, where, k=1), N_ITEMS),
}
OUT_OF_RANGE = (
    lambda size: size,
    lambda size: -1,
    lambda size: 2**31 + 1,
    lambda size: 2**32 + 1,
    lambda size: -(2**40),
)
CASES = {
    **TAKES_IDS,
    **TAKES_MASKED_IDS,
    **{
        f"{name} {side}": case
        for name, function in TAKES_OBSERVED.items()
        for side, case in by_ids_of_one_side(function).items()
    },
}


@pytest.mark.parametrize("wrong", OUT_OF_RANGE, ids=("size", "-1", "2**31 + 1", "2**32 + 1", "-2**40"))
@pytest.mark.parametrize("name", CASES)
def test_ids_out_of_range_are_refused(name, wrong):
    function, size = CASES[name]
    with pytest.raises(ValueError, match=str(wrong(size))):
        function(np.array([0, wrong(size), 1]), np.ones(3, bool))


@pytest.mark.parametrize("name", CASES)
def test_ids_of_any_integer_type_give_the_same_result(name):
    function, _ = CASES[name]
    expected = function(np.array([0, 2, 1]), np.ones(3, bool))
    for dtype in (np.int8, np.uint8, np.uint16, np.int32, np.uint32, np.uint64):
        jax.tree.map(np.testing.assert_array_equal, function(np.array([0, 2, 1], dtype), np.ones(3, bool)), expected)


@pytest.mark.parametrize("garbage", [-1, 2**31 + 3, 2**40])
@pytest.mark.parametrize("name", TAKES_MASKED_IDS)
def test_masked_ids_change_nothing(name, garbage):
    function, _ = TAKES_MASKED_IDS[name]
    where = np.array([True, False, True])
    expected, got = (function(np.array([2, masked_id, 1]), where) for masked_id in (0, garbage))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", CASES)
def test_floats_strings_and_integers_beyond_int64_are_refused_as_ids(name):
    function, _ = CASES[name]
    for values in (np.array([0.0, 1.0]), np.array(["0", "1"]), np.array([0, 2**70])):
        with pytest.raises(ValueError, match=r"integer|raw ids|floats|fit"):
            function(values, np.ones(2, bool))


def test_training_on_minibatches_of_larger_tables_is_refused():
    """Ids are traced inside a step, so `fit` checks them before."""
    larger = Ratings([0, 9], [0, 8], [1.0, 2.0], N_USERS + 3, N_ITEMS)
    cost = lambda factors, batch: losses.cost(factors, batch, l2=0.1)
    options = {"optimizer": optax.sgd(0.1), "key": jax.random.key(0), "epochs": 1, "progress": False}
    for batches in (data.minibatches(larger, 2, rng=0), [data.observed(larger)]):
        with pytest.raises(ValueError, match=r"user: expected ids in \[0, 7\), got 9"):
            training.fit(cost, FACTORS, batches, **options)
    training.fit(cost, FACTORS, data.minibatches(RATINGS, 8, rng=0), **options)
    state = training.init_state(FACTORS, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"user: expected ids in \[0, 7\), got 9"):
        training.epochs(
            training.make_step(cost, optax.sgd(0.1)),
            state,
            data.observed(larger),
            batch_size=2,
            key=jax.random.key(0),
            epochs=1,
        )


def test_the_penalty_of_a_minibatch_with_ids_out_of_range_is_refused():
    batch = dataclasses.replace(observed([0, 7], [0, 0]), user_count=jnp.ones(2), item_count=jnp.ones(2))
    with pytest.raises(ValueError, match=r"user: expected ids in \[0, 7\), got 7"):
        penalty.l2_penalty(FACTORS, l2=0.1, batch=batch)


# Ids that are only compared with one another may have 64 bits


@pytest.mark.parametrize("offset", [2**31, 2**32, 2**40, -(2**40)])
@pytest.mark.parametrize("name", ["precision", "recall", "hit_rate", "ndcg", "average_precision", "reciprocal_rank"])
def test_metrics_of_64_bit_ids_equal_those_of_small_ids(name, offset):
    ids = np.array([[5, 7, 0], [1, 2, 3]])
    relevant, where = np.array([[5, 8], [3, 1]]), np.array([[1, 0], [1, 1]], bool)
    metric = getattr(metrics, name)
    expected = metric(ids, relevant, where=where)
    np.testing.assert_array_equal(metric(ids + offset, relevant + offset, where=where), expected)
    if offset > 0:
        np.testing.assert_array_equal(metric(ids + offset, relevant, where=where), np.zeros(2))
    unsigned_and_signed = metric((ids + 2**40).astype(np.uint64), relevant + 2**40, where=where)
    np.testing.assert_array_equal(unsigned_and_signed, expected)


def test_ids_that_differ_by_two_to_the_40_are_different():
    assert metrics.recall(np.array([[2**40 + 5, 7]]), np.array([[5, 8]])).tolist() == [0]


def test_in_batch_softmax_of_64_bit_ids_equals_that_of_small_ids():
    v = jax.random.normal(jax.random.key(0), (4, D))
    expected = softmax.in_batch(v, v, np.array([1, 2, 1, 3]), user=np.array([0, 0, 1, 2]))
    got = softmax.in_batch(v, v, np.array([1, 2, 1, 3]) * 2**40, user=np.array([0, 0, 1, 2]) * 2**33)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    with pytest.raises(ValueError, match="item: expected integer ids"):
        softmax.in_batch(v, v, np.array([1.0, 2.0, 1.0, 3.0]))


def test_excluded_ids_out_of_range_are_refused_by_an_index():
    with pytest.raises(ValueError, match="exclude: expected ids in"):
        retrieval.top_k(
            LARGE_CATALOGUE[:1],
            quantized.quantize(LARGE_CATALOGUE),
            1,
            exclude=(np.array([[6000]]), np.array([[True]])),
        )
