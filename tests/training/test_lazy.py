"""Row-wise lazy optimizers: each row's path is that of the optimizer alone on the batches that name it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import data, losses, models, training
from jaxrec.training import lazy
from jaxrec.types import Factors

RATE = 0.1


def adam(rows, gradients, *, rate=RATE, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma and Ba's algorithm 1 in NumPy."""
    m = v = np.zeros_like(rows)
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        rows = rows - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return rows


def slope(params, rows, batch):
    """A cost whose gradient in a row is the batch's `g` there, whatever the row is; padding has a gradient too."""
    return jnp.sum(rows["table"] * batch["g"]) + jnp.sum(params)


def named(batch):
    return {"table": (batch["ids"], batch["where"])}


def test_each_row_is_moved_by_adam_on_the_batches_that_name_it():
    rng = np.random.default_rng(0)
    n, m, d, steps = 9, 6, 3, 20
    ids, where = rng.integers(0, n - 2, (steps, m)), rng.uniform(size=(steps, m)) < 0.8
    ids[0, :3], where[0, :3] = 4, True  # one row three times in a batch
    g = rng.normal(size=(steps, m, d)).astype(np.float32)
    table = rng.normal(size=(n, d)).astype(np.float32)
    optimizer = optax.adam(RATE)
    state = lazy.init_state(jnp.zeros(2), {"table": jnp.asarray(table)}, optimizer)
    step = jax.jit(lazy.make_step(slope, optimizer, named))
    for t in range(steps):
        batch = {"ids": jnp.asarray(ids[t], jnp.int32), "where": jnp.asarray(where[t]), "g": jnp.asarray(g[t])}
        state, _ = step(state, batch, key=jax.random.key(0))
    params, tables = state.params
    for row in range(n):
        of_row = [g[t][(ids[t] == row) & where[t]].sum(axis=0) for t in range(steps)]
        stood = [((ids[t] == row) & where[t]).any() for t in range(steps)]
        expected = adam(table[row], [each for each, there in zip(of_row, stood, strict=True) if there])
        np.testing.assert_allclose(tables["table"][row], expected, atol=5e-5)
    np.testing.assert_array_equal(tables["table"][n - 2 :], table[n - 2 :])  # never named: bit for bit
    np.testing.assert_allclose(params, adam(np.zeros(2), [np.ones(2)] * steps), atol=5e-5)


def test_the_rows_optimizer_may_be_another():
    state = lazy.init_state(jnp.zeros(2), {"table": jnp.zeros((3, 1))}, optax.sgd(1.0), row_optimizer=optax.sgd(0.5))
    step = lazy.make_step(slope, optax.sgd(1.0), named, row_optimizer=optax.sgd(0.5))
    batch = {"ids": jnp.array([1, 1]), "where": jnp.array([True, True]), "g": jnp.ones((2, 1))}
    state, info = step(state, batch, key=jax.random.key(0))
    params, tables = state.params
    assert params.tolist() == [-1, -1]
    assert tables["table"].ravel().tolist() == [0, -1, 0]
    assert (float(info.sum), float(info.count), int(state.step)) == (0, 0, 1)


def test_tables_without_rows_or_with_different_numbers_are_refused():
    for table in (jnp.zeros(()), {"w": jnp.zeros((3, 2)), "b": jnp.zeros(4)}, {}):
        with pytest.raises(ValueError, match="one leading axis"):
            lazy.init_state(jnp.zeros(2), {"table": table}, optax.sgd(1.0))


def of_pairs(looked_up, batch):
    """(Factors of a batch's rows, the batch with its places as ids): what `losses.cost` takes."""
    user, item = looked_up["user"], looked_up["item"]
    here = jnp.arange(len(batch.value), dtype=jnp.int32)
    return Factors(**user, **item, mu=jnp.float32(3.5)), dataclasses.replace(batch, user=here, item=here)


def factorization(sgd):
    """(state, step) of matrix factorization with tables, whose cost is `losses.cost`."""
    init = models.init(40, 30, 3, key=jax.random.key(0), mu=3.5)
    tables = {"user": {"w": init.w, "b": init.b}, "item": {"x": init.x, "c": init.c}}
    rows = lambda batch: {"user": (batch.user, batch.where), "item": (batch.item, batch.where)}

    def cost(params, looked_up, batch):
        return losses.cost(*of_pairs(looked_up, batch), l2=1.0, l2_bias=0.5)

    return init, lazy.init_state((), tables, sgd), lazy.make_step(cost, sgd, rows)


def test_a_factorization_of_tables_takes_the_steps_of_the_whole_one():
    """By plain gradient descent, which has no memory, lazy and dense are the same."""
    ratings = data.synthetic.low_rank(40, 30, 500, rng=0).ratings
    init, state, step = factorization(optax.sgd(0.02))
    whole = training.make_step(lambda f, batch: losses.cost(f, batch, l2=1.0, l2_bias=0.5), optax.sgd(0.02))
    step, whole = jax.jit(step), jax.jit(whole)  # eagerly they are two hundred programs
    dense = training.init_state(init, optax.sgd(0.02))
    for batch in data.minibatches(ratings, 64, rng=0)(0):
        state, info = step(state, batch, key=jax.random.key(1))
        dense, expected = whole(dense, batch, key=jax.random.key(1))
        np.testing.assert_allclose(info.sum, expected.sum, rtol=1e-5)
    _, tables = state.params
    for table, side in (("w", "user"), ("b", "user"), ("x", "item"), ("c", "item")):
        np.testing.assert_allclose(tables[side][table], getattr(dense.params, table), atol=1e-5)


@pytest.mark.slow
def test_it_learns_in_whole_epochs_on_the_device():
    ratings = data.synthetic.low_rank(40, 30, 600, noise=0.3, rng=0).ratings
    _, state, step = factorization(optax.adam(0.02))
    columns = data.observed(ratings, counts=True)
    run = jax.jit(lambda state: training.epochs(step, state, columns, batch_size=64, key=jax.random.key(0), epochs=30))
    _, cost = run(state)
    assert float(cost.sum[-1]) < 0.3 * float(cost.sum[0])


def test_a_step_traces_once_and_looks_at_no_whole_table():
    """What a step computes, apart from looking up and putting back, has the batch's size."""
    optimizer = optax.adam(RATE)
    state = lazy.init_state(jnp.zeros(2), {"table": jnp.zeros((100_003, 2))}, optimizer)
    batch = {"ids": jnp.array([1, 5]), "where": jnp.array([True, True]), "g": jnp.ones((2, 2))}
    step = lazy.make_step(slope, optimizer, named)
    jaxpr = jax.make_jaxpr(lambda s, b: step(s, b, key=jax.random.key(0)))(state, batch)
    whole = [
        eqn.primitive.name
        for eqn in every_equation(jaxpr.jaxpr)
        if any(100_003 in getattr(v.aval, "shape", ()) for v in eqn.outvars)
    ]
    assert set(whole) <= {"scatter", "pjit", "jit"}
    once = jax.jit(chex.assert_max_traces(step, n=1))
    for k in range(3):
        state, _ = once(state, batch, key=jax.random.key(k))


def every_equation(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from every_equation(value.jaxpr)
