r"""Ridge regression in layers: normal equations -> factorize -> solve (or sample).

One row's problem, given the other side's features x [n, d] and targets y [n]::

    minimize over v:  1/2 sum over observed of weight (x . v - y)^2 + 1/2 (v - m)' P (v - m)

Its solution solves (X' D X + P) v = X' D y + P m, D the weights. P is the penalty's precision: a number, one number
per coefficient, or a matrix; m the prior mean. With a Gaussian likelihood the same factor gives the posterior, so
`sample` draws from it. Written for one row, and vmap makes the batch; the factorization and all after it also take
leading batch axes, which is faster than a vmap of it. ALS, fold-in and Gibbs stand on these.

>>> import jax.numpy as jnp
>>> x = jnp.array([[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]])  # the notes' films
>>> alice = jnp.array([5.0, 5.0, jnp.nan, 0.0, 0.0])
>>> w, b = solve_user(x, alice, jnp.array([True, True, False, True, True]), l2=0.01)
>>> [round(float(stars), 1) + 0.0 for stars in x @ w + b]  # what she would say of all five
[4.9, 5.1, 5.1, 0.0, 0.0]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass
from jaxtyping import Bool, Float, PRNGKeyArray

from jaxrec import check
from jaxrec.kernels.cholesky import cho_solve, cholesky, solve_transposed

__all__ = [
    "Factor",
    "Normal",
    "factorize",
    "factorize_matrix",
    "leave_one_out",
    "normal",
    "sample",
    "solve",
    "solve_item",
    "solve_user",
    "with_one",
]

Number = int | float | Float[Array, ""]


@register_dataclass
@dataclass(frozen=True)
class Normal:
    """The normal equations of one row.

    Attributes:
        gram: [d, d], X' D X over the observed entries.
        rhs: [d], X' D y.
        count: the sum of the weights; 0 for a row without ratings.
    """

    gram: Array
    rhs: Array
    count: Array


@register_dataclass
@dataclass(frozen=True)
class Factor:
    """A factorized row: the Cholesky factor of gram + precision, with what a solve needs beside it.

    Attributes:
        cholesky: [..., d, d], lower.
        rhs: [..., d].
        precision: [..., d, d].
    """

    cholesky: Array
    rhs: Array
    precision: Array


def normal(
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Normal:
    """Gram matrix and right-hand side over the observed entries; what is masked is replaced before the arithmetic."""
    check.same_shape(y=y, where=where, weights=weights, rows_of_x=x[:, 0] if x.shape[1] else y)
    if where is not None:
        x, y = jnp.where(where[:, None], x, 0), jnp.where(where, y, 0)
        weights = None if weights is None else jnp.where(where, weights, 0)
    weighted = x if weights is None else x * weights[:, None]
    if weights is not None:
        count = jnp.sum(weights)
    else:
        count = jnp.asarray(len(y), y.dtype) if where is None else jnp.sum(where, dtype=y.dtype)
    # HIGHEST: accelerators would otherwise round the factors of a Gram matrix to bfloat16 or TF32.
    gram = jnp.matmul(x.T, weighted, precision=jax.lax.Precision.HIGHEST)
    return Normal(gram, jnp.matmul(weighted.T, y, precision=jax.lax.Precision.HIGHEST), count)


def factorize(normal: Normal, precision: Number | Float[Array, "*batch d"] | Float[Array, "d d"]) -> Factor:
    """The Cholesky factor of gram + precision, of one row or of a batch of rows.

    A coefficient with precision 0 (an unpenalized bias) has no solution in a row without ratings: there its precision
    is taken as 1, so that the row gives its prior and no NaN.

    Args:
        normal: from `normal`, with leading batch axes or without.
        precision: P, a number, one per coefficient ([d], or [..., d] per row); `factorize_matrix` takes a matrix. The
            factor has no meaning where gram + P is not positive definite, as with P = 0 and fewer independent ratings
            than coefficients: NaN, or, where rounding hides it, large finite numbers. Any P > 0 (bias aside) is safe.
    """
    precision = jnp.broadcast_to(jnp.asarray(precision, normal.gram.dtype), normal.rhs.shape)
    precision = jnp.where((precision == 0) & (normal.count[..., None] == 0), 1, precision)
    shape = (*precision.shape, precision.shape[-1])
    return factorize_matrix(
        normal, jnp.broadcast_to(jnp.eye(shape[-1], dtype=precision.dtype), shape) * precision[..., None]
    )


def factorize_matrix(normal: Normal, precision: Float[Array, "*batch d d"]) -> Factor:
    """The Cholesky factor of gram + precision, where the prior's precision P is a matrix (or one per row)."""
    precision = jnp.broadcast_to(precision, normal.gram.shape)
    return Factor(cholesky(normal.gram + precision), normal.rhs, precision)


def solve(factor: Factor, prior_mean: Number | Float[Array, "*batch d"] = 0.0) -> Float[Array, "*batch d"]:
    """The ridge solution, or the posterior's mean; a row without ratings gives `prior_mean`."""
    mean = jnp.broadcast_to(jnp.asarray(prior_mean, factor.rhs.dtype), factor.rhs.shape)
    pull = jnp.sum(factor.precision * mean[..., None, :], axis=-1)
    return cho_solve(factor.cholesky, factor.rhs + pull)


