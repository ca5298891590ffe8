"""The TPU kernel of the normal equations: interpreted on the CPU it equals a NumPy loop, and it lowers for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxrec.kernels import tpu_gram
from jaxrec.kernels.tpu_gram import tpu_normal_equations

pytestmark = pytest.mark.usefixtures("no_races")
STRICT = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan")


@pytest.fixture
def small_buffers(monkeypatch):
    """Buffers of 4 entries and steps of 8: the same code paths as with full sizes, in a fraction of the time."""
    monkeypatch.setattr(tpu_gram, "BUFFER_ENTRIES", 4)
    monkeypatch.setattr(tpu_gram, "STEP_ENTRIES", 8)


def random_rows(r, length, n, d, seed=0):
    """(table [n, d], other, value, where, weights [r, length])."""
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


def assert_equals_loop(table, other, value, where, weights, expected_of=None):
    """Checks the kernel against the loop over the same rows, or over `expected_of`."""
    rows = table, other, value, where, weights
    gram, rhs = tpu_normal_equations(*(None if a is None else jnp.asarray(a) for a in rows), interpret=STRICT)
    expected_gram, expected_rhs = by_loop(*(expected_of or rows))
    np.testing.assert_allclose(gram, expected_gram, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rhs, expected_rhs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
# Rows: one, several, more than one step. Lengths: full and partial buffers, one and several steps.
@pytest.mark.parametrize(
    ("r", "length", "weighted"),
    [(1, 1, False), (3, 4, True), (9, 3, False), (2, 7, True), (3, 12, False), (2, 21, True)],
)
@pytest.mark.usefixtures("small_buffers")
def test_normal_equations_equal_a_loop(r, length, weighted):
    table, other, value, where, weights = random_rows(r, length, 11, 3)
    assert_equals_loop(table, other, value, where, weights if weighted else None)


@pytest.mark.slow
def test_normal_equations_equal_a_loop_with_buffers_of_full_size():
    table, other, value, where, weights = random_rows(2, 130, 40, 5)
    where[0, 100:] = False  # one row fits in a buffer, the other needs two
    assert_equals_loop(table, other, value, where, weights)


@pytest.mark.usefixtures("small_buffers")
def test_empty_rows_do_not_affect_the_others():
    table, other, value, where, weights = random_rows(10, 9, 6, 2)
    where[[0, 4, 9]] = False
    assert_equals_loop(table, other, value, where, weights)


@pytest.mark.usefixtures("small_buffers")
def test_masked_entries_and_entries_of_weight_zero_change_nothing():
    table, other, value, where, weights = clean = random_rows(4, 6, 8, 3)
    other[~where], other[where] = 0, other[where] % 7 + 1  # only masked entries refer to row 0
    spoiled = table.copy(), other, np.where(where, value, np.nan), where, np.where(where, weights, np.nan)
    spoiled[0][0] = np.inf
    assert_equals_loop(*spoiled, expected_of=clean)
    zero_weights = np.where(where, weights, 0)
    assert_equals_loop(spoiled[0], other, spoiled[2], np.ones_like(where), zero_weights, expected_of=clean)


@pytest.mark.usefixtures("small_buffers")
def test_a_mask_of_floats_and_a_table_in_half_precision_are_accepted():
    table, other, value, where, _ = random_rows(2, 5, 8, 3)
    half = jnp.asarray(table, jnp.bfloat16)
    gram, _ = tpu_normal_equations(
        half, jnp.asarray(other), jnp.asarray(value), jnp.asarray(where, jnp.float32), interpret=STRICT
    )
    expected, _ = by_loop(np.asarray(half.astype(jnp.float32)), other, value, where, None)
    np.testing.assert_allclose(gram, expected, rtol=1e-5, atol=1e-5)
    assert gram.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.usefixtures("small_buffers")
def test_vmap_equals_a_loop():
    table, other, value, where, _ = map(jnp.asarray, random_rows(2, 5, 8, 3))
    tables = jnp.stack([table, 2 * table])
    run = lambda table, interpret=False: tpu_normal_equations(table, other, value, where, interpret=interpret)
    gram, rhs = jax.vmap(lambda table: run(table, STRICT))(tables)
    expected_gram, expected_rhs = by_loop(*map(np.asarray, (table, other, value, where)), None)
    np.testing.assert_allclose(gram, [expected_gram, 4 * expected_gram], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rhs, [expected_rhs, 2 * expected_rhs], rtol=1e-5, atol=1e-5)
    assert "tpu_custom_call" in jax.jit(jax.vmap(run)).trace(tables).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(("r", "length", "d"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_without_rows_entries_or_features_the_sums_are_zero(r, length, d):
    zeros = jnp.zeros((r, length))
    gram, rhs = tpu_normal_equations(jnp.ones((4, d)), zeros.astype(jnp.int32), zeros, zeros == 0)
    np.testing.assert_array_equal(gram, np.zeros((r, d, d)))
    np.testing.assert_array_equal(rhs, np.zeros((r, d)))


@pytest.mark.parametrize(("r", "length", "d"), [(1001, 300, 128), (1000, 16, 33), (3, 5000, 64)])
def test_it_lowers_for_a_tpu_without_a_gather(r, length, d):
    rows = lambda dtype: jax.ShapeDtypeStruct((r, length), dtype)
    structs = jax.ShapeDtypeStruct((5000, d), jnp.float32), rows(jnp.int32), rows(jnp.float32), rows(bool)
    text = jax.jit(tpu_normal_equations).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    assert "stablehlo.gather" not in text


@pytest.mark.usefixtures("x64")
def test_it_lowers_for_a_tpu_with_x64_enabled():
    rows = lambda dtype: jax.ShapeDtypeStruct((9, 300), dtype)
    structs = jax.ShapeDtypeStruct((50, 4), jnp.float32), rows(jnp.int32), rows(jnp.float32), rows(bool)
    text = jax.jit(tpu_normal_equations).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
