"""Normal equations and the dual of many padded rows against NumPy, one row at a time."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import chunks, least_squares
from jaxrec.kernels.least_squares import Lists

ROWS, LENGTH, TABLE, D = 7, 5, 11, 3


def random_lists(*, weights, seed=0, dtype=np.float64):
    """A table and padded rows: one empty, one full; NaN and infinity are masked, and some weights are 0."""
    rng = np.random.default_rng(seed)
    where = rng.random((ROWS, LENGTH)) < 0.6
    where[0], where[1] = False, True
    y = np.where(where, rng.normal(size=(ROWS, LENGTH)), np.nan)
    weight = np.where(where, rng.uniform(0, 2, (ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.8), np.inf)
    other = jnp.asarray(rng.integers(0, TABLE, (ROWS, LENGTH)), jnp.int32)
    lists = Lists(other, jnp.asarray(y, dtype), jnp.asarray(where), jnp.asarray(weight, dtype) if weights else None)
    return jnp.asarray(rng.normal(size=(TABLE, D)), dtype), lists


def entries_of_rows(table, lists, intercept):
    """(x, y, weights) of every row's unmasked entries, as NumPy arrays."""
    for other, y, where, weight in zip(
        lists.other, lists.y, lists.where, lists.y * 0 + 1 if lists.weights is None else lists.weights, strict=True
    ):
        x = np.asarray(table)[np.asarray(other)[np.asarray(where)]]
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1) if intercept else x
        yield x, np.asarray(y)[np.asarray(where)], np.asarray(weight)[np.asarray(where)]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
