"""The k largest of every column, without sorting columns: a threshold, a bit for everything that reaches it, and then
only what has one. Scores lie in columns, one per query or user, so that every step is one of long vectors.

1. The columns are cut into groups, and of each group the largest is kept. The k-th largest of these is reached by at
   least k numbers of the column, and by few more. It is found bit by bit, as a distance from the column's largest.
2. 32 numbers make one word, a bit each: does it reach the threshold? The words' bit counts, summed, say which word
   holds the column's first such number, its second, ...: a binary search and five steps within a word for each.
3. What was found, k and a half of it, is ranked by comparing all with all.

Where too many reach the threshold (ties), or fewer than k are there at all, the slow form answers.

| `on` | |
| --- | --- |
| `"cpu"` | `by_threshold`, what this file is about; of few columns `by_groups` |
| `"gpu"`, `"tpu"` | `by_groups`: lax.top_k, of the largest groups only; the reference too |

2 cores, k = 100: of [3706, 256] 5 ms, the shortlist alone 2.7, `lax.top_k` of the transpose 13; of [31250, 64] 4.7,
`by_groups` 8.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.kernels.platform import On, by_platform

__all__ = ["above", "by_groups", "by_threshold", "largest", "shortest", "shortlist"]

# Numbers of which `by_groups` keeps the maximum. On a CPU lax.top_k of [64, 30720] takes 4.5 ms, so 2.6. On a GPU it
# takes .14 ms of [64, 7.8k] and 7.8 of [64, 1M]: larger groups, and fewer of them.
FEW: dict[On, int] = {"cpu": 16, "gpu": 25, "tpu": 16}
# Columns from which on the CPU's vectors are full.
LANES = 8
WORD = 32
# Listed values to a turn of the loop that counts them, the counts in vector registers. [150, 256] with itself: .9 ms
# with 16 or 30, and 11 with 8 to 15, which XLA does not fuse; one sum over all comparisons 3.
UNROLL = 16
# Bits of the threshold beyond a float's exponent: 2^-7 of the distance from the column's largest is near enough.
FINE = 7


def largest(
    scores: Float[Array, "m n"], k: int, *, on: On | None = None
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """(values, places) of the k largest of every column, as lax.top_k of the transpose: ties to the lowest place.

    -0 and 0 are different numbers to lax.top_k, and may tie here: make them one before.

    Args:
        scores: a column per query; n may be symbolic (jax.export).
        k: at most m.
        on: the form; None: by the platform.
    """
    form = partial(_largest, k=k)
    return by_platform(form, scores) if on is None else form(scores, on=on)


def _largest(scores: Array, *, k: int, on: On) -> tuple[Array, Array]:
    m, n = scores.shape
    if on != "cpu" or not isinstance(n, int) or n < LANES or m < shortest(k) or scores.dtype.itemsize < 4:
        return by_groups(scores, k, few=FEW[on])
    return by_threshold(scores, k)


def by_groups(scores: Float[Array, "m n"], k: int, *, few: int = 16) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """`largest` by two passes, again and again: the k largest lie in the k groups of `few` with the largest maxima."""
    m, n = scores.shape
    if m <= 4 * few * k:
        best, place = jax.lax.top_k(scores.T, k)
        return best, place
    filled = jnp.pad(scores, ((0, -m % few), (0, 0)), constant_values=-jnp.inf)
    _, groups = by_groups(jnp.max(filled.reshape(-1, few, n), axis=1), k, few=few)
    places = jnp.sort(groups, axis=1)[:, :, None] * few + jnp.arange(few, dtype=jnp.int32)[None, None, :]
    places = places.reshape(n, -1)
    values = scores.at[jnp.minimum(places, m - 1), jnp.arange(n)[:, None]].get(mode="promise_in_bounds")
    values = jnp.where(places < m, values, -jnp.inf)  # the padding stands last, so that it is never needed
    best, place = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(places, place, axis=1, mode="promise_in_bounds")


def by_threshold(scores: Float[Array, "m n"], k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """`largest` from a shortlist."""
    n = scores.shape[1]
    values, places, count = shortlist(scores, k)

    def ranked() -> tuple[Array, Array]:
        rank = above(values, places, values, places)
        there = jnp.arange(len(values), dtype=jnp.int32)[:, None] < count[None]
        row, column = jnp.where(there, rank, k), jnp.arange(n, dtype=jnp.int32)[None]  # k: dropped, as all beyond
        put = lambda each: jnp.zeros((n, k), each.dtype).at[column, row].set(each, mode="drop")
        return put(values), put(places)

    return jax.lax.cond(jnp.all((count >= k) & (count <= len(values))), ranked, lambda: by_groups(scores, k))


def shortlist(
    scores: Float[Array, "m n"], k: int
) -> tuple[Float[Array, "room n"], Int[Array, "room n"], Int[Array, " n"]]:
    """(values, places, count): the first `count` of each column hold its k largest and some more, in no order.

    The rest is -inf, at place 0. A count below k: no more is there above -inf. One above `room`: the list is not whole.
    """
    slabs = len(scores) // WORD  # so many words have a bit of every slab, and one more the rest, as `_slabs` says
    words = _words(scores, _threshold(_maxima(scores, k), k))
    bits = jax.lax.population_count(words).astype(jnp.int32)
    until = _running(bits)
    slot = jnp.arange(k + max(k // 2, 8), dtype=jnp.int32)[:, None]
    word = _search(until, slot)
    of_word = lambda each: jnp.take_along_axis(each, word, axis=0, mode="promise_in_bounds")
    bit = _nth_bit(of_word(words), slot - of_word(until - bits))
    there = slot < until[-1:]
    place = jnp.where(there, jnp.where(word < slabs, bit * slabs + word, slabs * WORD + bit), 0)
    values = jnp.take_along_axis(scores, place, axis=0, mode="promise_in_bounds")
    return jnp.where(there, values, -jnp.inf), place, until[-1]


def above(
    values: Float[Array, "best n"],
    places: Int[Array, "best _"],
    mine: Float[Array, "r n"],
    my_place: Int[Array, "r n"],
) -> Int[Array, "r n"]:
    """How many of a column's listed values come before each of mine: larger ones, and equal ones of lower places."""
    # v > mine is v >= more: one comparison, whichever it is. CPUs are told to take what is below `tiny` as 0.
    tiny = jnp.finfo(mine.dtype).tiny
    more = jnp.where(jnp.abs(mine) < tiny, tiny, jnp.nextafter(mine, jnp.inf))

    def count(so_far: Array, listed: tuple[Array, Array]) -> tuple[Array, None]:
        value, place = listed
        return so_far + (value[None] >= jnp.where(place[None] < my_place, mine, more)).astype(jnp.int32), None

    return jax.lax.scan(count, jnp.zeros(mine.shape, jnp.int32), (values, places), unroll=UNROLL)[0]


