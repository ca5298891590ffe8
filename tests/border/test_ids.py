"""No id is cut, clamped or wrapped: what is concrete is in its table or refused, what is masked may be anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import Ratings, data, losses, metrics, models, retrieval, training
from jaxrec.data import normalize
from jaxrec.losses import closed_form, penalty, softmax
from jaxrec.retrieval import candidates, quantized, rerank
from jaxrec.types import Observed
from tests.border.calls import FACTORS, INDEX, N_ITEMS, N_USERS, RATINGS, TABLE, WIDE, D, W, X

pytestmark = pytest.mark.usefixtures("as_users_run")


def columns(user, item, where=None):
    n = np.size(user)
    return Observed(user, item, jnp.ones(n), jnp.ones(n, bool) if where is None else where)


def of_pairs(function):
    """A function of Observed, of the ids of one side."""
    return {
        "users": (lambda ids, where: function(columns(ids, np.zeros(ids.shape, int), where)), N_USERS),
        "items": (lambda ids, where: function(columns(np.zeros(ids.shape, int), ids, where)), N_ITEMS),
    }


PAIRS = {
    "losses.cost": lambda layout: losses.cost(FACTORS, layout, l2=0.1),
    "losses.data_term": lambda layout: losses.data_term(FACTORS, layout),
    "closed_form.cost": lambda layout: closed_form.cost(FACTORS, layout, l2=0.1),
    "closed_form.gradient": lambda layout: closed_form.gradient(FACTORS, layout, l2=0.1),
    "closed_form.value_and_gradient": lambda layout: closed_form.value_and_gradient(FACTORS, layout, l2=0.1),
}
MEANS = normalize.means_by_item_then_user(RATINGS)
# name -> (function of ids [n] (and of their mask), the table's size)
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
}
# the same, where masked ids may be anything
TAKES_MASKED_IDS = {
    "top_k exclude": (lambda ids, where: retrieval.top_k(W[0], X, 2, exclude=(ids, where)), N_ITEMS),
    "top_k exclude, two passes": (
        lambda ids, where: retrieval.top_k(WIDE[0], WIDE, 2, exclude=(ids, where), block=1024),
        len(WIDE),
    ),
    "top_k exclude, quantized": (
        lambda ids, where: retrieval.top_k(WIDE[0], INDEX, 2, exclude=(ids, where)),
        len(WIDE),
    ),
    "candidates.look_up": (lambda ids, where: candidates.look_up(TABLE, ids, where=where), len(TABLE.ids)),
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
    "ranking.rank": (lambda ids, where: rerank.rank(W[0], X, ids, where, k=1), N_ITEMS),
}
WRONG = (lambda size: size, lambda size: -1, lambda size: 2**31 + 1, lambda size: 2**32 + 1, lambda size: -(2**40))
CASES = {
    **TAKES_IDS,
    **TAKES_MASKED_IDS,
    **{f"{name} {side}": case for name, function in PAIRS.items() for side, case in of_pairs(function).items()},
}


@pytest.mark.parametrize("wrong", WRONG, ids=("size", "-1", "2**31 + 1", "2**32 + 1", "-2**40"))
@pytest.mark.parametrize("name", CASES)
def test_ids_out_of_range_are_refused(name, wrong):
    function, size = CASES[name]
    with pytest.raises(ValueError, match=str(wrong(size))):
        function(np.array([0, wrong(size), 1]), np.ones(3, bool))


@pytest.mark.parametrize("name", CASES)
def test_ids_of_any_integer_type_are_the_same(name):
    function, _ = CASES[name]
    expected = function(np.array([0, 2, 1]), np.ones(3, bool))
    for dtype in (np.int8, np.uint8, np.uint16, np.int32, np.uint32, np.uint64):
        jax.tree.map(np.testing.assert_array_equal, function(np.array([0, 2, 1], dtype), np.ones(3, bool)), expected)


@pytest.mark.parametrize("garbage", [-1, 2**31 + 3, 2**40])
@pytest.mark.parametrize("name", TAKES_MASKED_IDS)
def test_masked_ids_may_be_anything(name, garbage):
    function, _ = TAKES_MASKED_IDS[name]
    where = np.array([True, False, True])
    expected, got = (function(np.array([2, masked, 1]), where) for masked in (0, garbage))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_id_is_refused(name):
    function, _ = CASES[name]
    for values in (np.array([0.0, 1.0]), np.array(["0", "1"]), np.array([0, 2**70])):
        with pytest.raises(ValueError, match=r"integer|raw ids|floats|fit"):
            function(values, np.ones(2, bool))


def test_a_fit_on_minibatches_of_larger_data_is_refused():
    """Inside the step ids are traced: fit looks at them before."""
    more = Ratings([0, 9], [0, 8], [1.0, 2.0], N_USERS + 3, N_ITEMS)
    cost = lambda factors, batch: losses.cost(factors, batch, l2=0.1)
    options = {"optimizer": optax.sgd(0.1), "key": jax.random.key(0), "epochs": 1, "progress": False}
    for batches in (data.minibatches(more, 2, rng=0), [data.observed(more)]):
        with pytest.raises(ValueError, match=r"user: expected ids in \[0, 7\), got 9"):
            training.fit(cost, FACTORS, batches, **options)
    training.fit(cost, FACTORS, data.minibatches(RATINGS, 8, rng=0), **options)
    state = training.init_state(FACTORS, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"user: expected ids in \[0, 7\), got 9"):
        training.epochs(
            training.make_step(cost, optax.sgd(0.1)),
            state,
            data.observed(more),
            batch_size=2,
            key=jax.random.key(0),
            epochs=1,
        )


def test_a_penalty_of_a_minibatch_checks_its_ids():
    batch = dataclasses.replace(columns([0, 7], [0, 0]), user_count=jnp.ones(2), item_count=jnp.ones(2))
    with pytest.raises(ValueError, match=r"user: expected ids in \[0, 7\), got 7"):
        penalty.l2_penalty(FACTORS, l2=0.1, batch=batch)


# Ids that are only compared with one another may be of 64 bits


@pytest.mark.parametrize("offset", [2**31, 2**32, 2**40, -(2**40)])
@pytest.mark.parametrize("name", ["precision", "recall", "hit_rate", "ndcg", "average_precision", "reciprocal_rank"])
def test_metrics_of_wide_ids_are_those_of_narrow_ones(name, offset):
    ids, relevant, where = (
        np.array([[5, 7, 0], [1, 2, 3]]),
        np.array([[5, 8], [3, 1]]),
        np.array([[1, 0], [1, 1]], bool),
    )
    metric = getattr(metrics, name)
    expected = metric(ids, relevant, where=where)
    np.testing.assert_array_equal(metric(ids + offset, relevant + offset, where=where), expected)
    if offset > 0:
        np.testing.assert_array_equal(metric(ids + offset, relevant, where=where), np.zeros(2))
    mixed = metric((ids + 2**40).astype(np.uint64), relevant + 2**40, where=where)
    np.testing.assert_array_equal(mixed, expected)


def test_the_issues_example():
    assert metrics.recall(np.array([[2**40 + 5, 7]]), np.array([[5, 8]])).tolist() == [0]


def test_in_batch_softmax_of_wide_ids():
    v = jax.random.normal(jax.random.key(0), (4, D))
    expected = softmax.in_batch(v, v, np.array([1, 2, 1, 3]), user=np.array([0, 0, 1, 2]))
    wide = softmax.in_batch(v, v, np.array([1, 2, 1, 3]) * 2**40, user=np.array([0, 0, 1, 2]) * 2**33)
    jax.tree.map(np.testing.assert_array_equal, wide, expected)
    with pytest.raises(ValueError, match="item: expected integer ids"):
        softmax.in_batch(v, v, np.array([1.0, 2.0, 1.0, 3.0]))


def test_an_index_is_refused_what_is_excluded_out_of_range():
    with pytest.raises(ValueError, match="exclude: expected ids in"):
        retrieval.top_k(WIDE[:1], quantized.quantize(WIDE), 1, exclude=(np.array([[6000]]), np.array([[True]])))
