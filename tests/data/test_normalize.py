"""Mean normalization: by hand, on a table where 0 is a rating; inversion bit for bit; prediction in ratings' units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data import normalize
from jaxrec.data.normalize import (
    Means,
    add,
    add_means,
    means_by_item,
    means_by_item_then_user,
    means_by_user,
    means_global,
    subtract,
)
from jaxrec.models.factors import init
from jaxrec.prediction import predict
from jaxrec.types import Factors

# item 0: 5, 0, 1; item 1: 4; item 2: not rated; item 3: 0, 0. User 3 has no ratings.
FILMS = Ratings(
    user=[0, 1, 2, 0, 1, 2], item=[0, 0, 0, 1, 3, 3], value=[5, 0, 1, 4, 0, 0], n_users=4, n_items=4, time=range(6)
)
WEIGHTED = Ratings(user=[0, 1, 1, 2], item=[0, 0, 1, 2], value=[5, 1, 4, 2], n_users=4, n_items=4, weights=[1, 3, 2, 0])
FITS = pytest.mark.parametrize("fit", [means_global, means_by_item, means_by_user, means_by_item_then_user])
EVERY = np.divmod(np.arange(16), 4)  # all pairs of four users and four items


def draw(seed, values=(0, 5, 0.5), n=90, weighted=False):
    """Ratings on a grid (low, high, step): 8 users and 7 items, of which one of each has none."""
    rng = np.random.default_rng(seed)
    low, high, step = values
    value = low + step * rng.integers(round((high - low) / step) + 1, size=n)
    weights = rng.integers(3, size=n) + 0.25 if weighted else None
    return Ratings(rng.integers(7, size=n), rng.integers(6, size=n), value, 8, 7, weights=weights)


# The fits


def test_means_by_hand():
    overall = (5 + 0 + 1 + 4 + 0 + 0) / 6
    assert means_global(FILMS).overall == pytest.approx(overall, rel=1e-6)
    items = [(5 + 0 + 1) / 3, 4, overall, 0]
    np.testing.assert_allclose(means_by_item(FILMS).item, items, rtol=1e-6)
    np.testing.assert_allclose(means_by_user(FILMS).user, np.array([4.5, 0, 0.5, overall]) - overall, atol=1e-6)
    both = means_by_item_then_user(FILMS)
    np.testing.assert_allclose(both.item, items, rtol=1e-6)
    # left over: user 0: 5 - 2, 4 - 4; user 1: 0 - 2, 0 - 0; user 2: 1 - 2, 0 - 0
    np.testing.assert_allclose(both.user, [1.5, -1, -0.5, 0], atol=1e-6)
    assert both.item.dtype == both.user.dtype == np.float32


def test_weighted_means_by_hand():
    overall = (5 + 3 * 1 + 2 * 4) / 6
    assert means_global(WEIGHTED).overall == pytest.approx(overall, rel=1e-6)
    items = [(5 + 3 * 1) / 4, 4, overall, overall]  # item 2 has a rating, of weight 0
    np.testing.assert_allclose(means_by_item(WEIGHTED).item, items, rtol=1e-6)
    np.testing.assert_allclose(means_by_user(WEIGHTED).user + overall, [5, 11 / 5, overall, overall], rtol=1e-6)
    np.testing.assert_allclose(means_by_item_then_user(WEIGHTED).user, [3, (3 * -1 + 2 * 0) / 5, 0, 0], atol=1e-6)


@FITS
def test_integer_weights_are_repetition(fit):
    ratings = draw(1)
    times = np.random.default_rng(1).integers(3, size=len(ratings))
    weighted = Ratings(ratings.user, ratings.item, ratings.value, 8, 7, weights=times)
    one, other = fit(weighted), fit(ratings.take(np.repeat(np.arange(len(ratings)), times)))
    every = np.divmod(np.arange(56), 7)
    np.testing.assert_allclose(one.at(*every), other.at(*every), rtol=1e-6)


@pytest.mark.parametrize(
    ("fit", "again", "left"),
    [
        (means_global, means_global, lambda means: [means.overall]),
        (means_by_item, means_by_item, lambda means: means.item),
        (means_by_user, means_by_user, lambda means: means.overall + means.user),
        (means_by_item_then_user, means_by_user, lambda means: means.overall + means.user),
    ],
)
@pytest.mark.parametrize("weighted", [True, False])
def test_subtracted_means_leave_means_of_zero(fit, again, left, weighted):
    ratings = draw(2, weighted=weighted)
    means = left(again(subtract(ratings, fit(ratings))))
    np.testing.assert_allclose(means, np.zeros(len(means)), atol=2e-6)


def test_an_item_without_ratings_gets_the_mean_of_all_ratings():
    ratings = Ratings([0, 1, 2, 3], [0, 0, 0, 1], [1, 1, 1, 5], 4, 3)
    assert means_by_item(ratings).item[2] == (1 + 1 + 1 + 5) / 4


def test_the_mean_of_many_is_exact_enough():
    n = 2_000_000  # a float32 sum of these is off by percents
    ratings = Ratings(np.zeros(n, int), np.zeros(n, int), np.full(n, 4.1), 1, 2)
    np.testing.assert_allclose(means_by_item(ratings).item, [4.1, 4.1], rtol=1e-6)


@FITS
def test_means_of_nothing(fit):
    for nothing in (FILMS.take(slice(0)), Ratings([0], [0], [3], 1, 1, weights=[0])):
        with pytest.raises(ValueError, match=r"^no means: expected ratings of positive weight, got none"):
            fit(nothing)


# Subtract, add, at


def test_subtract_and_at_by_hand():
    means = Means(3.0, item=np.float32([2, 4, 9, 0.5]), user=np.float32([0, 1, 0, 7]))
    assert means.at([0, 1, 3], [0, 0, 2]).tolist() == [2, 3, 16]
    assert Means(3.0).at([0, 1, 3], [0, 0, 2]).tolist() == [3, 3, 3]
    assert Means(3.0, user=means.user).at([0, 1, 3], [0, 0, 2]).tolist() == [3, 4, 10]
    left = subtract(FILMS, means)
    assert left.value.tolist() == [5 - 2, 0 - 3, 1 - 2, 4 - 4, 0 - 1.5, 0 - 0.5]
    assert left.user.tolist() == FILMS.user.tolist()
    assert left.time.tolist() == FILMS.time.tolist()
    assert FILMS.value.tolist() == [5, 0, 1, 4, 0, 0], "the input is left as it was"


@FITS
@pytest.mark.parametrize(
    "values", [(1, 5, 1), (0, 5, 0.5), (-4, 4, 0.25), (1, 10, 1), (990, 1003, 1), (3, 3, 1), (0, 0, 1)], ids=str
)
@pytest.mark.parametrize("weighted", [True, False])
def test_inversion_is_exact_on_grids_and_for_ratings_held_out(fit, values, weighted):
    for seed in range(8):
        ratings = draw(seed, values, weighted=weighted)
        means = fit(ratings.take(slice(0, 60)))
        left = subtract(ratings, means)
        np.testing.assert_array_equal(add(left, means).value, ratings.value)
        exact = ratings.value.astype(np.float64) - means.at(ratings.user, ratings.item)
        np.testing.assert_array_equal(left.value, exact, err_msg="the difference is not rounded either")


@FITS
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_inversion_of_real_numbers_is_within_their_spacing(fit, scale):
    rng = np.random.default_rng(3)
    n = 20_000
    value = scale * rng.normal(size=n)
    ratings = Ratings(rng.integers(40, size=n), rng.integers(30, size=n), value, 40, 30)
    means = fit(ratings)
    left = subtract(ratings, means)
    allowed = np.spacing(np.maximum(np.abs(ratings.value), np.abs(left.value)))
    assert (np.abs(add(left, means).value.astype(np.float64) - ratings.value) <= allowed).all()


@FITS
def test_rounding_costs_no_accuracy(fit):
    ratings = draw(4, (1, 5, 1), n=300)
    y, user, item = ratings.value.astype(np.float64), ratings.user, ratings.item
    mean = lambda values, ids, size: np.array([values[ids == k].mean() if (ids == k).any() else 0 for k in range(size)])
    items = mean(y, item, 7)[item]
    expected = {
        means_global: np.full(300, y.mean()),
        means_by_item: items,
        means_by_user: mean(y, user, 8)[user],
        means_by_item_then_user: items + mean(y - items, user, 8)[user],
    }[fit]
    np.testing.assert_allclose(fit(ratings).at(user, item), expected, rtol=0, atol=2 * np.spacing(np.float32(5)))


# Into factors


@FITS
@pytest.mark.parametrize("mu", [None, 0.5, "items"])
def test_predictions_come_in_the_ratings_units(fit, mu):
    mu = np.linspace(-1, 1, 4) if mu == "items" else mu
    factors = init(4, 4, 3, key=jax.random.key(0), mu=mu)
    means = fit(FILMS)
    user, item = (jnp.asarray(ids) for ids in EVERY)
    expected = np.asarray(predict(factors, user, item)) + means.at(*EVERY)
    with_means = add_means(factors, means)
    np.testing.assert_allclose(predict(with_means, user, item), expected, rtol=1e-6, atol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(with_means)} == {jnp.dtype("float32")}


def test_means_become_the_offset_of_the_factors():
    zero = Factors(w=jnp.zeros((4, 1)), b=jnp.zeros(4), x=jnp.zeros((4, 1)))
    assert add_means(zero, means_global(FILMS)).mu.shape == ()
    both = means_by_item_then_user(FILMS)
    np.testing.assert_array_equal(add_means(zero, both).mu, both.item)
    np.testing.assert_array_equal(add_means(zero, both).b, both.user)


@pytest.mark.usefixtures("x64")
def test_into_factors_of_float64():
    factors = init(4, 4, 2, key=jax.random.key(0), dtype=jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(add_means(factors, means_by_item_then_user(FILMS)))} == {
        jnp.dtype("float64")
    }


@pytest.mark.parametrize("name", ["user", "item"])
@pytest.mark.parametrize("table", [np.zeros(3), np.zeros((4, 1)), np.float32(2)], ids=["short", "column", "scalar"])
def test_one_mean_per_row(name, table):
    means = Means(0.0, **{name: table})
    factors = Factors(w=jnp.zeros((4, 1)), b=jnp.zeros(4), x=jnp.zeros((4, 1)))
    for call in (lambda: subtract(FILMS, means), lambda: add(FILMS, means), lambda: add_means(factors, means)):
        with pytest.raises(ValueError, match=rf"^means\.{name}: expected one per {name}, shape \(4,\), got"):
            call()


def test_means_are_fitted_on_train_only():
    train = draw(5).take(slice(0, 50))
    assert normalize.means_by_item(train).item.shape == (7,), "over all items, rated or not"


# Arguments of other types, and invalid ones


TABLES = Means(3.0, item=np.float32([2, 4, 9, 0.5]), user=np.float32([0, 1, 0, 7]))


@pytest.mark.parametrize("kind", [list, np.array, jnp.array, lambda ids: np.array(ids, np.uint8)])
def test_means_at_any_kind_of_ids_are_numpy(kind):
    got = TABLES.at(kind([0, 3]), kind([0, 2]))
    assert type(got) is np.ndarray
    assert got.dtype == np.float32
    assert got.tolist() == [2, 16]


@pytest.mark.parametrize("means", [Means(3.0), TABLES, Means(3.0, item=TABLES.item), Means(3.0, user=TABLES.user)])
@pytest.mark.parametrize("wrong", [-1, 4, 2**40 + 1, -(2**40), 2**32])
@pytest.mark.parametrize("side", ["user", "item"])
def test_means_at_ids_out_of_range(means, wrong, side):
    ids = {"user": [0, 1], "item": [0, 1], side: np.array([0, wrong])}
    if wrong == 4 and getattr(means, side) is None:
        assert means.at(**ids).shape == (2,), "nothing is read there"
        return
    with pytest.raises(ValueError, match=rf"{side}: expected ids in \[0, .* got {wrong} at position 1"):
        means.at(**ids)


def test_means_at_invalid_pairs():
    for user, item in (([0, 1], [0]), ([[0]], [0]), (0, [0, 1])):
        with pytest.raises(ValueError, match="expected arrays of one shape, got user:"):
            TABLES.at(user, item)
    with pytest.raises(ValueError, match="item: expected integer ids"):
        TABLES.at([0], [0.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, jnp.bfloat16, np.float64])
def test_tables_of_any_type_are_added_in_float32(dtype):
    item, user = np.array([200, 100]).astype(dtype), np.array([100, 3]).astype(dtype)
    means = Means(np.float16(3), item=item, user=user)
    assert means.item.dtype == means.user.dtype == means.at([0], [0]).dtype == np.float32
    assert means.at([0, 1], [0, 1]).tolist() == [300, 103]
    item[:] = 0
    assert means.item.tolist() == [200, 100], "the caller's arrays are copied"
    factors = Factors(w=jnp.zeros((2, 1)), b=jnp.full(2, 200).astype(jnp.float16), x=jnp.zeros((2, 1)))
    with_means = add_means(factors, Means(0.125, user=np.full(2, 2000.125, np.float32)))
    assert with_means.b.tolist() == [2200.125] * 2, "float16 has no such number"


@pytest.mark.parametrize("wrong", [{"overall": np.nan}, {"user": [0, np.inf]}, {"item": [1e39]}, {"item": [np.nan]}])
def test_means_that_are_not_finite(wrong):
    with pytest.raises(ValueError, match=rf"means\.{next(iter(wrong))}: expected finite numbers"):
        Means(**{"overall": 0.0, **wrong})


@FITS
def test_ratings_at_the_end_of_float32(fit):
    """A result that does not fit in float32, -3e38 - 1e38, is an error rather than infinite."""
    big = Ratings([0, 1, 0], [0, 1, 1], [3e38, -3e38, 3e38], 2, 2)
    if fit is means_by_item:
        assert np.isfinite(subtract(big, fit(big)).value).all()
    else:
        with pytest.raises(ValueError, match="expected finite numbers, got -?inf"):
            subtract(big, fit(big))


def test_factors_whose_parts_differ_in_length():
    zero = Factors(w=jnp.zeros((4, 1)), b=jnp.zeros(4), x=jnp.zeros((4, 1)))
    for wrong, message in (
        ({"b": jnp.zeros(3)}, "factors.b: expected one per user"),
        ({"mu": jnp.zeros(5)}, "factors.mu"),
    ):
        with pytest.raises(ValueError, match=message):
            add_means(dataclasses.replace(zero, **wrong), TABLES)
