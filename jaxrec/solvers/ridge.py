r"""Ridge regression in layers: normal equations -> factorize -> solve (or sample).

The problem of one row, with the other side's features x [n, d] held fixed and targets y [n]::

    minimize over v:  1/2 sum over observed of weight (x . v - y)^2 + 1/2 (v - m)' P (v - m)

The minimum solves (X' D X + P) v = X' D y + P m, where D holds the weights, P is the penalty's precision (a number, one
number per coefficient, or a matrix) and m is the prior mean. With a Gaussian likelihood the same factor gives the
posterior, from which `sample` draws. The functions are written for one row; use vmap for a batch. The factorization
and everything after it also accept leading batch axes, which is faster than vmap. ALS, fold-in and Gibbs use these.

>>> import jax.numpy as jnp
>>> x = jnp.array([[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]])  # the notes' films
>>> alice = jnp.array([5.0, 5.0, jnp.nan, 0.0, 0.0])
>>> w, b = solve_user(x, alice, jnp.array([True, True, False, True, True]), l2=0.01)
>>> [round(float(prediction), 1) + 0.0 for prediction in x @ w + b]  # Alice's predicted ratings of all five
[4.9, 5.1, 5.1, 0.0, 0.0]
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Num, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.kernels import cholesky, orthogonal
from jaxrec.solvers.checks import check_columns, check_factor, floats

__all__ = [
    "Factor",
    "NormalEquations",
    "UserSolution",
    "factorize",
    "factorize_matrix",
    "leave_one_out_predictions",
    "normal_equations",
    "sample",
    "solve",
    "solve_item",
    "solve_user",
    "with_one",
]

Number = int | float | Shaped[ArrayLike, ""]


class UserSolution(NamedTuple):
    """A user's parameters.

    Attributes:
        w: [d], the coefficients of the items' features.
        b: [], the bias.
    """

    w: Array
    b: Array


@register_dataclass
@dataclass(frozen=True)
class NormalEquations:
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
    """A factorized row, or a batch of rows: the Cholesky factor of gram + precision, and the other inputs of `solve`.

    Attributes:
        cholesky: [..., d, d], lower triangular.
        rhs: [..., d], X' D y.
        precision: [..., d, d], P.
    """

    cholesky: Array
    rhs: Array
    precision: Array


def normal_equations(
    x: Num[ArrayLike, "n d"],
    y: Shaped[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> NormalEquations:
    """Gram matrix and right-hand side over the observed entries; masked entries may hold anything, also NaN.

    Sums are taken in float32 at least, whatever the types of the columns.

    Raises:
        ValueError: columns that do not have one entry for each row of x.
    """
    check_columns(x, y, where, weights)
    return _normal_equations(*_columns(x, y, where, weights))


@jax.jit
def _normal_equations(x: Array, y: Array, where: Array | None, weights: Array | None) -> NormalEquations:
    if where is not None:
        x, y = jnp.where(where[:, None], x, 0), jnp.where(where, y, 0)
        weights = None if weights is None else jnp.where(where, weights, 0)
    weighted = x if weights is None else x * weights[:, None]
    if weights is not None:
        count = jnp.sum(weights)
    else:
        count = jnp.asarray(len(y), y.dtype) if where is None else jnp.sum(where, dtype=y.dtype)
    # HIGHEST: otherwise accelerators round the inputs of the product to bfloat16 or TF32.
    gram = jnp.matmul(x.T, weighted, precision=jax.lax.Precision.HIGHEST)
    return NormalEquations(gram, jnp.matmul(weighted.T, y, precision=jax.lax.Precision.HIGHEST), count)


def factorize(
    equations: NormalEquations, precision: Number | Shaped[ArrayLike, "*batch d"] | Shaped[ArrayLike, " d"]
) -> Factor:
    """The Cholesky factor of gram + precision, of one row or of a batch of rows.

    In a row without ratings, a coefficient with precision 0 (an unpenalized bias) would have no solution. There its
    precision is taken as 1, so that the solution is the prior mean instead of NaN.

    Args:
        equations: from `normal_equations`, with leading batch axes or without.
        precision: P >= 0, a number, or one per coefficient ([d], or [..., d] per row). For a matrix use
            `factorize_matrix`. Where gram + P is not positive definite, as with P = 0 and fewer independent ratings
            than coefficients, the factor is NaN or, because of rounding, large finite numbers: `solve` raises then.

    Raises:
        ValueError: a precision is negative, not finite, or of a wrong shape.
    """
    check.strength("precision", precision, zero=True)
    shape = equations.rhs.shape
    if np.shape(precision) not in ((), shape[-1:], shape):
        raise ValueError(
            f"precision: expected a number, or one per coefficient, of shape {shape[-1:]} or {shape}, got "
            f"{np.shape(precision)}."
        )
    return _factorize(equations, jnp.asarray(precision, equations.gram.dtype))


@jax.jit
def _factorize(equations: NormalEquations, precision: Array) -> Factor:
    precision = _regularize_empty_rows(jnp.broadcast_to(precision, equations.rhs.shape), equations.count)
    shape = (*precision.shape, precision.shape[-1])
    matrix = jnp.broadcast_to(jnp.eye(shape[-1], dtype=precision.dtype), shape) * precision[..., None]
    return Factor(cholesky.cholesky(equations.gram + matrix), equations.rhs, matrix)


def _regularize_empty_rows(precision: Array, count: Array) -> Array:
    """Precision 1 in place of 0 in rows without ratings, whose equations would otherwise be singular."""
    return jnp.where((precision == 0) & (count[..., None] == 0), 1, precision)


def factorize_matrix(equations: NormalEquations, precision: Shaped[ArrayLike, "*batch d d"]) -> Factor:
    """The Cholesky factor of gram + precision, where the prior precision P is a matrix, or one matrix per row.

    Raises:
        ValueError: P is not a matrix over the coefficients, or not finite.
    """
    shape = equations.gram.shape
    if np.shape(precision)[-2:] != shape[-2:]:
        raise ValueError(f"precision: expected matrices {shape[-2:]}, got shape {np.shape(precision)}.")
    if not check.traced(precision) and not np.isfinite(np.asarray(precision)).all():
        raise ValueError("precision: expected finite numbers, got others.")
    return _factorize_matrix(equations, jnp.asarray(precision, equations.gram.dtype))


@jax.jit
def _factorize_matrix(equations: NormalEquations, precision: Array) -> Factor:
    precision = jnp.broadcast_to(precision, equations.gram.shape)
    return Factor(cholesky.cholesky(equations.gram + precision), equations.rhs, precision)


def solve(factor: Factor, prior_mean: Number | Shaped[ArrayLike, "*batch d"] = 0.0) -> Float[Array, "*batch d"]:
    """The ridge solution, which is the posterior mean; for a row without ratings it is `prior_mean`.

    Its relative error is that of normal equations: about 10 eps divided by `kernels.cholesky.pivot_ratio`. For badly
    scaled rows use `solve_user`, `solve_item` or `fold_in`, which refit from the features; a factor has none.

    Raises:
        ValueError: the equations are singular up to rounding, or so badly scaled that the solution would be off by 1 %;
            or the prior mean has a wrong shape.
    """
    mean = _prior_mean(factor, prior_mean)
    check_factor(factor)
    return _solve(factor, mean)


@jax.jit
def _solve(factor: Factor, mean: Array) -> Array:
    prior_rhs = jnp.sum(factor.precision * jnp.broadcast_to(mean, factor.rhs.shape)[..., None, :], axis=-1)  # P m
    return cholesky.cho_solve(factor.cholesky, factor.rhs + prior_rhs)


def sample(
    factor: Factor, prior_mean: Number | Shaped[ArrayLike, "*batch d"] = 0.0, *, key: PRNGKeyArray
) -> Float[Array, "*batch d"]:
    """A draw from the posterior normal(solve(factor), (gram + P)^-1); a noise precision other than 1 goes into weights.

    Raises:
        ValueError: as `solve`.
    """
    mean = _prior_mean(factor, prior_mean)
    check_factor(factor)
    return _sample(factor, mean, key)


@jax.jit
def _sample(factor: Factor, mean: Array, key: PRNGKeyArray) -> Array:
    noise = jax.random.normal(key, factor.rhs.shape, factor.rhs.dtype)
    return _solve(factor, mean) + cholesky.solve_transposed(factor.cholesky, noise)


def leave_one_out_predictions(
    factor: Factor,
    x: Num[ArrayLike, "n d"],
    y: Shaped[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
    *,
    prior_mean: Number | Shaped[ArrayLike, " d"] = 0.0,
) -> Float[Array, " n"]:
    """Predicts each entry of one row from the ridge solution of all other entries: exact, with one factor for all.

    With A = X' D X + P, the solution v, and the leverage h(k) = weight(k) x(k)' A^-1 x(k) of entry k::

        prediction without k = (x(k) . v - h(k) y(k)) / (1 - h(k))

    which is the Sherman-Morrison formula for A - weight(k) x(k) x(k)'. Where 1 - h is lost to rounding, as for weights
    of 1e7, the row is refitted without the entry (`kernels.orthogonal`).

    Args:
        factor: of the row, from `factorize`.
        x: the features, as passed to `normal_equations`.
        y: the targets, as passed to it.
        where: the mask, as passed to it. A masked entry is not part of the row: its prediction is the ordinary one.
        weights: as passed to it.
        prior_mean: as in `solve`. Where a row has a single entry, its prediction is x . prior_mean.

    Raises:
        ValueError: the columns do not fit the factor, or one another; the prior mean has a wrong shape.

    Source: Allen 1974, The relationship between variable selection and data augmentation (PRESS).

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 2.0, 3.0])
    >>> without = leave_one_out_predictions(factorize(normal_equations(x, y), 0.5), x, y)
    >>> v = solve(factorize(normal_equations(x[1:], y[1:]), 0.5))  # fitted without the first entry
    >>> bool(jnp.allclose(without[0], x[0] @ v, atol=1e-6))
    True
    """
    check_columns(x, y, where, weights)
    if factor.rhs.shape != np.shape(x)[1:]:
        raise ValueError(f"factor: expected one row of {np.shape(x)[1]} coefficients, got shape {factor.rhs.shape}.")
    mean = _prior_mean(factor, prior_mean)
    return _leave_one_out_predictions(factor, *_columns(x, y, where, weights), mean)


@jax.jit
def _leave_one_out_predictions(
    factor: Factor, x: Array, y: Array, where: Array | None, weights: Array | None, mean: Array
) -> Array:
    n, d = x.shape
    mean = jnp.broadcast_to(mean, (d,))
    in_row = jnp.ones(y.shape, bool) if where is None else where
    in_row = in_row if weights is None else in_row & (weights > 0)
    weight = jnp.where(in_row, 1 if weights is None else weights, 0).astype(y.dtype)
    x, y = jnp.where(in_row[:, None], x, jnp.where(jnp.isfinite(x), x, 0)), jnp.where(in_row, y, 0)
    inverse = cholesky.inverse(factor.cholesky)
    leverage = weight * jnp.sum(jnp.matmul(x, inverse, precision=jax.lax.Precision.HIGHEST) * x, axis=1)
    v = _solve(factor, mean)
    single = in_row & (jnp.sum(in_row) == 1)  # its leverage is 1 if the bias is unpenalized: 0 / 0
    eps = jnp.finfo(x.dtype).eps
    remaining = jnp.where(single, 1, jnp.where(1 - leverage < eps, eps, 1 - leverage))
    product = partial(jnp.einsum, "nd,nd->n", precision=jax.lax.Precision.HIGHEST)
    by_formula = (product(x, jnp.broadcast_to(v, x.shape)) - leverage * y) / remaining

    # n + 1 fits: fit k < n is without entry k, fit n has all entries; only those with a small ratio are computed
    ratio = jnp.where(in_row & ~single, remaining, 1) * cholesky.pivot_ratio(factor.cholesky)
    ratio = jnp.append(jnp.where(single, 1, ratio), cholesky.pivot_ratio(factor.cholesky))
    args = x, y, weight, factor.precision, mean
    fits, _ = orthogonal.mend_fits(
        jnp.broadcast_to(v, (n + 1, d)), ratio, *args, without=jnp.arange(n + 1), batch_size=4
    )
    by_refit = product(x, jnp.where(in_row[:, None], fits[:-1], fits[-1:]))
    refitted = orthogonal.ill_conditioned(jnp.where(in_row, ratio[:-1], ratio[-1]))
    zero = by_formula - jax.lax.stop_gradient(by_formula)  # with the derivative of the formula
    predicted = jax.lax.stop_gradient(by_refit) + jnp.where(jnp.isfinite(zero), zero, 0)
    predicted = jnp.where(refitted, predicted, by_formula)
    return jnp.where(single, product(x, jnp.broadcast_to(mean, x.shape)), predicted)


def solve_user(
    x: Num[ArrayLike, "n_items d"],
    y: Shaped[ArrayLike, " n_items"],
    where: Bool[ArrayLike, " n_items"],
    *,
    l2: Number,
    weights: Shaped[ArrayLike, " n_items"] | None = None,
    offset: Number | Shaped[ArrayLike, " n_items"] = 0.0,
    l2_bias: Number = 0.0,
    prior: Number | Shaped[ArrayLike, " d+1"] = 0.0,
) -> UserSolution:
    """(w, b) that minimize `losses.user_cost`: a user's ridge regression on the items' features, the bias unpenalized.

    Computed in float32 at least, whatever the arguments' types. In float32 the error is about 1e-5 of the largest
    coefficient (see `batched_ridge`).

    Args:
        x: the items' features.
        y: the user's ratings.
        where: True where the user rated the item.
        l2: the strength of w's penalty, > 0 unless there are d + 1 independent ratings; then it may be 0.
        weights: one per rating.
        offset: c(i) + mu(i), where the model has them.
        l2_bias: the strength of b's penalty.
        prior: the prior mean of (w, b), a number or [d + 1]; it is the solution of a user without ratings.

    Raises:
        ValueError: the columns do not have one entry per item; a strength is negative or not finite; the prior has a
            wrong shape; the equations are singular: too few independent ratings for l2 = 0.
    """
    check_columns(x, y, where, weights)
    _check_numbers(y, offset, l2, l2_bias)
    features, target, weight, known = floats(x, y, weights, offset)
    features = with_one(features)
    precision = jnp.full(features.shape[1], l2, features.dtype).at[-1].set(jnp.asarray(l2_bias, features.dtype))
    v = _solve_and_check(features, target - known, where, weight, precision, prior)
    return UserSolution(v[:-1], v[-1])


def solve_item(
    w: Num[ArrayLike, "n_users d"],
    b: Shaped[ArrayLike, " n_users"],
    y: Shaped[ArrayLike, " n_users"],
    where: Bool[ArrayLike, " n_users"],
    *,
    l2: Number,
    weights: Shaped[ArrayLike, " n_users"] | None = None,
    offset: Number | Shaped[ArrayLike, " n_users"] = 0.0,
    prior: Number | Shaped[ArrayLike, " d"] = 0.0,
) -> Float[Array, " d"]:
    """Solves for the x that minimizes `losses.item_cost`, w and b held fixed; arguments and errors as `solve_user`."""
    check_columns(w, y, where, weights)
    check.same_shape(y=y, b=b)
    _check_numbers(y, offset, l2, 0.0)
    features, bias, target, weight, known = floats(w, b, y, weights, offset)
    precision = jnp.full(features.shape[1], l2, features.dtype)
    return _solve_and_check(features, target - bias - known, where, weight, precision, prior)


def with_one(x: Shaped[ArrayLike, "*n d"]) -> Shaped[Array, "*n d+1"]:
    """Appends a column of ones to features, which makes the bias one more coefficient."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def _solve_and_check(
    x: Array, y: Array, where: ArrayLike, weights: Array | None, precision: Array, prior: Number | ArrayLike
) -> Array:
    if np.shape(prior) not in ((), x.shape[1:]):
        raise ValueError(f"prior: expected a number or shape {x.shape[1:]}, got {np.shape(prior)}.")
    v, ratio = _solve_row(x, y, jnp.asarray(where, bool), weights, precision, jnp.asarray(prior, x.dtype))
    if check.traced(v, ratio, precision):
        return v
    d, eps = x.shape[1], float(jnp.finfo(x.dtype).eps)
    unpenalized = np.all(np.asarray(precision)[: d - 1] == 0)  # else l2 > 0: not singular
    if not np.isfinite(np.asarray(v)).all() or (unpenalized and float(ratio) < (8 * d * eps) ** 2):
        raise ValueError(
            f"the equations of {np.count_nonzero(where)} ratings for {d} coefficients have no solution in {x.dtype}: "
            f"eliminating the other coefficients leaves {float(ratio):.1e} of a diagonal entry, with "
            f"penalties {np.unique(np.asarray(precision)).tolist()}. Raise l2 above 0, or scale numbers that overflow."
        )
    return v


