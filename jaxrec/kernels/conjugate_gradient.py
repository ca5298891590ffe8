r"""Conjugate gradients for the ridge regressions of many padded rows at once, which never form a Gram matrix.

Row r has targets y [l] of weights D at the table's rows other [l], whose features are X [l, d]; P are its penalties
(diagonal), and S is a matrix that all rows share. A step costs two products with the features, X v and X' e.

The rows come in parts, of one length l each, and are solved in chunks, whose gathered features fit in a cache (CPU) or
in memory (elsewhere). A loop for each part would be compiled for each part, 65 kernels of it: on a CPU that takes
longer than some sweeps. There many parts share a loop. Its chunks have the same number E of entries, whatever the
length, and lengths are divisors of E (`counting_sort.CHUNK_ENTRIES`). Example: E = 12, parts of lengths 4 and 6::

    X, y, D      flat, [E, d] and [E]: gathered by the same program         x0 x1 x2 x3 | x4 x5 x6 x7 | x8 x9 x10 x11
    X v, X' e    one program per length, on X [E / l, l, d]                 x0 x1 x2 x3 x4 x5 | x6 x7 x8 x9 x10 x11
    v, P v, ...  [R, k], R the most rows of a chunk: the same program       v0 v1 v2 (of 3 rows; 2 and one unused)

Rows [R, k] that are not used cost time, so that the parts of a loop have similar lengths (`ROW_LENGTHS`). Other lengths
are padded to a divisor, or have a loop of their own. 20M ratings, d = 64, 3 steps, 2 cores: a sweep takes as long as by
an unrolled loop for each of the 33 parts (explicit 1.65 and 1.60 s, implicit 1.47 and 1.46), and the compiler half.

Source: Takács, Pilászy, Tikk 2011, Applications of the conjugate gradient method for implicit feedback.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxrec.counting_sort import CHUNK_ENTRIES, divisor_from
from jaxrec.gather import gather
from jaxrec.kernels.least_squares import CHUNK_FLOATS, Lists, Solved, rows_per_chunk, weighted_entries
from jaxrec.kernels.platform import Platform
from jaxrec.numerics import HIGHEST

__all__ = ["conjugate_gradient"]

# Parts share a loop if their lengths are between the same two of these. A chunk then has at most 2 to 10 times the rows
# [R, k] that it needs, which are a 7th, 28th, ... of its features: without 56 and 1,120 a sweep takes a tenth longer.
ROW_LENGTHS = (1, 7, 28, 56, 112, 1120)
# A part is padded by at most this much to share a loop.
PADDING = 1 / 8


class _System(NamedTuple):
    """What all rows share: see `conjugate_gradient`. `squares` [k] are the table's mean squares."""

    table: Array
    squares: Array
    shared: Array | None
    other_offset: Array | None
    intercept: bool
    steps: int
    platform: Platform


class _RowArrays(NamedTuple):
    """Arrays with one row per row of all parts, or of a chunk."""

    warm_start: Array
    precision: Array
    offset: Array | None


class _Group(NamedTuple):
    """Parts that share a loop.

    Attributes:
        numbers: of the parts.
        shapes: of each part: the number of rows of a chunk and their length, with padding.
        n_entries: E, the product of each of these.
        n_rows: R, the most rows of a chunk.
    """

    numbers: list[int]
    shapes: list[tuple[int, int]]
    n_entries: int
    n_rows: int


