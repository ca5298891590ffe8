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
>>> [round(float(stars), 1) + 0.0 for stars in x @ w + b]  # what they would say of all five
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
        w: [d].
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
    """A factorized row: the Cholesky factor of gram + precision, with what a solve needs beside it.

    Attributes:
        cholesky: [..., d, d], lower.
        rhs: [..., d].
        precision: [..., d, d].
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
    """Gram matrix and right-hand side over the observed entries; what is masked is replaced before the arithmetic.

    Summed in float32 at least, of whatever numbers.

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
    # HIGHEST: accelerators would otherwise round the factors of a Gram matrix to bfloat16 or TF32.
    gram = jnp.matmul(x.T, weighted, precision=jax.lax.Precision.HIGHEST)
    return NormalEquations(gram, jnp.matmul(weighted.T, y, precision=jax.lax.Precision.HIGHEST), count)


def factorize(
    equations: NormalEquations, precision: Number | Shaped[ArrayLike, "*batch d"] | Shaped[ArrayLike, " d"]
) -> Factor:
    """The Cholesky factor of gram + precision, of one row or of a batch of rows.

    A coefficient with precision 0 (an unpenalized bias) has no solution in a row without ratings: there its precision
    is taken as 1, so that the row gives its prior and no NaN.

    Args:
        equations: from `normal_equations`, with leading batch axes or without.
        precision: P >= 0, a number, one per coefficient ([d], or [..., d] per row); `factorize_matrix` takes a matrix.
            The factor has no meaning where gram + P is not positive definite, as with P = 0 and fewer independent
            ratings than coefficients: NaN, or, where rounding hides it, large finite numbers; `solve` refuses it.

    Raises:
        ValueError: a precision that is negative or not finite, or of another shape.
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
    precision = _with_prior(jnp.broadcast_to(precision, equations.rhs.shape), equations.count)
    shape = (*precision.shape, precision.shape[-1])
    matrix = jnp.broadcast_to(jnp.eye(shape[-1], dtype=precision.dtype), shape) * precision[..., None]
    return Factor(cholesky.cholesky(equations.gram + matrix), equations.rhs, matrix)


def _with_prior(precision: Array, count: Array) -> Array:
    return jnp.where((precision == 0) & (count[..., None] == 0), 1, precision)


def factorize_matrix(equations: NormalEquations, precision: Shaped[ArrayLike, "*batch d d"]) -> Factor:
    """The Cholesky factor of gram + precision, where the prior's precision P is a matrix (or one per row).

    Raises:
        ValueError: P is no matrix of the coefficients, or not finite.
    """
    shape = equations.gram.shape
    if np.shape(precision)[-2:] != shape[-2:]:
        raise ValueError(f"precision: expected matrices {shape[-2:]}, got shape {np.shape(precision)}.")
    if not check.traced(precision) and not np.isfinite(np.asarray(precision)).all():
        raise ValueError("precision: expected finite numbers.")
    return _factorize_matrix(equations, jnp.asarray(precision, equations.gram.dtype))


@jax.jit
def _factorize_matrix(equations: NormalEquations, precision: Array) -> Factor:
    precision = jnp.broadcast_to(precision, equations.gram.shape)
    return Factor(cholesky.cholesky(equations.gram + precision), equations.rhs, precision)


def solve(factor: Factor, prior_mean: Number | Shaped[ArrayLike, "*batch d"] = 0.0) -> Float[Array, "*batch d"]:
    """The ridge solution, or the posterior's mean; a row without ratings gives `prior_mean`.

    It is as exact as its normal equations: off by some 10 eps over their share (`kernels.cholesky.shares`). For badly
    scaled rows `solve_user`, `solve_item` and `fold_in` go back to the features, which a factor no longer has.

    Raises:
        ValueError: a factor of equations that are singular up to rounding, or so badly scaled that the solution would
            be off by a hundredth; a prior mean of another shape.
    """
    mean = _prior_mean(factor, prior_mean)
    check_factor(factor)
    return _solve(factor, mean)


@jax.jit
def _solve(factor: Factor, mean: Array) -> Array:
    pull = jnp.sum(factor.precision * jnp.broadcast_to(mean, factor.rhs.shape)[..., None, :], axis=-1)
    return cholesky.cho_solve(factor.cholesky, factor.rhs + pull)


def sample(
    factor: Factor, prior_mean: Number | Shaped[ArrayLike, "*batch d"] = 0.0, *, key: PRNGKeyArray
) -> Float[Array, "*batch d"]:
    """A draw from the posterior normal(solve(factor), (gram + P)^-1): noise of precision 1, or folded into weights.

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
    """What each entry of one row is predicted to be by the ridge of all the others: exact, from the one factor.

    With A = X' D X + P, v the solution and h(k) = weight(k) x(k)' A^-1 x(k) the entry's leverage::

        prediction without k = (x(k) . v - h(k) y(k)) / (1 - h(k))

    which is the Sherman-Morrison formula for A - weight(k) x(k) x(k)'. Where rounding leaves nothing of 1 - h, as for
    weights of 1e7, the row is fitted without the entry (`kernels.orthogonal`).

    Args:
        factor: of the row, from `factorize`.
        x: the features that `normal_equations` had.
        y: the targets that it had.
        where: as there. An entry that is masked is no part of the row: its prediction is the ordinary one.
        weights: as there.
        prior_mean: as in `solve`; the only entry of a row is predicted x . prior_mean.

    Raises:
        ValueError: columns that do not fit the factor, or one another; a prior mean of another shape.

    Source: Allen 1974, The relationship between variable selection and data augmentation (PRESS).

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 2.0, 3.0])
    >>> without = leave_one_out_predictions(factorize(normal_equations(x, y), 0.5), x, y)
    >>> v = solve(factorize(normal_equations(x[1:], y[1:]), 0.5))  # fitted again, without the first
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
    alone = in_row & (jnp.sum(in_row) == 1)  # an unpenalized bias gives it leverage 1: 0 / 0
    eps = jnp.finfo(x.dtype).eps
    remaining = jnp.where(alone, 1, jnp.where(1 - leverage < eps, eps, 1 - leverage))
    product = partial(jnp.einsum, "nd,nd->n", precision=jax.lax.Precision.HIGHEST)
    by_formula = (product(x, jnp.broadcast_to(v, x.shape)) - leverage * y) / remaining

    # fits 0 .. n - 1 are without an entry each where they must be, and fit n is of all
    share = jnp.where(in_row & ~alone, remaining, 1) * cholesky.shares(factor.cholesky)
    share = jnp.append(jnp.where(alone, 1, share), cholesky.shares(factor.cholesky))
    given = x, y, weight, factor.precision, mean
    fits, _ = orthogonal.mend_fits(jnp.broadcast_to(v, (n + 1, d)), share, *given, without=jnp.arange(n + 1), at_once=4)
    fitted = product(x, jnp.where(in_row[:, None], fits[:-1], fits[-1:]))
    anew = orthogonal.lost(jnp.where(in_row, share[:-1], share[-1]))
    move = by_formula - jax.lax.stop_gradient(by_formula)
    predicted = jnp.where(anew, jax.lax.stop_gradient(fitted) + jnp.where(jnp.isfinite(move), move, 0), by_formula)
    return jnp.where(alone, product(x, jnp.broadcast_to(mean, x.shape)), predicted)


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

    In float32 at least, of whatever numbers, and to some 1e-5 of the largest coefficient in float32 (`batched_ridge`).

    Args:
        x: the items' features.
        y: the user's ratings.
        where: True where the user rated the item.
        l2: the strength of w's penalty, > 0 unless there are d + 1 independent ratings; then it may be 0.
        weights: one per rating.
        offset: c(i) + mu(i), where the model has them.
        l2_bias: the strength of b's penalty.
        prior: what (w, b) are pulled to, a number or [d + 1]; what a user without ratings gets.

    Raises:
        ValueError: columns that do not have one entry per item; strengths that are negative or not finite; a prior of
            another shape; equations that are singular: too few independent ratings for l2 = 0.
    """
    check_columns(x, y, where, weights)
    _check_numbers(y, offset, l2, l2_bias)
    features, stars, weight, known = floats(x, y, weights, offset)
    features = with_one(features)
    precision = jnp.full(features.shape[1], l2, features.dtype).at[-1].set(jnp.asarray(l2_bias, features.dtype))
    v = _solved(features, stars - known, where, weight, precision, prior)
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
    """X that minimizes `losses.item_cost`, given the users' w and b; arguments and errors are as in `solve_user`."""
    check_columns(w, y, where, weights)
    check.same_shape(y=y, b=b)
    _check_numbers(y, offset, l2, 0.0)
    features, biases, stars, weight, known = floats(w, b, y, weights, offset)
    precision = jnp.full(features.shape[1], l2, features.dtype)
    return _solved(features, stars - biases - known, where, weight, precision, prior)


