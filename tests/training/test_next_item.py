"""Costs of packed batches against dense autodiff, and epochs on the device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import training
from jaxrec.training import negatives, next_item
from tests.models.test_sequence import MODELS, N_ITEMS, PACKED, SEQUENCES, WINDOW, params_of

MODEL = MODELS["learned"].clone(dropout=0.0)
ROWS = next_item.packed_rows(PACKED)
KEY = jax.random.key(0)


def uniform(n, *, key):
    return negatives.uniform((n,), N_ITEMS, key=key)


def all_items(*, key):
    return negatives.Negatives(jnp.arange(N_ITEMS), jnp.full(N_ITEMS, -np.log(N_ITEMS), jnp.float32))


COSTS = {
    "softmax": next_item.softmax_cost(MODEL),
    "sampled": next_item.sampled_softmax_cost(MODEL, all_items),
    "gbce": next_item.gbce_cost(MODEL, all_items, t=0.5),
}


def dense(name, params):
    """Loops over users: every event but the last against the whole matrix of scores."""
    total, count = 0.0, 0
    table = params["params"]["item"]
    for items in SEQUENCES:
        last = jnp.array([items[-WINDOW:]], jnp.int32)
        if last.shape[1] < 2:
            continue
        h = MODEL.apply(params, last, jnp.ones_like(last), jnp.arange(last.shape[1])[None])[0, :-1]
        score, after = h @ table.T, jax.nn.one_hot(last[0, 1:], N_ITEMS)
        if name == "gbce":
            alpha = N_ITEMS / (N_ITEMS - 1)
            beta = alpha * (0.5 * (1 - 1 / alpha) + 1 / alpha)
            loss = beta * jax.nn.softplus(-score) * after + jax.nn.softplus(score) * (1 - after)
            total += loss.sum()
        else:
            total -= (jax.nn.log_softmax(score) * after).sum()
        count += len(score)
    return total / count


@pytest.mark.parametrize("name", COSTS)
def test_costs_and_gradients_equal_dense_autodiff(name):
    params = params_of(MODEL)
    run = jax.jit(jax.value_and_grad(lambda params: COSTS[name](params, ROWS, key=KEY).mean()))
    loops = jax.jit(jax.value_and_grad(partial(dense, name)))  # eager, each operation compiles for each length
    (value, gradient), (expected, expected_gradient) = run(params), loops(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_the_count_is_that_of_pairs_and_users_with_one_event_have_none():
    total = COSTS["softmax"](params_of(MODEL), ROWS, key=KEY)
    assert float(total.count) == sum(max(0, min(WINDOW, len(items)) - 1) for items in SEQUENCES)


OPTIONS = {"optimizer": optax.adam(0.05), "batch_size": 2, "progress": False}


def test_an_epoch_is_one_of_training_epochs():
    params, cost = params_of(MODEL), COSTS["softmax"]
    fitted = training.fit_epochs(cost, params, ROWS, key=KEY, epochs=2, **OPTIONS)
    state = training.init_state(params, OPTIONS["optimizer"])
    for epoch in range(2):
        step = training.make_step(cost, OPTIONS["optimizer"])
        key = jax.random.fold_in(KEY, epoch)
        state, _ = training.epochs(step, state, ROWS, batch_size=2, key=key, epochs=1)
    for one, two in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_members_are_fits_of_their_own_in_one_program(compilations):
    cost, keys = next_item.sampled_softmax_cost(MODEL, partial(uniform, 4)), jax.random.split(KEY, 2)
    each = [params_of(MODEL, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    validate = lambda params: float(jnp.abs(params["params"]["item"]).sum())
    members = training.fit_members(cost, stacked, ROWS, keys=keys, epochs=4, validate=validate, **OPTIONS)
    assert members.history.loss.shape == members.history.validation.shape == (4, 2)
    for s in range(2):
        alone = training.fit_epochs(cost, each[s], ROWS, key=keys[s], epochs=4, validate=validate, **OPTIONS)
        assert alone.history.best_epoch == members.history.best_epoch[s]
        np.testing.assert_allclose(alone.history.loss, members.history.loss[:, s], rtol=1e-4)
        for one, two in zip(jax.tree.leaves(alone.params), jax.tree.leaves(members.params), strict=True):
            np.testing.assert_allclose(one, two[s], rtol=1e-3, atol=1e-4)


def test_it_stops_early_and_returns_the_best():
    values = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    seen = []
    validate = lambda params: (seen.append(params), next(values))[1]
    fitted = training.fit_epochs(
        COSTS["softmax"], params_of(MODEL), ROWS, key=KEY, epochs=9, validate=validate, patience=2, **OPTIONS
    )
    assert (fitted.history.stopped, int(fitted.history.best_epoch), len(seen)) == ("patience", 1, 4)
    assert fitted.params is seen[1]
    stop = lambda step, state, history: step == 2
    stopped = training.fit_epochs(
        COSTS["softmax"], params_of(MODEL), ROWS, key=KEY, epochs=9, callback=stop, **OPTIONS
    ).history
    assert (stopped.stopped, len(stopped.loss)) == ("callback", 2)


def test_a_second_fit_compiles_nothing(compilations):
    run = lambda: training.fit_epochs(COSTS["softmax"], params_of(MODEL), ROWS, key=KEY, epochs=2, **OPTIONS)
    run()
    before = compilations()
    run()
    assert compilations() == before


def test_bad_arguments():
    params, cost = params_of(MODEL), COSTS["softmax"]
    with pytest.raises(ValueError, match="patience: expected validate= too"):
        training.fit_epochs(cost, params, ROWS, key=KEY, epochs=2, patience=1, **OPTIONS)
    with pytest.raises(ValueError, match="params, keys: expected S keys"):
        training.fit_members(cost, params, ROWS, keys=jax.random.split(KEY, 2), epochs=1, **OPTIONS)
    with pytest.raises(FloatingPointError, match="validate returned"):
        training.fit_epochs(cost, params, ROWS, key=KEY, epochs=1, validate=lambda _: np.nan, **OPTIONS)
    broken = jax.tree.map(lambda leaf: leaf * jnp.inf, params)
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        training.fit_epochs(cost, broken, ROWS, key=KEY, epochs=1, **OPTIONS)
