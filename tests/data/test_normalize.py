"""Mean normalization: by hand, on a table where 0 is a rating."""

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data.normalize import item_mean, subtract

# item 0: 5, 0, 1; item 1: 4; item 2: not rated; item 3: 0, 0
FILMS = Ratings(
    user=[0, 1, 2, 0, 1, 2], item=[0, 0, 0, 1, 3, 3], value=[5, 0, 1, 4, 0, 0], n_users=4, n_items=4, time=range(6)
)


def test_means_by_hand():
    mu = item_mean(FILMS)
    np.testing.assert_allclose(mu, [(5 + 0 + 1) / 3, 4, (5 + 0 + 1 + 4 + 0 + 0) / 6, 0], rtol=1e-6)
    assert mu.dtype == np.float32


def test_an_item_without_ratings_gets_the_mean_of_ratings_not_of_means():
    ratings = Ratings([0, 1, 2, 3], [0, 0, 0, 1], [1, 1, 1, 5], 4, 3)
    assert item_mean(ratings)[2] == (1 + 1 + 1 + 5) / 4


def test_the_mean_of_many_is_exact_enough():
    n = 2_000_000  # a float32 sum of these is off by percents
    ratings = Ratings(np.zeros(n, int), np.zeros(n, int), np.full(n, 4.1), 1, 2)
    np.testing.assert_allclose(item_mean(ratings), [4.1, 4.1], rtol=1e-6)


def test_subtract_by_hand():
    left = subtract(FILMS, np.float32([2, 4, 9, 0.5]))
    assert left.value.tolist() == [5 - 2, 0 - 2, 1 - 2, 4 - 4, 0 - 0.5, 0 - 0.5]
    assert left.user.tolist() == FILMS.user.tolist()
    assert left.time.tolist() == FILMS.time.tolist()
    assert FILMS.value.tolist() == [5, 0, 1, 4, 0, 0], "the input is left as it was"


def test_subtracted_means_leave_means_of_zero():
    rng = np.random.default_rng(0)
    ratings = Ratings(rng.integers(5, size=90), rng.integers(6, size=90), rng.uniform(1, 5, size=90), 5, 6)
    np.testing.assert_allclose(item_mean(subtract(ratings, item_mean(ratings))), np.zeros(6), atol=1e-6)


@pytest.mark.parametrize("mu", [np.zeros(3), np.zeros((4, 1)), np.float32(2)], ids=["short", "column", "scalar"])
def test_one_mean_per_item(mu):
    with pytest.raises(ValueError, match=r"^mu: expected one mean per item, shape \(4,\), got"):
        subtract(FILMS, mu)
