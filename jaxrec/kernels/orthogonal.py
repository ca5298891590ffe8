r"""Least squares by QR (Householder reflections), for the few rows whose normal equations lose precision to rounding.

A Gram matrix squares what it sums: with weights of 1e7 and 1, float32 keeps nothing of the second. So the rows
sqrt(w) (x, y) themselves, and those of the penalty P and its mean m, sqrt(P) (1, m), are reduced to a triangle::

    [ sqrt(w) x   sqrt(w) y ]        [ R   r ]
    [ sqrt(P)     sqrt(P) m ]  =  Q  [ 0   s ]        v = R^-1 r,   objective s^2 / 2

one block of entries at a time, with the largest row and column first. That is stable for every row of the data at its
own scale, whatever the weights, the scales of the features or P, 0 too: the result is exact for features that differ
from those passed by rounding. A row of n entries takes 2 n k^2 flops where the Gram matrix takes n k^2, and k
sequential steps for every block: some hundred times as long on a CPU. So `refit_rows` loops over those rows only,
and does nothing where there are none.

Source: Cox, Higham 1998, Stability of Householder QR factorization for weighted least squares problems.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

__all__ = ["Fitted", "block_size", "fit", "ill_conditioned", "refit_one_row", "refit_rows", "root", "triangle"]

# Floats of the entries that are reflected at once, in batches of rows: 1 MiB.
BATCH_FLOATS = 2**18


class Fitted(NamedTuple):
    """The solution of a row.

    Attributes:
        v: [k].
        objective: [], 1/2 sum of squared residuals.
        pivot_ratio: [], the smallest squared ratio of a diagonal entry of the triangle to the length of its column:
            `cholesky.pivot_ratio` of the Gram matrix, but not lost to rounding until it is a few eps^2.
    """

    v: Array
    objective: Array
    pivot_ratio: Array


def ill_conditioned(pivot_ratio: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether normal equations with this `cholesky.pivot_ratio` are not trusted to three digits: below 2^17 eps.

    At 2^14 eps a solution of four coefficients was found off by 1.5 %; the error is proportional to 1 / ratio.
    """
    return ~(pivot_ratio >= 2**17 * jnp.finfo(pivot_ratio.dtype).eps)


def block_size(k: int, longest: int) -> int:
    """Number of entries reflected at a time, in rows of at most `longest` entries."""
    return max(1, min(longest, max(32, 2 * k)))


