"""Weights against the formulas of `implicit`, written out in NumPy on dense matrices."""

import dataclasses

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data import weighting

N_USERS, N_ITEMS = 12, 9


def random_case(seed, *, weights=True):
    rng = np.random.default_rng(seed)
    pair = rng.permutation((N_USERS - 1) * (N_ITEMS - 1))[:50]  # a user and an item without any
    weight = rng.integers(1, 9, 50) if weights else None
    values = rng.integers(1, 6, 50)
    train = Ratings(pair // (N_ITEMS - 1), pair % (N_ITEMS - 1), values, N_USERS, N_ITEMS, weights=weight)
    x = np.zeros((N_USERS, N_ITEMS))
    x[train.user, train.item] = 1 if weight is None else weight
    return train, x


def tfidf_weight(x):
    """implicit's tfidf_weight of a dense matrix, documents x terms."""
    idf = np.log(float(len(x))) - np.log1p((x > 0).sum(axis=0))
    return np.sqrt(x) * idf


def bm25_weight(x, k1, b):
    """implicit's bm25_weight of a dense matrix, documents x terms."""
    idf = np.log(float(len(x))) - np.log1p((x > 0).sum(axis=0))
    row_sums = x.sum(axis=1)
    length_norm = (1.0 - b) + b * row_sums / row_sums.mean()
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(x * (k1 + 1.0) / (k1 * length_norm[:, None] + x)) * idf


def dense(ratings):
    out = np.zeros((N_USERS, N_ITEMS))
    out[ratings.user, ratings.item] = ratings.weights
    return out


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("side", ["item", "user"])
def test_weights_are_those_of_implicit(weights, side):
    train, x = random_case(0, weights=weights)
    transpose = (lambda m: m.T) if side == "item" else (lambda m: m)  # documents first
    expected = transpose(tfidf_weight(transpose(x)))
    np.testing.assert_allclose(dense(weighting.tf_idf(train, side=side)), np.maximum(expected, 0), rtol=1e-6)
    for k1, b in ((1.2, 0.75), (100.0, 0.8), (0.0, 0.5), (2.0, 0.0), (2.0, 1.0)):
        expected = transpose(bm25_weight(transpose(x), k1, b))
        found = dense(weighting.bm25(train, k1=k1, b=b, side=side))
        np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-6)


def test_a_term_of_all_documents_is_worth_nothing():
    train = Ratings([0, 0, 1], [0, 1, 0], np.ones(3), 2, 2)  # user 0 has both items
    for weigh in (weighting.tf_idf, weighting.bm25):
        np.testing.assert_array_equal(weigh(train).weights, [0, 0, 0])  # log(2 / 2) of user 1 is 0 too


def test_values_times_and_ids_are_kept():
    train, _ = random_case(1)
    train = dataclasses.replace(train, time=np.arange(50), user_ids=np.arange(N_USERS) + 7)
    for found in (weighting.tf_idf(train), weighting.bm25(train), weighting.log_amounts(train, scale=2.0)):
        for name in ("user", "item", "value", "time", "user_ids"):
            np.testing.assert_array_equal(getattr(found, name), getattr(train, name))


def test_logarithms_of_amounts():
    train, x = random_case(2)
    np.testing.assert_allclose(dense(weighting.log_amounts(train, scale=0.5)), np.log(1 + x / 0.5), rtol=1e-6)


@pytest.mark.parametrize("weigh", [weighting.tf_idf, weighting.bm25, weighting.log_amounts])
def test_repeated_pairs_are_one_of_their_sum(weigh):
    once = Ratings([1, 0, 1], [0, 1, 2], [4, 3, 5], 3, 4, weights=[3, 1, 2])
    twice = Ratings([1, 0, 1, 1], [0, 1, 0, 2], [4, 3, 1, 5], 3, 4, weights=[1, 1, 2, 2])
    for name in ("user", "item", "value", "weights"):
        np.testing.assert_array_equal(getattr(weigh(twice), name), getattr(weigh(once), name))


@pytest.mark.parametrize("weigh", [weighting.tf_idf, weighting.bm25, weighting.log_amounts])
def test_amounts_of_zero_and_no_pairs(weigh):
    assert len(weigh(Ratings([], [], [], 2, 3)).weights) == 0
    zero = Ratings([0, 0, 1, 1], [0, 1, 0, 2], np.ones(4), 3, 4, weights=[1, 0, 2, 0])
    positive = Ratings([0, 1], [0, 0], np.ones(2), 3, 4, weights=[1, 2])
    np.testing.assert_array_equal(weigh(zero).weights, [weigh(positive).weights[0], 0, weigh(positive).weights[1], 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda train: weighting.bm25(train, k1=-1.0), "k1: expected a finite number >= 0"),
        (lambda train: weighting.bm25(train, b=1.5), r"b: expected a number in \[0, 1\], got 1.5"),
        (lambda train: weighting.bm25(train, b=np.nan), r"b: expected a number in \[0, 1\]"),
        (lambda train: weighting.log_amounts(train, scale=0.0), "scale: expected a finite number > 0"),
        (lambda train: weighting.tf_idf(train, side="film"), "side: expected one of 'item', 'user'"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_case(3)[0])
