"""Splits: train + test = input, in the order of the input; the same seed, the same split."""

from collections import Counter

import numpy as np
import pytest

from jaxrec import Dataset, Ratings
from jaxrec.data import splits


def draw(seed, n=40):
    """Ratings with repeated pairs and values, so that only counting rows tells what was lost."""
    rng = np.random.default_rng(seed)
    return Ratings(
        user=rng.integers(6, size=n),
        item=rng.integers(5, size=n),
        value=rng.integers(3, size=n),
        n_users=8,
        n_items=5,
        time=np.arange(n),
        weights=rng.integers(3, size=n),
        user_ids=list("abcdefgh"),
    )


def as_rows(ratings):
    columns = (ratings.user, ratings.item, ratings.value, ratings.time, ratings.weights)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_parts_are_disjoint_and_together_the_input(seed, share):
    ratings = draw(seed)
    train, test = splits.random(ratings, test=share, rng=seed)
    assert Counter(as_rows(train)) + Counter(as_rows(test)) == Counter(as_rows(ratings))
    assert not set(train.time) & set(test.time)  # the time numbers the rows
    for part in (train, test):
        assert (np.diff(part.time) > 0).all(), "the order of the input is kept"
        assert (part.n_users, part.n_items, part.user_ids.tolist()) == (8, 5, list("abcdefgh"))


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(40, 0.1, 4), (40, 0.77, 31), (10, 0.26, 3), (3, 0.5, 2), (2, 0.3, 1)]
)
def test_the_size_is_exact(n, share, expected):
    train, test = splits.random(draw(0, n), test=share, rng=0)
    assert (len(train), len(test)) == (n - expected, expected)


def test_the_same_seed_gives_the_same_split():
    ratings = draw(0)
    one, other = (splits.random(ratings, test=0.3, rng=7)[1].time.tolist() for _ in range(2))
    assert one == other
    assert splits.random(ratings, test=0.3, rng=np.random.default_rng(7))[1].time.tolist() == one
    assert splits.random(ratings, test=0.3, rng=8)[1].time.tolist() != one


def test_a_generator_moves_on():
    rng = np.random.default_rng(0)
    one, other = (splits.random(draw(0), test=0.3, rng=rng)[1].time.tolist() for _ in range(2))
    assert one != other


def test_every_rating_has_an_equal_chance():
    ratings, times = draw(0), np.zeros(40)
    for seed in range(400):
        times[splits.random(ratings, test=0.25, rng=seed)[1].time] += 1
    # 400 draws of chance 1/4: mean 100, standard deviation sqrt(400 * 3/16) = 8.7
    assert times.sum() == 400 * 10
    assert abs(times - 100).max() < 5 * 8.7


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_and_1(share):
    with pytest.raises(ValueError, match=r"^test: expected a share in \(0, 1\)"):
        splits.random(draw(0), test=share, rng=0)


@pytest.mark.parametrize(("share", "empty"), [(0.01, "test"), (0.99, "train")])
def test_an_empty_part(share, empty):
    with pytest.raises(ValueError, match=rf"^test={share} of 10 ratings leaves the {empty} part empty"):
        splits.random(draw(0, 10), test=share, rng=0)


# canonical


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_canonical_folds_are_consecutive_fifths(fold):
    train, test = splits.canonical(Dataset("ml-100k", draw(0, 25)), f"u{fold}")
    expected = list(range(5 * fold - 5, 5 * fold))
    assert test.time.tolist() == expected
    assert train.time.tolist() == [row for row in range(25) if row not in expected]


def test_canonical_folds_belong_to_one_dataset():
    with pytest.raises(ValueError, match=r"^the splits u1\.\.u5 belong to ml-100k, got 'ml-1m'"):
        splits.canonical(Dataset("ml-1m", draw(0, 25)), "u1")


@pytest.mark.parametrize("name", ["u0", "u6", "ua", "1", ""])
def test_canonical_folds_are_five(name):
    with pytest.raises(ValueError, match=r"^split: expected one of 'u1', 'u2', 'u3', 'u4', 'u5', got"):
        splits.canonical(Dataset("ml-100k", draw(0, 25)), name)
