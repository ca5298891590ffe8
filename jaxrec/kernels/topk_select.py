"""The k largest of every column without sorting it. Scores lie in columns, one per query or user, so that every step
works on long vectors.

1. Threshold: columns are cut into groups, and the largest of each group is kept. The k-th largest of these maxima is
   reached by at least k numbers of the column, and by few more. It is found bit by bit, as a distance from the largest.
2. Bits: 32 numbers make one word, with a bit for each that reaches the threshold. The cumulative bit counts of the
   words say which word holds the column's first such number, its second, ...: for each a binary search over the words
   and five steps within one.
3. Order: the numbers found, 1.5 k of them, are ranked by comparing all with all.

Where too many reach the threshold (ties), or fewer than k numbers are above -inf, the slower `by_groups` is used.

| `platform` | implementation |
| --- | --- |
| `"cpu"` | `by_threshold`, the steps above; for few columns `by_groups` |
| `"gpu"`, `"tpu"` | `by_groups`: lax.top_k, of the largest groups only; also the reference |

2 cores, k = 100: [3706, 256] takes 5 ms, the shortlist alone 2.7, `lax.top_k` of the transpose 13; [31250, 64] takes
4.7 ms, by `by_groups` 8.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.kernels.platform import Platform, by_platform

__all__ = ["by_groups", "by_threshold", "count_above", "largest", "min_length", "shortlist"]

# Numbers per group in `by_groups`. On a CPU lax.top_k of [64, 30720] takes 4.5 ms, and 2.6 by groups. On a GPU it takes
# 0.14 ms of [64, 7.8k] and 7.8 ms of [64, 1M]: larger groups, and fewer of them.
GROUP_SIZE: dict[Platform, int] = {"cpu": 16, "gpu": 25, "tpu": 16}
# The number of columns that fills a CPU's vectors.
LANES = 8
WORD_BITS = 32
# Listed values per iteration of the loop that counts them, with the counts in vector registers. [150, 256] with itself:
# 0.9 ms with 16 or 30, and 11 ms with 8 to 15, which XLA does not fuse; 3 ms as one sum over all comparisons.
UNROLL = 16
# Bits of the threshold beyond a float's exponent: 2^-7 of the distance from the column's largest is precise enough.
MANTISSA_BITS = 7


def largest(
    scores: Float[Array, "m n"], k: int, *, platform: Platform | None = None
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """(values, positions) of the k largest of every column, as lax.top_k of the transpose: ties to the lowest position.

    -0 and 0 differ in lax.top_k, and may tie here: make them equal beforehand.

    Args:
        scores: a column per query; n may be symbolic (jax.export).
        k: at most m.
        platform: whose implementation to run; None: that of the platform the program is lowered for.
    """
    implementation = partial(_largest, k=k)
    return by_platform(implementation, scores) if platform is None else implementation(scores, platform=platform)


def _largest(scores: Array, *, k: int, platform: Platform) -> tuple[Array, Array]:
    m, n = scores.shape
    if platform != "cpu" or not isinstance(n, int) or n < LANES or m < min_length(k) or scores.dtype.itemsize < 4:
        return by_groups(scores, k, group=GROUP_SIZE[platform])
    return by_threshold(scores, k)


def by_groups(scores: Float[Array, "m n"], k: int, *, group: int = 16) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """`largest` by two passes, recursively: the k largest lie in the k groups with the largest maxima."""
    m, n = scores.shape
    if m <= 4 * group * k:
        best, position = jax.lax.top_k(scores.T, k)
        return best, position
    padded = jnp.pad(scores, ((0, -m % group), (0, 0)), constant_values=-jnp.inf)
    _, groups = by_groups(jnp.max(padded.reshape(-1, group, n), axis=1), k, group=group)
    positions = jnp.sort(groups, axis=1)[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)[None, None, :]
    positions = positions.reshape(n, -1)
    values = scores.at[jnp.minimum(positions, m - 1), jnp.arange(n)[:, None]].get(mode="promise_in_bounds")
    values = jnp.where(positions < m, values, -jnp.inf)  # the padding is last, so it is never needed
    best, index = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(positions, index, axis=1, mode="promise_in_bounds")


def by_threshold(scores: Float[Array, "m n"], k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """`largest` from a shortlist."""
    n = scores.shape[1]
    values, positions, count = shortlist(scores, k)

    def ranked() -> tuple[Array, Array]:
        rank = count_above(values, positions, values, positions)
        valid = jnp.arange(len(values), dtype=jnp.int32)[:, None] < count[None]
        rank, column = jnp.where(valid, rank, k), jnp.arange(n, dtype=jnp.int32)[None]  # ranks from k on are dropped
        write = lambda each: jnp.zeros((n, k), each.dtype).at[column, rank].set(each, mode="drop")
        return write(values), write(positions)

    return jax.lax.cond(jnp.all((count >= k) & (count <= len(values))), ranked, lambda: by_groups(scores, k))


def shortlist(
    scores: Float[Array, "m n"], k: int
) -> tuple[Float[Array, "room n"], Int[Array, "room n"], Int[Array, " n"]]:
    """(values, positions, count): the first `count` of each column are its k largest and a few more, in no order.

    The rest is -inf at position 0. A count below k: no more numbers are above -inf. A count above `room`: the list is
    incomplete.

    Example of one column of 8 scores, with k = 3, room for 4, words of 2 bits instead of 32, and so two slabs of 4
    rows. Word r has a bit for each slab's row r, the lowest for slab 0::

        score                     5   1   9   2 | 7   3   8   4
        score >= `_threshold`, 7  0   0   1   0 | 1   0   1   0
        `_words`                 10  00  11  00
        bits set                  1   0   2   0
        `_cumulative`             1   1   3   3                  so count = 3

        slot                      0   1   2   3                  the first number found, the second, ...
        word, `_find_word`        0   2   2   .                  how many words end before the slot
        bit, `_nth_bit`           1   0   1   .                  number 0, 0, 1 of the set bits of its word
        position                  4   2   6   0                  bit * 4 + word
        value                     7   9   8  -inf
    """
    slab_length = len(scores) // WORD_BITS  # words with a bit for each slab; one more has the remaining rows (`_slabs`)
    words = _words(scores, _threshold(_group_maxima(scores, k), k))
    bits = jax.lax.population_count(words).astype(jnp.int32)
    cumulative = _cumulative(bits)
    slot = jnp.arange(k + max(k // 2, 8), dtype=jnp.int32)[:, None]
    word = _find_word(cumulative, slot)
    at_word = lambda each: jnp.take_along_axis(each, word, axis=0, mode="promise_in_bounds")
    bit = _nth_bit(at_word(words), slot - at_word(cumulative - bits))
    valid = slot < cumulative[-1:]
    position = jnp.where(word < slab_length, bit * slab_length + word, slab_length * WORD_BITS + bit)
    position = jnp.where(valid, position, 0)
    values = jnp.take_along_axis(scores, position, axis=0, mode="promise_in_bounds")
    return jnp.where(valid, values, -jnp.inf), position, cumulative[-1]


def count_above(
    values: Float[Array, "best n"],
    positions: Int[Array, "best _"],
    score: Float[Array, "r n"],
    position: Int[Array, "r n"],
) -> Int[Array, "r n"]:
    """Number of a column's listed values before each score: larger ones, and equal ones at lower positions."""
    # v > score is v >= next_score, so that both need one comparison. CPUs are set to treat numbers below `tiny` as 0.
    tiny = jnp.finfo(score.dtype).tiny
    next_score = jnp.where(jnp.abs(score) < tiny, tiny, jnp.nextafter(score, jnp.inf))

    def add(count: Array, listed: tuple[Array, Array]) -> tuple[Array, None]:
        value, row = listed
        return count + (value[None] >= jnp.where(row[None] < position, score, next_score)).astype(jnp.int32), None

    return jax.lax.scan(add, jnp.zeros(score.shape, jnp.int32), (values, positions), unroll=UNROLL)[0]


