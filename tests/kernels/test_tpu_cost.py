"""The TPU kernel of the cost on dense ratings: interpreted on the CPU it equals NumPy, and it lowers for a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxrec.kernels import tpu_cost
from jaxrec.kernels.tpu_cost import cost_and_sums, half_squared_error, logistic
from jaxrec.losses import pointwise

pytestmark = pytest.mark.usefixtures("no_races")
STRICT = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan")


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 8 x 4 entries: the same code paths as with 512 x 512, in a fraction of the time."""
    monkeypatch.setattr(tpu_cost, "TILE_ITEMS", 8)
    monkeypatch.setattr(tpu_cost, "TILE_USERS", 4)


def random_problem(n_items, n_users, d, seed=0):
    """(w, b, x, c, y, where) in float32."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    y, where = rng.integers(0, 2, (n_items, n_users)).astype(np.float32), rng.random((n_items, n_users)) < 0.6
    return normal(n_users, d), normal(n_users), normal(n_items, d), normal(n_items), y, where


def by_formula(w, b, x, c, y, where, loss):
    """(cost, E' X, sums of E over items, E W, sums of E over users), with E the slopes of the loss, in float64."""
    w, b, x, c, y = (array.astype(float) for array in (w, b, x, c, y))
    z = x @ w.T + b[None, :] + c[:, None]
    if loss is logistic:
        cost, slope = np.log1p(np.exp(z)) - y * z, 1 / (1 + np.exp(-z)) - y
    else:
        cost, slope = 0.5 * (z - y) ** 2, z - y
    e = np.where(where, slope, 0)
    return np.sum(cost[where]), e.T @ x, e.sum(axis=0), e @ w, e.sum(axis=1)


def assert_equals_formula(problem, loss=half_squared_error, expected_of=None):
    """Checks the kernel against the formula of the same problem, or of `expected_of`."""
    found = cost_and_sums(*map(jnp.asarray, problem), loss=loss, interpret=STRICT)
    for part, expected in zip(found, by_formula(*(expected_of or problem), loss), strict=True):
        assert part.shape == np.shape(expected)
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
# One entry; partial tiles in both dimensions; full tiles; one partial tile.
@pytest.mark.parametrize(("n_items", "n_users", "d"), [(1, 1, 1), (17, 9, 3), (16, 8, 2), (5, 3, 4)])
@pytest.mark.parametrize("loss", [half_squared_error, logistic])
@pytest.mark.usefixtures("small_tiles")
def test_cost_and_sums_equal_the_formula(n_items, n_users, d, loss):
    assert_equals_formula(random_problem(n_items, n_users, d), loss)


@pytest.mark.slow
def test_cost_and_sums_equal_the_formula_with_tiles_of_full_size():
    assert_equals_formula(random_problem(tpu_cost.TILE_ITEMS + 3, 130, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_masked_nan_changes_nothing_and_items_and_users_without_ratings_have_sums_of_zero():
    clean = *_, y, where = random_problem(10, 6, 2)
    where[3], where[:, 5] = False, False
    assert_equals_formula((*clean[:4], np.where(where, y, np.nan), where), expected_of=clean)
    found = cost_and_sums(*map(jnp.asarray, (*clean[:5], np.zeros_like(where))), interpret=STRICT)
    assert all((part == 0).all() for part in found)


def test_without_items_or_users_the_results_are_zero():
    for n_items, n_users in [(0, 3), (3, 0)]:
        found = cost_and_sums(*map(jnp.asarray, random_problem(n_items, n_users, 2)))
        assert [part.shape for part in found] == [(), (n_users, 2), (n_users,), (n_items, 2), (n_items,)]
        assert all((part == 0).all() for part in found)


def test_the_kernels_losses_equal_the_pointwise_losses():
    z, y = jnp.asarray([-100.0, -2.0, 0.0, 3.0, 100.0]), jnp.asarray([1.0, 0.0, 1.0, 0.5, 0.0])
    for loss, expected, slope in [
        (half_squared_error, pointwise.half_squared_error, pointwise.half_squared_error.slope),
        (logistic, pointwise.logistic, pointwise.logistic.slope),
    ]:
        np.testing.assert_allclose(jnp.sum(loss(z, y)[0]), expected(z, y).sum, rtol=1e-6)
        np.testing.assert_allclose(loss(z, y)[1], slope(z, y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("n_items", "n_users", "d"), [(1682, 943, 10), (600, 1000, 128), (5, 4, 2)])
@pytest.mark.parametrize("loss", [half_squared_error, logistic])
def test_it_lowers_for_a_tpu_without_a_matrix_product_outside_the_kernel(n_items, n_users, d, loss):
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    tables = f32(n_users, d), f32(n_users), f32(n_items, d), f32(n_items)
    ratings = f32(n_items, n_users), jax.ShapeDtypeStruct((n_items, n_users), bool)
    traced = jax.jit(partial(cost_and_sums, loss=loss)).trace(*tables, *ratings)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 2
    assert "stablehlo.dot" not in text


@pytest.mark.slow
def test_vmap_equals_a_loop():
    w, *others = problem = random_problem(9, 5, 2)
    b, x, c, y, where = map(jnp.asarray, others)
    run = lambda w, interpret=False: cost_and_sums(w, b, x, c, y, where, interpret=interpret)
    batch = jnp.asarray([w, 2 * w])
    # interpret=True: the TPU interpreter cannot vmap a grid whose parallel dimensions are declared.
    found = jax.vmap(lambda w: run(w, True))(batch)
    for part, expected in zip(found, by_formula(2 * w, *problem[1:], half_squared_error), strict=True):
        np.testing.assert_allclose(part[1], expected, rtol=1e-5, atol=1e-5)
    assert "tpu_custom_call" in jax.jit(jax.vmap(run)).trace(batch).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.usefixtures("x64")
def test_it_lowers_for_a_tpu_with_x64_enabled():
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    structs = f32(5, 2), f32(5), f32(6, 2), f32(6), f32(6, 5), jax.ShapeDtypeStruct((6, 5), bool)
    text = jax.jit(cost_and_sums).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
