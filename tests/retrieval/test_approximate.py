"""The approximate index behind top_k: the exact answer where it searches all, its measured recall where it does not."""

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
def whole(items):
    """An index that looks everywhere: every list of an inverted file."""
    return approximate.build_index(items, "IVF8,Flat", "nprobe=8")


def test_an_index_that_looks_everywhere_is_exact(items, queries, whole):
    for options in (
        {},
        {"exclude": (jnp.tile(jnp.arange(40), (9, 1)), jnp.ones((9, 40), bool))},
        {"exclude": (jnp.zeros((9, 5), jnp.int32), jnp.zeros((9, 5), bool))},
        {"allowed": jnp.arange(600) % 7 == 0},
    ):
        scores, ids = top_k(queries, whole, 12, **options)
        expected_scores, expected_ids = top_k(queries, items, 12, **options)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
        np.testing.assert_array_equal(ids, expected_ids)
    scores, ids = top_k(queries[0], whole, 3)
    np.testing.assert_array_equal(ids, top_k(queries[0], items, 3)[1])
    assert approximate.measure_recall(whole, queries, 10) == 1


def test_places_that_cannot_be_filled_stay_empty(queries, whole):
    scores, ids = top_k(queries, whole, 5, allowed=jnp.arange(600) < 2)
    assert (np.asarray(scores[:, 2:]) == -np.inf).all()
    assert (np.asarray(ids[:, 2:]) == 0).all()
    assert (np.sort(np.asarray(ids[:, :2]), axis=1) == [0, 1]).all()


def test_ties_go_to_the_lowest_id():
    items = jnp.ones((50, 2))
    index = approximate.build_index(items, "Flat", "")
    np.testing.assert_array_equal(top_k(items[0], index, 50)[1], np.arange(50))


def test_less_effort_finds_less_and_the_recall_says_how_much(items, queries):
    little = approximate.build_index(items, "IVF64,Flat", "nprobe=1")
    _, exact = top_k(queries, items, 10)
    scores, found = top_k(queries, little, 10)
    share = np.mean(
        [
            len(set(e.tolist()) & set(f[s > -np.inf].tolist())) / 10
            for e, f, s in zip(exact, np.asarray(found), np.asarray(scores), strict=True)
        ]
    )
    assert approximate.measure_recall(little, queries, 10) == pytest.approx(share)
    assert share < 1
    assert len(little) == 600


def test_what_is_refused(items, queries, whole, monkeypatch):
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda q: top_k(q, whole, 3))(queries)
    with pytest.raises(ValueError, match="an index has its own"):
        top_k(queries, whole, 3, score=negative_squared_distance)
    with pytest.raises(ValueError, match="of one dimension"):
        top_k(queries[:, :5], whole, 3)
    with pytest.raises(ValueError, match="between 1 and"):
        top_k(queries, whole, 601)
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
