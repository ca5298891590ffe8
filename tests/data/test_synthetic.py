"""Synthetic ratings have the stated properties of the truth that they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import synthetic
from jaxrec.data.synthetic import low_rank
from jaxrec.metrics import rmse
from jaxrec.prediction import predict


def test_shapes_and_ids():
    data = low_rank(30, 20, 250, rng=0)
    ratings = data.ratings
    assert (len(ratings), ratings.n_users, ratings.n_items) == (250, 30, 20)
    assert ratings.user_ids.tolist() == list(range(1, 31))
    assert ratings.item_ids.tolist() == list(range(1, 21))
    assert data.titles.tolist() == [f"Film {k}" for k in range(1, 21)]
    assert data.name == "synthetic"


@pytest.mark.parametrize(("n_users", "n_items"), [(30, 20), (7, 40), (2, 1), (1, 2)])
def test_pairs_are_distinct_even_at_half_of_all(n_users, n_items):
    ratings = low_rank(n_users, n_items, n_users * n_items // 2, rng=1).ratings
    pairs = set(zip(ratings.user.tolist(), ratings.item.tolist(), strict=True))
    assert len(pairs) == len(ratings) == n_users * n_items // 2


def test_too_many_ratings():
    with pytest.raises(ValueError, match=r"^n_ratings: expected at most half of 30 x 20 pairs, got 301"):
        low_rank(30, 20, 301, rng=0)


def columns(data):
    return [column.tolist() for column in (data.ratings.user, data.ratings.item, data.ratings.value)]


def test_the_same_seed_gives_the_same_data():
    assert columns(low_rank(30, 20, 200, rng=3)) == columns(low_rank(30, 20, 200, rng=3))
    assert columns(low_rank(30, 20, 200, rng=3)) == columns(low_rank(30, 20, 200, rng=np.random.default_rng(3)))
    assert columns(low_rank(30, 20, 200, rng=3)) != columns(low_rank(30, 20, 200, rng=4))


@pytest.mark.parametrize("noise", [0.25, 1.0])
def test_a_perfect_model_has_the_noise_as_its_error(noise):
    clean, noisy = (low_rank(300, 200, 8000, noise=level, rng=0).ratings for level in (0.0, noise))
    assert clean.user.tolist() == noisy.user.tolist()
    error = noisy.value - clean.value
    # of 8000 normals: the error's standard deviation is noise / sqrt(8000), that of its rms noise / sqrt(16000)
    assert abs(error.mean()) < 5 * noise / np.sqrt(8000)
    assert abs(np.sqrt(np.mean(error**2)) - noise) < 5 * noise / np.sqrt(16000)


def predicted(data):
    return predict(data.truth, jnp.asarray(data.ratings.user), jnp.asarray(data.ratings.item))


@pytest.mark.parametrize("rank", [0, 1, 4, 16])
def test_the_truth_predicts_the_rating_without_noise_to_the_last_bit(rank):
    data = low_rank(300, 200, 8000, rank=rank, noise=0.0, rng=0)
    assert data.truth.w.shape == (300, rank)
    np.testing.assert_array_equal(predicted(data), data.ratings.value)
    w, b, x, c, mu = (np.asarray(table, np.float64) for table in jax.tree.leaves(data.truth))
    exact = (w[data.ratings.user] * x[data.ratings.item]).sum(1) + b[data.ratings.user] + c[data.ratings.item] + mu
    np.testing.assert_array_equal(data.ratings.value, exact, err_msg="no sum rounds")


def test_the_chunk_size_changes_nothing(monkeypatch):
    whole = low_rank(30, 20, 250, rng=5)
    monkeypatch.setattr(synthetic, "GATHER_FLOATS", 4 * 7)
    assert columns(low_rank(30, 20, 250, rng=5)) == columns(whole)


def test_the_error_of_the_truth_is_the_noise():
    data = low_rank(300, 200, 8000, noise=0.25, rng=0)
    error = rmse(predicted(data), jnp.asarray(data.ratings.value))
    assert float(error) == pytest.approx(0.25, rel=5 / np.sqrt(2 * 8000))


def full_block(ratings, n_users):
    """The values of the `n_users` most active users for the items that all of them rated."""
    users = np.argsort(-np.bincount(ratings.user))[:n_users]
    cells = dict(zip(zip(ratings.user.tolist(), ratings.item.tolist(), strict=True), ratings.value, strict=True))
    shared = [i for i in range(ratings.n_items) if all((j, i) in cells for j in users)]
    return np.array([[cells[j, i] for i in shared] for j in users], np.float64)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_without_noise_the_truth_has_its_rank_and_biases(rank):
    block = full_block(low_rank(20, 400, 4000, rank=rank, noise=0.0, rng=0).ratings, 8)
    assert block.shape[1] > 20, "the test needs items that all eight rated"
    singular = np.linalg.svd(block, compute_uv=False)
    # w . x + 3.5 + b on one side, c on the other: rank + 2
    assert singular[rank + 1] > 0.1
    assert singular[rank + 2] < 1e-4


def test_rank_0_is_biases_alone():
    block = full_block(low_rank(20, 400, 4000, rank=0, noise=0.0, rng=0).ratings, 4)
    without = block - block.mean(0) - block.mean(1)[:, None] + block.mean()
    np.testing.assert_allclose(without, np.zeros_like(block), atol=1e-5)


def test_the_variance_of_the_parts():
    value = low_rank(2000, 2000, 40_000, noise=0.0, rng=0).ratings.value
    assert abs(value.mean() - 3.5) < 0.1
    assert abs(value.var() - 3 * 0.5**2) < 0.1  # b, c and w . x, each of standard deviation 1/2


def test_some_are_far_more_active():
    ratings = low_rank(100, 80, 2000, rng=0).ratings
    for ids, size in ((ratings.user, 100), (ratings.item, 80)):
        count = np.sort(np.bincount(ids, minlength=size))
        assert count[-5:].mean() > 3 * count[:5].mean()


@pytest.mark.parametrize(("activity", "popularity"), [(0.0, 1.5), (0.5, 0.0), (0.7, 0.7)])
def test_counts_fall_as_powers_of_the_rank(activity, popularity):
    """So few of all pairs that hardly any is drawn twice: the counts are nearly those of independent draws."""
    ratings = low_rank(4000, 5000, 20_000, rank=0, activity=activity, popularity=popularity, rng=0).ratings
    for ids, size, exponent in ((ratings.user, 4000, activity), (ratings.item, 5000, popularity)):
        count = np.sort(np.bincount(ids, minlength=size))[::-1]
        if exponent == 0:
            assert count.var() == pytest.approx(count.mean(), rel=0.15), "Poisson: all alike"
            continue
        chance = (np.arange(size) + 10.0) ** -exponent
        expected = 20_000 * chance / chance.sum()
        for part in (slice(0, 50), slice(50, 500), slice(500, size)):  # sorting raises the largest counts a little
            assert count[part].sum() == pytest.approx(expected[part].sum(), rel=0.2)


def test_ranks_are_shuffled():
    count = np.bincount(low_rank(500, 400, 20_000, rng=0).ratings.user, minlength=500)
    assert np.sort(count)[-5:].mean() > 3 * count[:5].mean()


def test_exponents_at_which_pairs_repeat():
    with pytest.raises(ValueError, match=r"expected 5000 distinct pairs, got .* Lower activity, popularity"):
        low_rank(100, 100, 5000, activity=9.0, popularity=9.0, rng=0)


@pytest.mark.parametrize("name", ["rank", "noise", "activity", "popularity"])
def test_negative_numbers(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number >= 0, got -1"):
        low_rank(30, 20, 10, **{name: -1}, rng=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_users": 0}, "n_users: expected between 1 and"),
        ({"n_items": -3}, "n_items: expected between 1 and"),
        ({"n_users": 2.5}, "n_users: expected a whole number"),
        ({"n_items": 2**40}, "n_items: expected between 1 and"),
        ({"n_ratings": -1}, "n_ratings: expected a finite number >= 0, got -1"),
        ({"n_ratings": 2.5}, "n_ratings: expected a whole number, got 2.5"),
        ({"rank": 1.5}, "rank: expected a whole number, got 1.5"),
        ({"rank": float("nan")}, "rank: expected a finite number"),
        ({"noise": 3.3e38}, "value: expected finite numbers"),
        ({"activity": 1e6}, "expected exponents such as 1"),
    ],
)
def test_invalid_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        low_rank(**{"n_users": 30, "n_items": 20, "n_ratings": 100, "rng": 0, **change})


def test_sizes_of_narrow_types():
    assert len(low_rank(np.int32(70_000), np.int32(70_000), np.int16(100), rng=0).ratings) == 100
