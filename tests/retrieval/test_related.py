"""related_ids equals brute force: an item is never its own neighbor, but its duplicates are."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.retrieval import related_ids

MODULE = importlib.import_module("jaxrec.retrieval._related")  # the private module, whose constant is changed below


def brute_force(x, item, k):
    distances, ids = [], []
    for i in item:
        distance = ((x.astype(np.float64) - x[i].astype(np.float64)) ** 2).sum(1)
        distance[i] = np.inf
        order = np.argsort(distance, kind="stable")[:k]
        distances.append(distance[order])
        ids.append(order)
    return np.array(distances), np.array(ids)


@pytest.mark.parametrize("k", [1, 6, 18])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("differences", [1, 200, 2**22], ids=lambda n: f"{n} differences in memory")
def test_related_ids_equal_brute_force_with_many_ties(seed, k, differences, monkeypatch):
    monkeypatch.setattr(MODULE, "DIFFERENCES", differences)  # so that the catalog is searched in blocks
    rng = np.random.default_rng(seed)
    x, item = np.float32(rng.integers(-1, 2, size=(19, 3))), rng.integers(19, size=5).astype(np.int32)
    distances, ids = related_ids(jnp.asarray(x), jnp.asarray(item), k)
    expected, order = brute_force(x, item, k)
    assert len(np.unique(expected)) < 13, "the test needs ties"
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(ids, order)


def test_the_films_of_the_lecture_notes():
    x = jnp.array([[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]])
    distances, ids = related_ids(x, jnp.array([4]), 4)
    assert ids.tolist() == [[3, 0, 2, 1]]
    squares = [0.1**2 + 0.1**2, 0.9**2 + 0.9**2, 0.99**2 + 0.9**2, 1.0**2 + 0.89**2]
    np.testing.assert_allclose(distances, [squares], rtol=1e-5)


def test_the_item_itself_is_left_out_but_its_duplicates_are_listed():
    x = jnp.array([[1.0, 2.0], [5.0, 5.0], [1.0, 2.0], [1.0, 2.0], [1.0, 3.0]])
    distances, ids = related_ids(x, jnp.array([2, 0, 3]), 4)
    assert ids.tolist() == [[0, 3, 4, 1], [2, 3, 4, 1], [0, 2, 4, 1]]
    assert distances.tolist() == [[0, 0, 1, 16 + 9]] * 3
    assert not np.signbit(distances).any()


def test_all_items_can_be_queried_at_once():
    x = np.float32(np.random.default_rng(0).integers(-2, 3, size=(11, 2)))
    ids = np.asarray(related_ids(jnp.asarray(x), jnp.arange(11), 10)[1])
    assert [sorted([i, *row]) for i, row in enumerate(ids.tolist())] == [list(range(11))] * 11


def test_near_neighbors_far_from_the_origin_are_distinguished():
    # in float32, ‖x‖^2 + ‖x'‖^2 - 2 x . x' would lose these distances to rounding
    x = np.float32([[40000.0], [40000.25], [40001.0], [39999.5]])
    distances, ids = related_ids(jnp.asarray(x), jnp.array([0]), 3)
    assert ids.tolist() == [[1, 3, 2]]
    assert distances.tolist() == [[0.25**2, 0.5**2, 1.0]]


def test_features_of_dimension_zero_are_all_equal():
    assert related_ids(jnp.zeros((4, 0)), jnp.array([1]), 3)[1].tolist() == [[0, 2, 3]]


def test_in_a_catalog_of_two_items_each_is_the_others_neighbor():
    distances, ids = related_ids(jnp.array([[0.0], [3.0]]), jnp.array([0, 1]), 1)
    assert (distances.tolist(), ids.tolist()) == ([[9], [9]], [[1], [0]])


@pytest.mark.parametrize("k", [0, -1, 4, 5])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=rf"^k: expected between 1 and 3, the other items of the catalog, got {k}"):
        related_ids(jnp.ones((4, 2)), jnp.array([0]), k)


@pytest.mark.parametrize("shapes", [((4,), (1,)), ((1, 4, 2), (1,)), ((4, 2), (1, 1))], ids=str)
@pytest.mark.usefixtures("as_users_run")
def test_arguments_of_wrong_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"^expected x \[n_items, d\] and item .*, got shapes"):
        related_ids(jnp.ones(shapes[0]), jnp.zeros(shapes[1], jnp.int32), 1)


@pytest.mark.parametrize("item", [2, np.int64(2), jnp.array(2)], ids=["int", "numpy", "jax"])
@pytest.mark.usefixtures("as_users_run")
def test_one_item_gives_its_row_of_the_result_for_several(item):
    x = jnp.array([[0.0], [1.0], [3.0], [-1.5]])
    distances, ids = related_ids(x, item, 2)
    assert (distances.tolist(), ids.tolist()) == ([4, 9], [1, 0])


@pytest.mark.parametrize("item", [[0, 4], [-1], [2**31 - 1]], ids=str)
def test_an_item_out_of_range_is_refused(item):
    with pytest.raises(ValueError, match=r"^item: expected ids in \[0, 4\), got"):
        related_ids(jnp.ones((4, 2)), jnp.array(item), 1)


def test_related_ids_work_under_jit():
    x = np.float32(np.random.default_rng(5).integers(-2, 3, size=(9, 2)))
    distances, ids = jax.jit(lambda x, item: related_ids(x, item, 4))(jnp.asarray(x), jnp.array([3, 3, 8]))
    expected, order = brute_force(x, [3, 3, 8], 4)
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(ids, order)


def test_float64_features_are_compared_in_float64():
    with jax.enable_x64(True):
        x = jnp.array([[0.0], [1 + 1e-12], [1.0]], jnp.float64)
        distances, ids = related_ids(x, jnp.array([0]), 2)
        assert distances.dtype == jnp.float64
        assert ids.tolist() == [[2, 1]]


def test_bfloat16_features_are_compared_in_float32():
    x = np.float32(np.random.default_rng(6).integers(-2, 3, size=(9, 2)))
    distances, ids = related_ids(jnp.asarray(x, jnp.bfloat16), jnp.array([0, 5]), 4)
    expected, order = brute_force(x, [0, 5], 4)
    assert distances.dtype == jnp.float32
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(ids, order)
