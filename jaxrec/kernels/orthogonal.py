r"""Least squares by reflections, for the few rows whose normal equations have lost in rounding what decides them.

A Gram matrix of weights w squares what it sums: of w = 1e7 beside w = 1 float32 keeps nothing of the second. So the
rows sqrt(w) (x, y) themselves, and the penalty's sqrt(P) (1, m), are reduced to a triangle by Householder reflections,
a block of entries at a time, with the largest row and column first. That is stable for every row of the data at its own
scale, whatever the weights, the features' scales or P, 0 too: what comes out is exact for features that differ from the
given ones by rounding. A row of n entries takes 2 n k^2 flops where the Gram matrix takes n k^2, and k steps one after
the other for every block: some hundred times as long on a CPU. So `mend` is a loop over those rows alone, and is not
entered where there are none.

Source: Cox, Higham 1998, Stability of Householder QR factorization for weighted least squares problems.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

__all__ = ["Fitted", "block_of", "fit", "lost", "mend", "mend_fits", "root", "triangle"]

# Floats of rows that are reflected at once, in groups of rows: 1 MiB.
GROUP = 2**18


class Fitted(NamedTuple):
    """A row's solution.

    Attributes:
        v: [k].
        objective: [], 1/2 sum of squares of what is left.
        share: [], the smallest diagonal entry of the triangle beside its column, squared: of the Gram matrix' factor
            `cholesky.shares`, but not lost in rounding before it is some eps^2.
    """

    v: Array
    objective: Array
    share: Array


def lost(share: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether normal equations of such `cholesky.shares` are not to be trusted to three digits: below 2^17 eps.

    At 2^14 eps a solution of four coefficients was found off by 1.5 %; the error is as 1 / share.
    """
    return ~(share >= 2**17 * jnp.finfo(share.dtype).eps)


def block_of(k: int, longest: int) -> int:
    """Entries taken at a time by rows of at most `longest`."""
    return max(1, min(longest, max(32, 2 * k)))


