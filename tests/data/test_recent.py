"""The last items of every user, against a loop over users."""

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data import last_items


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_last_items_are_the_last_by_time_and_order(timed, n):
    rng = np.random.default_rng(n)
    user, item = rng.integers(0, 6, 40), rng.integers(0, 9, 40)
    time = rng.integers(0, 5, 40) if timed else None  # many equal times
    ratings = Ratings(user, item, np.arange(40), 7, 9, time=time)
    found = last_items(ratings, n)
    expected = []
    for j in range(7):
        rows = np.flatnonzero(user == j).tolist()
        expected += sorted(rows, key=lambda row: (time[row], row) if timed else row)[-n:]
    assert found.value.tolist() == sorted(expected)
    assert (found.n_users, found.n_items) == (7, 9)


def test_no_ratings_stay_none():
    assert len(last_items(Ratings([], [], [], 2, 3), 4)) == 0


@pytest.mark.parametrize("n", [0, 2.0, True])
@pytest.mark.usefixtures("as_users_run")
def test_bad_n_is_named(n):
    with pytest.raises(ValueError, match="n: expected a whole number >= 1"):
        last_items(Ratings([0], [0], [1], 1, 1), n)