def test_normal_equations_equal_the_sums_over_entries(x64, monkeypatch, platform, intercept, weights, rows_per_chunk):
    monkeypatch.setitem(least_squares.CHUNK_FLOATS, platform, rows_per_chunk * LENGTH * D)
    table, lists = random_lists(weights=weights)
    gram, rhs, sums = least_squares.list_normal_equations(table, lists, intercept=intercept, platform=platform)
    assert len(rhs) == 1 + intercept
    for n, (x, y, w) in enumerate(entries_of_rows(table, lists, intercept=False)):
        np.testing.assert_allclose(gram[n], x.T @ (w[:, None] * x), atol=1e-12)
        np.testing.assert_allclose(rhs[0][n], x.T @ (w * y), atol=1e-12)
        np.testing.assert_allclose(sums[n], [(w * y * y).sum(), (w * y).sum(), w.sum()], atol=1e-12)
        if intercept:
            np.testing.assert_allclose(rhs[1][n], x.T @ w, atol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_the_dual_has_the_solution_of_the_normal_equations(x64, platform, intercept, weights, free):
    table, lists = random_lists(weights=weights)
    k = D + intercept
    precision = jnp.asarray(np.random.default_rng(4).uniform(0.5, 2, (ROWS, k)))
    precision = precision.at[:, D:].set(0.0) if free else precision  # an unpenalized intercept
    found = least_squares.dual_least_squares(table, lists, precision, intercept=intercept, platform=platform)
    for n, (x, y, w) in enumerate(entries_of_rows(table, lists, intercept)):
        a = x.T @ (w[:, None] * x) + np.diag(precision[n])
        v = np.linalg.lstsq(a, x.T @ (w * y), rcond=None)[0]
        np.testing.assert_allclose(found.v[n], v, atol=1e-9)
        objective = ((w * (x @ v - y) ** 2).sum() + v @ np.diag(precision[n]) @ v) / 2
        np.testing.assert_allclose(found.objective[n], objective, atol=1e-9)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_derivative_in_a_weight_equals_finite_differences(x64, platform):
    table, lists = random_lists(weights=True)

    def objective(weights):
        weighted = lists._replace(weights=weights)
        return jnp.sum(
            jnp.sin(least_squares.list_normal_equations(table, weighted, intercept=True, platform=platform)[0])
        )

    weights = jnp.where(lists.where, lists.weights, 1.0)
    gradient, step = jax.grad(objective)(weights), 1e-6
    at = tuple(np.argwhere(np.asarray(lists.where & (weights > 0)))[2])
    difference = (objective(weights.at[at].add(step)) - objective(weights.at[at].add(-step))) / (2 * step)
    np.testing.assert_allclose(gradient[at], difference, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("n", "size"), [(1, 4), (4, 4), (5, 4), (8, 4), (9, 4), (7, 1)])
def test_by_chunks_equals_the_function_of_all_rows(n, size):
    rows = {"a": jnp.arange(n), "b": jnp.arange(2.0 * n).reshape(n, 2)}
    traced_lengths = []

    def f(chunk):
        traced_lengths.append(len(chunk["a"]))
        return chunk["a"] * 2, chunk["b"].sum(axis=1)

    doubled, sums = chunks.by_chunks(f, rows, size)
    np.testing.assert_array_equal(doubled, 2 * np.arange(n))
    np.testing.assert_array_equal(sums, np.arange(2.0 * n).reshape(n, 2).sum(axis=1))
    # More than one chunk: traced once for the shapes of the results, and once as the body of the loop.
    assert traced_lengths == ([n] if n <= size else 2 * [size])


@pytest.mark.parametrize("size", [1, 3, 4, 6, 30])
@pytest.mark.parametrize("lengths", [(2,), (7,), (1, 2, 9, 1, 1, 4)])
def test_each_by_chunks_equals_the_functions_of_all_rows(x64, lengths, size):
    """Values, derivatives and vmap; the parts are wide or narrow, and longer or shorter than a chunk."""
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(n, 2 + n))) for n in lengths]
    lengths_of_results = []

    def run(scale, parts, in_chunks):
        f = lambda part: jnp.sum(jnp.exp(scale * part), axis=1)

        def then(sums):  # a row of padding must not be 0: the derivative in `scale` would be NaN
            lengths_of_results.append(len(sums))
            return {"log": scale * jnp.log(sums), "both": jnp.stack([sums, 2 * sums], axis=1)}

        return chunks.each_by_chunks(f, then, parts, size) if in_chunks else [then(f(part)) for part in parts]

    scale = jnp.asarray(0.7)
    loss = lambda *args: sum(jnp.sum(each["log"] * each["both"][:, 1]) for each in run(*args))

    @partial(jax.jit, static_argnums=2)  # one program per case instead of twenty
    def values_vmap_and_gradients(scale, parts, in_chunks):
        batch = jax.vmap(lambda scale: run(scale, parts, in_chunks))(jnp.array([0.5, 1.0]))
        return run(scale, parts, in_chunks), batch, jax.grad(loss, argnums=(0, 1))(scale, parts, in_chunks)

    found = values_vmap_and_gradients(scale, parts, True)
    assert max(lengths_of_results) <= size
    assert len(found[0]) == len(lengths)
    chex.assert_trees_all_close(found, values_vmap_and_gradients(scale, parts, False), rtol=1e-12)


def test_each_by_chunks_of_no_parts_is_empty():
    assert chunks.each_by_chunks(jnp.sum, jnp.sum, [], 4) == []


@pytest.mark.slow
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_the_tpus_form_equals_the_cpus(monkeypatch, intercept, weights):
    from jax.experimental.pallas import tpu as pltpu

    from jaxrec.kernels import tpu_gram

    kernel = tpu_gram.tpu_normal_equations
    interpreted = lambda *args: kernel(*args, interpret=pltpu.InterpretParams(out_of_bounds_reads="raise"))
    monkeypatch.setattr(tpu_gram, "tpu_normal_equations", interpreted)
    table, lists = random_lists(weights=weights, dtype=np.float32)
    found = least_squares.list_normal_equations(table, lists, intercept=intercept, platform="tpu")
    expected = least_squares.list_normal_equations(table, lists, intercept=intercept, platform="cpu")
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_lowered_for_a_tpu_the_program_has_the_pallas_kernel():
    table, lists = random_lists(weights=True, dtype=np.float32)
    equations = lambda platform: (
        lambda table, lists: least_squares.list_normal_equations(table, lists, intercept=True, platform=platform)
    )
    lowered = lambda platform: (
        jax.jit(equations(platform)).trace(table, lists).lower(lowering_platforms=("tpu",)).as_text()
    )
    assert "tpu_custom_call" in lowered("tpu")
    assert "tpu_custom_call" not in lowered("gpu")
