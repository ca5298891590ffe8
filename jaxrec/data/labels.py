"""Labels from ratings: binary labels (1 engaged, 0 shown but not engaged) and confidences of implicit feedback.

Binary labels are for `losses.logistic`, `metrics.log_loss` and `metrics.auc`; items not shown have no label.

>>> ratings = Ratings(user=[0, 0, 1, 1], item=[0, 1, 0, 2], value=[5, 3, 1, 4], n_users=2, n_items=3)
>>> binarize(ratings, positive=4).value
array([1., 0., 0., 1.], dtype=float32)
>>> binarize(ratings, positive=4, negative=2).value  # the 3 lies between the thresholds and is removed
array([1., 0., 1.], dtype=float32)
"""

import dataclasses

import numpy as np

from jaxrec.types import Ratings

__all__ = ["binarize", "confidence_weights", "with_sampled_negatives"]


def binarize(ratings: Ratings, *, positive: float, negative: float | None = None) -> Ratings:
    """Returns labels: 1 if y >= positive, 0 if y <= negative (None: if y < positive); other ratings are removed.

    Args:
        ratings: ratings; their times and weights are kept.
        positive: the lowest rating that counts as an engagement.
        negative: the highest rating that counts as no engagement; ratings between the two thresholds are treated as not
            shown. None: every rating below `positive` is a 0.

    Raises:
        ValueError: a threshold is NaN or negative >= positive; all labels would be equal.
    """
    if negative is not None and not negative < positive:
        raise ValueError(f"negative: expected less than positive={positive}, got {negative}.")
    # Ratings are float32: compared in float64, a rating of 4.1 would be below the threshold 4.1.
    engaged = ratings.value >= np.float32(positive)
    labels = dataclasses.replace(ratings, value=engaged.astype(np.float32))
    if negative is not None:
        labeled = engaged | (ratings.value <= np.float32(negative))
        labels = labels.take(np.flatnonzero(labeled))
    ones = int(engaged.sum())
    if ones in (0, len(labels)):
        scale = f"ratings from {ratings.value.min()} to {ratings.value.max()}" if len(ratings) else "no ratings"
        raise ValueError(
            f"positive={positive}, negative={negative}: expected ones and zeros, got {ones} ones and "
            f"{len(labels) - ones} zeros from {scale}. Choose thresholds inside the scale."
        )
    return labels


def confidence_weights(ratings: Ratings, *, alpha: float = 40.0) -> Ratings:
    """Returns values and weights for `solvers.implicit_als` that express Hu, Koren and Volinsky's confidences.

    Their objective for scores s, with p = 1 and c = 1 + alpha r if observed, p = 0 and c = 1 otherwise, is

        sum over all pairs of c (p - s)^2
            = sum over observed pairs of alpha r (s - (1 + alpha r) / (alpha r))^2 + sum over all pairs of s^2 + const.

    So the returned ratings have values (1 + alpha r) / (alpha r) and weights alpha r, for `unobserved_weight=1`.

    Args:
        ratings: values are amounts r > 0, such as clicks or plays; weights are ignored.
        alpha: > 0; 40 in the paper.

    Raises:
        ValueError: alpha or an amount is not positive; a value or weight does not fit in float32.

    >>> hu = confidence_weights(Ratings(user=[0], item=[0], value=[2.0], n_users=1, n_items=1), alpha=4.0)
    >>> hu.value.tolist(), hu.weights.tolist()
    ([1.125], [8.0])
    """
    if not (0 < alpha < np.inf) or (len(ratings) and ratings.value.min() <= 0):
        smallest = ratings.value.min() if len(ratings) else "none"
        raise ValueError(
            f"confidence_weights: expected alpha > 0 and amounts > 0, got {alpha} and a smallest amount of {smallest}."
        )
    weights = float(alpha) * ratings.value.astype(np.float64)
    return dataclasses.replace(ratings, value=(1 + weights) / weights, weights=weights)