def triangle(rows: Float[Array, "n k1"]) -> tuple[Float[Array, "k1 k1"], Array]:
    """(R, order) with R'R = rows' rows, and R[:, order] upper triangular; the last column is the last in order."""
    n, k1 = rows.shape
    rows = jnp.pad(rows, ((0, max(0, k1 - n)), (0, 0)))
    row_index, column_index = jnp.arange(len(rows), dtype=jnp.int32), jnp.arange(k1, dtype=jnp.int32)
    unassigned = jnp.full(k1, k1, jnp.int32)

    def reflect(j: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        """Reflects the remaining rows: their largest column becomes 0 except in its largest row, which is the j-th."""
        rows, remaining, step_of_column, row_of_step = state
        squares = jnp.sum(jnp.where(remaining[:, None], rows, 0) ** 2, axis=0)
        eligible = (step_of_column == k1) & ((column_index < k1 - 1) | (j == k1 - 1))
        pivot_column = jnp.argmax(jnp.where(eligible, squares, -1)).astype(jnp.int32)
        column = jax.lax.dynamic_index_in_dim(rows, pivot_column, axis=1, keepdims=False)
        column = jnp.where(remaining, column, 0)
        pivot_row = jnp.argmax(jnp.where(remaining, jnp.abs(column), -1)).astype(jnp.int32)
        length = jnp.sqrt(jnp.sum(column**2))
        u = column + jnp.where(row_index == pivot_row, jnp.where(column < 0, -length, length), 0)
        square = jnp.sum(u**2)
        dots = jnp.sum(u[:, None] * rows, axis=0)
        rows = rows - (2 / jnp.where(square > 0, square, 1)) * u[:, None] * dots[None]
        step_of_column = jnp.where(column_index == pivot_column, j, step_of_column)
        remaining = remaining & (row_index != pivot_row)
        row_of_step = jnp.where(column_index == j, pivot_row, row_of_step)
        return rows, remaining, step_of_column, row_of_step

    state = rows, jnp.ones(len(rows), bool), unassigned, unassigned
    rows, _, step_of_column, row_of_step = jax.lax.fori_loop(jnp.int32(0), jnp.int32(k1), reflect, state)
    upper = jnp.where(step_of_column[None, :] >= column_index[:, None], rows[row_of_step], 0)
    return upper, jnp.argsort(step_of_column).astype(jnp.int32)


def fit(rows: Float[Array, "n k1"]) -> Fitted:
    """The v that minimizes 1/2 ‖rows[:, :k] v - rows[:, k]‖^2."""
    return _solve_triangle(*triangle(rows))


def _solve_triangle(upper: Array, order: Array) -> Fitted:
    k = len(order) - 1
    pivot = jnp.take_along_axis(upper[:k], order[:k, None], axis=1)[:, 0]
    squares = jnp.sum(upper[:, :k] ** 2, axis=0)[order[:k]]
    ratio = jnp.min(jnp.where(squares > 0, pivot**2 / jnp.where(squares > 0, squares, 1), 0), initial=1)

    def substitute(step: Array, v: Array) -> Array:  # entries of v that are not solved yet are 0
        j = k - 1 - step
        residual = upper[j, k] - jnp.sum(upper[j, :k] * v)
        solved = jnp.where(pivot[j] == 0, 0, residual / jnp.where(pivot[j] == 0, 1, pivot[j]))
        return jnp.where(jnp.arange(k, dtype=jnp.int32) == order[j], solved, v)

    v = jax.lax.fori_loop(0, k, substitute, jnp.zeros(k, upper.dtype))
    return Fitted(v, upper[k, k] ** 2 / 2, ratio)


def root(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Rows R with R'R = matrix, which is positive semidefinite: by elimination, without pivots below rounding."""
    k, diagonal = len(matrix), jnp.diagonal(matrix)

    def eliminate(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        remainder, rows = state
        pivot = remainder[j, j]
        positive = pivot > k * jnp.finfo(matrix.dtype).eps * diagonal[j]
        row = jnp.where(positive, remainder[j] / jnp.sqrt(jnp.where(positive, pivot, 1)), 0)
        row = jnp.where(jnp.arange(k) < j, 0, row)
        return remainder - row[:, None] * row[None], rows.at[j].set(row)

    return jax.lax.fori_loop(0, k, eliminate, (matrix, jnp.zeros_like(matrix)))[1]


def refit_rows(
    v: Float[Array, "n k"],
    objective: Float[Array, " n"],
    pivot_ratio: Float[Array, " n"],
    *,
    prior: Callable[[Array], Array],
    blocks: Callable[[Array], Array],
    entries: Callable[[Array, Array], Array],
    batch_size: int | None = None,
) -> tuple[Float[Array, "n k"], Float[Array, " n"], Float[Array, " n"]]:
    """(v, objective, pivot_ratio), with `ill_conditioned` rows solved again by QR from their features.

    The refit is not differentiated: the derivative of a row stays that of the v passed in, by its normal equations.

    Args:
        v: the rows' solutions by normal equations.
        objective: the objectives at them.
        pivot_ratio: the normal equations' `cholesky.pivot_ratio`.
        prior: a row's number -> [k + 1, k + 1], the penalty's rows sqrt(P) (1, m), and one of 0.
        blocks: a row's number -> how many blocks of entries it has, at least one.
        entries: a row's number and a block's -> [m, k + 1], sqrt(w) (x, y), 0 at padding.
        batch_size: rows fitted at a time; None: as many as fit `BATCH_FLOATS`.
    """
    n, k = v.shape
    if n == 0 or k == 0:
        return v, objective, pivot_ratio

    number = jax.ShapeDtypeStruct((), jnp.int32)
    n_lines = jax.eval_shape(entries, number, number).shape[0] + k + 1
    batch = min(n, batch_size or max(1, BATCH_FLOATS // (n_lines * (k + 1))))

    def fit_batch(table: Array) -> Array:
        pending, rows = jax.lax.top_k(table[:, -1], batch)
        targets = jnp.where(pending > 0, rows, n)  # n is out of range, and dropped
        counts = jax.vmap(blocks)(rows)

        def add_block(t: Array, triangles: tuple[Array, Array]) -> tuple[Array, Array]:
            """Adds block t of every row, which is 0 after a row's last."""
            block = jax.lax.map(lambda row: entries(row, t), rows)
            block = jnp.where((t < counts)[:, None, None], block, 0)
            return jax.vmap(triangle)(jnp.concatenate([triangles[0], block], axis=1))

        triangles = jax.vmap(prior)(rows), jnp.zeros((batch, k + 1), jnp.int32)
        new = jax.vmap(_solve_triangle)(*jax.lax.fori_loop(0, jnp.max(counts), add_block, triangles))
        lines = jnp.concatenate(
            [new.v, new.objective[:, None], new.pivot_ratio[:, None], jnp.zeros((batch, 1), v.dtype)], axis=1
        )
        return table.at[targets].set(lines.astype(v.dtype), mode="drop")

    # all in one array, because each update is compiled: v, objective, pivot ratio, and whether the row is pending
    values = jax.lax.stop_gradient((v, objective, pivot_ratio))
    refitted = ill_conditioned(values[2])
    columns = [a[:, None] if a.ndim == 1 else a for a in (*values, refitted.astype(v.dtype))]
    table = jax.lax.while_loop(lambda table: jnp.any(table[:, -1] > 0), fit_batch, jnp.concatenate(columns, axis=1))

    def with_derivative(new: Array, old: Array) -> Array:
        """The new value with the old one's derivative."""
        change = old - jax.lax.stop_gradient(old)
        moved = new + jnp.where(jnp.isfinite(change), change, 0)
        return jnp.where(refitted.reshape((n, *[1] * (old.ndim - 1))), moved, old)

    return with_derivative(table[:, :k], v), with_derivative(table[:, k], objective), table[:, k + 1]


def refit_one_row(
    v: Float[Array, "m d"],
    pivot_ratio: Float[Array, " m"],
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    weight: Float[Array, " n"],
    precision: Float[Array, "d d"],
    mean: Float[Array, " d"],
    *,
    without: Int[Array, " m"],
    batch_size: int = 1,
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """(v, pivot_ratio) of m fits to one row's entries, fit r without entry without[r]; `ill_conditioned` ones refitted.

    Args:
        v: solutions by normal equations.
        pivot_ratio: their pivot ratios.
        x: the features, finite.
        y: the targets, finite.
        weight: 0 where masked.
        precision: P, positive semidefinite.
        mean: m of the penalty 1/2 (v - m)' P (v - m).
        without: the entry that each fit leaves out; n: none.
        batch_size: fits at a time.
    """
    n, d = x.shape
    if n == 0:
        return v, pivot_ratio
    x, y, weight, precision, mean = jax.lax.stop_gradient((x, y, weight, precision, mean))
    size = block_size(d, n)
    scale = jnp.where(weight > 0, jnp.sqrt(jnp.where(weight > 0, weight, 1)), 0)
    lines = scale[:, None] * jnp.concatenate([x, y[:, None]], axis=1)

    def prior(_: Array) -> Array:
        rows = root(precision)
        rows = jnp.concatenate([rows, jnp.sum(rows * mean[None], axis=1, keepdims=True)], axis=1)
        return jnp.pad(rows, ((0, 1), (0, 0)))

    def entries(fit: Array, block: Array) -> Array:
        first = jnp.minimum(block * size, n - size)
        position = first + jnp.arange(size, dtype=jnp.int32)
        valid = (position >= block * size) & (position != without[fit].astype(jnp.int32))
        return jnp.where(valid[:, None], jax.lax.dynamic_slice_in_dim(lines, first, size), 0)

    blocks = lambda _: jnp.int32(-(-n // size))
    objective = jnp.zeros_like(pivot_ratio)  # not used
    v, _, pivot_ratio = refit_rows(
        v, objective, pivot_ratio, prior=prior, blocks=blocks, entries=entries, batch_size=batch_size
    )
    return v, pivot_ratio
