r"""Ridge regression in layers: normal equations -> factorize -> solve (or sample).

The problem of one row, with the other side's features x [n, d] held fixed and targets y [n]::

    minimize over v:  1/2 sum over observed of weight (x . v - y)^2 + 1/2 (v - m)' P (v - m)

The minimum solves (X' D X + P) v = X' D y + P m, where D holds the weights, P is the penalty (l2 times the identity, a
diagonal of one l2 per coefficient, or any matrix) and m is the prior mean. With a normal likelihood and a normal prior
of precision P, the same factor gives the posterior, from which `sample` draws. The functions are written for one row;
use vmap for a batch. The factorization and everything after it also accept leading batch axes, which is faster than
vmap. ALS, fold-in and Gibbs use these.

Source: Hoerl, Kennard 1970, Ridge regression: biased estimation for nonorthogonal problems.

>>> import jax.numpy as jnp
>>> x = jnp.array([[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]])  # three romances, two action films
>>> alice = jnp.array([5.0, 5.0, jnp.nan, 0.0, 0.0])
>>> w, b = solve_user(x, alice, jnp.array([True, True, False, True, True]), l2=0.01)
>>> [round(float(prediction), 1) + 0.0 for prediction in x @ w + b]  # Alice's predicted ratings of all five
[4.9, 5.1, 5.1, 0.0, 0.0]
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Num, Shaped

from jaxrec import check
from jaxrec.kernels import cholesky, orthogonal
from jaxrec.numerics import HIGHEST
from jaxrec.solvers._normal_equations import (
    Factor,
    NormalEquations,
    Number,
    as_columns,
    as_prior_mean,
    factorize,
    factorize_matrix,
    normal_equations,
    regularize_empty_rows,
    sample,
    solve,
)
from jaxrec.solvers.checks import check_columns, floats

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


class UserSolution(NamedTuple):
    """A user's parameters.

    Attributes:
        w: [d], the coefficients of the items' features.
        b: [], the bias.
    """

    w: Array
    b: Array


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
    mean = as_prior_mean(factor, prior_mean)
    return _leave_one_out_predictions(factor, *as_columns(x, y, where, weights), mean)


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
    leverage = weight * jnp.sum(jnp.matmul(x, inverse, precision=HIGHEST) * x, axis=1)
    v = solve(factor, mean)
    single = in_row & (jnp.sum(in_row) == 1)  # its leverage is 1 if the bias is unpenalized: 0 / 0
    eps = jnp.finfo(x.dtype).eps
    remaining = jnp.where(single, 1, jnp.where(1 - leverage < eps, eps, 1 - leverage))
    product = partial(jnp.einsum, "nd,nd->n", precision=HIGHEST)
    by_formula = (product(x, jnp.broadcast_to(v, x.shape)) - leverage * y) / remaining

    # n + 1 fits: fit k < n is without entry k, fit n has all entries; only those with a small ratio are computed
    ratio = jnp.where(in_row & ~single, remaining, 1) * cholesky.pivot_ratio(factor.cholesky)
    ratio = jnp.append(jnp.where(single, 1, ratio), cholesky.pivot_ratio(factor.cholesky))
    args = x, y, weight, factor.penalty, mean
    fits, _ = orthogonal.refit_one_row(
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
    coefficient_l2 = jnp.full(features.shape[1], l2, features.dtype).at[-1].set(jnp.asarray(l2_bias, features.dtype))
    v = _solve_and_check(features, target - known, where, weight, coefficient_l2, prior)
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
    coefficient_l2 = jnp.full(features.shape[1], l2, features.dtype)
    return _solve_and_check(features, target - bias - known, where, weight, coefficient_l2, prior)


def with_one(x: Shaped[ArrayLike, "*n d"]) -> Shaped[Array, "*n d+1"]:
    """Appends a column of ones to features, which makes the bias one more coefficient."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def _solve_and_check(
    x: Array, y: Array, where: ArrayLike, weights: Array | None, l2: Array, prior: Number | ArrayLike
) -> Array:
    """Solves one row with one l2 per coefficient, and checks the solution where it is concrete."""
    if np.shape(prior) not in ((), x.shape[1:]):
        raise ValueError(f"prior: expected a number or shape {x.shape[1:]}, got {np.shape(prior)}.")
    v, ratio = _solve_row(x, y, jnp.asarray(where, bool), weights, l2, jnp.asarray(prior, x.dtype))
    if check.traced(v, ratio, l2):
        return v
    d, eps = x.shape[1], float(jnp.finfo(x.dtype).eps)
    unpenalized = np.all(np.asarray(l2)[: d - 1] == 0)  # otherwise l2 > 0, and the equations are not singular
    if not np.isfinite(np.asarray(v)).all() or (unpenalized and float(ratio) < (8 * d * eps) ** 2):
        raise ValueError(
            f"the equations of {np.count_nonzero(where)} ratings for {d} coefficients have no solution in {x.dtype}: "
            f"eliminating the other coefficients leaves {float(ratio):.1e} of a diagonal entry, with "
            f"penalties {np.unique(np.asarray(l2)).tolist()}. Raise l2 above 0, or scale numbers that overflow."
        )
    return v


@jax.jit
def _solve_row(x: Array, y: Array, where: Array, weights: Array | None, l2: Array, prior: Array) -> tuple[Array, Array]:
    """(v, the `cholesky.pivot_ratio` of its equations)."""
    equations = normal_equations(x, y, where, weights)
    l2, prior = regularize_empty_rows(l2, equations.count), jnp.broadcast_to(prior, l2.shape)
    matrix = equations.gram + jnp.diag(l2)
    (v,), ratio = cholesky.solve(matrix[None], ((equations.rhs + l2 * prior)[None],))
    weight = jnp.where(where, 1 if weights is None else weights, 0).astype(x.dtype)
    x, y = jnp.where(where[:, None], x, 0), jnp.where(where, y, 0)
    v, ratio = orthogonal.refit_one_row(v, ratio, x, y, weight, jnp.diag(l2), prior, without=jnp.array([len(x)]))
    return v[0], ratio[0]


def _check_numbers(y: ArrayLike, offset: Number | ArrayLike, l2: Number, l2_bias: Number) -> None:
    if np.shape(offset) not in ((), np.shape(y)):
        raise ValueError(f"offset: expected a number or shape {np.shape(y)}, got {np.shape(offset)}.")
    for name, strength in (("l2", l2), ("l2_bias", l2_bias)):
        if np.shape(strength) != ():
            raise ValueError(f"{name}: expected a number, got shape {np.shape(strength)}.")
        check.strength(name, strength, zero=True)
