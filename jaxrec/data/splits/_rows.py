"""Splits of rows that know nothing of users or times: random ones, and those published with a dataset."""

import numpy as np

from jaxrec.data.splits._parts import Split, check_fraction, check_whole, divide
from jaxrec.types import Dataset, Ratings

__all__ = ["canonical", "k_fold", "random"]


def random(ratings: Ratings, *, test_fraction: float, rng: np.random.Generator | int) -> Split:
    """Splits off round(test_fraction * n) of the n ratings as test, drawn uniformly without replacement.

    Args:
        ratings: the ratings to split.
        test_fraction: the fraction of the ratings in the test part, in (0, 1).
        rng: a generator or a seed; the same seed gives the same split.

    Raises:
        ValueError: `test_fraction` is not in (0, 1), or one part would be empty.
    """
    check_fraction("test_fraction", test_fraction)
    in_test = np.zeros(len(ratings), bool)
    in_test[np.random.default_rng(rng).permutation(len(ratings))[: round(test_fraction * len(ratings))]] = True
    return divide(ratings, in_test, f"test_fraction={test_fraction} of {len(ratings)} ratings")


def k_fold(ratings: Ratings, k: int, *, rng: np.random.Generator | int) -> list[Split]:
    """Returns k splits; every rating is in exactly one test part, drawn uniformly, and their sizes differ by at most 1.

    Args:
        ratings: the ratings to split.
        k: the number of folds. Together they hold k copies of the ratings.
        rng: a generator or a seed; the same seed gives the same folds.

    Raises:
        ValueError: k is not in [2, n]: with fewer ratings than folds a test part would be empty.
    """
    check_whole("k", k)
    if not 2 <= k <= len(ratings):
        raise ValueError(f"k: expected between 2 and {len(ratings)} folds (one rating in each), got {k}.")
    fold = (np.arange(len(ratings)) % k).astype(np.min_scalar_type(k))  # a small type is faster to shuffle and compare
    np.random.default_rng(rng).shuffle(fold)
    return [divide(ratings, fold == number, f"fold {number} of {k}") for number in range(k)]


def canonical(dataset: Dataset, name: str) -> Split:
    """Returns a split published with the dataset, such as 'u1' of MovieLens 100K, to compare with published figures.

    Raises:
        ValueError: the dataset has no split of that name (the message lists its splits), or the split does not fit its
            ratings.

    >>> from jaxrec import data
    >>> four = Ratings(user=[0, 0, 1, 1], item=[0, 1, 0, 1], value=[5, 4, 3, 2], n_users=2, n_items=2)
    >>> canonical(Dataset("four", four, published={"last": np.array([False, False, False, True])}), "last")[1].value
    array([2.], dtype=float32)
    """
    if name not in dataset.published:
        names = ", ".join(map(repr, sorted(dataset.published))) or "none: use splits.random, by_time or by_user"
        raise ValueError(f"split: {dataset.name!r} has no published split {name!r}. It has {names}.")
    in_test = np.asarray(dataset.published[name])
    if in_test.shape != (len(dataset.ratings),) or in_test.dtype != bool:
        raise ValueError(
            f"split {name} of {dataset.name!r}: expected a mask over its {len(dataset.ratings)} ratings, got "
            f"{in_test.dtype} of shape {in_test.shape}. Masks do not fit ratings that were selected or merged."
        )
    return divide(dataset.ratings, in_test, f"split {name}")
