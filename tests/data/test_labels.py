"""Binary labels by hand; sampled negatives were not rated, are distinct, and are drawn uniformly."""

from collections import Counter

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data.labels import binarize, confidence_weights, with_sampled_negatives

FILMS = Ratings(
    user=[0, 0, 1, 1, 2],
    item=[0, 1, 0, 2, 1],
    value=[5, 3, 0, 4, 2],
    n_users=4,
    n_items=3,
    time=range(5),
    weights=range(5),
)


def test_a_threshold_by_hand():
    labels = binarize(FILMS, positive=4)
    assert labels.value.tolist() == [1, 0, 0, 1, 0]
    assert labels.value.dtype == np.float32
    for name in ("user", "item", "time", "weights"):
        assert getattr(labels, name).tolist() == getattr(FILMS, name).tolist()
    assert FILMS.value.tolist() == [5, 3, 0, 4, 2], "the input is left as it was"


def test_ratings_between_two_thresholds_are_left_out():
    labels = binarize(FILMS, positive=4, negative=2)
    assert labels.value.tolist() == [1, 0, 1, 0]
    assert labels.time.tolist() == labels.weights.tolist() == [0, 2, 3, 4]
    assert (labels.n_users, labels.n_items) == (4, 3)


@pytest.mark.parametrize("negative", [4, 4.5, float("nan")])
def test_thresholds_in_the_wrong_order(negative):
    with pytest.raises(ValueError, match=r"^negative: expected less than positive=4, got"):
        binarize(FILMS, positive=4, negative=negative)


@pytest.mark.parametrize(
    ("options", "ones", "zeros"),
    [({"positive": 6}, 0, 5), ({"positive": 0}, 5, 0), ({"positive": 4, "negative": -1}, 2, 0)],
    ids=str,
)
def test_labels_that_are_all_alike(options, ones, zeros):
    with pytest.raises(ValueError, match=rf"got {ones} ones and {zeros} zeros from ratings from 0.0 to 5.0"):
        binarize(FILMS, **options)


def test_labels_without_ratings():
    with pytest.raises(ValueError, match=r"got 0 ones and 0 zeros from no ratings"):
        binarize(Ratings([], [], [], 3, 2), positive=4)


@pytest.mark.parametrize("number", [float, np.float32, np.float64, np.float16])
def test_thresholds_are_compared_in_the_ratings_type(number):
    ratings = Ratings([0, 0, 0], [0, 1, 2], [4.1, 2.3, 3.0], 1, 3)
    at = lambda value: number(np.float32(value)) if number is not np.float16 else 4.1
    assert binarize(ratings, positive=at(4.1)).value.tolist() == [1, 0, 0]
    assert binarize(ratings, positive=np.float64(4.1), negative=np.float64(2.3)).value.tolist() == [1, 0]


@pytest.mark.parametrize("alpha", [1e-60, 1e300, 1e38])
def test_confidences_beyond_float32_are_refused(alpha):
    with pytest.raises(ValueError, match="(value|weights): expected finite numbers, got"):
        confidence_weights(Ratings([0], [0], [1e3], 1, 1), alpha=alpha)


# Sampled negatives


def draw(seed, n_users=12, n_items=9):
    """User j rated about j / n_users of the items: user 0 none, the last nearly all, and one user all."""
    rng = np.random.default_rng(seed)
    rated = rng.random((n_users, n_items)) < np.arange(n_users)[:, None] / n_users
    rated[5] = True
    user, item = np.nonzero(rated)
    order = rng.permutation(len(user))
    return Ratings(user[order], item[order], rng.integers(6, size=len(user)), n_users, n_items, time=order)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_positive", [1, 2, 30])
