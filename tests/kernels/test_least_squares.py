"""Normal equations and conjugate gradients of many rows, against one row at a time in NumPy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import chunks, least_squares
from jaxrec.kernels.least_squares import Lists

ROWS, LENGTH, TABLE, D = 7, 5, 11, 3


def draw(*, weights, seed=0, dtype=np.float64):
    """A table and padded rows: one empty, one full, NaN and huge numbers under the mask, weights of 0 too."""
    rng = np.random.default_rng(seed)
    where = rng.random((ROWS, LENGTH)) < 0.6
    where[0], where[1] = False, True
    y = np.where(where, rng.normal(size=(ROWS, LENGTH)), np.nan)
    weight = np.where(where, rng.uniform(0, 2, (ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.8), np.inf)
    other = jnp.asarray(rng.integers(0, TABLE, (ROWS, LENGTH)), jnp.int32)
    lists = Lists(other, jnp.asarray(y, dtype), jnp.asarray(where), jnp.asarray(weight, dtype) if weights else None)
    return jnp.asarray(rng.normal(size=(TABLE, D)), dtype), lists


def rows_of(table, lists, intercept):
    """(x, y, weights) of every row's entries, by NumPy."""
    for other, y, where, weight in zip(
        lists.other, lists.y, lists.where, lists.y * 0 + 1 if lists.weights is None else lists.weights, strict=True
    ):
        x = np.asarray(table)[np.asarray(other)[np.asarray(where)]]
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1) if intercept else x
        yield x, np.asarray(y)[np.asarray(where)], np.asarray(weight)[np.asarray(where)]