def triangle(rows: Float[Array, "n k1"]) -> tuple[Float[Array, "k1 k1"], Array]:
    """(R, order) with R'R = rows' rows, and R[:, order] upper triangular; the last column is the last in order."""
    n, k1 = rows.shape
    rows = jnp.pad(rows, ((0, max(0, k1 - n)), (0, 0)))
    place, column = jnp.arange(len(rows), dtype=jnp.int32), jnp.arange(k1, dtype=jnp.int32)
    never = jnp.full(k1, k1, jnp.int32)

    def reflect(j: Array, given: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        """The rows that are left, turned so that the largest column of those is 0 but in its largest row, the j-th."""
        rows, live, step_of, chosen = given
        squares = jnp.sum(jnp.where(live[:, None], rows, 0) ** 2, axis=0)
        open_ = (step_of == k1) & ((column < k1 - 1) | (j == k1 - 1))
        first = jnp.argmax(jnp.where(open_, squares, -1)).astype(jnp.int32)
        mine = jnp.where(live, jax.lax.dynamic_index_in_dim(rows, first, axis=1, keepdims=False), 0)
        largest = jnp.argmax(jnp.where(live, jnp.abs(mine), -1)).astype(jnp.int32)
        length = jnp.sqrt(jnp.sum(mine**2))
        u = mine + jnp.where(place == largest, jnp.where(mine < 0, -length, length), 0)
        square = jnp.sum(u**2)
        dots = jnp.sum(u[:, None] * rows, axis=0)
        rows = rows - (2 / jnp.where(square > 0, square, 1)) * u[:, None] * dots[None]
        step_of = jnp.where(column == first, j, step_of)
        return rows, live & (place != largest), step_of, jnp.where(column == j, largest, chosen)

    begin = rows, jnp.ones(len(rows), bool), never, never
    rows, _, step_of, chosen = jax.lax.fori_loop(jnp.int32(0), jnp.int32(k1), reflect, begin)
    upper = jnp.where(step_of[None, :] >= column[:, None], rows[chosen], 0)
    return upper, jnp.argsort(step_of).astype(jnp.int32)


def fit(rows: Float[Array, "n k1"]) -> Fitted:
    """The v that minimizes 1/2 the squared length of rows[:, :k] v - rows[:, k]."""
    return _back(*triangle(rows))


def _back(upper: Array, order: Array) -> Fitted:
    k = len(order) - 1
    pivot = jnp.take_along_axis(upper[:k], order[:k, None], axis=1)[:, 0]
    whole = jnp.sum(upper[:, :k] ** 2, axis=0)[order[:k]]
    share = jnp.min(jnp.where(whole > 0, pivot**2 / jnp.where(whole > 0, whole, 1), 0), initial=1)

    def back(step: Array, v: Array) -> Array:  # what is not solved yet is 0 in v
        j = k - 1 - step
        left = upper[j, k] - jnp.sum(upper[j, :k] * v)
        solved = jnp.where(pivot[j] == 0, 0, left / jnp.where(pivot[j] == 0, 1, pivot[j]))
        return jnp.where(jnp.arange(k, dtype=jnp.int32) == order[j], solved, v)

    v = jax.lax.fori_loop(0, k, back, jnp.zeros(k, upper.dtype))
    return Fitted(v, upper[k, k] ** 2 / 2, share)


def root(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Rows R with R'R = matrix, which is positive semidefinite: by elimination, pivots below rounding left out."""
    k, diagonal = len(matrix), jnp.diagonal(matrix)

    def eliminate(j: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        left, rows = given
        pivot = left[j, j]
        there = pivot > k * jnp.finfo(matrix.dtype).eps * diagonal[j]
        row = jnp.where(there, left[j] / jnp.sqrt(jnp.where(there, pivot, 1)), 0)
        row = jnp.where(jnp.arange(k) < j, 0, row)
        return left - row[:, None] * row[None], rows.at[j].set(row)

    return jax.lax.fori_loop(0, k, eliminate, (matrix, jnp.zeros_like(matrix)))[1]


def mend(
    v: Float[Array, "n k"],
    objective: Float[Array, " n"],
    share: Float[Array, " n"],
    *,
    prior: Callable[[Array], Array],
    blocks: Callable[[Array], Array],
    entries: Callable[[Array, Array], Array],
    at_once: int | None = None,
) -> tuple[Float[Array, "n k"], Float[Array, " n"], Float[Array, " n"]]:
    """(v, objective, share) with the rows whose share is `lost` fitted anew.

    Nothing is differentiated: the derivative of a row stays that of the v given, of its normal equations.

    Args:
        v: the rows' solutions by normal equations.
        objective: what they leave.
        share: the normal equations' `cholesky.shares`.
        prior: a row's number -> [k + 1, k + 1], the penalty's rows sqrt(P) (1, m), and one of 0.
        blocks: a row's number -> how many blocks of entries it has, at least one.
        entries: a row's number and a block's -> [m, k + 1], sqrt(w) (x, y), 0 where there is none.
        at_once: rows fitted at a time; None: as many as fit `GROUP`.
    """
    n, k = v.shape
    if n == 0 or k == 0:
        return v, objective, share

    row = jax.ShapeDtypeStruct((), jnp.int32)
    lines = jax.eval_shape(entries, row, row).shape[0] + k + 1
    group = min(n, at_once or max(1, GROUP // (lines * (k + 1))))

    def some(state: Array) -> Array:
        waiting, mine = jax.lax.top_k(state[:, -1], group)
        rows = jnp.where(waiting > 0, mine, n)  # n is nobody
        counts = jax.vmap(blocks)(mine)

        def add(t: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
            """One block more of each; beyond its last a row's are 0."""
            more = jax.lax.map(lambda row: entries(row, t), mine)
            more = jnp.where((t < counts)[:, None, None], more, 0)
            return jax.vmap(triangle)(jnp.concatenate([given[0], more], axis=1))

        begin = jax.vmap(prior)(mine), jnp.zeros((group, k + 1), jnp.int32)
        new = jax.vmap(_back)(*jax.lax.fori_loop(0, jnp.max(counts), add, begin))
        lines = jnp.concatenate(
            [new.v, new.objective[:, None], new.share[:, None], jnp.zeros((group, 1), v.dtype)], axis=1
        )
        return state.at[rows].set(lines.astype(v.dtype), mode="drop")

    # in one array, for each update is compiled: v, objective, share, and whether it is still to be done
    given = jax.lax.stop_gradient((v, objective, share))
    hard = lost(given[2])
    columns = [a[:, None] if a.ndim == 1 else a for a in (*given, hard.astype(v.dtype))]
    state = jax.lax.while_loop(lambda state: jnp.any(state[:, -1] > 0), some, jnp.concatenate(columns, axis=1))

    def keep(new: Array, old: Array) -> Array:
        """The new value with the old one's derivative."""
        move = old - jax.lax.stop_gradient(old)
        moved = new + jnp.where(jnp.isfinite(move), move, 0)
        return jnp.where(hard.reshape((n, *[1] * (old.ndim - 1))), moved, old)

    return keep(state[:, :k], v), keep(state[:, k], objective), state[:, k + 1]


def mend_fits(
    v: Float[Array, "m d"],
    share: Float[Array, " m"],
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    weight: Float[Array, " n"],
    precision: Float[Array, "d d"],
    mean: Float[Array, " d"],
    *,
    without: Int[Array, " m"],
    at_once: int = 1,
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """(v, share) of fits of one row's entries, those whose share is `lost` made anew: of all but entry without[r].

    Args:
        v: solutions by normal equations.
        share: their shares.
        x: the features, finite.
        y: the targets, finite.
        weight: 0 where masked.
        precision: P, positive semidefinite.
        mean: m of the penalty 1/2 (v - m)' P (v - m).
        without: the entry each fit is without; n: none.
        at_once: fits at a time.
    """
    n, d = x.shape
    if n == 0:
        return v, share
    x, y, weight, precision, mean = jax.lax.stop_gradient((x, y, weight, precision, mean))
    size = block_of(d, n)
    scale = jnp.where(weight > 0, jnp.sqrt(jnp.where(weight > 0, weight, 1)), 0)
    lines = scale[:, None] * jnp.concatenate([x, y[:, None]], axis=1)

    def prior(_: Array) -> Array:
        rows = root(precision)
        rows = jnp.concatenate([rows, jnp.sum(rows * mean[None], axis=1, keepdims=True)], axis=1)
        return jnp.pad(rows, ((0, 1), (0, 0)))

    def entries(fit: Array, block: Array) -> Array:
        first = jnp.minimum(block * size, n - size)
        place = first + jnp.arange(size, dtype=jnp.int32)
        there = (place >= block * size) & (place != without[fit].astype(jnp.int32))
        return jnp.where(there[:, None], jax.lax.dynamic_slice_in_dim(lines, first, size), 0)

    blocks = lambda _: jnp.int32(-(-n // size))
    v, _, share = mend(v, jnp.zeros_like(share), share, prior=prior, blocks=blocks, entries=entries, at_once=at_once)
    return v, share
