"""The baselines equal slow loops, for data with users and items that have no ratings."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.models import as_vectors, predict, predict_all
from jaxrec.models.baselines import content_profile, damped_biases, global_mean, item_mean, popularity, user_mean

N_USERS, N_ITEMS = 8, 6


def draw(seed, n=20):
    """Random ratings in which user 7 and item 0 have none, and some values are 0."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(j, i) for j in range(N_USERS - 1) for i in range(1, N_ITEMS)])[:n]
    return Ratings(pairs[:, 0], pairs[:, 1], rng.integers(6, size=n), N_USERS, N_ITEMS)


def rows(ratings):
    return list(zip(ratings.user.tolist(), ratings.item.tolist(), ratings.value.tolist(), strict=True))


def one_pass(ratings, users, items, sweeps):
    """(mu, b, c) by loops: alternately c(i) from the residuals without c, and b(j) from the residuals without b."""
    data = rows(ratings)
    mu = sum(y for _, _, y in data) / len(data)
    b, c = np.zeros(N_USERS), np.zeros(N_ITEMS)
    for _ in range(sweeps):
        for i in range(N_ITEMS):
            values = [y - mu - b[j] for j, k, y in data if k == i]
            c[i] = sum(values) / (len(values) + items) if values else 0.0
        for j in range(N_USERS):
            values = [y - mu - c[i] for k, i, y in data if k == j]
            b[j] = sum(values) / (len(values) + users) if values else 0.0
    return mu, b, c


SEEDS = pytest.mark.parametrize("seed", range(3))


@SEEDS
def test_global_mean_predicts_the_mean_for_every_pair(seed):
    ratings = draw(seed)
    mean = sum(y for _, _, y in rows(ratings)) / len(ratings)
    np.testing.assert_allclose(predict_all(global_mean(ratings)), np.full((N_USERS, N_ITEMS), mean), rtol=1e-6)


@SEEDS
def test_user_mean_predicts_each_users_mean(seed):
    ratings = draw(seed)
    overall = sum(y for _, _, y in rows(ratings)) / len(ratings)
    for j, row in enumerate(np.asarray(predict_all(user_mean(ratings)))):
        values = [y for k, _, y in rows(ratings) if k == j]
        expected = sum(values) / len(values) if values else overall
        np.testing.assert_allclose(row, [expected] * N_ITEMS, rtol=1e-5, atol=1e-6, err_msg=f"user {j}")


@SEEDS
def test_item_mean_predicts_each_items_mean(seed):
    ratings = draw(seed)
    overall = sum(y for _, _, y in rows(ratings)) / len(ratings)
    for i, column in enumerate(np.asarray(predict_all(item_mean(ratings))).T):
        values = [y for _, k, y in rows(ratings) if k == i]
        expected = sum(values) / len(values) if values else overall
        np.testing.assert_allclose(column, [expected] * N_USERS, rtol=1e-5, atol=1e-6, err_msg=f"item {i}")