def sample(
    key: PRNGKeyArray, factor: Factor, prior_mean: Number | Float[Array, "*batch d"] = 0.0
) -> Float[Array, "*batch d"]:
    """A draw from the posterior normal(solve(factor), (gram + P)^-1): noise of precision 1, or folded into weights."""
    noise = jax.random.normal(key, factor.rhs.shape, factor.rhs.dtype)
    return solve(factor, prior_mean) + solve_transposed(factor.cholesky, noise)


def leave_one_out(
    factor: Factor,
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
    *,
    prior_mean: Number | Float[Array, " d"] = 0.0,
) -> Float[Array, " n"]:
    """What each entry of one row is predicted to be by the ridge of all the others: exact, from the one factor.

    With A = X' D X + P, v the solution and h(k) = weight(k) x(k)' A^-1 x(k) the entry's leverage::

        prediction without k = (x(k) . v - h(k) y(k)) / (1 - h(k))

    which is the Sherman-Morrison formula for A - weight(k) x(k) x(k)'.

    Args:
        factor: of the row, from `factorize`.
        x: the features that `normal` had.
        y: the targets that it had.
        where: as there. An entry that is masked is no part of the row: its prediction is the ordinary one.
        weights: as there.
        prior_mean: as in `solve`; the only entry of a row is predicted x . prior_mean.

    Source: Allen 1974, The relationship between variable selection and data augmentation (PRESS).

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 2.0, 3.0])
    >>> without = leave_one_out(factorize(normal(x, y), 0.5), x, y)
    >>> v = solve(factorize(normal(x[1:], y[1:]), 0.5))  # fitted again, without the first
    >>> bool(jnp.allclose(without[0], x[0] @ v, atol=1e-6))
    True
    """
    d = x.shape[1]
    in_row = jnp.ones(y.shape, bool) if where is None else where
    in_row = in_row if weights is None else in_row & (weights > 0)
    weight = jnp.where(in_row, 1 if weights is None else weights, 0).astype(y.dtype)
    x, y = jnp.where(in_row[:, None], x, jnp.where(jnp.isfinite(x), x, 0)), jnp.where(in_row, y, 0)
    one_lower_each = jnp.broadcast_to(factor.cholesky, (d, d, d))
    inverse = cho_solve(one_lower_each, jnp.eye(d, dtype=x.dtype))
    leverage = weight * jnp.sum(jnp.matmul(x, inverse, precision=jax.lax.Precision.HIGHEST) * x, axis=1)
    ordinary = x @ solve(factor, prior_mean)
    prior = x @ jnp.broadcast_to(jnp.asarray(prior_mean, x.dtype), (d,))
    alone = in_row & (jnp.sum(in_row) == 1)  # an unpenalized bias gives it leverage 1: 0 / 0
    remaining = jnp.where(alone, 1, 1 - leverage)
    return jnp.where(alone, prior, (ordinary - leverage * y) / remaining)


def solve_user(
    x: Float[Array, "n_items d"],
    y: Float[Array, " n_items"],
    where: Bool[Array, " n_items"],
    *,
    l2: Number,
    weights: Float[Array, " n_items"] | None = None,
    offset: Number | Float[Array, " n_items"] = 0.0,
    l2_bias: Number = 0.0,
    prior: Number | Float[Array, " d+1"] = 0.0,
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """(w, b) that minimize `losses.user_cost`: her ridge regression on the items' features, the bias unpenalized.

    Args:
        x: the items' features.
        y: her ratings.
        where: True where she rated the item.
        l2: the strength of w's penalty, > 0 unless she has d + 1 independent ratings.
        weights: one per rating.
        offset: c(i) + mu(i), where the model has them.
        l2_bias: the strength of b's penalty.
        prior: what (w, b) are pulled to, a number or [d + 1]; what a user without ratings gets.
    """
    features = with_one(x)
    precision = jnp.full(features.shape[1], l2, features.dtype).at[-1].set(l2_bias)
    v = solve(factorize(normal(features, y - offset, where, weights), precision), prior)
    return v[:-1], v[-1]


def solve_item(
    w: Float[Array, "n_users d"],
    b: Float[Array, " n_users"],
    y: Float[Array, " n_users"],
    where: Bool[Array, " n_users"],
    *,
    l2: Number,
    weights: Float[Array, " n_users"] | None = None,
    offset: Number = 0.0,
    prior: Number | Float[Array, " d"] = 0.0,
) -> Float[Array, " d"]:
    """X that minimizes `losses.item_cost`, given the users' w and b; the arguments are as in `solve_user`."""
    return solve(factorize(normal(w, y - b - offset, where, weights), l2), prior)


def with_one(x: Float[Array, "*n d"]) -> Float[Array, "*n d+1"]:
    """Features with a last column of ones: the bias becomes one more coefficient."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