def shortest(k: int) -> int:
    """How long columns must be at least for a shortlist of k to be worth it."""
    return max(4 * k, 2 * WORD)


def _slabs(scores: Array) -> tuple[Array, Array]:
    """32 slabs of consecutive rows, [32, ., n], and what is left, [., 1, n]: slices, and no padded copy."""
    whole = len(scores) - len(scores) % WORD
    return scores[:whole].reshape(WORD, -1, scores.shape[1]), scores[whole:, None]


def _maxima(scores: Array, k: int) -> Array:
    """Of groups so large that 4 k are left. As a chain of maxima: XLA's reduction takes 15 times as long."""
    size = WORD
    while size > 1 and len(scores) // size < 4 * k:
        size //= 2
    slabs, rest = _slabs(scores)
    parts = slabs.reshape(size, -1, scores.shape[1])
    return jnp.concatenate([reduce(jnp.maximum, [parts[j] for j in range(size)]), rest[:, 0]])


def _threshold(tops: Array, k: int) -> Array:
    """A number, above -inf, that at least k of each column reach (all, where they are fewer)."""
    kind = {4: jnp.int32, 8: jnp.int64}[tops.dtype.itemsize]
    best = jnp.max(tops, axis=0)[None]
    far = jax.lax.bitcast_convert_type(jnp.where(tops == best, 0, best - tops), kind)  # >= 0: in the floats' order
    last = 8 * tops.dtype.itemsize - 2

    enough = lambda limit: jnp.sum(far <= limit[None], axis=0, dtype=jnp.int32) >= k

    def bit(number: Array, limit: Array) -> Array:  # what is not decided yet is ones
        lower = limit - (jnp.ones((), kind) << (last - number).astype(kind))
        return jnp.where(enough(lower), lower, limit)

    steps = jnp.finfo(tops.dtype).nexp + FINE
    limit = jax.lax.fori_loop(0, steps, bit, jnp.full(tops.shape[1], jnp.iinfo(kind).max, kind))
    reached = jnp.min(jnp.where(far <= limit[None], tops, jnp.inf), axis=0)
    return jnp.maximum(reached, jnp.finfo(tops.dtype).min)


def _words(scores: Array, threshold: Array) -> Array:
    """Bit j of word r: whether row r of slab j reaches its column's threshold; one more word for the rows left."""
    slabs, rest = _slabs(scores)
    bit = lambda j: jnp.uint32(1 << j)
    pack = lambda part: reduce(
        jnp.bitwise_or, [jnp.where(part[j] >= threshold[None], bit(j), jnp.uint32(0)) for j in range(len(part))]
    )
    return jnp.concatenate([pack(slabs), pack(rest)]) if len(rest) else pack(slabs)


def _running(counts: Array) -> Array:
    """Sums along columns, each row with those before it."""

    def add(so_far: Array, row: Array) -> tuple[Array, Array]:
        return so_far + row, so_far + row

    return jax.lax.scan(add, jnp.zeros_like(counts[0]), counts, unroll=8)[1]


def _search(until: Array, slot: Array) -> Array:
    """The word that holds each column's number `slot`: how many words end before it; the last one beyond the end.

    Of 117 words, [150, 256] slots: .23 ms by counting, .52 by a binary search; of 1,281, [150, 64] .54 and .38.
    """
    size = len(until)
    found = jnp.zeros((len(slot), until.shape[1]), jnp.int32)
    if size <= 512:
        count = lambda so_far, end: (so_far + (end[None] <= slot).astype(jnp.int32), None)
        return jnp.minimum(jax.lax.scan(count, found, until, unroll=UNROLL)[0], size - 1)
    for step in (1 << j for j in reversed(range(size.bit_length()))):
        up = found + step
        end = jnp.take_along_axis(until, jnp.minimum(up, size) - 1, axis=0, mode="promise_in_bounds")
        found = jnp.where((up < size) & (end <= slot), up, found)
    return found


def _nth_bit(word: Array, n: Array) -> Array:
    """The place of a word's n-th bit that is set, from 0."""
    place = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        low = jax.lax.population_count(word & jnp.uint32((1 << width) - 1)).astype(jnp.int32)
        beyond = n >= low
        word, n = jnp.where(beyond, word >> width, word), jnp.where(beyond, n - low, n)
        place = jnp.where(beyond, place + width, place)
    return place