@pytest.mark.parametrize("on", ["cpu", "gpu"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_normal_equations_are_the_sums(x64, monkeypatch, on, intercept, weights, at_once):
    monkeypatch.setitem(least_squares.CHUNK_FLOATS, on, at_once * LENGTH * D)
    table, lists = draw(weights=weights)
    gram, rhs, sums = least_squares.list_normal_equations(table, lists, intercept=intercept, on=on)
    assert len(rhs) == 1 + intercept
    for n, (x, y, w) in enumerate(rows_of(table, lists, intercept=False)):
        np.testing.assert_allclose(gram[n], x.T @ (w[:, None] * x), atol=1e-12)
        np.testing.assert_allclose(rhs[0][n], x.T @ (w * y), atol=1e-12)
        np.testing.assert_allclose(sums[n], [(w * y * y).sum(), (w * y).sum(), w.sum()], atol=1e-12)
        if intercept:
            np.testing.assert_allclose(rhs[1][n], x.T @ w, atol=1e-12)


@pytest.mark.parametrize("on", ["cpu", "gpu"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_the_dual_is_the_same_solution(x64, on, intercept, weights, free):
    table, lists = draw(weights=weights)
    k = D + intercept
    precision = jnp.asarray(np.random.default_rng(4).uniform(0.5, 2, (ROWS, k)))
    precision = precision.at[:, D:].set(0.0) if free else precision  # an unpenalized intercept
    found = least_squares.dual_least_squares(table, lists, precision, intercept=intercept, on=on)
    for n, (x, y, w) in enumerate(rows_of(table, lists, intercept)):
        a = x.T @ (w[:, None] * x) + np.diag(precision[n])
        v = np.linalg.lstsq(a, x.T @ (w * y), rcond=None)[0]
        np.testing.assert_allclose(found.v[n], v, atol=1e-9)
        right = ((w * (x @ v - y) ** 2).sum() + v @ np.diag(precision[n]) @ v) / 2
        np.testing.assert_allclose(found.objective[n], right, atol=1e-9)


@pytest.mark.parametrize("on", ["cpu", "gpu"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("at_once", [2, 100])
def test_conjugate_gradients_end_at_the_solution(x64, monkeypatch, on, intercept, weights, shared, at_once):
    monkeypatch.setitem(least_squares.CHUNK_FLOATS, on, at_once * LENGTH * D)
    table, lists = draw(weights=weights)
    k = D + intercept
    rng = np.random.default_rng(3)
    start, precision = jnp.asarray(rng.normal(size=(ROWS, k))), jnp.asarray(rng.uniform(0.5, 2, (ROWS, k)))
    root = rng.normal(size=(k, k))
    form = jnp.asarray(root @ root.T) if shared else None
    solve = lambda steps: least_squares.conjugate_gradient(
        table, lists, start, precision, form, intercept=intercept, steps=steps, on=on
    )
    done, trace = solve(3 * k), [solve(steps).objective for steps in range(k + 1)]
    assert (np.diff(np.array(trace), axis=0) <= 1e-9).all()
    for n, (x, y, w) in enumerate(rows_of(table, lists, intercept)):
        a = x.T @ (w[:, None] * x) + np.diag(precision[n]) + (root @ root.T if shared else 0)
        v = np.linalg.solve(a, x.T @ (w * y))
        np.testing.assert_allclose(done.v[n], v, atol=1e-8)
        right = ((w * (x @ v - y) ** 2).sum() + v @ (a - x.T @ (w[:, None] * x)) @ v) / 2
        np.testing.assert_allclose(done.objective[n], right, atol=1e-9)
        s = np.asarray(start[n])
        before = ((w * (x @ s - y) ** 2).sum() + s @ (a - x.T @ (w[:, None] * x)) @ s) / 2
        np.testing.assert_allclose(trace[0][n], before, rtol=1e-10)


def test_rows_without_anything_stay_where_they_are_when_nothing_pulls():
    table, lists = draw(weights=False, dtype=np.float32)
    start = jnp.ones((ROWS, D))
    none = jnp.zeros((ROWS, D))
    found = least_squares.conjugate_gradient(table, lists, start, none, intercept=False, steps=3, on="cpu")
    np.testing.assert_array_equal(found.v[0], 1)
    assert np.isfinite(found.v).all()


@pytest.mark.parametrize("on", ["cpu", "gpu"])
def test_the_derivative_in_a_weight(x64, on):
    table, lists = draw(weights=True)
    objective = lambda weights: jnp.sum(
        jnp.sin(least_squares.list_normal_equations(table, lists._replace(weights=weights), intercept=True, on=on)[0])
    )
    weights = jnp.where(lists.where, lists.weights, 1.0)
    by_jax, step = jax.grad(objective)(weights), 1e-6
    at = tuple(np.argwhere(np.asarray(lists.where & (weights > 0)))[2])
    difference = (objective(weights.at[at].add(step)) - objective(weights.at[at].add(-step))) / (2 * step)
    np.testing.assert_allclose(by_jax[at], difference, rtol=1e-6)
    assert np.isfinite(by_jax).all()


@pytest.mark.parametrize(("n", "size"), [(1, 4), (4, 4), (5, 4), (8, 4), (9, 4), (7, 1)])
def test_chunks_are_the_whole(n, size):
    rows = {"a": jnp.arange(n), "b": jnp.arange(2.0 * n).reshape(n, 2)}
    seen = []

    def f(part):
        seen.append(len(part["a"]))
        return part["a"] * 2, part["b"].sum(axis=1)

    doubled, sums = chunks.by_chunks(f, rows, size)
    np.testing.assert_array_equal(doubled, 2 * np.arange(n))
    np.testing.assert_array_equal(sums, np.arange(2.0 * n).reshape(n, 2).sum(axis=1))
    assert seen == ([n] if n <= size else 2 * [size])  # traced for the results' shapes, and once as the loop's body


@pytest.mark.parametrize("size", [1, 3, 4, 6, 30])
@pytest.mark.parametrize("lengths", [(2,), (7,), (1, 2, 9, 1, 1, 4)])
def test_chunks_of_each_are_the_whole(x64, lengths, size):
    """Values, derivatives and a vmap, of parts that are wide, narrow, longer and shorter than a chunk."""
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(n, 2 + n))) for n in lengths]
    held = []

    def run(scale, parts, through):
        f = lambda part: jnp.sum(jnp.exp(scale * part), axis=1)

        def then(sums):  # of rows that are not there, and were 0, the derivative in `scale` would be NaN
            held.append(len(sums))
            return {"log": scale * jnp.log(sums), "both": jnp.stack([sums, 2 * sums], axis=1)}

        return chunks.each_by_chunks(f, then, parts, size) if through else [then(f(part)) for part in parts]

    scale = jnp.asarray(0.7)
    loss = lambda *given: sum(jnp.sum(each["log"] * each["both"][:, 1]) for each in run(*given))

    @partial(jax.jit, static_argnums=2)  # eagerly it is twenty programs a case
    def every_way(scale, parts, through):
        many = jax.vmap(lambda scale: run(scale, parts, through))(jnp.array([0.5, 1.0]))
        return run(scale, parts, through), many, jax.grad(loss, argnums=(0, 1))(scale, parts, through)

    found = every_way(scale, parts, True)
    assert max(held) <= size
    assert len(found[0]) == len(lengths)
    chex.assert_trees_all_close(found, every_way(scale, parts, False), rtol=1e-12)


def test_chunks_of_nothing_are_nothing():
    assert chunks.each_by_chunks(jnp.sum, jnp.sum, [], 4) == []


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_the_tpus_form_is_the_same(monkeypatch, intercept, weights):
    from jax.experimental.pallas import tpu as pltpu

    from jaxrec.kernels import tpu_gram

    kernel = tpu_gram.tpu_normal_equations
    interpreted = lambda *given: kernel(*given, interpret=pltpu.InterpretParams(out_of_bounds_reads="raise"))
    monkeypatch.setattr(tpu_gram, "tpu_normal_equations", interpreted)
    table, lists = draw(weights=weights, dtype=np.float32)
    found = least_squares.list_normal_equations(table, lists, intercept=intercept, on="tpu")
    right = least_squares.list_normal_equations(table, lists, intercept=intercept, on="cpu")
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_lowered_for_a_tpu_it_holds_the_kernel():
    table, lists = draw(weights=True, dtype=np.float32)
    equations = lambda on: lambda table, lists: least_squares.list_normal_equations(table, lists, intercept=True, on=on)
    lowered = lambda on: jax.jit(equations(on)).trace(table, lists).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in lowered("tpu")
    assert "tpu_custom_call" not in lowered("gpu")
