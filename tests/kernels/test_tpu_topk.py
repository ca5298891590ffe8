"""The TPU kernel of the group maxima: interpreted on the CPU it equals NumPy, and it lowers for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu

from jaxrec.kernels.topk import GROUP_ITEMS
from jaxrec.kernels.tpu_topk import TILE_ITEMS, TILE_QUERIES, group_maxima

pytestmark = pytest.mark.usefixtures("no_races")
STRICT = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan")


def integer_vectors(n, m, d, seed=0):
    """Queries and items of small integers: no sum is rounded, and many scores tie."""
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.integers(-3, 4, (rows, d)), jnp.float32) for rows in (n, m))


def maxima_of_all_scores(queries, items, allowed):
    """The largest score of each group of items, from the full matrix of scores."""
    scores = np.asarray(items) @ np.asarray(queries).T
    if allowed is not None:
        scores = np.where(np.asarray(allowed)[:, None], scores, -np.inf)
    padded = np.full((-(-len(items) // GROUP_ITEMS) * GROUP_ITEMS, len(queries)), -np.inf, np.float32)
    padded[: len(items)] = scores
    return padded.reshape(-1, GROUP_ITEMS, len(queries)).max(axis=1)


# One item; a partial group in a partial block; one full block; a full and a partial block; features that fill the lanes
# of a TPU; more features; more queries than one tile holds.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (1, 1, 1),
        (3, 45, 4),
        (2, TILE_ITEMS, 8),
        (5, TILE_ITEMS + 77, 3),
        (2, 700, 128),
        (2, 300, 520),
        (TILE_QUERIES + 3, 70, 4),
    ],
)
@pytest.mark.parametrize("filtered", [False, True])
def test_group_maxima_equal_the_maxima_of_all_scores(n, m, d, filtered):
    queries, items = integer_vectors(n, m, d)
    allowed = jnp.asarray(np.random.default_rng(1).random(m) < 0.7) if filtered else None
    found = group_maxima(queries, items, allowed, interpret=STRICT)
    np.testing.assert_array_equal(found, maxima_of_all_scores(queries, items, allowed))
    assert found.dtype == jnp.float32


def test_a_group_without_allowed_items_has_minus_infinity_and_nan_of_masked_items_changes_nothing():
    queries, items = integer_vectors(3, 3 * GROUP_ITEMS, 4)
    allowed = jnp.ones(3 * GROUP_ITEMS, bool).at[GROUP_ITEMS : 2 * GROUP_ITEMS].set(False).at[5].set(False)
    spoiled = jnp.where(allowed[:, None], items, jnp.nan)
    found = group_maxima(queries, spoiled, allowed, interpret=STRICT)
    assert (found[1] == -jnp.inf).all()
    np.testing.assert_array_equal(found, maxima_of_all_scores(queries, items, allowed))


def test_items_in_half_precision_are_scored_in_float32():
    queries, items = integer_vectors(3, 50, 4)
    found = group_maxima(queries + 0.001, items.astype(jnp.bfloat16), interpret=STRICT)
    np.testing.assert_allclose(found, maxima_of_all_scores(queries + 0.001, items, None), rtol=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(0, 5, 2), (2, 0, 2), (2, 40, 0)])
def test_without_queries_items_or_features_the_maxima_are_empty_or_zero(n, m, d):
    found = group_maxima(jnp.ones((n, d)), jnp.ones((m, d)), jnp.arange(m) < 35)
    np.testing.assert_array_equal(
        found, np.where(np.arange(-(-m // GROUP_ITEMS))[:, None] < 2, np.zeros((1, n)), -np.inf)
    )


@pytest.mark.parametrize(("n", "m", "d"), [(64, 100_001, 32), (1000, 5000, 128), (1, 40, 3)])
@pytest.mark.parametrize("filtered", [False, True])
def test_it_lowers_for_a_tpu_without_padding_the_catalog(n, m, d, filtered):
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    allowed = [jax.ShapeDtypeStruct((m,), bool)] if filtered else []
    text = jax.jit(group_maxima).trace(f32(n, d), f32(m, d), *allowed).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    assert "stablehlo.pad" not in text


def test_it_can_be_exported_for_any_number_of_queries():
    (n,) = export.symbolic_shape("n")
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = export.export(jax.jit(group_maxima), platforms=["tpu"])(f32(n, 4), f32(100, 4))
    assert str(exported.out_avals[0].shape) == "(4, n)"


def test_vmap_equals_a_loop():
    queries, items = integer_vectors(6, 100, 4)
    batch = queries.reshape(2, 3, 4)
    # interpret=True: the TPU interpreter cannot vmap a grid whose parallel dimensions are declared.
    found = jax.vmap(lambda queries: group_maxima(queries, items, interpret=True))(batch)
    np.testing.assert_array_equal(found, [maxima_of_all_scores(queries, items, None) for queries in batch])
    traced = jax.jit(jax.vmap(group_maxima, in_axes=(0, None))).trace(batch, items)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.usefixtures("x64")
def test_it_lowers_for_a_tpu_with_x64_enabled():
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.jit(group_maxima).trace(f32(5, 4), f32(1000, 4), jax.ShapeDtypeStruct((1000,), bool))
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