@SEEDS
@pytest.mark.parametrize("sweeps", [1, 2, 7])
@pytest.mark.parametrize("damping", [5.0, 0.0, (2.0, 7.5)], ids=str)
def test_damped_biases_equal_the_loops(seed, sweeps, damping):
    ratings = draw(seed)
    users, items = damping if isinstance(damping, tuple) else (damping, damping)
    mu, b, c = one_pass(ratings, users, items, sweeps)
    factors = damped_biases(ratings, damping=damping, sweeps=sweeps)
    np.testing.assert_allclose(factors.mu, mu, rtol=1e-6)
    np.testing.assert_allclose(factors.b, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(factors.c, c, rtol=1e-5, atol=1e-6)
    assert factors.b[N_USERS - 1] == 0, "a user without ratings"
    assert factors.c[0] == 0, "an item without ratings"


def test_one_sweep_of_damped_biases_equals_the_calculation_by_hand():
    ratings = Ratings([0, 0, 1], [0, 1, 0], [5, 3, 1], 3, 2)  # mean 3
    factors = damped_biases(ratings, damping=(1.0, 2.0), sweeps=1)
    # items: ((5 - 3) + (1 - 3)) / (2 + 2), (3 - 3) / (1 + 2)
    # users: ((5 - 3) + (3 - 3)) / (2 + 1), (1 - 3) / (1 + 1)
    assert factors.c.tolist() == [0, 0]
    np.testing.assert_allclose(factors.b, [2 / 3, -1, 0], rtol=1e-6)


@pytest.mark.parametrize("damping", [(5.0, 5.0), (2.0, 7.5)], ids=str)
def test_damped_biases_minimize_the_penalized_squared_error(damping):
    ratings = draw(1)
    factors = damped_biases(ratings, damping=damping, sweeps=300)
    b, c, mu = (np.asarray(part, np.float64) for part in (factors.b, factors.c, factors.mu))
    # of 1/2 sum (y - mu - b - c)^2 + damping/2 (‖b‖^2 + ‖c‖^2)
    by_b, by_c = damping[0] * b, damping[1] * c
    for j, i, y in rows(ratings):
        by_b[j] -= y - mu - b[j] - c[i]
        by_c[i] -= y - mu - b[j] - c[i]
    np.testing.assert_allclose(by_b, np.zeros(N_USERS), atol=2e-5)
    np.testing.assert_allclose(by_c, np.zeros(N_ITEMS), atol=2e-5)
    assert np.abs(b).max() > 0.05, "the minimum is not at zero"


def test_damped_biases_use_the_defaults_of_the_signature():
    ratings = draw(2)
    expected = damped_biases(ratings, damping=(4.0, 2.0), sweeps=10)
    got = damped_biases(ratings)
    np.testing.assert_array_equal(got.b, expected.b)
    np.testing.assert_array_equal(got.c, expected.c)


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf"), (1.0, -1.0), (-1.0, 1.0)], ids=str)
def test_negative_or_infinite_damping_is_refused(damping):
    with pytest.raises(ValueError, match=r"^damping: expected a finite number >= 0, got"):
        damped_biases(draw(0), damping=damping)


def test_popularity_counts_ratings():
    ratings = Ratings([0, 1, 2, 0], [2, 2, 2, 1], [0, 0, 1, 5], 3, 4)
    np.testing.assert_array_equal(predict_all(popularity(ratings)), [[0, 1, 3, 0]] * 3)


def test_popularity_sums_the_weights():
    ratings = Ratings([0, 1, 2, 0], [2, 2, 2, 1], [0, 0, 1, 5], 3, 4, weights=[0.5, 0.25, 1, 7])
    np.testing.assert_array_equal(predict_all(popularity(ratings)), [[0, 7, 1.75, 0]] * 3)


def test_popularity_halves_with_every_half_life():
    ratings = Ratings([0, 1, 2, 0], [1, 1, 0, 2], np.ones(4), 3, 4, time=[100, 70, 90, 40], weights=[1, 2, 3, 4])
    found = popularity(ratings, half_life=10.0)  # ages 0, 30, 10, 60
    np.testing.assert_allclose(found.c, [3 / 2, 1 + 2 / 2**3, 4 / 2**6, 0], rtol=1e-6)
    np.testing.assert_allclose(popularity(ratings, half_life=1e30).c, popularity(ratings).c, rtol=1e-6)
    unweighted = Ratings([0, 1], [1, 0], np.ones(2), 3, 2, time=[100, 90])
    assert popularity(unweighted, half_life=10.0).c.tolist() == [0.5, 1]
    assert popularity(Ratings([], [], [], 2, 2, time=[]), half_life=1.0).c.tolist() == [0, 0]


@pytest.mark.parametrize("half_life", [0.0, -1.0, np.nan, np.inf])
def test_a_bad_half_life_is_named(half_life):
    ratings = Ratings([0], [0], [1.0], 1, 1, time=[0])
    with pytest.raises(ValueError, match="half_life: expected a finite number > 0"):
        popularity(ratings, half_life=half_life)
    with pytest.raises(ValueError, match="half_life: expected ratings with times"):
        popularity(Ratings([0], [0], [1.0], 1, 1), half_life=1.0)


ALL = pytest.mark.parametrize("fit", [global_mean, user_mean, item_mean, damped_biases, popularity])


@ALL
def test_each_baseline_is_factors_of_rank_0_that_predictions_and_search_accept(fit):
    factors = fit(draw(0))
    assert (factors.w.shape, factors.x.shape) == ((N_USERS, 0), (N_ITEMS, 0))
    assert np.isfinite(predict_all(factors)).all()
    users, items = as_vectors(factors)
    np.testing.assert_allclose(users @ items.T, predict_all(factors), rtol=1e-6)
    pairs = predict(factors, jnp.array([0, 7]), jnp.array([3, 0]))
    np.testing.assert_allclose(pairs, np.asarray(predict_all(factors))[[0, 7], [3, 0]], rtol=1e-6)


@ALL
def test_each_baseline_works_with_float64_enabled(fit):
    with jax.enable_x64(True):
        factors = fit(draw(0))
        assert len({leaf.dtype for leaf in jax.tree.leaves(factors)}) == 1
        expected = np.asarray(predict_all(factors))[2, 3]
        np.testing.assert_allclose(predict(factors, jnp.array([2]), jnp.array([3])), [expected], rtol=1e-6)


@ALL
def test_a_single_rating_is_enough_for_each_baseline(fit):
    predicted = np.asarray(predict_all(fit(Ratings([1], [1], [4.0], 3, 2))))
    expected = [[0, 1]] * 3 if fit is popularity else np.full((3, 2), 4.0)
    np.testing.assert_array_equal(predicted, expected)


def test_content_profile_scores_by_the_cosine_with_the_weighted_sum():
    ratings = Ratings([0, 0, 1], [0, 1, 2], [5.0, 3.0, 1.0], n_users=3, n_items=4)
    items = np.array([[1.0, 0], [0, 2], [3, 4], [0, 0]])
    factors = content_profile(ratings, items)  # the mean is 3
    profile = np.array([[2.5 * 1, 0.5 * 2], [-1.5 * 3, -1.5 * 4], [0, 0]])
    for j in range(3):
        for i in range(4):
            norm = np.linalg.norm(profile[j]) * np.linalg.norm(items[i])
            expected = profile[j] @ items[i] / norm if norm else 0.0
            assert float(predict(factors, jnp.array(j), jnp.array(i))) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"items: expected finite features \[4, d\]"):
        content_profile(ratings, items[:3])
    with pytest.raises(ValueError, match="items: expected finite features"):
        content_profile(ratings, items * np.nan)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64, np.float16])
