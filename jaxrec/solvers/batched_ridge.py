"""Ridge regressions of all rows of one side on the other side's table, solved exactly or by conjugate gradients.

A row with ratings y of weights D has the objective below, with X the other side's rows (and a column of ones if it has
a bias), P its l2 penalties (diagonal), and S a matrix that all rows share. ALS, fold-in and leave-one-out use these::

    1/2 (X v - e)' D (X v - e) + 1/2 v' P v + 1/2 v' S v        e = y - other_offset - row_offset
    (X' D X + P + S) v = X' D e                                 at its minimum

Accuracy in float32: a coefficient from normal equations is off by about 1e-6 of the row's largest, and by up to 2e-3 of
it for the worst equations that are still accepted (`orthogonal.ill_conditioned`). With `refit=True`, rows with worse
equations, such as with weights of 1 and 1e7 in one row or a penalty of 1e-5 of the features' squares, are refitted from
their features by Householder reflections, and are off by about 1e-6 again. That takes about a millisecond per such row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.counting_sort import partition
from jaxrec.gather import gather
from jaxrec.kernels import cholesky, dense, orthogonal
from jaxrec.kernels.blocks import BlockRows, block_least_squares
from jaxrec.kernels.chunks import by_chunks, each_by_chunks
from jaxrec.kernels.conjugate_gradient import conjugate_gradient
from jaxrec.kernels.least_squares import (
    Equations,
    Lists,
    Solved,
    dual_least_squares,
    equations_of,
    list_normal_equations,
    moments,
    rows_per_chunk,
    weighted_entries,
    with_columns,
)
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.pytree import register_dataclass
from jaxrec.types import Bucket, Dense, Rows

__all__ = ["RowProblem", "objective_at", "padded_lists", "solve", "solve_by_blocks", "solve_dense"]

# The cost of compiling one more bucket on an accelerator, in padded entries. On an H100 it is a second, and an entry
# takes 3 ns of an exact sweep at d = 64: the same as 20M entries over 20 sweeps, or as 2**21 over 150. 20M ratings make
# 8 or 9 buckets per side then, with 1.5 entries per rating; `data.rows` makes 17 for a CPU, with 1.2 per rating.
MERGE = 2**21


@register_dataclass
@dataclass(frozen=True)
class RowProblem:
    """The regressions of one side's rows, apart from the ratings: k coefficients per row.

    Attributes:
        features: [n_others, d], the other side's table.
        coefficients: [., k], the rows' coefficients so far; [n_rows, k] where conjugate gradients are warm-started or
            `objective_at` evaluates.
        l2: [n_rows, k], l2 of every coefficient, the diagonal of P.
        intercept: whether the last coefficient is a bias; then k = d + 1, otherwise k = d.
        other_offset: [n_others], what the other side adds to a prediction (such as its bias); None: nothing.
        row_offset: [n_rows], a known term that the row itself adds to a prediction; None: nothing.
        shared_gram: [k, k], the matrix S of a penalty 1/2 v' S v of every row; None: nothing.
    """

    features: Array
    coefficients: Array
    l2: Array
    intercept: bool = field(metadata={"static": True})
    other_offset: Array | None = None
    row_offset: Array | None = None
    shared_gram: Array | None = None


def solve(rows: Rows, problem: RowProblem, cg_steps: int | None, *, refit: bool) -> tuple[Array, Array]:
    """Solves every row's regression; returns (coefficients [n_rows, k], the sum of the rows' objectives at them).

    Args:
        rows: the ratings.
        problem: what the rows share.
        cg_steps: the number of conjugate-gradient steps, warm-started at the rows' coefficients so far; None solves
            exactly.
        refit: solve badly scaled rows again, by QR of their features; only for exact solves. It takes as long to
            compile as everything else. Training sweeps start without it: they solve every row again, so no sweep's
            solution has to be exact.

    Raises:
        ValueError: cg_steps is below 1, or there is not one row of coefficients per row.
    """
    if cg_steps is not None and (cg_steps < 1 or len(problem.coefficients) != len(rows.position)):
        raise ValueError(
            f"cg_steps: expected at least 1, and a warm start of {len(rows.position)} rows, got {cg_steps} and "
            f"{len(problem.coefficients)} rows. New rows have no parameters to start from: leave cg_steps out."
        )
    implementation = partial(_solve_exactly, refit) if cg_steps is None else partial(_solve_by_cg, cg_steps)

    def solve_buckets(buckets: tuple[Bucket, ...], problem: RowProblem) -> list[Solved]:
        solved = by_platform(implementation, buckets, problem)
        return _split(_refit_rows(buckets, solved, problem) if refit and cg_steps is None else solved, buckets)

    solved = rows.map(solve_buckets, problem)
    return solved.v, jnp.sum(solved.objective)


def solve_by_blocks(rows: Rows, problem: RowProblem, block_size: int) -> tuple[Array, Array]:
    """Like `solve`, by one pass over blocks of coordinates from the rows' coefficients so far; without an intercept."""

    def by_blocks(buckets: tuple[Bucket, ...], problem: RowProblem, *, platform: Platform) -> Solved:
        assert problem.shared_gram is not None
        merged = _merged_buckets(buckets, platform)
        parts = [
            BlockRows(padded_lists(bucket, problem), _warm_start(bucket, problem), gather(problem.l2, bucket.row))
            for bucket in merged
        ]
        args = problem.features, parts, problem.shared_gram
        return _concatenate(block_least_squares(*args, block_size=block_size, platform=platform))

    def solve_buckets(buckets: tuple[Bucket, ...], problem: RowProblem) -> list[Solved]:
        return _split(by_platform(by_blocks, buckets, problem), buckets)

    solved = rows.map(solve_buckets, problem)
    return solved.v, jnp.sum(solved.objective)


