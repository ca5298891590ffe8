"""top_k with an approximate index is exact if the index searches everything, and has a measured recall otherwise."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.retrieval import approximate, negative_squared_distance, top_k


@pytest.fixture(scope="module")
def items():
    return jnp.asarray(np.random.default_rng(0).normal(size=(600, 6)), jnp.float32)


@pytest.fixture(scope="module")
def queries():
    return jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), jnp.float32)


@pytest.fixture(scope="module")
def exhaustive(items):
    """An index that searches every list of its inverted file, and so the full catalog."""
    return approximate.build_index(items, "IVF8,Flat", "nprobe=8")


@pytest.mark.slow
def test_an_index_that_searches_everything_is_exact(items, queries, exhaustive):
    for options in (
        {},
        {"exclude": (jnp.tile(jnp.arange(40), (9, 1)), jnp.ones((9, 40), bool))},
        {"exclude": (jnp.zeros((9, 5), jnp.int32), jnp.zeros((9, 5), bool))},
        {"allowed": jnp.arange(600) % 7 == 0},
    ):
        scores, ids = top_k(queries, exhaustive, 12, **options)
        expected_scores, expected_ids = top_k(queries, items, 12, **options)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
        np.testing.assert_array_equal(ids, expected_ids)
    scores, ids = top_k(queries[0], exhaustive, 3)
    np.testing.assert_array_equal(ids, top_k(queries[0], items, 3)[1])
    assert approximate.measure_recall(exhaustive, queries, 10) == 1


def test_positions_that_cannot_be_filled_stay_empty(queries, exhaustive):
    scores, ids = top_k(queries, exhaustive, 5, allowed=jnp.arange(600) < 2)
    assert (np.asarray(scores[:, 2:]) == -np.inf).all()
    assert (np.asarray(ids[:, 2:]) == 0).all()
    assert (np.sort(np.asarray(ids[:, :2]), axis=1) == [0, 1]).all()


def test_ties_go_to_the_lowest_id():
    items = jnp.ones((50, 2))
    index = approximate.build_index(items, "Flat", "")
    np.testing.assert_array_equal(top_k(items[0], index, 50)[1], np.arange(50))


def test_less_effort_lowers_the_measured_recall(items, queries):
    low_effort = approximate.build_index(items, "IVF64,Flat", "nprobe=1")
    _, exact = top_k(queries, items, 10)
    scores, found = top_k(queries, low_effort, 10)
    recall = np.mean(
        [
            len(set(e.tolist()) & set(f[s > -np.inf].tolist())) / 10
            for e, f, s in zip(exact, np.asarray(found), np.asarray(scores), strict=True)
        ]
    )
    assert approximate.measure_recall(low_effort, queries, 10) == pytest.approx(recall)
    assert recall < 1
    assert len(low_effort) == 600


def test_invalid_catalogs_queries_and_settings_are_refused(items, queries, exhaustive, monkeypatch):
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda q: top_k(q, exhaustive, 3))(queries)
    with pytest.raises(ValueError, match="an index has its own"):
        top_k(queries, exhaustive, 3, score=negative_squared_distance)
    with pytest.raises(ValueError, match="of one dimension"):
        top_k(queries[:, :5], exhaustive, 3)
    with pytest.raises(ValueError, match="between 1 and"):
        top_k(queries, exhaustive, 601)
    with pytest.raises(ValueError, match="kind 'NOTHING'"):
        approximate.build_index(items, "NOTHING")
    with pytest.raises(ValueError, match="finite"):
        approximate.build_index(items.at[3, 2].set(jnp.nan))
    load = builtins.__import__

    def without(name, *rest):
        if name == "faiss":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"jaxrec\[ann\]"):
        approximate.build_index(items)
