"""The TPU's cost on dense ratings, interpreted on the CPU, is the formula's in NumPy; and it lowers for a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxrec.kernels import tpu_cost
from jaxrec.kernels.tpu_cost import cost_and_sums, half_squared_error, logistic
from jaxrec.losses import pointwise

STRICT = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan")


@pytest.fixture(autouse=True)
def _no_races(capfd):
    """The interpreter prints the races that it finds; an exception leaves its simulated memory behind."""
    yield
    pltpu.reset_tpu_interpret_mode_state()
    assert "RACE" not in capfd.readouterr().out


@pytest.fixture
def small(monkeypatch):
    """Tiles of a few entries: the same paths as at 512 x 512 in a fraction of the time."""
    monkeypatch.setattr(tpu_cost, "TILE_ITEMS", 8)
    monkeypatch.setattr(tpu_cost, "TILE_USERS", 4)


def draw(n_items, n_users, d, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    y, r = rng.integers(0, 2, (n_items, n_users)).astype(np.float32), rng.random((n_items, n_users)) < 0.6
    return normal(n_users, d), normal(n_users), normal(n_items, d), normal(n_items), y, r


def by_formula(w, b, x, c, y, r, loss):
    w, b, x, c, y = (array.astype(float) for array in (w, b, x, c, y))
    z = x @ w.T + b[None, :] + c[:, None]
    if loss is logistic:
        each, slope = np.log1p(np.exp(z)) - y * z, 1 / (1 + np.exp(-z)) - y
    else:
        each, slope = 0.5 * (z - y) ** 2, z - y
    e = np.where(r, slope, 0)
    return np.sum(each[r]), e.T @ x, e.sum(axis=0), e @ w, e.sum(axis=1)


def check(given, loss=half_squared_error, clean=None):
    found = cost_and_sums(*map(jnp.asarray, given), loss=loss, interpret=STRICT)
    for ours, right in zip(found, by_formula(*(clean or given), loss), strict=True):
        assert ours.shape == np.shape(right)
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
# one entry; ragged tiles both ways; whole tiles; one tile that is the whole
@pytest.mark.parametrize(("n_items", "n_users", "d"), [(1, 1, 1), (17, 9, 3), (16, 8, 2), (5, 3, 4)])
@pytest.mark.parametrize("loss", [half_squared_error, logistic])
@pytest.mark.usefixtures("small")
def test_value_and_sums_are_the_formulas(n_items, n_users, d, loss):
    check(draw(n_items, n_users, d), loss)


@pytest.mark.slow
def test_at_the_sizes_of_a_tpu():
    check(draw(tpu_cost.TILE_ITEMS + 3, 130, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_what_is_masked_is_inert_and_empty_items_and_users_have_sums_of_zero():
    clean = *_, y, r = draw(10, 6, 2)
    r[3], r[:, 5] = False, False
    check((*clean[:4], np.where(r, y, np.nan), r), clean=clean)
    found = cost_and_sums(*map(jnp.asarray, (*clean[:5], np.zeros_like(r))), interpret=STRICT)
    assert all((part == 0).all() for part in found)


def test_no_items_or_no_users():
    for n_items, n_users in [(0, 3), (3, 0)]:
        found = cost_and_sums(*map(jnp.asarray, draw(n_items, n_users, 2)))
        assert [part.shape for part in found] == [(), (n_users, 2), (n_users,), (n_items, 2), (n_items,)]
        assert all((part == 0).all() for part in found)


def test_the_losses_are_those_of_jaxrec():
    z, y = jnp.asarray([-100.0, -2.0, 0.0, 3.0, 100.0]), jnp.asarray([1.0, 0.0, 1.0, 0.5, 0.0])
    for ours, theirs, slope in [
        (half_squared_error, pointwise.half_squared_error, pointwise.half_squared_error.slope),
        (logistic, pointwise.logistic, pointwise.logistic.slope),
    ]:
        np.testing.assert_allclose(jnp.sum(ours(z, y)[0]), theirs(z, y).sum, rtol=1e-6)
        np.testing.assert_allclose(ours(z, y)[1], slope(z, y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("n_items", "n_users", "d"), [(1682, 943, 10), (600, 1000, 128), (5, 4, 2)])
@pytest.mark.parametrize("loss", [half_squared_error, logistic])
def test_it_lowers_for_a_tpu_and_holds_no_errors(n_items, n_users, d, loss):
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    tables = f32(n_users, d), f32(n_users), f32(n_items, d), f32(n_items)
    ratings = f32(n_items, n_users), jax.ShapeDtypeStruct((n_items, n_users), bool)
    traced = jax.jit(partial(cost_and_sums, loss=loss)).trace(*tables, *ratings)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 2
    assert "stablehlo.dot" not in text


@pytest.mark.slow
def test_vmap_is_a_loop():
    w, *others = given = draw(9, 5, 2)
    b, x, c, y, r = map(jnp.asarray, others)
    of_w = lambda w, interpret=False: cost_and_sums(w, b, x, c, y, r, interpret=interpret)
    batch = jnp.asarray([w, 2 * w])
    # plain interpretation: the TPU's interpreter has no vmap of a grid that says which steps are parallel
    found = jax.vmap(lambda w: of_w(w, True))(batch)
    for ours, right in zip(found, by_formula(2 * w, *given[1:], half_squared_error), strict=True):
        np.testing.assert_allclose(ours[1], right, rtol=1e-5, atol=1e-5)
    assert "tpu_custom_call" in jax.jit(jax.vmap(of_w)).trace(batch).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.usefixtures("x64")
def test_it_lowers_where_numbers_are_64_bits_by_default():
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    structs = f32(5, 2), f32(5), f32(6, 2), f32(6), f32(6, 5), jax.ShapeDtypeStruct((6, 5), bool)
    text = jax.jit(cost_and_sums).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