def solve_dense(ratings: Dense, problem: RowProblem) -> tuple[Array, Array]:
    """`solve` for a dense matrix [n_others, n_rows], exactly: for small data, and for many members of a grid at once.

    The offsets are not subtracted from the ratings, so that the members of a grid share these and differ in the table T
    alone. Instead they are columns of T with known coefficients: the other side's offsets o with 1, the ones with the
    row's offset a. With X the features, D the row's weights and y its ratings::

                         X       1       o
                   X | X'D X   X'D 1   X'D o |           X | X'D y |
        T' D T  =  1 | 1'D X   1'D 1   1'D o |  T'D y =  1 | 1'D y |      T = (X, 1, o), of d, 1 and 1 columns
                   o | o'D X   o'D 1   o'D o |           o | o'D y |

    The target is e = y - o - a 1. Its products come from these columns::

        T'D e = T'D y - (column o) - a (column 1)
        e'D e = y'D y - (o'D y + o'D e) - a (1'D y + 1'D e)

    and the leading k entries (k = d + 1 with an intercept, else d) are the row's equations:
    (T'D T + P)[:k, :k] v = (T'D e)[:k], with the objective (e'D e - v' (T'D e)[:k]) / 2 at the solution.
    """
    x, d = problem.features, problem.features.shape[1]
    other_offset = jnp.zeros(len(x), x.dtype) if problem.other_offset is None else problem.other_offset
    table = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype), other_offset[:, None]], axis=1)
    weight = ratings.where.astype(x.dtype)
    if ratings.weights is not None:
        weight = jnp.where(ratings.where, ratings.weights.astype(x.dtype), 0)
    y = jnp.where(ratings.where, ratings.value.astype(x.dtype), 0)
    gram, rhs = dense.dense_normal_equations(table, weight, y)

    k = d + problem.intercept
    row_offset = jnp.zeros(y.shape[1], x.dtype) if problem.row_offset is None else problem.row_offset
    target_rhs = rhs - gram[:, d + 1] - row_offset[None] * gram[:, d]  # T'D e
    square = jnp.sum(weight * y * y, axis=0)
    square = square - (rhs[d + 1] + target_rhs[d + 1] + row_offset * (rhs[d] + target_rhs[d]))  # e'D e
    penalty = problem.l2.T
    if problem.intercept:  # no ratings and no penalty: the system is singular, so the row is 0
        penalty = penalty.at[d].add(jnp.where(gram[d, d] + penalty[d] > 0, 0, 1))
    v, _ = dense.solve(gram[:k, :k] + jnp.eye(k, dtype=x.dtype)[:, :, None] * penalty[None], target_rhs[:k])
    return v.T, jnp.sum(square - jnp.sum(v * target_rhs[:k], axis=0)) / 2


