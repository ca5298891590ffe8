"""Labels from ratings: binary ones, 1 engaged, 0 shown and not engaged; and confidences of implicit feedback.

Binary ones are for `losses.logistic`, `metrics.log_loss` and `metrics.auc`; what was not shown is not in the ratings.

>>> ratings = Ratings(user=[0, 0, 1, 1], item=[0, 1, 0, 2], value=[5, 3, 1, 4], n_users=2, n_items=3)
>>> binarize(ratings, positive=4).value
array([1., 0., 0., 1.], dtype=float32)
>>> binarize(ratings, positive=4, negative=2).value  # the 3 is neither: not shown
array([1., 0., 1.], dtype=float32)
"""

import dataclasses

import numpy as np

from jaxrec.types import Ratings

__all__ = ["binarize", "confidence_weights", "with_sampled_negatives"]


def binarize(ratings: Ratings, *, positive: float, negative: float | None = None) -> Ratings:
    """Labels from ratings: 1 where y >= positive, else 0; with `negative`, 0 where y <= negative and the rest left out.

    Args:
        ratings: any; times and weights are kept.
        positive: the lowest rating that is an engagement.
        negative: the highest rating that is none; what lies between the two then counts as not shown. None: whatever
            was rated below `positive` is a 0.

    Raises:
        ValueError: negative >= positive, or NaN; all labels would be alike.
    """
    if negative is not None and not negative < positive:
        raise ValueError(f"negative: expected less than positive={positive}, got {negative}.")
    # as float32, which the ratings are: 4.1 is below a threshold of np.float64(4.1) otherwise
    engaged = ratings.value >= np.float32(positive)
    labels = dataclasses.replace(ratings, value=engaged.astype(np.float32))
    if negative is not None:
        engaged_or_not = engaged | (ratings.value <= np.float32(negative))
        labels = labels.take(np.flatnonzero(engaged_or_not))
    ones = int(engaged.sum())
    if ones in (0, len(labels)):
        scale = f"ratings from {ratings.value.min()} to {ratings.value.max()}" if len(ratings) else "no ratings"
        raise ValueError(
            f"positive={positive}, negative={negative} make {ones} ones and {len(labels) - ones} zeros of {scale}. "
            "Expected some of each: take thresholds inside the scale."
        )
    return labels


def confidence_weights(ratings: Ratings, *, alpha: float = 40.0) -> Ratings:
    """Hu, Koren and Volinsky's confidences c = 1 + alpha r in 1, as `solvers.implicit_als` takes them (unobserved=1).

    Their sum over all pairs of c (p - s)^2, p = 1 and c = 1 + alpha r where observed, p = 0 and c = 1 elsewhere, is, up
    to a constant, the sum over observed of alpha r (s - (1 + alpha r) / (alpha r))^2 and that over all pairs of s^2:
    what is returned has the values (1 + alpha r) / (alpha r) and the weights alpha r.

    Args:
        ratings: values are amounts r > 0, of clicks, plays; other weights are not read.
        alpha: > 0; theirs was 40.

    Raises:
        ValueError: alpha or an amount that is not positive; products of them that float32 does not hold.

    >>> hu = confidence_weights(Ratings(user=[0], item=[0], value=[2.0], n_users=1, n_items=1), alpha=4.0)
    >>> hu.value.tolist(), hu.weights.tolist()
    ([1.125], [8.0])
    """
    if not (0 < alpha < np.inf) or (len(ratings) and ratings.value.min() <= 0):
        low = ratings.value.min() if len(ratings) else "none"
        raise ValueError(
            f"confidence_weights: expected alpha > 0 and amounts > 0, got {alpha} and a smallest amount of {low}."
        )
    weights = float(alpha) * ratings.value.astype(np.float64)
    return dataclasses.replace(ratings, value=(1 + weights) / weights, weights=weights)


