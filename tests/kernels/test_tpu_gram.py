"""The TPU's normal equations, interpreted on the CPU, are a NumPy loop's; and they lower for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxrec.kernels import tpu_gram
from jaxrec.kernels.tpu_gram import tpu_normal_equations

STRICT = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan")


@pytest.fixture(autouse=True)
def _no_races(capfd):
    """The interpreter prints the races that it finds; an exception leaves its simulated memory behind."""
    yield
    pltpu.reset_tpu_interpret_mode_state()
    assert "RACE" not in capfd.readouterr().out


@pytest.fixture
def small(monkeypatch):
    """Chunks and blocks of a few entries: the same paths as at 128 and 1024 in a fraction of the time."""
    monkeypatch.setattr(tpu_gram, "BUFFER_ENTRIES", 4)
    monkeypatch.setattr(tpu_gram, "STEP_ENTRIES", 8)


def draw(r, length, n, d, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, d)).astype(np.float32)
    other = rng.integers(0, n, (r, length)).astype(np.int32)
    value = rng.normal(size=(r, length)).astype(np.float32)
    weights = rng.uniform(0.5, 2, (r, length)).astype(np.float32)
    return table, other, value, rng.random((r, length)) < 0.7, weights


def by_loop(table, other, value, where, weights):
    (r, length), d = other.shape, table.shape[1]
    gram, rhs = np.zeros((r, d, d)), np.zeros((r, d))
    for row in range(r):
        for entry in range(length):
            if where[row, entry]:
                x, weight = table[other[row, entry]].astype(float), 1 if weights is None else weights[row, entry]
                gram[row] += weight * np.outer(x, x)
                rhs[row] += weight * value[row, entry] * x
    return gram, rhs


def check(table, other, value, where, weights, clean=None):
    given = [None if array is None else jnp.asarray(array) for array in (table, other, value, where, weights)]
    gram, rhs = tpu_normal_equations(*given, interpret=STRICT)
    right = by_loop(*(clean or (table, other, value, where, weights)))
    np.testing.assert_allclose(gram, right[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rhs, right[1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
# rows: fewer than a step's, ragged; lengths: one chunk that is whole, several, ragged, several blocks of them
@pytest.mark.parametrize(
    ("r", "length", "weighted"),
    [(1, 1, False), (3, 4, True), (9, 3, False), (2, 7, True), (3, 12, False), (2, 21, True)],
)
@pytest.mark.usefixtures("small")
def test_equations_are_those_of_a_loop(r, length, weighted):
    table, other, value, where, weights = draw(r, length, 11, 3)
    check(table, other, value, where, weights if weighted else None)


@pytest.mark.slow
def test_at_the_sizes_of_a_tpu():
    table, other, value, where, weights = draw(2, 130, 40, 5)
    where[0, 100:] = False  # a row shorter than a chunk, and one that needs two
    check(table, other, value, where, weights)


@pytest.mark.usefixtures("small")
def test_empty_rows_give_zeros_and_the_others_what_they_have():
    table, other, value, where, weights = draw(10, 9, 6, 2)
    where[[0, 4, 9]] = False
    check(table, other, value, where, weights)


@pytest.mark.usefixtures("small")
def test_what_is_masked_or_has_no_weight_is_inert():
    table, other, value, where, weights = clean = draw(4, 6, 8, 3)
    other[~where], other[where] = 0, other[where] % 7 + 1  # only padding names row 0
    dirty = table.copy(), other, np.where(where, value, np.nan), where, np.where(where, weights, np.nan)
    dirty[0][0] = np.inf
    check(*dirty, clean=clean)
    no_weight = np.where(where, weights, 0)
    check(dirty[0], other, dirty[2], np.ones_like(where), no_weight, clean=clean)


@pytest.mark.usefixtures("small")
def test_a_mask_of_numbers_and_a_table_in_half_precision():
    table, other, value, where, _ = draw(2, 5, 8, 3)
    half = jnp.asarray(table, jnp.bfloat16)
    gram, _ = tpu_normal_equations(
        half, jnp.asarray(other), jnp.asarray(value), jnp.asarray(where, jnp.float32), interpret=STRICT
    )
    right, _ = by_loop(np.asarray(half.astype(jnp.float32)), other, value, where, None)
    np.testing.assert_allclose(gram, right, rtol=1e-5, atol=1e-5)
    assert gram.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_vmap_is_one_after_the_other():
    table, other, value, where, _ = map(jnp.asarray, draw(2, 5, 8, 3))
    tables = jnp.stack([table, 2 * table])
    of_table = lambda table, interpret=False: tpu_normal_equations(table, other, value, where, interpret=interpret)
    gram, rhs = jax.vmap(lambda table: of_table(table, STRICT))(tables)
    right = by_loop(*map(np.asarray, (table, other, value, where)), None)
    np.testing.assert_allclose(gram, [right[0], 4 * right[0]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rhs, [right[1], 2 * right[1]], rtol=1e-5, atol=1e-5)
    assert "tpu_custom_call" in jax.jit(jax.vmap(of_table)).trace(tables).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(("r", "length", "d"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_add(r, length, d):
    zeros = jnp.zeros((r, length))
    gram, rhs = tpu_normal_equations(jnp.ones((4, d)), zeros.astype(jnp.int32), zeros, zeros == 0)
    np.testing.assert_array_equal(gram, np.zeros((r, d, d)))
    np.testing.assert_array_equal(rhs, np.zeros((r, d)))


@pytest.mark.parametrize(("r", "length", "d"), [(1001, 300, 128), (1000, 16, 33), (3, 5000, 64)])
def test_it_lowers_for_a_tpu_and_holds_no_gathered_features(r, length, d):
    of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    structs = of(jnp.float32, 5000, d), of(jnp.int32, r, length), of(jnp.float32, r, length), of(bool, r, length)
    text = jax.jit(tpu_normal_equations).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    assert "stablehlo.gather" not in text


@pytest.mark.usefixtures("x64")
def test_it_lowers_where_numbers_are_64_bits_by_default():
    of = lambda dtype: jax.ShapeDtypeStruct((9, 300), dtype)
    structs = jax.ShapeDtypeStruct((50, 4), jnp.float32), of(jnp.int32), of(jnp.float32), of(bool)
    text = jax.jit(tpu_normal_equations).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