def objective_at(rows: Rows, problem: RowProblem) -> Array:
    """The sum of the rows' objectives at their coefficients so far."""

    def evaluate_buckets(buckets: tuple[Bucket, ...], problem: RowProblem, platform: Platform) -> list[Solved]:
        return _split(_solve_by_cg(0, buckets, problem, platform=platform), buckets)

    return jnp.sum(rows.map(partial(by_platform, evaluate_buckets), problem).objective)


def padded_lists(bucket: Bucket, problem: RowProblem) -> Lists:
    """A bucket's rows as padded lists; the targets are the ratings minus the other side's and the rows' offsets."""
    dtype = problem.features.dtype
    y = bucket.value.astype(dtype)
    if problem.other_offset is not None:
        y = y - gather(problem.other_offset, bucket.other)
    if problem.row_offset is not None:
        y = y - gather(problem.row_offset, bucket.row)[:, None]
    return Lists(bucket.other, y, bucket.where, None if bucket.weights is None else bucket.weights.astype(dtype))


def _merged_buckets(buckets: tuple[Bucket, ...], platform: Platform) -> tuple[Bucket, ...]:
    """The same rows in the same order; on an accelerator in fewer buckets, padded to a common length (see `MERGE`)."""
    if platform == "cpu" or not buckets:
        return buckets
    lengths = np.array([bucket.other.shape[1] for bucket in buckets])
    if (np.diff(lengths) < 0).any():  # `data.rows` sorts them by length; these were made otherwise
        return buckets
    runs = partition(lengths, np.array([len(bucket.row) for bucket in buckets]), MERGE)

    def merge(first: int, last: int) -> Bucket:
        def pad(array: Array) -> Array:
            return array if array.ndim == 1 else jnp.pad(array, ((0, 0), (0, lengths[last - 1] - array.shape[1])))

        return jax.tree.map(lambda *arrays: jnp.concatenate([*map(pad, arrays)]), *buckets[first:last])

    return tuple(merge(*run) if run[1] - run[0] > 1 else buckets[run[0]] for run in runs)


def _concatenate(solved: list[Solved]) -> Solved:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *solved)


def _split(solved: Solved, buckets: tuple[Bucket, ...]) -> list[Solved]:
    """The rows of each of the original buckets: `Rows.map` joins the results of several devices bucket by bucket."""
    ends = np.cumsum([len(bucket.row) for bucket in buckets])
    return [jax.tree.map(lambda a, b=b, e=e: a[b:e], solved) for b, e in zip([0, *ends[:-1]], ends, strict=True)]