def conjugate_gradient(
    table: Float[Array, "m d"],
    parts: Sequence[Lists],
    warm_start: Float[Array, "r k"],
    precision: Float[Array, "r k"],
    shared: Float[Array, "k k"] | None = None,
    *,
    other_offset: Float[Array, " m"] | None = None,
    row_offset: Float[Array, " r"] | None = None,
    intercept: bool,
    steps: int,
    platform: Platform,
) -> Solved:
    """`steps` steps from `warm_start` towards the solution of (X' D X + P (+ S)) v = X' D y of every row.

    The objective falls with every step. k steps are exact up to rounding; with a warm start in alternating least
    squares, two or three lose little. The preconditioner is the sum of the weights times the table's mean squares, plus
    the penalties: scales of features and of rows do not slow it down. (On ml-100k at rank 16, four sweeps of two steps
    end at 27,322, without it at 27,579, and exact ones at 27,205.) Convergence is not checked: rows whose weights are
    powers of ten apart need the exact solution. The derivative in a weight is 0 where the weight is 0, and exact where
    it is greater.

    Args:
        table: features of all.
        parts: rows of one length each. Arrays with one row per row, here and in the results, have the rows of all parts
            one after the other.
        warm_start: the initial coefficients of each row; in training, those of the sweep before. Rows without entries,
            or only with such of weight 0, start at their solution, 0.
        precision: P, the penalties, one per coefficient.
        shared: S, in implicit feedback the unobserved weight times the table's own Gram; None: 0.
        other_offset: subtracted from the targets at each row of the table; None: nothing.
        row_offset: subtracted from all targets of a row; None: nothing.
        intercept: whether the last coefficient is one.
        steps: number of steps; 0 evaluates the objective at `warm_start`, of rows without entries too.
        platform: whose implementation to run.
    """
    squares = jnp.mean(table * table, axis=0)
    squares = jnp.append(squares, jnp.ones(1, table.dtype)) if intercept else squares
    system = _System(table, squares, shared, other_offset, intercept, steps, platform)
    groups = _groups([part.other.shape for part in parts], table.shape[1], platform)

    n = len(warm_start)
    extra = max((group.n_rows for group in groups), default=0)  # the last chunk may read, and write, past the last row
    rows = _RowArrays(warm_start.astype(table.dtype), precision.astype(table.dtype), row_offset)
    rows = jax.tree.map(lambda a: jnp.pad(a, [(0, extra), *[(0, 0)] * (a.ndim - 1)]), rows)
    out = Solved(rows.warm_start, rows.warm_start[:, 0], rows.warm_start[:, 0])  # all rows are overwritten
    for group in groups:
        out = _solve_group(group, system, parts, rows, out)
    return jax.tree.map(lambda a: a[:n], out)


def _groups(part_shapes: Sequence[tuple[int, ...]], d: int, platform: Platform) -> list[_Group]:
    """Which parts share a loop, and the sizes of its chunks; parts without rows are left out."""
    n_entries = _chunk_entries(part_shapes, d)
    groups, by_rows = [], dict[int, _Group]()
    for number, (n, length) in enumerate(part_shapes):
        if n == 0:
            continue
        padded = divisor_from(length, n_entries) if length <= n_entries else length
        if platform == "cpu" and length <= n_entries and padded <= (1 + PADDING) * length:
            n_rows = n_entries // max(limit for limit in ROW_LENGTHS if limit <= padded)
            if n_rows not in by_rows:
                by_rows[n_rows] = _Group([], [], n_entries, n_rows)
                groups.append(by_rows[n_rows])
            by_rows[n_rows].numbers.append(number)
            by_rows[n_rows].shapes.append((n_entries // padded, padded))
        else:
            n_rows = min(n, rows_per_chunk(length * d, platform))
            groups.append(_Group([number], [(n_rows, length)], n_rows * length, n_rows))
    return groups


def _chunk_entries(part_shapes: Sequence[tuple[int, ...]], d: int) -> int:
    """E: `CHUNK_ENTRIES` times a power of two, what the cache holds (give or take), and less for small data.

    The last chunk of a part begins early, in the chunk before it: of all rows at most an eighth are solved twice.
    """
    total = sum(n * length for n, length in part_shapes)
    most = min(2**0.5 * CHUNK_FLOATS["cpu"] / max(1, d), total / (4 * max(1, len(part_shapes))))
    return int(CHUNK_ENTRIES * 2.0 ** np.clip(np.floor(np.log2(max(1, most) / CHUNK_ENTRIES)), -5, 5))


def _solve_group(group: _Group, system: _System, parts: Sequence[Lists], rows: _RowArrays, out: Solved) -> Solved:
    """Writes the solutions of the group's rows into `out`, a chunk at a time."""
    members = [parts[number] for number in group.numbers]

    def solve_chunk(part: Array | int, first: Array | int, position: Array | int) -> Solved:
        """The chunk that begins with a part's row `first`, which is row `position` of all."""
        own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, position, group.n_rows), rows)
        products = _Products(part, group, system.table.shape[1], system.intercept)
        other, y, where, *weights = products.select(partial(_entries, members, first))
        if system.other_offset is not None:
            y = y - gather(system.other_offset, other)
        if own.offset is not None:
            y = y - products.spread(own.offset, jnp.ones_like(y))
        # Flat on a CPU, where XLA would make the features' axis the first of a single long row (half as fast). A GPU's
        # compiler must choose the order of the axes, or transposes 512 MiB in every step.
        shape = other.shape if system.platform == "cpu" else group.shapes[0]
        lists = jax.tree.map(lambda a: a.reshape(shape), Lists(other, y, where, weights[0] if weights else None))
        root, x, y = weighted_entries(system.table, lists, platform=system.platform)
        x = jax.lax.optimization_barrier(x)  # or the compiler repeats the gather in every product
        return _iterate(products, system, x, y.reshape(-1), root.reshape(-1), own)

    def write(out: Solved, part: Array | int, n_used: Array | int, first: Array | int, position: Array | int) -> Solved:
        """Overwrites the rows of a chunk in `out`, but not those that belong to other chunks."""
        is_used = jnp.arange(group.n_rows, dtype=jnp.int32) < n_used

        def overwrite(out: Array, new: Array) -> Array:
            old = jax.lax.dynamic_slice_in_dim(out, position, group.n_rows)
            new = jnp.where(is_used[:, None] if new.ndim > 1 else is_used, new, old)
            return jax.lax.dynamic_update_slice_in_dim(out, new, position, 0)

        return jax.tree.map(overwrite, out, jax.checkpoint(solve_chunk)(part, first, position))

    schedule = _schedule(group, [len(part.other) for part in parts])
    if len(schedule) == 1:
        return write(out, *schedule[0].tolist())
    return jax.lax.fori_loop(0, len(schedule), lambda k, out: write(out, *jnp.asarray(schedule)[k]), out)


