"""Which rows of ratings share a bucket of padded rows, and its length: less padding, or less to compile."""

from typing import NamedTuple

import numpy as np

from jaxrec import check
from jaxrec.counting_sort import CHUNK_ENTRIES, divisor_from, partition

__all__ = ["BucketPlan", "n_padding", "plan_buckets"]

# The cost of one more bucket, in padded entries: 100,000, because compiling it takes 0.2 s on 2 cores and 10 exact
# sweeps at d = 64 take 0.2 us per entry each; plus a hundredth of the entries, so that large data, which may be on a
# GPU, have few buckets too. (The GPU program merges buckets further: `solvers.batched_ridge`.)
BUCKET_COST, BUCKET_COST_PER_ENTRY = 100_000, 1 / 100
# Lengths above CHUNK_ENTRIES whose ratio is below this are one to the cost model; below, its divisors are the lengths.
LENGTH_RATIO = 1.05


class BucketPlan(NamedTuple):
    """The shape of a bucket, [n_lines, longest], and the rows that it holds."""

    members: np.ndarray
    n_lines: int  # the number of members, padded to a multiple
    longest: int


def plan_buckets(
    length: np.ndarray, *, bucket_growth: float | None, min_length: int, pad_to_multiple: int
) -> list[BucketPlan]:
    """Returns the buckets for rows of these lengths, shortest first."""
    if bucket_growth is not None and not 1 < bucket_growth < np.inf:
        raise ValueError(f"bucket_growth: expected a number > 1, or None, got {bucket_growth}.")
    if min_length < 1:
        raise ValueError(f"min_length: expected a length >= 1, got {min_length}.")
    limits = [min_length]
    while limits[-1] < length.max():
        limits.append(_next_limit(limits[-1], bucket_growth))
    bucket = np.searchsorted(limits, length)
    if bucket_growth is None:
        count = np.bincount(bucket, minlength=len(limits))
        runs = partition(np.asarray(limits), count, BUCKET_COST + BUCKET_COST_PER_ENTRY * length.sum())
        bucket = np.repeat(np.arange(len(runs)), [last - first for first, last in runs])[bucket]
    plan = []
    for number in np.unique(bucket):
        members = np.flatnonzero(bucket == number)
        n_lines = len(members) + n_padding(len(members), pad_to_multiple)
        longest = max(1, int(length[members].max()))
        if bucket_growth is None and longest <= CHUNK_ENTRIES:
            longest = divisor_from(longest)
        plan.append(BucketPlan(members, n_lines, longest))
    return plan


def _next_limit(limit: int, bucket_growth: float | None) -> int:
    """The longest row that the next bucket may hold; by default a divisor of `CHUNK_ENTRIES`."""
    if bucket_growth is None and limit < CHUNK_ENTRIES:
        return divisor_from(limit + 1)
    return int(np.ceil(limit * (bucket_growth or LENGTH_RATIO)))


def n_padding(n: int, pad_to_multiple: int) -> int:
    """Returns how many padding entries bring n to a multiple."""
    if pad_to_multiple < 1:
        raise ValueError(f"pad_to_multiple: expected a number >= 1, got {pad_to_multiple}.")
    extra = -n % pad_to_multiple
    if n + extra > check.INT32_MAX:
        raise ValueError(
            f"expected at most {check.INT32_MAX} entries in a column (positions are int32), got {n + extra}."
        )
    return extra