def _solve_exactly(refit: bool, buckets: tuple[Bucket, ...], problem: RowProblem, *, platform: Platform) -> Solved:
    """Coefficients and objective of every row, from normal equations; rows much shorter than k are solved in the dual.

    With an intercept b the last row and column are eliminated, so that only A, of size d x d, is factorized::

        | A   g | | v |   | r |      A = X'D X + P (+ shared_gram)   g = X'D 1   r = X'D y
        | g'  n | | b | = | t |      n = sum of D + bias penalty                 t = sum of D y

        b = (t - g' A^-1 r) / (n - g' A^-1 g)      v = A^-1 r - b A^-1 g      objective = (y'D y - v'r - b t) / 2

    A row with ratings 5 and 3 at features x = 1 and x = 0, penalty 1 and a free bias has A = 2, g = 1, n = 2, r = 5,
    t = 8. Hence b = (8 - 2.5) / (2 - 0.5) = 11/3, v = 2.5 - 0.5 * 11/3 = 2/3, objective = (34 - 98/3) / 2 = 2/3.

    On a CPU all buckets share one loop and one solve, because each solve is compiled (0.7 s at d = 64), and each step
    stays in the cache. On accelerators a solve is a library call, and a bucket takes as few steps as memory allows: on
    a GPU each step of a loop is a dozen launches.
    """
    k, buckets = problem.l2.shape[1], _merged_buckets(buckets, platform)

    def solve(equations: Equations, l2: Array) -> Solved:
        gram, rhs, sums = equations
        square, total, count = sums.T  # y'D y, t, sum of D
        gram = gram if problem.shared_gram is None else gram + problem.shared_gram[None]
        gram = gram + jnp.eye(gram.shape[1], dtype=gram.dtype)[None] * l2[:, : gram.shape[1], None]
        # A^-1 r and, with an intercept, A^-1 g
        (v, *z), ratio = cholesky.solve(gram, rhs, check_pivots=refit, platform=platform)
        fit = jnp.sum(v * rhs[0], axis=1)
        if problem.intercept:
            n = count + l2[:, -1]
            n = jnp.where(n > 0, n, 1)  # no ratings and no penalty: the system is singular, so the row is 0
            pivot = jnp.maximum(n - jnp.sum(rhs[1] * z[0], axis=1), jnp.finfo(gram.dtype).eps * n)
            ratio = ratio * pivot / n  # the error of z is proportional to 1 / ratio, and the pivot has it too
            bias = (total - jnp.sum(rhs[1] * v, axis=1)) / pivot
            v = v - bias[:, None] * z[0]
            fit = jnp.sum(v * rhs[0], axis=1) + bias * total
            v = jnp.concatenate([v, bias[:, None]], axis=1)
        return Solved(v, (square - fit) / 2, ratio)

    def dual(bucket: Bucket) -> Solved:
        args = problem.features, padded_lists(bucket, problem), gather(problem.l2, bucket.row)
        return dual_least_squares(*args, intercept=problem.intercept, platform=platform)

    def bucket_moments(bucket: Bucket) -> tuple[Array, Array]:
        return moments(columns, padded_lists(bucket, problem)), gather(problem.l2, bucket.row)

    def primal(bucket: Bucket) -> Solved:
        lists, l2 = padded_lists(bucket, problem), gather(problem.l2, bucket.row)
        equations = list_normal_equations(problem.features, lists, intercept=problem.intercept, platform=platform)
        return solve(equations, l2)

    is_short = [problem.shared_gram is None and 2 * bucket.other.shape[1] <= k for bucket in buckets]
    long = [bucket for bucket, short in zip(buckets, is_short, strict=True) if not short]
    if platform == "cpu":
        columns = with_columns(problem.features)
        solve_moments = lambda chunk: solve(equations_of(chunk[0], intercept=problem.intercept), chunk[1])
        solved_long = iter(each_by_chunks(bucket_moments, solve_moments, long, max(1, cholesky.MATRIX_FLOATS // k**2)))
    else:
        size = lambda bucket: rows_per_chunk(max(bucket.other.shape[1], k) * k, platform)
        solved_long = (by_chunks(primal, bucket, size(bucket)) for bucket in long)
    # in the buckets' own order, which is by length from `data.rows` and any if they were made otherwise
    solved = [dual(bucket) if short else next(solved_long) for bucket, short in zip(buckets, is_short, strict=True)]
    return _concatenate(solved)


def _refit_rows(buckets: tuple[Bucket, ...], solved: Solved, problem: RowProblem) -> Solved:
    """Refits the rows whose equations are badly scaled, those of all buckets in one loop; the others stay.

    A position is a row's place in the concatenated buckets, which is its place in `solved`.
    """
    nonempty = [number for number, bucket in enumerate(buckets) if len(bucket.row)]
    if not nonempty:
        return solved
    buckets, problem = jax.lax.stop_gradient((tuple(buckets[number] for number in nonempty), problem))
    lengths = [bucket.other.shape[1] for bucket in buckets]
    size = orthogonal.block_size(problem.l2.shape[1], max(lengths))
    starts = np.cumsum([0, *(len(bucket.row) for bucket in buckets)])

    def bucket_index(position: Array) -> Array:
        return jnp.searchsorted(jnp.asarray(starts[1:], jnp.int32), position, side="right").astype(jnp.int32)

    dtype = problem.features.dtype
    int_dtype = jnp.int32 if dtype == jnp.float32 else jnp.int64

    def block_bits(bucket: Bucket, start: int, position: Array, block: Array) -> Array:
        """Ids, values and weights of one block of a row's entries, as integers [3, size]; the weight of padding is 0.

        They are one array because this is compiled for every bucket. The last block begins early, so as not to exceed
        the row: the entries that the block before it has already are 0.
        """
        length = bucket.other.shape[1]
        width = min(size, length)
        first = jnp.minimum(block * size, length - width)
        entries = lambda a: jax.lax.dynamic_slice(a, (position - start, first), (1, width))
        weights = jnp.ones((1, width), dtype) if bucket.weights is None else entries(bucket.weights).astype(dtype)
        bits = lambda a: jax.lax.bitcast_convert_type(a, int_dtype)
        weights = jnp.where(entries(bucket.where), weights, 0)
        columns = entries(bucket.other).astype(int_dtype), bits(entries(bucket.value).astype(dtype)), bits(weights)
        valid = first + jnp.arange(width, dtype=jnp.int32) >= block * size
        return jnp.pad(jnp.where(valid[None], jnp.concatenate(columns), 0), ((0, 0), (0, size - width)))

    def block_entries(position: Array, block: Array) -> Array:
        branches = [partial(block_bits, bucket, int(start)) for bucket, start in zip(buckets, starts, strict=False)]
        other, value, weights = jax.lax.switch(bucket_index(position), branches, position, block)
        value, weights = (jax.lax.bitcast_convert_type(a, dtype)[None] for a in (value, weights))
        part = Bucket(row_ids[position][None], other.astype(jnp.int32)[None], value, weights > 0, weights)
        return _scaled_entries(problem, padded_lists(part, problem))[0]

    def n_blocks(position: Array) -> Array:
        return jnp.asarray([-(-length // size) for length in lengths], jnp.int32)[bucket_index(position)]

    row_ids = jnp.concatenate([bucket.row for bucket in buckets])
    return _refit(solved, problem, block_entries, n_blocks, row_ids)


def _refit(
    solved: Solved,
    problem: RowProblem,
    entries: Callable[[Array, Array], Array],
    blocks: Callable[[Array], Array],
    row_ids: Array | None = None,
) -> Solved:
    """`orthogonal.refit_rows` of a problem's rows, where position r holds row row_ids[r]; None: row r."""

    def prior(position: Array) -> Array:
        l2 = problem.l2[position if row_ids is None else row_ids[position]]
        if problem.shared_gram is None:
            rows = jnp.diag(jnp.sqrt(l2))
        else:
            rows = orthogonal.root(jnp.diag(l2) + problem.shared_gram)
        return jnp.pad(rows, ((0, 1), (0, 1)))

    return Solved(*orthogonal.refit_rows(*solved, prior=prior, blocks=blocks, entries=entries))


def _scaled_entries(problem: RowProblem, lists: Lists) -> Array:
    """sqrt(weight) (x, y) of every entry of the rows, with 1 after x if there is an intercept: [r, l, k + 1]."""
    # for a block of one row no implementation is faster
    root, x, y = weighted_entries(problem.features, lists, platform="gpu")
    return jnp.concatenate([x, *([root[..., None]] if problem.intercept else []), y[..., None]], axis=2)


def _solve_by_cg(steps: int, buckets: tuple[Bucket, ...], problem: RowProblem, *, platform: Platform) -> Solved:
    """Every row after `steps` conjugate-gradient steps from where it is; 0 of them leave rows without ratings too."""
    buckets, dtype = _merged_buckets(buckets, platform), problem.features.dtype
    row = jnp.concatenate([bucket.row for bucket in buckets])
    return conjugate_gradient(
        problem.features,
        [
            Lists(b.other, b.value.astype(dtype), b.where, None if b.weights is None else b.weights.astype(dtype))
            for b in buckets
        ],
        gather(problem.coefficients, row),
        gather(problem.l2, row),
        problem.shared_gram,
        other_offset=problem.other_offset,
        row_offset=None if problem.row_offset is None else gather(problem.row_offset, row),
        intercept=problem.intercept,
        steps=steps,
        platform=platform,
    )


def _warm_start(bucket: Bucket, problem: RowProblem) -> Array:
    """The coefficients so far; 0 for rows without ratings."""
    start = gather(problem.coefficients, bucket.row)
    return jnp.where(jnp.any(bucket.where, axis=1, keepdims=True), start, 0)