def _schedule(group: _Group, lengths: list[int]) -> np.ndarray:
    """int32 [chunks, 4]: the part of each chunk, how many rows it has, its first one, and that one's number among all.

    The last chunk of a part begins early, and solves rows of the one before it again.
    """
    starts, chunks = np.cumsum([0, *lengths]), []
    for part, (number, (size, _)) in enumerate(zip(group.numbers, group.shapes, strict=True)):
        n = lengths[number]
        firsts = (max(0, min(first, n - size)) for first in range(0, n, size))
        chunks += [(part, min(n, size), first, starts[number] + first) for first in firsts]
    return np.array(chunks, np.int32).reshape(-1, 4)


def _entries(parts: Sequence[Lists], first: Array | int, part: int, n: int, length: int) -> tuple[Array, ...]:
    """Ids, targets, whether observed and, if there are, weights of n rows of a part, flat."""

    def flat(a: Array) -> Array:
        a = jnp.pad(a, ((0, max(0, n - len(a))), (0, 0)))
        return jnp.pad(jax.lax.dynamic_slice_in_dim(a, first, n), ((0, 0), (0, length - a.shape[1]))).reshape(-1)

    other, y, where, weights = parts[part]
    return flat(other), flat(y), flat(where), *(() if weights is None else (flat(weights),))