def min_length(k: int) -> int:
    """The least length of columns for which a shortlist of k pays."""
    return max(4 * k, 2 * WORD_BITS)


def _slabs(scores: Array) -> tuple[Array, Array]:
    """32 slabs of consecutive rows, [32, ., n], and the remaining rows, [., 1, n]: slices, and no padded copy."""
    n_full = len(scores) - len(scores) % WORD_BITS
    return scores[:n_full].reshape(WORD_BITS, -1, scores.shape[1]), scores[n_full:, None]


def _group_maxima(scores: Array, k: int) -> Array:
    """Maxima of groups as large as leaves 4 k of them. A chain of maxima: XLA's reduction takes 15 times as long."""
    size = WORD_BITS
    while size > 1 and len(scores) // size < 4 * k:
        size //= 2
    slabs, rest = _slabs(scores)
    parts = slabs.reshape(size, -1, scores.shape[1])
    return jnp.concatenate([reduce(jnp.maximum, [parts[j] for j in range(size)]), rest[:, 0]])


def _threshold(maxima: Array, k: int) -> Array:
    """A number above -inf that at least k of each column's maxima reach (all that are above -inf, if there are fewer).

    It is the smallest maximum within a limit of the distance from the largest. Distances are >= 0, so that their bits,
    as integers, are in the order of the floats. The limit starts with all bits set; from the highest on, each bit is
    cleared if k distances are still within the limit. Example with k = 3 and 3-bit integers::

        maxima     9  8  7  5        limit  111 -> 011  3 distances are within 011: cleared
        distance   0  1  2  4               011         only 2 are within 001: kept
                                            011 -> 010  3 are within 010: cleared

    The limit is 2 and the threshold 7. Bits of the mantissa after the first MANTISSA_BITS stay set.
    """
    integer = {4: jnp.int32, 8: jnp.int64}[maxima.dtype.itemsize]
    best = jnp.max(maxima, axis=0)[None]
    distance = jax.lax.bitcast_convert_type(jnp.where(maxima == best, 0, best - maxima), integer)
    highest_bit = 8 * maxima.dtype.itemsize - 2

    enough = lambda limit: jnp.sum(distance <= limit[None], axis=0, dtype=jnp.int32) >= k

    def clear_bit(number: Array, limit: Array) -> Array:
        lower = limit - (jnp.ones((), integer) << (highest_bit - number).astype(integer))
        return jnp.where(enough(lower), lower, limit)

    steps = jnp.finfo(maxima.dtype).nexp + MANTISSA_BITS
    limit = jax.lax.fori_loop(0, steps, clear_bit, jnp.full(maxima.shape[1], jnp.iinfo(integer).max, integer))
    reached = jnp.min(jnp.where(distance <= limit[None], maxima, jnp.inf), axis=0)
    return jnp.maximum(reached, jnp.finfo(maxima.dtype).min)