def with_sampled_negatives(ratings: Ratings, *, per_positive: int, rng: np.random.Generator | int) -> Ratings:
    """Returns every rating as a 1 and, for each, `per_positive` items that its user has not rated as 0.

    A user's zeros are drawn uniformly without replacement from the items they have not rated. A repeated pair counts as
    two ones and gets twice the zeros. A user with fewer unrated items than that gets all of them. **These zeros are
    assumed, not observed**: MovieLens, like most public data, has no impressions, so it is unknown what was shown and
    passed over; some of the zeros would be ones.

    Called with the train part, it may draw pairs of the test part, which it cannot know.

    Args:
        ratings: each one is an engagement, whatever its value.
        per_positive: the number of zeros per one.
        rng: a generator or a seed.

    Returns:
        The ones in the input's order, then the zeros by user; without times. If ones have weights, zeros have weight 1.

    Raises:
        ValueError: per_positive < 1 or is not a whole number; there are no ratings; every user has rated all items.
    """
    if per_positive < 1 or per_positive != int(per_positive):
        raise ValueError(f"per_positive: expected a whole number >= 1, got {per_positive}.")
    per_positive = min(int(per_positive), ratings.n_items)  # no user has more zeros; keeps the product below in int64
    pair = np.sort(ratings.user * np.int64(ratings.n_items) + ratings.item)
    pair = pair[np.diff(pair, prepend=-1) > 0]
    rated_user = pair // ratings.n_items
    rated_count = np.bincount(rated_user, minlength=ratings.n_users)
    unrated_count = ratings.n_items - rated_count
    n_zeros = np.minimum(per_positive * np.bincount(ratings.user, minlength=ratings.n_users), unrated_count)
    if not n_zeros.any():
        raise ValueError(f"no zeros can be drawn: {len(ratings)} ratings, and no user has an item without a rating.")

    user, k = _draw_distinct(n_zeros, unrated_count, np.random.default_rng(rng))
    # From k to a user's k-th unrated item. If o_0 < o_1 < ... are the rated items, o_s - s unrated items precede o_s,
    # so the k-th unrated item follows #{s: o_s - s <= k} rated ones, and is k plus that number.
    # Example: 7 items, rated o = 1, 3, 4, o_s - s = 1, 2, 2: k = 0, 1, 2, 3 follow 0, 1, 3, 3: items 0, 2, 5, 6.
    start = np.concatenate([[0], np.cumsum(rated_count)])
    width = np.int64(ratings.n_items + 1)
    unrated_before = pair - rated_user * ratings.n_items - (np.arange(len(pair)) - start[rated_user])
    rated_before = np.searchsorted(rated_user * width + unrated_before, user * width + k, side="right") - start[user]
    n, zeros = len(ratings), len(user)
    return dataclasses.replace(
        ratings,
        user=np.concatenate([ratings.user, user.astype(np.int32)]),
        item=np.concatenate([ratings.item, (k + rated_before).astype(np.int32)]),
        value=np.repeat(np.array([1, 0], np.float32), [n, zeros]),
        time=None,
        weights=None if ratings.weights is None else np.pad(ratings.weights, (0, zeros), constant_values=1),
    )


def _draw_distinct(count: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws count[g] distinct numbers below size[g] uniformly for each row g; returns (row, number), sorted.

    Rounds of draws with replacement, without their repetitions, until every row has enough. If a row asks for more than
    half of its numbers, those to leave out are drawn instead, so a draw is new with probability at least 1/2 and about
    thirty rounds suffice. Every subset is equally likely: the rounds treat all numbers alike, and never draw more than
    are missing, so none is discarded.

        count 2 of size 5: draw 2, e.g. {1, 3}
        count 4 of size 5: draw the 1 to leave out, e.g. 3, and return {0, 1, 2, 4}

    A pair (row, number) is encoded as the integer row * width + number, with width the largest size.
    """
    complement = count > size // 2
    missing = np.where(complement, size - count, count)
    width = np.int64(max(size.max(), 1))
    drawn = np.zeros(0, np.int64)
    while missing.any():
        row = np.repeat(np.arange(len(count)), missing)
        number = (rng.random(len(row)) * size[row]).astype(np.int64)
        drawn = np.sort(np.concatenate([drawn, row * width + number]), kind="stable")
        drawn = drawn[np.diff(drawn, prepend=-1) > 0]
        missing = np.where(complement, size - count, count) - np.bincount(drawn // width, minlength=len(count))
    if complement.any():
        rows = np.flatnonzero(complement)
        row = np.repeat(rows, size[rows])
        start = np.cumsum(size[rows]) - size[rows]
        candidates = row * width + np.arange(len(row)) - np.repeat(start, size[rows])
        excluded = complement[drawn // width]
        kept = candidates[~np.isin(candidates, drawn[excluded], assume_unique=True)]
        drawn = np.sort(np.concatenate([drawn[~excluded], kept]))
    return drawn // width, drawn % width