def with_one(x: Shaped[ArrayLike, "*n d"]) -> Shaped[Array, "*n d+1"]:
    """Features with a last column of ones: the bias becomes one more coefficient."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def _solved(
    x: Array, y: Array, where: ArrayLike, weights: Array | None, precision: Array, prior: Number | ArrayLike
) -> Array:
    if np.shape(prior) not in ((), x.shape[1:]):
        raise ValueError(f"prior: expected a number or shape {x.shape[1:]}, got {np.shape(prior)}.")
    v, share = _solve_row(x, y, jnp.asarray(where, bool), weights, precision, jnp.asarray(prior, x.dtype))
    if check.traced(v, share, precision):
        return v
    d, eps = x.shape[1], float(jnp.finfo(x.dtype).eps)
    free = np.all(np.asarray(precision)[: d - 1] == 0)  # with a penalty on all but the bias nothing is singular
    if not np.isfinite(np.asarray(v)).all() or (free and float(share) < (8 * d * eps) ** 2):
        raise ValueError(
            f"the equations of {np.count_nonzero(where)} ratings for {d} coefficients have no solution in {x.dtype}: "
            f"beside the others a coefficient keeps {float(share):.1e} of its square, with penalties "
            f"{np.unique(np.asarray(precision)).tolist()}. Raise l2 above 0, or scale what is not finite."
        )
    return v


@jax.jit
def _solve_row(
    x: Array, y: Array, where: Array, weights: Array | None, precision: Array, prior: Array
) -> tuple[Array, Array]:
    """(v, its share); the row's count of 0 makes a precision of 0 one of 1."""
    equations = _normal_equations(x, y, where, weights)
    precision, prior = _with_prior(precision, equations.count), jnp.broadcast_to(prior, precision.shape)
    matrix = equations.gram + jnp.diag(precision)
    (v,), share = cholesky.solve(matrix[None], ((equations.rhs + precision * prior)[None],))
    weight = jnp.where(where, 1 if weights is None else weights, 0).astype(x.dtype)
    x, y = jnp.where(where[:, None], x, 0), jnp.where(where, y, 0)
    v, share = orthogonal.mend_fits(v, share, x, y, weight, jnp.diag(precision), prior, without=jnp.array([len(x)]))
    return v[0], share[0]


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
