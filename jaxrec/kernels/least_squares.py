"""Least squares for many padded rows at once, the features gathered from one table: normal equations, or none at all.

Row r has targets y [l] at the table's rows other [l]. All functions gather the features of some rows, [rows, l, d], at
a time, for all that follows: two batched products for the normal equations, or two per step of conjugate gradients,
which never forms a Gram matrix. How many rows, and what gathers them, is what the forms differ in:

| `on` | |
| --- | --- |
| `"cpu"` | as many as stay in the cache (2 MiB), gathered by the mask multiplications of `gather.rows_where` |
| `"gpu"` | as many as memory may be asked for (512 MiB): a loop of small steps is one of launches. XLA's plain gather |
| `"tpu"` | normal equations: rows copied into VMEM one by one (`tpu_gram`). All else as on a GPU |

20M ratings, d = 64, a sweep on an H100: 2.4 s by steps of 2 MiB, .13 by 64 MiB, .06 by 512 MiB.

What a sweep of ALS moves, with n ratings: 2 n d floats gathered; the Gram matrices take 4 n d^2 flops, s steps of
conjugate gradients 4 (2 s + 1) n d. On 2 cores (d = 64, per 2M entries) the gather takes 17 ms (23 GB/s), a pair of
products of the conjugate gradients 9 to 11, the Gram matrices 77. A weight that multiplies one of the Gram's two sides
makes that 172 (another buffer), so both sides get its square root, in the gather.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.gather import rows_where
from jaxrec.kernels import cholesky
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import On, derived_as

__all__ = [
    "FLOATS",
    "Equations",
    "Lists",
    "Solved",
    "conjugate_gradient",
    "dual_least_squares",
    "list_normal_equations",
    "rows_at_once",
    "scaled",
]

# Floats of features (or of matrices) that are there at once. On a CPU 2 MiB: 1/4 and 4 times as many were up to a fifth
# slower. Elsewhere 512 MiB: what is gathered, a chunk's Gram matrices and their factors are each at most that.
FLOATS: dict[On, int] = {"cpu": 2**19, "gpu": 2**27, "tpu": 2**27}
HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would otherwise round to bfloat16 or TF32


class Lists(NamedTuple):
    """Padded rows.

    Attributes:
        other: int32 [r, l], rows of the table; trusted.
        y: [r, l], targets.
        where: bool [r, l], False at padding.
        weights: [r, l], >= 0, or None for ones.
    """

    other: Array
    y: Array
    where: Array
    weights: Array | None


class Equations(NamedTuple):
    """Sums over rows' entries, D the weights.

    Attributes:
        gram: [r, d, d], X' D X.
        rhs: [r, d] each: X' D y and, with an intercept, X' D 1.
        sums: [r, 3], of D y^2, D y and D.
    """

    gram: Array
    rhs: tuple[Array, ...]
    sums: Array


class Solved(NamedTuple):
    """Rows' coefficients and what they leave.

    Attributes:
        v: [r, k].
        objective: [r], 1/2 sum of weight (x . v - y)^2 + 1/2 v' P v (+ 1/2 v' shared v) at v.
        share: [r], what the equations' pivots keep of their diagonal (`cholesky.shares`); 1 where there are none.
    """

    v: Array
    objective: Array
    share: Array


def list_normal_equations(table: Float[Array, "m d"], lists: Lists, *, intercept: bool, on: On) -> Equations:
    """The sums over every row's entries that its regression needs.

    A weight's derivative is right where it is > 0, and 0 where it is 0.

    Args:
        table: features of all.
        lists: the rows.
        intercept: whether the rows have one: then the features' own sums are beside the targets'.
        on: the form.
    """
    plain = partial(_by_xla, intercept=intercept, on=on)
    fits = table.dtype == jnp.float32 and table.shape[1] <= 255  # more does not fit in a TPU's VMEM
    if on == "tpu" and fits:
        return derived_as(plain, partial(_by_pallas, intercept=intercept))(table, lists)
    return plain(table, lists)


def _by_xla(table: Array, lists: Lists, *, intercept: bool, on: On) -> Equations:
    size = rows_at_once(lists.other.shape[1] * table.shape[1], on)
    return by_chunks(lambda part: _equations(table, part, intercept, on), lists, size)


def _by_pallas(table: Array, lists: Lists, *, intercept: bool) -> Equations:
    """The Gram matrices from rows copied into VMEM one by one, no [r, l, d] in HBM; the other sums are small."""
    from jaxrec.kernels import tpu_gram  # 0.15 s to import

    (other, y, where, weights), d = lists, table.shape[1]
    table = jnp.concatenate([table, jnp.ones((len(table), 1), table.dtype)], axis=1) if intercept else table
    gram, rhs = tpu_gram.tpu_normal_equations(table, other, y, where, weights)
    sides = (rhs[:, :d], gram[:, :d, d]) if intercept else (rhs,)
    weight = jnp.where(where, 1.0 if weights is None else weights, 0.0).astype(table.dtype)
    y = jnp.where(where, y, 0)
    sums = jnp.stack([weight * y * y, weight * y, weight], axis=2)
    return Equations(gram[:, :d, :d], sides, jnp.sum(sums, axis=1))


def scaled(table: Array, lists: Lists, *, on: On) -> tuple[Array, Array, Array]:
    """(the weights' roots, features and targets times them), 0 where masked."""
    where = lists.where
    root = where.astype(table.dtype)
    if lists.weights is not None:
        positive = where & (lists.weights > 0)
        root = jnp.where(positive, jnp.sqrt(jnp.where(positive, lists.weights, 1)), 0)
    x = rows_where(table, lists.other, where, on=on) * root[:, :, None]
    return root, x, jnp.where(where, lists.y, 0) * root


def _equations(table: Array, lists: Lists, intercept: bool, on: On) -> Equations:
    root, x, y = scaled(table, lists, on=on)
    gram = jnp.einsum("rld,rle->rde", x, x, precision=HIGHEST)
    # one product a side: both at once are no matrix-vector product, and take five times as long
    rhs = tuple(jnp.einsum("rld,rl->rd", x, side, precision=HIGHEST) for side in ((y, root) if intercept else (y,)))
    sums = [jnp.sum(each, axis=1) for each in (y * y, root * y, root * root)]
    return Equations(gram, rhs, jnp.stack(sums, axis=1))


def dual_least_squares(
    table: Float[Array, "m d"], lists: Lists, precision: Float[Array, "r k"], *, intercept: bool, on: On
) -> Solved:
    """The rows' solutions from l x l equations in place of k x k ones: for rows with fewer entries than features.

    With X and y multiplied by the weights' roots, r those roots, P the penalties of all but the intercept b, beta its:

        (X P^-1 X' + 1) e = y - b r        r' e = beta b        v = P^-1 X' e

    and e is what the solution leaves of y, so that the objective at it is y' e / 2.

    Args:
        table: features of all.
        lists: the rows.
        precision: > 0 but for the intercept's.
        intercept: whether the last coefficient is one.
        on: the form.
    """
    size = rows_at_once(lists.other.shape[1] * table.shape[1], on)
    return by_chunks(lambda part: _dual(table, part[0], part[1], intercept, on), (lists, precision), size)


def _dual(table: Array, lists: Lists, precision: Array, intercept: bool, on: On) -> Solved:
    d = table.shape[1]
    root, x, y = scaled(table, lists, on=on)
    weak = x / precision[:, None, :d]
    kernel = jnp.einsum("rld,rmd->rlm", x, weak, precision=HIGHEST) + jnp.eye(x.shape[1], dtype=x.dtype)[None]
    (left, *bent), share = cholesky.solve(kernel, (y, root) if intercept else (y,), on=on)
    if intercept:
        count = precision[:, d] + jnp.sum(root * bent[0], axis=1)
        bias = jnp.where(count > 0, jnp.sum(root * left, axis=1) / jnp.where(count > 0, count, 1), 0)
        left = left - bias[:, None] * bent[0]
    v = jnp.einsum("rld,rl->rd", weak, left, precision=HIGHEST)
    v = jnp.concatenate([v, bias[:, None]], axis=1) if intercept else v
    return Solved(v, jnp.sum(y * left, axis=1) / 2, share)


def conjugate_gradient(
    table: Float[Array, "m d"],
    lists: Lists,
    start: Float[Array, "r k"],
    precision: Float[Array, "r k"],
    shared: Float[Array, "k k"] | None = None,
    *,
    intercept: bool,
    steps: int,
    on: On,
) -> Solved:
    """Some steps towards the solution of (X' D X + P (+ shared)) v = X' D y of every row, from `start`.

    The objective falls with every step. With k steps it is exact but for rounding; warm-started in alternating least
    squares, two or three lose little. Preconditioned by the weights' sum times the table's mean squares, and the
    penalties: features and rows of any scale do not slow it down. (Of ml-100k at rank 16, four sweeps of two steps end
    at 27,322 for 27,579 without, and exact ones at 27,205.) It never claims more than its steps: rows whose weights are
    powers of ten apart want the exact solution.

    Args:
        table: features of all.
        lists: the rows.
        start: where each begins: in training, what it was.
        precision: P, the penalties, one per coefficient.
        shared: a matrix that all rows share: of implicit feedback, the unobserved weight times the table's own Gram.
        intercept: whether the last coefficient is one.
        steps: how many.
        on: the form.

    Source: Takács, Pilászy, Tikk 2011, Applications of the conjugate gradient method for implicit feedback.
    """
    size = rows_at_once(lists.other.shape[1] * table.shape[1], on)
    squares = jnp.mean(table * table, axis=0)
    squares = jnp.append(squares, jnp.ones(1, table.dtype)) if intercept else squares
    some = lambda part: _conjugate_gradient(table, squares, part[0], part[1], part[2], shared, intercept, steps, on)
    return by_chunks(some, (lists, start, precision), size)


def _conjugate_gradient(
    table: Array,
    squares: Array,
    lists: Lists,
    start: Array,
    precision: Array,
    shared: Array | None,
    intercept: bool,
    steps: int,
    on: On,
) -> Solved:
    d, where = table.shape[1], lists.where
    weight = where.astype(table.dtype) if lists.weights is None else jnp.where(where, lists.weights, 0)
    # The barrier keeps the compiler from gathering again in every product.
    x = jax.lax.optimization_barrier(rows_where(table, lists.other, where, on=on))
    y = jnp.where(where, lists.y, 0)

    def forward(v: Array) -> Array:  # X v
        out = jnp.einsum("rld,rd->rl", x, v[:, :d], precision=HIGHEST)
        return out + v[:, d:] if intercept else out

    def backward(e: Array) -> Array:  # X' e
        out = jnp.einsum("rld,rl->rd", x, e, precision=HIGHEST)
        return jnp.concatenate([out, jnp.sum(e, axis=1, keepdims=True)], axis=1) if intercept else out

    def prior(v: Array) -> Array:
        own = precision * v
        return own if shared is None else own + jnp.matmul(v, shared, precision=HIGHEST)

    # About the diagonal of what is solved, by the table's mean squares: the features' scales, without a pass.
    diagonal = jnp.sum(weight, axis=1, keepdims=True) * squares[None] + precision
    diagonal = diagonal if shared is None else diagonal + jnp.diagonal(shared)[None]
    diagonal = jnp.where(diagonal > 0, diagonal, 1)

    dot = lambda a, b: jnp.sum(a * b, axis=1, keepdims=True)
    over = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)  # nothing left: stay
    v, error = start, y - forward(start)  # `error` is kept, so that the objective at the end costs no pass
    residual = backward(weight * error) - prior(v)
    scaled = residual / diagonal
    direction, square = scaled, dot(residual, scaled)

    def along(v: Array, error: Array, direction: Array, square: Array) -> tuple[Array, ...]:
        ahead, pull = forward(direction), prior(direction)
        length = over(square, dot(weight * ahead, ahead) + dot(direction, pull))
        return v + length * direction, error - length * ahead, ahead, pull, length

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        v, error, residual, direction, square = state
        v, error, ahead, pull, length = along(v, error, direction, square)
        residual = residual - length * (backward(weight * ahead) + pull)
        scaled = residual / diagonal
        square, before = dot(residual, scaled), square
        return v, error, residual, scaled + over(square, before) * direction, square

    if steps > 0:  # the last step needs no X' e; a loop, for each step is compiled for each bucket
        given = v, error, residual, direction, square
        v, error, _, direction, square = jax.lax.fori_loop(0, steps - 1, step, given)
        v, error, *_ = along(v, error, direction, square)
    objective = jnp.sum(weight * error * error, axis=1) / 2 + jnp.sum(v * prior(v), axis=1) / 2
    return Solved(v, objective, jnp.ones_like(objective))


def rows_at_once(floats: int, on: On) -> int:
    """How many rows of so many floats each are worked on at a time."""
    return max(1, FLOATS[on] // max(1, floats))