@jax.jit
def _solve_row(
    x: Array, y: Array, where: Array, weights: Array | None, precision: Array, prior: Array
) -> tuple[Array, Array]:
    """(v, the `cholesky.pivot_ratio` of its equations)."""
    equations = _normal_equations(x, y, where, weights)
    precision, prior = _regularize_empty_rows(precision, equations.count), jnp.broadcast_to(prior, precision.shape)
    matrix = equations.gram + jnp.diag(precision)
    (v,), ratio = cholesky.solve(matrix[None], ((equations.rhs + precision * prior)[None],))
    weight = jnp.where(where, 1 if weights is None else weights, 0).astype(x.dtype)
    x, y = jnp.where(where[:, None], x, 0), jnp.where(where, y, 0)
    v, ratio = orthogonal.mend_fits(v, ratio, x, y, weight, jnp.diag(precision), prior, without=jnp.array([len(x)]))
    return v[0], ratio[0]


def _columns(
    x: ArrayLike, y: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Array, Array, Array | None, Array | None]:
    features, target, weight = floats(x, y, weights)
    return features, target, None if where is None else jnp.asarray(where, bool), weight


def _check_numbers(y: ArrayLike, offset: Number | ArrayLike, l2: Number, l2_bias: Number) -> None:
    if np.shape(offset) not in ((), np.shape(y)):
        raise ValueError(f"offset: expected a number or shape {np.shape(y)}, got {np.shape(offset)}.")
    for name, strength in (("l2", l2), ("l2_bias", l2_bias)):
        if np.shape(strength) != ():
            raise ValueError(f"{name}: expected a number, got shape {np.shape(strength)}.")
        check.strength(name, strength, zero=True)


def _prior_mean(factor: Factor, mean: Number | ArrayLike) -> Array:
    shape = factor.rhs.shape
    if np.shape(mean) not in ((), shape[-1:], shape):
        raise ValueError(f"prior_mean: expected a number or shape {shape[-1:]} or {shape}, got {np.shape(mean)}.")
    return jnp.asarray(mean, factor.rhs.dtype)
