"""Splits into (train, test): together the input, disjoint, over the same users and items.

>>> from jaxrec import Ratings
>>> ratings = Ratings.from_columns(range(10), [0] * 10, range(10))
>>> train, test = random(ratings, test=0.2, rng=0)
>>> len(train), len(test), train.n_users
(8, 2, 10)
"""

import numpy as np

from jaxrec import check
from jaxrec.types import Dataset, Ratings

__all__ = ["canonical", "random"]


def random(ratings: Ratings, *, test: float, rng: np.random.Generator | int) -> tuple[Ratings, Ratings]:
    """Every rating goes to test with equal chance; exactly round(test * n) of them do, in the order of the input.

    Args:
        ratings: what to split.
        test: the share of the test part, in (0, 1).
        rng: a generator, or a seed: the same seed gives the same split.

    Raises:
        ValueError: `test` is not in (0, 1), or one part would be empty.
    """
    if not 0 < test < 1:
        raise ValueError(f"test: expected a share in (0, 1), got {test}.")
    in_test = np.zeros(len(ratings), bool)
    in_test[np.random.default_rng(rng).permutation(len(ratings))[: round(test * len(ratings))]] = True
    return _divide(ratings, in_test, f"test={test} of {len(ratings)} ratings")


def canonical(dataset: Dataset, name: str) -> tuple[Ratings, Ratings]:
    """MovieLens 100K's own five folds: 'u1' .. 'u5', the consecutive fifths of u.data as test.

    The same rows as the files u1.base and u1.test that published figures are made on.

    Raises:
        ValueError: another dataset, another name.
    """
    if dataset.name != "ml-100k":
        raise ValueError(f"the splits u1..u5 belong to ml-100k, got {dataset.name!r}. Use splits.random.")
    check.choice("split", name, ("u1", "u2", "u3", "u4", "u5"))
    fifth = len(dataset.ratings) // 5
    first = (int(name[1]) - 1) * fifth
    position = np.arange(len(dataset.ratings))
    return _divide(dataset.ratings, (first <= position) & (position < first + fifth), f"split {name}")


def _divide(ratings: Ratings, in_test: np.ndarray, what: str) -> tuple[Ratings, Ratings]:
    if in_test.all() or not in_test.any():
        empty = "train" if in_test.all() else "test"
        raise ValueError(f"{what} leaves the {empty} part empty. Take another share, or more ratings.")
    return ratings.take(~in_test), ratings.take(in_test)
