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
    """Whether normal equations of such `cholesky.shares` are not to be trusted to three digits: below 2^14 eps."""
    return ~(share >= 2**14 * jnp.finfo(share.dtype).eps)


def block_of(k: int, longest: int) -> int:
    """Entries taken at a time by rows of at most `longest`."""
    return max(1, min(longest, max(32, 2 * k)))


def triangle(rows: Float[Array, "n k1"]) -> tuple[Float[Array, "k1 k1"], Array]:
    """(R upper triangular, order) with R'R = the Gram matrix of rows[:, order]; the last column stays the last."""
    n, k1 = rows.shape
    rows = jnp.pad(rows, ((0, max(0, k1 - n)), (0, 0)))
    place, column = jnp.arange(len(rows)), jnp.arange(k1)

    def reflect(j: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, order = given
        live = (place >= j)[:, None]
        squares = jnp.sum(jnp.where(live, rows, 0) ** 2, axis=0)
        first = jnp.argmax(jnp.where((column >= j) & (column < k1 - 1), squares, -1))
        first = jnp.where(j == k1 - 1, j, first)
        swap = jnp.where(column == j, first, jnp.where(column == first, j, column))
        rows, order = rows[:, swap], order[swap]
        mine = jnp.where(live[:, 0], rows[:, j], 0)
        largest = jnp.argmax(jnp.where(live[:, 0], jnp.abs(mine), -1))
        swap = jnp.where(place == j, largest, jnp.where(place == largest, j, place))
        rows, mine = rows[swap], mine[swap]
        length = jnp.sqrt(jnp.sum(mine**2))
        u = mine + jnp.where(place == j, jnp.where(mine[j] < 0, -length, length), 0)
        square = jnp.sum(u**2)
        dots = jnp.sum(u[:, None] * rows, axis=0)
        return rows - (2 / jnp.where(square > 0, square, 1)) * u[:, None] * dots[None], order

    rows, order = jax.lax.fori_loop(0, k1, reflect, (rows, column))
    return jnp.triu(rows[:k1]), order


def fit(rows: Float[Array, "n k1"]) -> Fitted:
    """The v that minimizes 1/2 the squared length of rows[:, :k] v - rows[:, k]."""
    upper, order = triangle(rows)
    k = len(order) - 1
    diagonal, whole = jnp.diagonal(upper)[:k] ** 2, jnp.sum(upper[:, :k] ** 2, axis=0)
    share = jnp.min(jnp.where(whole > 0, diagonal / jnp.where(whole > 0, whole, 1), 0), initial=1)

    def back(step: Array, z: Array) -> Array:  # what is not solved yet is 0 in z
        j = k - 1 - step
        left = upper[j, k] - jnp.sum(upper[j, :k] * z)
        return z.at[j].set(jnp.where(upper[j, j] == 0, 0, left / jnp.where(upper[j, j] == 0, 1, upper[j, j])))

    z = jax.lax.fori_loop(0, k, back, jnp.zeros(k, rows.dtype))
    return Fitted(jnp.zeros(k, rows.dtype).at[order[:k]].set(z), upper[k, k] ** 2 / 2, share)


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
        prior: a row's number -> [., k + 1], the penalty's rows sqrt(P) (1, m).
        blocks: a row's number -> how many blocks of entries it has.
        entries: a row's number and a block's -> [m, k + 1], sqrt(w) (x, y), 0 where there is none.
        at_once: rows fitted at a time; None: as many as fit `GROUP`.
    """
    n, k = v.shape
    if n == 0 or k == 0:
        return v, objective, share

    def one(row: Array) -> Fitted:
        first, _ = triangle(prior(row))
        add = lambda t, rows: _unordered(*triangle(jnp.concatenate([rows, entries(row, t)])))
        return fit(jax.lax.fori_loop(0, blocks(row), add, _unordered(first, _)))

    row = jax.ShapeDtypeStruct((), jnp.int32)
    lines = jax.eval_shape(entries, row, row).shape[0] + k + 1
    group = min(n, at_once or max(1, GROUP // (lines * (k + 1))))

    def some(state: tuple[Array, Fitted]) -> tuple[Array, Fitted]:
        left, found = state
        rows = jnp.nonzero(left, size=group, fill_value=n)[0].astype(jnp.int32)
        new = jax.vmap(one)(jnp.minimum(rows, n - 1))
        put = lambda old, new: old.at[rows].set(new.astype(old.dtype), mode="drop")
        return left.at[rows].set(False, mode="drop"), jax.tree.map(put, found, new)

    given = jax.lax.stop_gradient(Fitted(v, objective, share))
    hard = lost(given.share)
    _, found = jax.lax.while_loop(lambda state: jnp.any(state[0]), some, (hard, given))

    def keep(new: Array, old: Array) -> Array:
        """The new value with the old one's derivative."""
        move = old - jax.lax.stop_gradient(old)
        moved = new + jnp.where(jnp.isfinite(move), move, 0)
        return jnp.where(hard.reshape((n, *[1] * (old.ndim - 1))), moved, old)

    return keep(found.v, v), keep(found.objective, objective), found.share


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
        return jnp.concatenate([rows, jnp.sum(rows * mean[None], axis=1, keepdims=True)], axis=1)

    def entries(fit: Array, block: Array) -> Array:
        first = jnp.minimum(block * size, n - size)
        place = first + jnp.arange(size, dtype=jnp.int32)
        there = (place >= block * size) & (place != without[fit].astype(jnp.int32))
        return jnp.where(there[:, None], jax.lax.dynamic_slice_in_dim(lines, first, size), 0)

    blocks = lambda _: jnp.int32(-(-n // size))
    v, _, share = mend(v, jnp.zeros_like(share), share, prior=prior, blocks=blocks, entries=entries, at_once=at_once)
    return v, share


def _unordered(upper: Array, order: Array) -> Array:
    return jnp.zeros_like(upper).at[:, order].set(upper)