def test_ones_are_what_was_rated_and_zeros_are_not(seed, per_positive):
    ratings = draw(seed)
    labels = with_sampled_negatives(ratings, per_positive=per_positive, rng=seed)
    n = len(ratings)
    assert labels.value.tolist() == [1] * n + [0] * (len(labels) - n)
    assert labels.user[:n].tolist() == ratings.user.tolist()
    assert labels.item[:n].tolist() == ratings.item.tolist()
    pairs = list(zip(labels.user.tolist(), labels.item.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "no zero was rated, none comes twice"
    for user in range(ratings.n_users):
        rated = int((ratings.user == user).sum())
        zeros = int((labels.user[n:] == user).sum())
        assert zeros == min(per_positive * rated, ratings.n_items - rated)
    assert labels.time is None
    assert labels.weights is None


def test_weights_of_zeros():
    labels = with_sampled_negatives(FILMS, per_positive=1, rng=0)
    assert labels.weights.tolist() == [0, 1, 2, 3, 4] + [1] * (len(labels) - 5)


def test_a_repeated_pair_asks_for_two_and_hides_one_item():
    ratings = Ratings([0, 0], [1, 1], [1, 1], 1, 4)
    labels = with_sampled_negatives(ratings, per_positive=1, rng=0)
    zeros = labels.item[2:].tolist()
    assert len(set(zeros)) == len(zeros) == 2
    assert 1 not in zeros


def test_the_same_seed_gives_the_same_zeros():
    drawn = lambda rng: with_sampled_negatives(draw(0), per_positive=1, rng=rng).item.tolist()
    assert drawn(3) == drawn(3) == drawn(np.random.default_rng(3))
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize(("n_rated", "n_drawn"), [(1, 1), (2, 2), (3, 3)])  # 1 of 5, 2 of 4, and all 3 of 3
def test_zeros_are_drawn_uniformly(n_rated, n_drawn):
    n_users = 20_000  # all rated the same items
    rated = [1, 4, 2][:n_rated]
    ratings = Ratings(np.repeat(np.arange(n_users), n_rated), rated * n_users, np.ones(n_users * n_rated), n_users, 6)
    labels = with_sampled_negatives(ratings, per_positive=1, rng=0)
    zeros = labels.item[len(ratings) :].reshape(n_users, n_drawn)
    sets = Counter(tuple(sorted(row)) for row in zeros.tolist())
    unrated = [i for i in range(6) if i not in rated]
    assert set().union(*sets) == set(unrated)
    possible = {1: 5, 2: 6, 3: 1}[n_rated]  # 5 choose 1, 4 choose 2, 3 choose 3
    assert len(sets) == possible
    expected = n_users / possible
    assert max(abs(count - expected) for count in sets.values()) <= 5 * np.sqrt(expected)


def test_more_than_half_of_the_items_are_drawn_uniformly_too():
    n_users = 20_000  # 1 one and 5 zeros of 7: two are left out
    ratings = Ratings(np.arange(n_users), np.full(n_users, 3), np.ones(n_users), n_users, 8)
    labels = with_sampled_negatives(ratings, per_positive=5, rng=1)
    sets = Counter(tuple(row) for row in labels.item[n_users:].reshape(n_users, 5).tolist())
    assert len(sets) == 21, "7 choose 5"
    assert max(abs(count - n_users / 21) for count in sets.values()) < 5 * np.sqrt(n_users / 21)


@pytest.mark.parametrize("per_positive", [0, -1])
def test_too_few_zeros(per_positive):
    with pytest.raises(ValueError, match=rf"^per_positive: expected a whole number >= 1, got {per_positive}"):
        with_sampled_negatives(FILMS, per_positive=per_positive, rng=0)


def test_no_zeros_to_draw():
    for full in (Ratings([0, 0], [0, 1], [1, 1], 2, 2), Ratings([], [], [], 2, 2)):
        with pytest.raises(ValueError, match=r"^no zeros can be drawn"):
            with_sampled_negatives(full, per_positive=1, rng=0)


@pytest.mark.parametrize("per_positive", [2**62, np.int64(2**62), 10**30, np.int8(100), 3.0])
def test_any_whole_number_of_zeros(per_positive):
    labels = with_sampled_negatives(FILMS, per_positive=per_positive, rng=0)
    assert (labels.value == 0).sum() == 4, "all that is left of three items"
    with pytest.raises(ValueError, match="per_positive: expected a whole number >= 1, got 1.5"):
        with_sampled_negatives(FILMS, per_positive=1.5, rng=0)