def with_sampled_negatives(ratings: Ratings, *, per_positive: int, rng: np.random.Generator | int) -> Ratings:
    """Every rating becomes a 1; for each, `per_positive` items that its user has not rated become a 0.

    A user's zeros are drawn uniformly from what they have not rated, none twice. A pair that is there twice stays
    two ones, and so asks for twice the zeros. A user who has rated nearly
    everything gets all that is left, which is fewer. **These zeros are assumed, not observed**: MovieLens (as most
    public data) has no impressions, so nobody knows what was shown and passed over. Some of the zeros would be ones.

    Given the train part, it may draw pairs of the test part: it cannot know them, as no system knows the future.

    Args:
        ratings: each is an engagement, whatever its value.
        per_positive: zeros for each one.
        rng: a generator or a seed.

    Returns:
        The ones in the input's order, then the zeros by user; without times. Where ones have weights, zeros have 1.

    Raises:
        ValueError: per_positive < 1, or no whole number; no ratings; no user has an item that they have not rated.
    """
    if per_positive < 1 or per_positive != int(per_positive):
        raise ValueError(f"per_positive: expected a number >= 1, got {per_positive}. It is of whole zeros.")
    per_positive = min(int(per_positive), ratings.n_items)  # more there are not, and the product below stays an int64
    pair = np.sort(ratings.user * np.int64(ratings.n_items) + ratings.item)
    pair = pair[np.diff(pair, prepend=-1) > 0]
    rated_user = pair // ratings.n_items
    rated_count = np.bincount(rated_user, minlength=ratings.n_users)
    left = ratings.n_items - rated_count
    wanted = np.minimum(per_positive * np.bincount(ratings.user, minlength=ratings.n_users), left)
    if not wanted.any():
        raise ValueError(f"no zeros can be drawn: {len(ratings)} ratings, and no user has an item without a rating.")

    user, position = _distinct(wanted, left, np.random.default_rng(rng))
    # A user's k-th unrated item is k + the number of her rated items before it. With o_0 < o_1 < .. the rated ones,
    # o_s - s unrated ones come before o_s, so that number is #{s: o_s - s <= k}.
    start = np.concatenate([[0], np.cumsum(rated_count)])
    width = np.int64(ratings.n_items + 1)
    unrated_before = pair - rated_user * ratings.n_items - (np.arange(len(pair)) - start[rated_user])
    before = np.searchsorted(rated_user * width + unrated_before, user * width + position, side="right") - start[user]
    n, zeros = len(ratings), len(user)
    return dataclasses.replace(
        ratings,
        user=np.concatenate([ratings.user, user.astype(np.int32)]),
        item=np.concatenate([ratings.item, (position + before).astype(np.int32)]),
        value=np.repeat(np.array([1, 0], np.float32), [n, zeros]),
        time=None,
        weights=None if ratings.weights is None else np.pad(ratings.weights, (0, zeros), constant_values=1),
    )


def _distinct(count: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(row, number), sorted: for each row g, a uniform draw of count[g] distinct numbers below size[g].

    Of a row that wants more than half, the numbers left out are drawn; then a draw is new with a chance of at least a
    half, and some thirty rounds do. Every set of numbers is as likely as any other: the rounds treat all numbers
    alike, and never draw more than are missing, so that none has to be thrown away.
    """
    most = count > size // 2
    missing = np.where(most, size - count, count)
    width = np.int64(max(size.max(), 1))
    drawn = np.zeros(0, np.int64)
    while missing.any():
        row = np.repeat(np.arange(len(count)), missing)
        number = (rng.random(len(row)) * size[row]).astype(np.int64)
        drawn = np.sort(np.concatenate([drawn, row * width + number]), kind="stable")
        drawn = drawn[np.diff(drawn, prepend=-1) > 0]
        missing = np.where(most, size - count, count) - np.bincount(drawn // width, minlength=len(count))
    if most.any():
        rows = np.flatnonzero(most)
        row = np.repeat(rows, size[rows])
        start = np.cumsum(size[rows]) - size[rows]
        every = row * width + np.arange(len(row)) - np.repeat(start, size[rows])
        left_out = most[drawn // width]
        kept = every[~np.isin(every, drawn[left_out], assume_unique=True)]
        drawn = np.sort(np.concatenate([drawn[~left_out], kept]))
    return drawn // width, drawn % width
