"""The bag of items: against loops; padding, dropped items, users without any; the batches of users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data
from jaxrec.models import bag_of_items

N_USERS, N_ITEMS, D = 9, 12, 3
RNG = np.random.default_rng(0)
PAIRS = np.unique(RNG.integers(0, N_USERS * N_ITEMS, 40))
PAIRS = PAIRS[PAIRS // N_ITEMS != 4]  # user 4 has no items
TRAIN = Ratings(PAIRS // N_ITEMS, PAIRS % N_ITEMS, np.ones(len(PAIRS)), N_USERS, N_ITEMS)
ITEMS = [TRAIN.item[TRAIN.user == user] for user in range(N_USERS)]
PARAMS = bag_of_items.init_params(N_ITEMS, D, key=jax.random.key(0))


def by_loops(encoder, items, weights, power):
    return np.stack(
        [
            sum((w * encoder[i] for i, w in zip(items, ws, strict=True)), np.zeros(D)) / max(1, len(items)) ** power
            for items, ws in zip(items, weights, strict=True)
        ]
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_user_vectors_equal_the_loop_and_padding_is_inert(power, weighted):
    ids, where = data.padded_items(TRAIN, np.arange(N_USERS))
    weight = RNG.random(ids.shape).astype(np.float32) if weighted else np.ones(ids.shape, np.float32)
    expected = by_loops(np.asarray(PARAMS.encoder), ITEMS, [w[v] for w, v in zip(weight, where, strict=True)], power)
    mask = jnp.asarray(where)
    options = {"power": power} | ({"weights": jnp.where(mask, weight, jnp.nan)} if weighted else {})
    call = lambda encoder, ids: bag_of_items.user_vectors(
        bag_of_items.BagOfItems(encoder, None, PARAMS.bias), ids, mask, **options
    )
    for padding in (0, 3, -1, 2**31 + 1):
        np.testing.assert_allclose(
            call(PARAMS.encoder, np.where(where, ids.astype(np.int64), padding)), expected, rtol=1e-5, atol=1e-6
        )
    gradient = jax.grad(lambda e: jnp.sum(call(e, ids) @ jnp.arange(D, dtype=jnp.float32)))(PARAMS.encoder)
    times = np.zeros(N_ITEMS)
    for user, items in enumerate(ITEMS):
        for place, item in enumerate(items):
            times[item] += (weight[user, place] if weighted else 1) / len(items) ** power
    np.testing.assert_allclose(gradient, times[:, None] * np.arange(D), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_all_vectors_give_the_scores_of_user_vectors(tied, power):
    params = bag_of_items.init_params(N_ITEMS, D, key=jax.random.key(1), tied=tied)
    params = bag_of_items.BagOfItems(params.encoder, params.decoder, jnp.arange(N_ITEMS, dtype=jnp.float32))
    users, items = bag_of_items.all_vectors(params, data.linked(TRAIN, pad_to_multiple=64), power=power)
    v_user = bag_of_items.user_vectors(
        params, *map(jnp.asarray, data.padded_items(TRAIN, np.arange(N_USERS))), power=power
    )
    decoder = params.encoder if tied else params.decoder
    np.testing.assert_allclose(users @ items.T, v_user @ decoder.T + params.bias[None, :], rtol=1e-5, atol=1e-5)
    assert (users[4] == jnp.array([0, 0, 0, 1.0])).all()  # ranked by the biases


def test_dropping_all_items_leaves_zeros_with_a_zero_gradient():
    none = jnp.zeros((2, 3), bool)
    call = lambda encoder: bag_of_items.user_vectors(
        bag_of_items.BagOfItems(encoder, None, PARAMS.bias), jnp.zeros((2, 3), int), none
    )
    assert (call(PARAMS.encoder) == 0).all()
    assert (jax.grad(lambda e: jnp.sum(call(e)))(PARAMS.encoder) == 0).all()


def test_dropped_items_are_a_part_of_the_history():
    where = jnp.asarray(np.arange(500)[None] < 400).repeat(20, axis=0)
    kept = bag_of_items.drop_items(where, fraction=0.3, key=jax.random.key(0))
    assert not (kept & ~where).any()
    assert abs(float(kept.sum() / where.sum()) - 0.7) < 0.02
    np.testing.assert_array_equal(bag_of_items.drop_items(where, fraction=0.0, key=jax.random.key(0)), where)


def test_batches_hold_every_user_once_in_an_order_of_their_own():
    rows = data.rows(TRAIN, "user", min_length=1, bucket_growth=1.5)
    batches = bag_of_items.user_batches(rows, 2, rng=0)
    orders = []
    for epoch in (0, 1, 0):
        users = []
        for batch in batches(epoch):
            assert len(batch.row) <= 2
            filled = np.asarray(batch.where).any(axis=1)
            users += np.asarray(batch.row)[filled].tolist()
            for row, items, where in zip(batch.row, batch.other, batch.where, strict=True):
                assert where.sum() == 0 or sorted(items[where].tolist()) == sorted(ITEMS[int(row)].tolist())
        assert sorted(users) == [user for user in range(N_USERS) if len(ITEMS[user])]
        orders.append(users)
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bag_of_items.init_params(0, 2, key=jax.random.key(0)), "n_items"),
        (lambda: bag_of_items.init_params(3, 0, key=jax.random.key(0)), "rank"),
        (lambda: bag_of_items.init_params(3, 2, key=jax.random.key(0), scale=0.0), "scale"),
        (lambda: bag_of_items.drop_items(np.ones((1, 2), bool), fraction=1.0, key=jax.random.key(0)), "fraction"),
        (lambda: bag_of_items.user_vectors(PARAMS, [0, 1], np.ones(2, bool)), "item: expected lists"),
        (lambda: bag_of_items.user_vectors(PARAMS, [[0, 1]], np.ones((1, 3), bool)), "one shape"),
        (lambda: bag_of_items.user_vectors(PARAMS, [[0, N_ITEMS]], np.ones((1, 2), bool)), "item: expected ids in"),
        (lambda: bag_of_items.all_vectors(PARAMS, data.linked(Ratings([0], [0], [1], 1, 2))), "params: expected"),
        (lambda: bag_of_items.user_batches(data.rows(TRAIN, "item"), 2, rng=0), "rows: expected those of users"),
        (lambda: bag_of_items.user_batches(data.rows(TRAIN, "user"), 0, rng=0), "batch_size"),
    ],
)
def test_wrong_arguments_are_refused(as_users_run, call, message):
    with pytest.raises(ValueError, match=message):
        call()