class _Products(NamedTuple):
    """Products of a chunk's features, and sums over its rows: each is compiled for each length.

    Entries e are flat, [E], and coefficients v of rows [R, k].
    """

    part: Array | int
    group: _Group
    d: int
    intercept: bool

    def select(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(part, rows of a chunk, length, *args) of the chunk's part."""
        branches = [partial(function, part, *shape) for part, shape in enumerate(self.group.shapes)]
        return jax.lax.switch(self.part, branches, *args) if len(branches) > 1 else branches[0](*args)

    def forward(self, x: Array, root: Array, v: Array) -> tuple[Array, Array]:
        """X v, and the sums of its squares over each row, [R, 1]."""

        def chunk_rows(_: int, n: int, length: int, x: Array, root: Array, v: Array) -> tuple[Array, Array]:
            e = jnp.einsum("rld,rd->rl", x.reshape(n, length, self.d), v[:n, : self.d], precision=HIGHEST)
            e = e + v[:n, self.d :] * root.reshape(n, length) if self.intercept else e
            return e.reshape(-1), self._pad(jnp.sum(e * e, axis=1, keepdims=True))

        return self.select(chunk_rows, x, root, v)

    def backward(self, x: Array, root: Array, e: Array) -> Array:
        """X' e."""

        def chunk_rows(_: int, n: int, length: int, x: Array, root: Array, e: Array) -> Array:
            e = e.reshape(n, length)
            v = jnp.einsum("rld,rl->rd", x.reshape(n, length, self.d), e, precision=HIGHEST)
            if self.intercept:
                v = jnp.concatenate([v, jnp.sum(root.reshape(n, length) * e, axis=1, keepdims=True)], axis=1)
            return self._pad(v)

        return self.select(chunk_rows, x, root, e)

    def sums(self, e: Array) -> Array:
        """The sum of each row's entries, [R, 1]."""
        chunk_rows = lambda _, n, length, e: self._pad(jnp.sum(e.reshape(n, length), axis=1, keepdims=True))
        return self.select(chunk_rows, e)

    def spread(self, scale: Array, e: Array) -> Array:
        """The entries times their row's number, scale [R]."""
        chunk_rows = lambda _, n, length, scale, e: (scale[:n, None] * e.reshape(n, length)).reshape(-1)
        return self.select(chunk_rows, scale, e)

    def _pad(self, rows: Array) -> Array:
        return jnp.pad(rows, ((0, self.group.n_rows - len(rows)), (0, 0)))


def _iterate(products: _Products, system: _System, x: Array, y: Array, root: Array, rows: _RowArrays) -> Solved:
    """The steps of the rows of one chunk, with X and y multiplied by the roots of the weights, so that D = 1.

    The errors y - X v are updated along with v, so that a step takes one product X v and one X' e, and the objective at
    the end none. The residuals X' (y - X v) - (P + S) v are computed anew: updated too, they are off by ten times as
    much in the end (3e-5 against 3e-6 in float32), and the first step would be a program of its own. They never fall
    below rounding, where the directions mean little; so each step goes to the minimum along its direction, whatever it
    is. (Lengths for conjugate directions led astray from 60 steps on, and to NaN at 300.)
    """
    shared, steps, v, precision = system.shared, system.steps, rows.warm_start, rows.precision

    def penalize(v: Array) -> Array:  # (P + S) v
        out = precision * v
        return out if shared is None else out + jnp.matmul(v, shared, precision=HIGHEST)

    # An estimate of the matrix' diagonal from the table's mean squares: the scales of the features, without a pass.
    count = products.sums(root * root)
    diagonal = count * system.squares[None] + precision
    diagonal = diagonal if shared is None else diagonal + jnp.diagonal(shared)[None]
    diagonal = jnp.where(diagonal > 0, diagonal, 1)

    dot = lambda a, b: jnp.sum(a * b, axis=1, keepdims=True)

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        v, error, direction, square = state
        residual = products.backward(x, root, error) - penalize(v)
        scaled = residual / diagonal
        square, previous = dot(residual, scaled), square
        direction = scaled + _divide(square, previous) * direction
        x_direction, curvature = products.forward(x, root, direction)
        length = _divide(dot(direction, residual), curvature + dot(direction, penalize(direction)))
        return v + length * direction, error - products.spread(length[:, 0], x_direction), direction, square

    if steps > 0:
        v = jnp.where(count > 0, v, 0)
    error = y - products.forward(x, root, v)[0]
    if steps > 0:
        state = v, error, jnp.zeros_like(v), jnp.zeros_like(count)
        v, error, _, _ = jax.lax.fori_loop(0, steps, step, state)
    objective = products.sums(error * error)[:, 0] / 2 + jnp.sum(v * penalize(v), axis=1) / 2
    return Solved(v, objective, jnp.ones_like(objective))


@jax.custom_jvp
def _divide(a: Array, b: Array) -> Array:
    """The ratio a / b, or 0 where b is 0: a converged row stays where it is."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


@_divide.defjvp
def _divide_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """(da - (a / b) db) / b, where JAX's own has b^-2: infinite for the small b of rows that have nearly converged."""
    ratio, b, (da, db) = _divide(*primals), primals[1], tangents
    return ratio, jnp.where(b > 0, (da - ratio * db) / jnp.where(b > 0, b, 1), 0)
