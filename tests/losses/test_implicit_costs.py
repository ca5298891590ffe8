"""Costs of factors from implicit feedback: against losses of all predictions; and models trained by them rank well."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import Ratings, data, evaluation, losses, models, training
from jaxrec.losses import softmax
from jaxrec.losses.penalty import l2_penalty
from jaxrec.models import bag_of_items
from jaxrec.models.two_tower import TwoTower
from jaxrec.training import lazy, negatives
from jaxrec.types import Factors, Observed

N_USERS, N_ITEMS, RANK, GROUPS = 60, 40, 6, 4


def random_factors(bias):
    rng = np.random.default_rng(0)
    arrays = {"w": (N_USERS, RANK), "b": (N_USERS,), "x": (N_ITEMS, RANK)} | (
        {"c": (N_ITEMS,), "mu": (N_ITEMS,)} if bias else {}
    )
    return Factors(**{name: jnp.asarray(rng.normal(size=shape)) for name, shape in arrays.items()})


def random_pairs():
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, N_USERS, 12), rng.integers(0, N_ITEMS, 12)
    count = lambda column: jnp.asarray(np.bincount(column)[column] * 1.0)
    where, weights = np.arange(12) < 10, rng.integers(1, 4, 12) * 1.0
    return Observed(*map(jnp.asarray, (user, item, np.full(12, np.nan), where, weights)), count(user), count(item))


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("cosine", [True, False], ids=["cosine", "dot"])
def test_softmax_costs_equal_the_softmax_of_all_predictions(x64, bias, cosine):
    factors, pairs = random_factors(bias), random_pairs()
    log_p = jax.nn.log_softmax(models.predict_all(models.unit_factors(factors) if cosine else factors) / 0.4, axis=1)
    weights = jnp.where(pairs.where, pairs.weights, 0)
    expected = -jnp.sum(weights * log_p[pairs.user, pairs.item]), jnp.sum(weights)
    options = {"temperature": 0.4, "cosine": cosine}
    every = jnp.arange(N_ITEMS), {"log_q": jnp.full(N_ITEMS, -np.log(N_ITEMS))}
    for l2 in (None, 0.3):
        penalty = 0 if l2 is None else l2_penalty(factors, l2=l2, batch=pairs)
        whole = losses.catalogue_cost(factors, pairs, **options, l2=l2)
        sampled = losses.sampled_cost(factors, pairs, every[0], **every[1], **options, l2=l2)
        for total in (whole, sampled):
            np.testing.assert_allclose((total.sum, total.count), (expected[0] + penalty, expected[1]), rtol=1e-10)


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_bpr_cost_equals_the_loop(x64, bias, shared):
    factors, pairs = random_factors(bias), random_pairs()
    prediction, rng = np.asarray(models.predict_all(factors)), np.random.default_rng(2)
    negative, valid = rng.integers(0, N_ITEMS, (3,) if shared else (12, 3)), rng.random((12, 3)) < 0.6
    expected = np.zeros(2)
    for n in range(10):
        for k in np.flatnonzero(valid[n]):
            other = prediction[pairs.user[n], negative[k] if shared else negative[n, k]]
            gap = prediction[pairs.user[n], pairs.item[n]] - other
            expected += float(pairs.weights[n]) * np.array([np.log1p(np.exp(-gap)), 1])
    got = losses.bpr_cost(factors, pairs, negative, negative_where=jnp.asarray(valid), l2=0.3)
    expected[0] += l2_penalty(factors, l2=0.3, batch=pairs)
    np.testing.assert_allclose((got.sum, got.count), expected, rtol=1e-10)


@pytest.mark.parametrize("wrong", [-1, N_ITEMS, 2**31 + 1])
def test_negatives_out_of_range_are_refused(as_users_run, wrong):
    factors, pairs = random_factors(False), random_pairs()
    for cost, negative in (
        (losses.sampled_cost, [0, wrong]),
        (losses.bpr_cost, [0, wrong]),
        (losses.bpr_cost, [[wrong]] * 12),
    ):
        with pytest.raises(ValueError, match=f"negative: expected ids in .* got {wrong}"):
            cost(factors, pairs, np.array(negative))
    with pytest.raises(ValueError, match=r"negative: expected ids \[c\], or \[n, c\] of the 12 pairs"):
        losses.bpr_cost(factors, pairs, np.zeros((1, 3), int))
    for cost in (lambda f: losses.catalogue_cost(f, pairs), lambda f: losses.bpr_cost(f, pairs, [0])):
        with pytest.raises(ValueError, match="factors: expected"):
            cost(dataclasses.replace(factors, b=factors.b[:2]))


def test_rows_of_zeros_have_cosine_0_and_a_zero_gradient():
    factors = dataclasses.replace(models.init(4, 5, 2, key=jax.random.key(0)), w=jnp.zeros((4, 2)))
    pairs = Observed(jnp.array([0]), jnp.array([1]), jnp.ones(1), jnp.ones(1, bool))
    value, gradient = jax.value_and_grad(lambda f: losses.catalogue_cost(f, pairs, cosine=True, temperature=0.1).sum)(
        factors
    )
    assert float(value) == pytest.approx(np.log(5), rel=1e-6)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert (gradient.w == 0).all()


# Users choose among the items of their group, and a few others: what a model must learn is known by construction.


def split_of_groups():
    rng = np.random.default_rng(0)
    pairs = set()
    for user in range(N_USERS):
        own = np.flatnonzero(np.arange(N_ITEMS) % GROUPS == user % GROUPS)
        pairs |= {(user, int(item)) for item in [*rng.choice(own, 7, replace=False), rng.integers(N_ITEMS)]}
    user, item = np.array(sorted(pairs)).T
    return data.splits.random(Ratings(user, item, np.ones(len(user)), N_USERS, N_ITEMS), test_fraction=0.25, rng=0)


TRAIN, TEST = split_of_groups()
FIT = {"key": jax.random.key(1), "progress": False}


def recall(scorer):
    return evaluation.evaluate(scorer, TRAIN, TEST, k=5, metrics=["recall"]).mean["recall@5"]


def fit_factors(cost, epochs=12):
    init = models.init(N_USERS, N_ITEMS, RANK, key=jax.random.key(0))
    batches = data.minibatches(TRAIN, 64, rng=0)
    return training.fit(cost, init, batches, optimizer=optax.adam(0.05), epochs=epochs, **FIT).params


def by_catalogue():
    cost = lambda factors, pairs: losses.catalogue_cost(factors, pairs, cosine=True, temperature=0.2)
    return models.unit_factors(fit_factors(cost))


def by_sampled():
    def cost(factors, pairs, *, key):
        drawn = negatives.uniform((20,), N_ITEMS, key=key)
        return losses.sampled_cost(factors, pairs, drawn.ids, log_q=drawn.log_q)

    return fit_factors(cost)


def by_bpr():
    def cost(factors, pairs, *, key):
        return losses.bpr_cost(factors, pairs, negatives.uniform((len(pairs.user), 2), N_ITEMS, key=key).ids, l2=0.01)

    return fit_factors(cost, epochs=20)


def by_bag_of_items(tied):
    def cost(params, users, *, key):
        kept = bag_of_items.drop_items(users.where, fraction=0.5, key=key)
        v_user = bag_of_items.user_vectors(params, users.other, kept)
        return losses.catalogue_softmax(v_user, params.items, users.other, bias=params.bias, where=users.where)

    init = bag_of_items.init_params(N_ITEMS, RANK, key=jax.random.key(0), tied=tied)
    batches = bag_of_items.user_batches(data.rows(TRAIN, "user", bucket_growth=2.0), 16, rng=0)
    params = training.fit(cost, init, batches, optimizer=optax.adam(0.05), epochs=40, **FIT).params
    return bag_of_items.all_vectors(params, data.linked(TRAIN))


def by_towers():
    """Two towers with in-batch softmax on implicit data; the features are the ids and the histories, multi-hot."""
    towers = TwoTower(layers=(16, RANK))
    history = np.zeros((N_USERS, N_ITEMS), np.float32)
    history[TRAIN.user, TRAIN.item] = 1
    x_user, x_item = jnp.asarray(history / np.sqrt(history.sum(axis=1, keepdims=True))), jnp.eye(N_ITEMS)
    log_q = softmax.log_popularity(np.bincount(TRAIN.item, minlength=N_ITEMS))

    def cost(params, batch):
        pairs, x_user, x_item, log_q = batch
        v_user, v_item = towers.apply(params, x_user[pairs.user], x_item[pairs.item])
        return softmax.in_batch(
            v_user, v_item, pairs.item, log_q=log_q[pairs.item], user=pairs.user, temperature=0.2, where=pairs.where
        )

    init = towers.init(jax.random.key(0), x_user[:1], x_item[:1])
    minibatches = data.minibatches(TRAIN, 64, rng=0)
    batches = lambda epoch: ((pairs, x_user, x_item, log_q) for pairs in minibatches(epoch))
    params = training.fit(cost, init, batches, optimizer=optax.adam(0.01), epochs=12, **FIT).params
    return towers.apply(params, x_user, x_item)


def by_lazy_steps():
    """Sampled softmax with cosines by `training.lazy`, whose steps touch the rows of the batch only."""

    def rows(batch):
        pairs, drawn = batch
        items = (
            jnp.concatenate([pairs.item, drawn.ids]),
            jnp.concatenate([pairs.where, jnp.ones(drawn.ids.shape, bool)]),
        )
        return {"user": (pairs.user, pairs.where), "item": items}

    def cost(_, rows, batch):
        (pairs, drawn), v_item = batch, models.two_tower.unit_vectors(rows["item"])
        own, negative = v_item[: len(pairs.user)], v_item[len(pairs.user) :]
        v_user = models.two_tower.unit_vectors(rows["user"])
        return softmax.sampled(
            v_user, own, negative, pairs.item, drawn.ids, log_q=drawn.log_q, temperature=0.2, where=pairs.where
        )

    lazy_step = lazy.make_step(cost, optax.adam(0.05), rows)

    def step(state, pairs, *, key):
        drawn = negatives.uniform((20,), N_ITEMS, key=jax.random.fold_in(key, state.step))
        return lazy_step(state, (pairs, drawn), key=key)

    init = models.init(N_USERS, N_ITEMS, RANK, key=jax.random.key(0))
    state = lazy.init_state((), {"user": init.w, "item": init.x}, optax.adam(0.05))
    state, _ = training.epochs(step, state, data.observed(TRAIN), batch_size=64, key=jax.random.key(2), epochs=12)
    _, tables = state.params
    return models.unit_factors(dataclasses.replace(init, w=tables["user"], x=tables["item"]))


TRAINED = {
    "catalogue softmax": by_catalogue,
    "sampled softmax": by_sampled,
    "bpr": by_bpr,
    "bag of items": lambda: by_bag_of_items(tied=False),
    "tied bag of items": lambda: by_bag_of_items(tied=True),
    "towers": by_towers,
    "lazy steps": by_lazy_steps,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_finds_the_groups_where_popularity_does_not(name):
    popularity = jnp.asarray(np.bincount(TRAIN.item, minlength=N_ITEMS), jnp.float32)
    by_popularity = recall((jnp.ones((N_USERS, 1)), popularity[:, None]))
    assert recall(TRAINED[name]()) > 0.55 > 2 * by_popularity