def test_features_of_narrow_types_are_summed_in_float64(dtype):
    rng = np.random.default_rng(0)
    items = (rng.integers(0, 2, (N_ITEMS, 3)) * 100).astype(dtype)
    wide, narrow = (content_profile(draw(0), table) for table in (items.astype(np.float64), items))
    np.testing.assert_array_equal(wide.w, narrow.w)
    np.testing.assert_array_equal(wide.x, narrow.x)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-20, 1e25, 1e200, 1e300])
def test_the_scale_of_the_features_does_not_change_content_profile(size):
    items = np.random.default_rng(0).normal(size=(N_ITEMS, 3))
    one, other = content_profile(draw(0), items), content_profile(draw(0), size * items)
    np.testing.assert_allclose(one.w, other.w, atol=1e-6)
    np.testing.assert_allclose(one.x, other.x, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_likes_and_dislikes_that_cancel_give_a_profile_of_zero(seed):
    """The weights (y - mean + 1/2) of user 0 cancel in every feature: rounding errors must not become a profile."""
    rng = np.random.default_rng(seed)
    ratings = Ratings([0] * 5 + [1] * 5, [*range(5)] * 2, rng.normal(3, 1, 10), 2, 5)
    share = (ratings.value.astype(np.float64) - ratings.value.mean(dtype=np.float64) + 0.5)[:5]
    items = rng.normal(size=(5, 2))
    items[4] = -(share[:4] @ items[:4]) / share[4]
    # exactly, because a product may round to 0 on one processor and not on another
    exact = [abs(sum(Fraction(a) * Fraction(b) for a, b in zip(share, column, strict=True))) for column in items.T]
    assert all(0 < each < 1e-14 for each in exact), "only rounding errors"
    factors = content_profile(ratings, items)
    assert factors.w[0].tolist() == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(factors.w[1]), 1, rtol=1e-6)


def test_a_pair_that_occurs_twice_counts_as_two_ratings():
    ratings = Ratings([0, 0, 1], [1, 1, 0], [5, 3, 1], 2, 2)
    assert popularity(ratings).c.tolist() == [1, 2]
    assert (item_mean(ratings).c + item_mean(ratings).mu).tolist() == [1, 4]


def test_the_mean_of_many_ratings_of_one_item_is_exact():
    n = 2**24 + 2**10
    zero = np.zeros(n, np.int32)
    ratings = Ratings(zero, zero, np.full(n, 4.1, np.float32), 1, 2, weights=np.full(n, 0.1, np.float32))
    assert popularity(ratings).c[0] == np.float32(n * float(np.float32(0.1)))
    np.testing.assert_allclose(predict_all(item_mean(ratings)), [[4.1, 4.1]], rtol=1e-6)


@pytest.mark.parametrize("fit", [global_mean, user_mean, item_mean, damped_biases])
def test_data_without_ratings_are_refused(fit):
    no_ratings = Ratings([], [], [], 3, 2)
    with pytest.raises(ValueError, match="no means: expected ratings, got none"):
        fit(no_ratings)
    with pytest.raises(ValueError, match="no means: expected ratings, got none"):
        content_profile(no_ratings, np.ones((2, 1)))
    assert popularity(no_ratings).c.tolist() == [0, 0]


def test_numbers_beyond_float32_are_refused():
    with pytest.raises(ValueError, match="c: expected finite numbers, got inf at position 0"):
        popularity(Ratings([0, 1], [0, 0], [1, 1], 2, 1, weights=[3e38, 3e38]))
    with pytest.raises(ValueError, match="b: expected finite numbers, got -inf at position 1"):
        user_mean(Ratings([0, 0, 1], [0, 1, 1], [3e38, 3e38, -3e38], 2, 2))