def _words(scores: Array, threshold: Array) -> Array:
    """Bit j of word r: whether row r of slab j reaches its column's threshold; one more word has the remaining rows."""
    slabs, rest = _slabs(scores)
    bit = lambda j: jnp.uint32(1 << j)

    def pack(part: Array) -> Array:
        reaching = [jnp.where(part[j] >= threshold[None], bit(j), jnp.uint32(0)) for j in range(len(part))]
        return reduce(jnp.bitwise_or, reaching)

    return jnp.concatenate([pack(slabs), pack(rest)]) if len(rest) else pack(slabs)


def _cumulative(counts: Array) -> Array:
    """Cumulative sums along columns."""

    def add(total: Array, row: Array) -> tuple[Array, Array]:
        return total + row, total + row

    return jax.lax.scan(add, jnp.zeros_like(counts[0]), counts, unroll=8)[1]


def _find_word(cumulative: Array, slot: Array) -> Array:
    """The word with each column's number `slot`: how many words end before it; the last one for slots beyond the end.

    117 words, [150, 256] slots: 0.23 ms by counting, 0.52 by a binary search; 1,281 words, [150, 64]: 0.54 and 0.38.
    """
    size = len(cumulative)
    word = jnp.zeros((len(slot), cumulative.shape[1]), jnp.int32)
    if size <= 512:
        count = lambda word, end: (word + (end[None] <= slot).astype(jnp.int32), None)
        return jnp.minimum(jax.lax.scan(count, word, cumulative, unroll=UNROLL)[0], size - 1)
    for step in (1 << j for j in reversed(range(size.bit_length()))):
        next_word = word + step
        end = jnp.take_along_axis(cumulative, jnp.minimum(next_word, size) - 1, axis=0, mode="promise_in_bounds")
        word = jnp.where((next_word < size) & (end <= slot), next_word, word)
    return word


def _nth_bit(word: Array, n: Array) -> Array:
    """The position of a word's n-th set bit, from 0, by halving the word.

    For n = 2 in 1011: the low half 11 has two set bits, so it is number 0 of the high half 10; there the low bit 0 has
    none, so it is the high bit. Position 2 + 1 = 3.
    """
    position = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        low_bits = jax.lax.population_count(word & jnp.uint32((1 << width) - 1)).astype(jnp.int32)
        in_high = n >= low_bits
        word, n = jnp.where(in_high, word >> width, word), jnp.where(in_high, n - low_bits, n)
        position = jnp.where(in_high, position + width, position)
    return position
