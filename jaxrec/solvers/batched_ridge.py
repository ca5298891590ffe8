"""The regressions of one side's rows on a table of the other side's, solved exactly or by steps.

What explicit and implicit feedback, fold-in, leave-one-out and alternating least squares have in common.

How exact: by normal equations in float32 a coefficient is off by some 1e-6 of the row's largest, and by 2e-3 of it
where the equations are at the edge of what is trusted to them (`orthogonal.lost`). Beyond, as with weights of 1 and
1e7 in one row, or a penalty of 1e-5 of the features' squares, a row is fitted anew from its features by reflections,
and is off by some 1e-6 again. That takes about a millisecond a row, and nothing where there is none such.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass

from jaxrec.counting_sort import partition
from jaxrec.gather import gather
from jaxrec.kernels import cholesky, dense, orthogonal
from jaxrec.kernels.chunks import by_chunks, each_by_chunks
from jaxrec.kernels.least_squares import (
    Equations,
    Lists,
    Solved,
    conjugate_gradient,
    dual_least_squares,
    list_normal_equations,
    rows_at_once,
    scaled,
)
from jaxrec.kernels.platform import On, by_platform
from jaxrec.types import Bucket, Dense, Rows

__all__ = ["RowProblem", "objective_at", "padded_lists", "solve", "solve_dense"]

# What compiling one bucket more costs on an accelerator, in padded entries: a second on an H100, where an entry takes 3
# ns of an exact sweep at d = 64, so that it is worth 20M entries after 20 sweeps, and this many after 150. 20M ratings
# are 8 or 9 buckets a side then, of 1.5 entries a rating, in place of the 17 of 1.2 that `data.rows` makes for a CPU.
MERGE = 2**21


@register_dataclass
@dataclass(frozen=True)
class RowProblem:
    """What the regressions of one side's rows share.

    Attributes:
        features: [n_others, d].
        current: [., k], the rows' parameters as they are.
        precision: [n_rows, k], the penalties.
        intercept: whether the last coefficient is a bias: k = d + 1.
        other_offset: [n_others], what the other side adds to a prediction; None: nothing.
        row_offset: [n_rows], what a row itself adds and does not solve for; None: nothing.
        shared_gram: [k, k], a quadratic form that all rows are penalized by, beside their own; None: nothing.
    """

    features: Array
    current: Array
    precision: Array
    intercept: bool = field(metadata={"static": True})
    other_offset: Array | None = None
    row_offset: Array | None = None
    shared_gram: Array | None = None


def solve(rows: Rows, side: RowProblem, cg_steps: int | None, *, mend: bool) -> tuple[Array, Array]:
    """(coefficients [n_rows, k], the sum of the rows' objectives at them): a solution knows what it leaves.

    `mend` fits rows anew that their normal equations have lost, where they are solved exactly. It takes as long to
    compile as the rest, so that sweeps of training do without: they come back to every row, and none need be exact.

    Raises:
        ValueError: cg_steps below 1, or for other rows than there are parameters to start from.
    """
    if cg_steps is not None and (cg_steps < 1 or len(side.current) != len(rows.position)):
        raise ValueError(
            f"cg_steps: expected at least 1, from the {len(rows.position)} rows' own parameters, got {cg_steps} and "
            f"{len(side.current)} rows. New rows have no parameters to start from: leave cg_steps out."
        )
    solve = partial(_solve_exactly, mend) if cg_steps is None else partial(_solve_by_cg, cg_steps)

    def of_buckets(buckets: tuple[Bucket, ...], side: RowProblem) -> list[Solved]:
        found = by_platform(solve, buckets, side)
        return _split(_mended_rows(buckets, found, side) if mend and cg_steps is None else found, buckets)

    found = rows.map(of_buckets, side)
    return found.v, jnp.sum(found.objective)


def solve_dense(ratings: Dense, side: RowProblem) -> tuple[Array, Array]:
    """The same from a matrix [n_others, n_rows], exactly: for small data, and for many members of a grid at once.

    What the others add is a column of the table with coefficient 1, and what the row adds is its coefficient of the
    column of ones: so that members of a grid differ in the table alone, and share the matrix.
    """
    x, d = side.features, side.features.shape[1]
    others = jnp.zeros(len(x), x.dtype) if side.other_offset is None else side.other_offset
    table = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype), others[:, None]], axis=1)
    weight = ratings.where.astype(x.dtype)
    if ratings.weights is not None:
        weight = jnp.where(ratings.where, ratings.weights.astype(x.dtype), 0)
    y = jnp.where(ratings.where, ratings.value.astype(x.dtype), 0)
    gram, rhs = dense.dense_normal_equations(table, weight, y)

    k = d + side.intercept
    own = jnp.zeros(y.shape[1], x.dtype) if side.row_offset is None else side.row_offset
    rest = rhs - gram[:, d + 1] - own[None] * gram[:, d]  # X' D (y - others - own)
    square = jnp.sum(weight * y * y, axis=0) - (rhs[d + 1] + rest[d + 1] + own * (rhs[d] + rest[d]))
    penalty = side.precision.T
    if side.intercept:  # nothing is known and nothing pulls: 0, as all else
        penalty = penalty.at[d].add(jnp.where(gram[d, d] + penalty[d] > 0, 0, 1))
    v, _ = dense.solve(gram[:k, :k] + jnp.eye(k, dtype=x.dtype)[:, :, None] * penalty[None], rest[:k])
    return v.T, jnp.sum(square - jnp.sum(v * rest[:k], axis=0)) / 2


def objective_at(rows: Rows, side: RowProblem) -> Array:
    """The sum of the rows' objectives at their parameters as they are."""

    def one(bucket: Bucket, side: RowProblem, on: On) -> Solved:
        given = (
            side.features,
            padded_lists(bucket, side),
            gather(side.current, bucket.row),
            gather(side.precision, bucket.row),
        )
        return conjugate_gradient(*given, side.shared_gram, intercept=side.intercept, steps=0, on=on)

    def each(buckets: tuple[Bucket, ...], side: RowProblem, on: On) -> list[Solved]:
        return _split(_concatenate([one(bucket, side, on) for bucket in _merged_buckets(buckets, on)]), buckets)

    return jnp.sum(rows.map(partial(by_platform, each), side).objective)


def padded_lists(bucket: Bucket, side: RowProblem) -> Lists:
    """A bucket's rows with what the others and the row do not explain yet as targets."""
    dtype = side.features.dtype
    y = bucket.value.astype(dtype)
    if side.other_offset is not None:
        y = y - gather(side.other_offset, bucket.other)
    if side.row_offset is not None:
        y = y - gather(side.row_offset, bucket.row)[:, None]
    return Lists(bucket.other, y, bucket.where, None if bucket.weights is None else bucket.weights.astype(dtype))


def _merged_buckets(buckets: tuple[Bucket, ...], on: On) -> tuple[Bucket, ...]:
    """The same rows in their order, on an accelerator in fewer buckets, filled up to one length: see `MERGE`."""
    if on == "cpu" or not buckets:
        return buckets
    lengths = np.array([bucket.other.shape[1] for bucket in buckets])
    if (np.diff(lengths) < 0).any():  # made by hand: they come shortest first from `data.rows`
        return buckets
    runs = partition(lengths, np.array([len(bucket.row) for bucket in buckets]), MERGE)

    def merged(first: int, last: int) -> Bucket:
        def fill(array: Array) -> Array:
            return array if array.ndim == 1 else jnp.pad(array, ((0, 0), (0, lengths[last - 1] - array.shape[1])))

        return jax.tree.map(lambda *arrays: jnp.concatenate([*map(fill, arrays)]), *buckets[first:last])

    return tuple(merged(*run) if run[1] - run[0] > 1 else buckets[run[0]] for run in runs)


def _concatenate(found: list[Solved]) -> Solved:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def _split(found: Solved, buckets: tuple[Bucket, ...]) -> list[Solved]:
    """Each bucket's, as they were: where devices hold parts of buckets, it is bucket by bucket that they are joined."""
    ends = np.cumsum([len(bucket.row) for bucket in buckets])
    return [jax.tree.map(lambda a, b=b, e=e: a[b:e], found) for b, e in zip([0, *ends[:-1]], ends, strict=True)]


def _solve_exactly(mend: bool, buckets: tuple[Bucket, ...], side: RowProblem, *, on: On) -> Solved:
    """(coefficients, objective) of every row, from its normal equations; of rows much shorter than k, in the dual.

    On a CPU all buckets share one loop and one solve, for each solve is compiled (2 s at d = 64), and a step stays in
    the cache. Elsewhere a solve is a call of a library, and a bucket is worked on in as few steps as memory allows: on
    a GPU each step of a loop is a dozen launches.
    """
    k, buckets = side.precision.shape[1], _merged_buckets(buckets, on)

    def equations(bucket: Bucket) -> tuple[Equations, Array]:
        found = list_normal_equations(side.features, padded_lists(bucket, side), intercept=side.intercept, on=on)
        return found, gather(side.precision, bucket.row)

    def solve(equations: tuple[Equations, Array]) -> Solved:
        (gram, rhs, sums), precision = equations
        square, total, count = sums.T
        gram = gram if side.shared_gram is None else gram + side.shared_gram[None]
        gram = gram + jnp.eye(gram.shape[1], dtype=gram.dtype)[None] * precision[:, : gram.shape[1], None]
        (v, *adjoint), share = cholesky.solve(gram, rhs, watch=mend, on=on)
        fit = jnp.sum(v * rhs[0], axis=1)  # v' X' D y
        if side.intercept:  # the bias by elimination, so that the matrices stay d x d
            weight = count + precision[:, -1]
            weight = jnp.where(weight > 0, weight, 1)  # nothing is known and nothing pulls: 0, as all else
            pivot = jnp.maximum(weight - jnp.sum(rhs[1] * adjoint[0], axis=1), jnp.finfo(gram.dtype).eps * weight)
            share = share * pivot / weight  # errors of `adjoint` are as large as 1 / share, and the pivot's with them
            bias = (total - jnp.sum(rhs[1] * v, axis=1)) / pivot
            v = v - bias[:, None] * adjoint[0]
            fit = jnp.sum(v * rhs[0], axis=1) + bias * total
            v = jnp.concatenate([v, bias[:, None]], axis=1)
        return Solved(v, (square - fit) / 2, share)

    def dual(bucket: Bucket) -> Solved:
        given = side.features, padded_lists(bucket, side), gather(side.precision, bucket.row)
        return dual_least_squares(*given, intercept=side.intercept, on=on)

    def primal(bucket: Bucket) -> Solved:
        size = rows_at_once(max(bucket.other.shape[1], k) * k, on)
        return by_chunks(lambda part: solve(equations(part)), bucket, size)

    short = [bucket for bucket in buckets if side.shared_gram is None and 2 * bucket.other.shape[1] <= k]
    rest = buckets[len(short) :]  # they come shortest first
    if on == "cpu":
        solved = each_by_chunks(equations, solve, rest, max(1, cholesky.CHUNK // k**2))
    else:
        solved = [primal(bucket) for bucket in rest]
    return _concatenate([*map(dual, short), *solved])


def _mended_rows(buckets: tuple[Bucket, ...], found: Solved, side: RowProblem) -> Solved:
    """The rows of all buckets with those fitted anew whose equations are badly scaled, in one loop."""
    there = [number for number, bucket in enumerate(buckets) if len(bucket.row)]
    if not there:
        return found
    buckets, side = jax.lax.stop_gradient((tuple(buckets[number] for number in there), side))
    lengths = [bucket.other.shape[1] for bucket in buckets]
    size = orthogonal.block_of(side.precision.shape[1], max(lengths))
    starts = np.cumsum([0, *(len(bucket.row) for bucket in buckets)])
    bucket_of = lambda line: jnp.searchsorted(jnp.asarray(starts[1:], jnp.int32), line, side="right").astype(jnp.int32)

    dtype = side.features.dtype
    word = jnp.int32 if dtype == jnp.float32 else jnp.int64

    def cut(bucket: Bucket, start: int, line: Array, block: Array) -> Array:
        """[3, size] words: the ids, values and weights of a block of a row's entries, weights of 0 where there is none.

        In one array, for each bucket is compiled. The last block begins early: what the one before had is 0 in it.
        """
        length = bucket.other.shape[1]
        width = min(size, length)
        first = jnp.minimum(block * size, length - width)
        part = lambda a: jax.lax.dynamic_slice(a, (line - start, first), (1, width))
        weights = jnp.ones((1, width), dtype) if bucket.weights is None else part(bucket.weights).astype(dtype)
        bits = lambda a: jax.lax.bitcast_convert_type(a, word)
        weights = jnp.where(part(bucket.where), weights, 0)
        parts = part(bucket.other).astype(word), bits(part(bucket.value).astype(dtype)), bits(weights)
        fresh = first + jnp.arange(width, dtype=jnp.int32) >= block * size
        return jnp.pad(jnp.where(fresh[None], jnp.concatenate(parts), 0), ((0, 0), (0, size - width)))

    def entries(line: Array, block: Array) -> Array:
        cuts = [partial(cut, bucket, int(start)) for bucket, start in zip(buckets, starts, strict=False)]
        other, value, weights = jax.lax.switch(bucket_of(line), cuts, line, block)
        value, weights = (jax.lax.bitcast_convert_type(a, dtype)[None] for a in (value, weights))
        found = Bucket(row_of[line][None], other.astype(jnp.int32)[None], value, weights > 0, weights)
        return _lines(side, padded_lists(found, side))[0]

    row_of = jnp.concatenate([bucket.row for bucket in buckets])
    blocks = lambda line: jnp.asarray([-(-length // size) for length in lengths], jnp.int32)[bucket_of(line)]
    return _mended(found, side, entries, blocks, row_of)


def _mended(
    found: Solved,
    side: RowProblem,
    entries: Callable[[Array, Array], Array],
    blocks: Callable[[Array], Array],
    row_of: Array | None = None,
) -> Solved:
    """`orthogonal.mend` of a side's rows; what stands in line r is row row_of[r]."""

    def prior(line: Array) -> Array:
        precision = side.precision[line if row_of is None else row_of[line]]
        if side.shared_gram is None:
            rows = jnp.diag(jnp.sqrt(precision))
        else:
            rows = orthogonal.root(jnp.diag(precision) + side.shared_gram)
        return jnp.pad(rows, ((0, 1), (0, 1)))

    return Solved(*orthogonal.mend(*found, prior=prior, blocks=blocks, entries=entries))


def _lines(side: RowProblem, given: Lists) -> Array:
    """[r, l, k + 1], sqrt(weight) (x, y) of rows' entries."""
    root, x, y = scaled(side.features, given, on="gpu")  # a block of one row: no form is faster
    return jnp.concatenate([x, *([root[..., None]] if side.intercept else []), y[..., None]], axis=2)


def _solve_by_cg(steps: int, buckets: tuple[Bucket, ...], side: RowProblem, *, on: On) -> Solved:
    """The same, some steps of conjugate gradients on; 0 for rows without ratings."""

    def solve(bucket: Bucket) -> Solved:
        start, precision = gather(side.current, bucket.row), gather(side.precision, bucket.row)
        start = jnp.where(jnp.any(bucket.where, axis=1, keepdims=True), start, 0)
        given = side.features, padded_lists(bucket, side), start, precision
        return conjugate_gradient(*given, side.shared_gram, intercept=side.intercept, steps=steps, on=on)

    return _concatenate([solve(bucket) for bucket in _merged_buckets(buckets, on)])
