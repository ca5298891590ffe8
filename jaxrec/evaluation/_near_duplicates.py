"""Pairs of items that nearly the same users rated, found exactly without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrec.counting_sort import group_by

__all__ = ["NearDuplicates", "near_duplicates"]

ENTRIES_PER_BLOCK = 2**22  # pairs or ratings compared at once: 250 MB
ROUNDING = 1e-9  # of a count; a bound is never too tight


class NearDuplicates(NamedTuple):
    """Pairs of items that nearly the same users rated.

    Attributes:
        n_pairs: the number of pairs.
        examples: (item, item, cosine) of those with the highest cosines; among equal ones those of the lowest ids.
    """

    n_pairs: int
    examples: list[tuple[int, int, float]]


def near_duplicates(
    pairs: np.ndarray, n_users: int, n_items: int, least_cosine: float, min_ratings: int, n_examples: int
) -> NearDuplicates:
    """Finds the pairs of items whose users U(i), U(i') have a cosine of at least t = `least_cosine`.

        cos(i, i') = |U(i) and U(i')| / sqrt(|U(i)| |U(i')|) >= t

    Since the smaller set holds the overlap, such items have min(|U|) >= t^2 max(|U|), and so an overlap of at least
    t^2 |U(i)| for either. Sort each U(i) by the activity of its users, the least active first, and call the first
    |U(i)| - ceil(t^2 |U(i)|) + 1 its prefix: the rest is smaller than the overlap, so the first shared user, in that
    order, is in both prefixes. The overlaps of the prefixes are the product of a sparse matrix with its transpose, in
    which the most active users, who would make most of the work, hardly occur. A pair is compared in full if

        |overlap of the prefixes| + max(|U(i)| - |prefix(i)|, the same of i') >= t sqrt(|U(i)| |U(i')|),

    because a shared user that is not in both prefixes is in the rest of the item whose prefix ends first. (Prefix
    filtering: Chaudhuri et al., "A primitive operator for similarity joins in data cleaning", ICDE 2006; Bayardo et
    al., "Scaling up all pairs similarity search", WWW 2007.)

    Args:
        pairs: [n] distinct user * n_items + item.
        n_users: the size of the table of users.
        n_items: the size of the table of items.
        least_cosine: t, in (0, 1].
        min_ratings: items with fewer users are not compared.
        n_examples: the number of examples.
    """
    from scipy import sparse  # takes 0.1 s to import

    users, start = _users_by_item(pairs, n_users, n_items)
    count = np.diff(start)
    least_overlap = np.ceil(least_cosine**2 * count - ROUNDING).astype(np.int64)
    n_prefix = np.where(count >= min_ratings, count - least_overlap + 1, 0)
    n_rest = count - n_prefix
    in_prefix = np.arange(len(users)) < np.repeat(start[:-1] + n_prefix, count)
    members = sparse.csr_array((np.ones(len(users), np.int8), users, start), shape=(n_items, n_users))
    ends = np.concatenate([[0], np.cumsum(n_prefix)])
    ones = np.ones(int(ends[-1]), np.int32)
    prefixes = sparse.csr_array((ones, users[in_prefix], ends), shape=(n_items, n_users))
    prefixes_by_user = prefixes.T.tocsr()
    work = prefixes @ np.diff(prefixes_by_user.indptr).astype(np.int64)

    n_found, best = 0, np.zeros((0, 3))
    for first, last in _blocks(work):
        overlap = (prefixes[first:last] @ prefixes_by_user).tocoo()
        a, b, shared = overlap.coords[0].astype(np.int64) + first, overlap.coords[1].astype(np.int64), overlap.data
        least = least_cosine * np.sqrt(count[a] * count[b]) - ROUNDING
        likely = (a < b) & (np.minimum(count[a], count[b]) >= least)
        likely &= shared + np.maximum(n_rest[a], n_rest[b]) >= least
        a, b = a[likely], b[likely]
        for begin, end in _blocks(count[a] + count[b]):
            one, other = a[begin:end], b[begin:end]
            shared = np.diff(members[one].multiply(members[other]).tocsr().indptr)
            cosine = shared / np.sqrt(count[one] * count[other])
            found = cosine >= least_cosine
            n_found += int(found.sum())
            best = np.concatenate([best, np.stack([one, other, cosine], axis=1)[found]])
            best = best[np.lexsort((best[:, 1], best[:, 0], -best[:, 2]))[:n_examples]]
    return NearDuplicates(n_found, [(int(a), int(b), float(cosine)) for a, b, cosine in best])


def _users_by_item(pairs: np.ndarray, n_users: int, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(users, start): the users of item i are users[start[i] : start[i + 1]], numbered by activity, ascending."""
    user, item = (pairs // n_items).astype(np.int32), (pairs % n_items).astype(np.int32)
    number = np.empty(n_users, np.int32)
    number[np.argsort(np.bincount(user, minlength=n_users), kind="stable")] = np.arange(n_users, dtype=np.int32)
    user = number[user]
    _, by_user = group_by(user, n_users)
    start, by_item = group_by(item[by_user], n_items)
    return user[by_user[by_item]], start.astype(np.int64)


def _blocks(work: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts rows into runs [first, last) whose sums of `work` are at most ENTRIES_PER_BLOCK, or of a single row."""
    total = np.concatenate([[0], np.cumsum(work)])
    first = 0
    while first < len(work):
        last = max(first + 1, int(np.searchsorted(total, total[first] + ENTRIES_PER_BLOCK, "right")) - 1)
        yield first, last
        first = last
