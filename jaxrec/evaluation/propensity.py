"""Propensities of ratings: the probability that a pair of user and item is rated, and weights that undo the selection.

Users rate what they like, so the mean over rated pairs is not the mean over all pairs: ratings are missing not at
random. With the propensity p(i,j) of every rated pair, the mean of any loss over all n_users * n_items pairs is
estimated without bias by the rated ones (inverse propensity scoring)::

    1 / (n_users n_items) sum over rated of loss(i,j) / p(i,j)

`naive_bayes` estimates p from the ratings and a small sample of ratings of random pairs; `logistic_regression` from
features of users and items. `inverse_propensity_weights` makes them `Ratings.weights`, by which solvers and losses
minimize that estimate, and metrics (`metrics.rmse(..., weights=)`) report it.

Source: Schnabel, Swaminathan, Singh, Chandak, Joachims 2016, Recommendations as treatments: debiasing learning and
evaluation.

Half of all films deserve a 5, but those are rated three times as often; ten random films were rated too:

>>> import dataclasses
>>> from jaxrec import Ratings
>>> train = Ratings([0, 0, 0, 1], [0, 1, 2, 3], [5.0, 5.0, 5.0, 1.0], 2, 4)
>>> propensity = naive_bayes(train, [1, 5, 5, 1, 1, 5, 1, 5, 5, 1])
>>> propensity.tolist()  # P(5 | rated) P(rated) / P(5) = 3/4 * 4/8 / (1/2), and 1/4 * 4/8 / (1/2)
[0.75, 0.75, 0.75, 0.25]
>>> [round(float(weight), 3) for weight in inverse_propensity_weights(propensity)]
[0.667, 0.667, 0.667, 2.0]
>>> weighted = dataclasses.replace(train, weights=inverse_propensity_weights(propensity))  # for solvers.als
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.evaluation._probabilities import check_range
from jaxrec.numerics import binary_cross_entropy, product
from jaxrec.types import Ratings

__all__ = [
    "LogisticFit",
    "inverse_propensity_weights",
    "logistic_propensities",
    "logistic_regression",
    "naive_bayes",
]

HALVINGS = 12  # of a Newton step that would raise the objective


def naive_bayes(
    train: Ratings, sample: Shaped[ArrayLike, " m"] | Sequence[Any], *, smoothing: float = 0.0
) -> np.ndarray:
    """P(rated | rating = r) of every rating, float32 [n], in the order of `train`.

    By Bayes' rule, for each distinct rating r::

        P(rated | r) = P(r | rated) P(rated) / P(r)

    where P(r | rated) is the fraction of `train` with rating r, P(rated) = n / (n_users n_items), and P(r) is the
    fraction of `sample` with rating r. The propensity depends on nothing but the rating; an estimate above 1, by chance
    of a small sample, becomes 1.

    Args:
        train: the ratings whose propensities are wanted; a pair occurs once.
        sample: [m], ratings of pairs drawn uniformly at random from all, such as answers to a survey.
        smoothing: a count that is added to each distinct rating of the sample, >= 0; 0 takes the fractions as they are.

    Raises:
        ValueError: no ratings; a rating of `train` that does not occur in the sample, without smoothing.
    """
    check.positive("smoothing", smoothing, zero=True)
    unbiased = check.finite("sample", sample, dtype=np.float32)
    if not len(train) or not len(unbiased):
        raise ValueError(f"expected ratings and a sample, got {len(train)} and {len(unbiased)}.")
    scale, level = np.unique(np.concatenate([train.value, unbiased]), return_inverse=True)
    count = np.bincount(level[: len(train)], minlength=len(scale))
    sample_count = np.bincount(level[len(train) :], minlength=len(scale)) + smoothing
    if (missing := (count > 0) & (sample_count == 0)).any():
        raise ValueError(
            f"sample: expected every rating of train, got none of {scale[missing][0]}, whose propensity would be "
            "infinite. Draw a larger sample, or pass smoothing=1.0."
        )
    # P(r | rated) P(rated) = count / n * n / (n_users n_items)
    rated = count / (float(train.n_users) * train.n_items)
    unbiased_fraction = np.where(count > 0, sample_count, 1) / sample_count.sum()
    return np.minimum(rated / unbiased_fraction, 1)[level[: len(train)]].astype(np.float32)


class LogisticFit(NamedTuple):
    """A logistic regression.

    Attributes:
        coefficients: [d], the change of the log-odds per unit of each feature.
        intercept: [], the log-odds where all features are 0.
        converged: bool [], whether the gradient has become as small as `tol`.
        steps: int32 [], the Newton steps taken.
        largest_gradient: [], the largest absolute entry of the gradient, over the number of rows.
    """

    coefficients: Array
    intercept: Array
    converged: Array
    steps: Array
    largest_gradient: Array


def logistic_regression(
    x: Shaped[ArrayLike, "n d"],
    observed: Shaped[ArrayLike, " n"],
    *,
    l2: float | Float[ArrayLike, ""],
    where: Bool[ArrayLike, " n"] | None = None,
    steps: int = 25,
    tol: float = 1e-6,
) -> LogisticFit:
    """Logistic regression by Newton's method (iteratively reweighted least squares), for P(rated) = g(x . v + b).

    Minimizes, with g(z) = 1 / (1 + e^-z) and z_t = x_t . v + b::

        sum_t [-o_t log g(z_t) - (1 - o_t) log(1 - g(z_t))] + l2/2 |v|^2

    Each step solves H s = gradient, with H = (x, 1)' D (x, 1) + l2 I (no penalty on b) and D = g(z)(1 - g(z)), and is
    halved until the objective does not rise. It is a pure function that can be jitted and vmapped: over l2, or over
    many items' `observed` with the same users' features.

    Args:
        x: the features of all pairs (of user and item), rated or not; standardize them, so that l2 is fair to each.
        observed: 1 or True where the pair was rated, else 0.
        l2: the strength of the penalty, > 0.
        where: False for rows that are left out; whatever they hold is ignored.
        steps: the maximum number of Newton steps.
        tol: stop when no entry of the gradient exceeds this, per row.

    Returns:
        A LogisticFit, computed in float32 at least; `converged` says whether it may be used.

    Raises:
        ValueError: shapes that do not fit; features that are not finite; `observed` other than 0 and 1, or all the same
            (then b is infinite); l2 that is not positive.

    Source: Schnabel et al. 2016, as above; Hastie, Tibshirani, Friedman 2009, The elements of statistical learning,
    section 4.4.1.
    """
    check.same_shape(observed=observed, where=where)
    if jnp.ndim(x) != 2 or jnp.shape(observed) != jnp.shape(x)[:1]:
        raise ValueError(f"expected x [n, d] and observed [n], got {jnp.shape(x)} and {jnp.shape(observed)}.")
    check.strength("l2", l2)
    steps = check.whole_number("steps", steps, least=1)
    x, observed = check.as_floats(x=x, observed=observed)
    where = jnp.ones(observed.shape, bool) if where is None else check.mask("where", where, observed.shape)
    x, observed = jnp.where(where[:, None], x, 0), jnp.where(where, observed, 0)
    check.all_finite("x", x)
    _check_labels(observed, where)
    return _newton(x, observed, where, jnp.asarray(l2, x.dtype), steps=jnp.int32(steps), tol=jnp.asarray(tol, x.dtype))


def logistic_propensities(fit: LogisticFit, x: Shaped[ArrayLike, "n d"]) -> Float[Array, " n"]:
    """The fitted probabilities g(x . v + b) of pairs with features x [n, d].

    Raises:
        ValueError: features of another number than the fit's.
    """
    (x,) = check.as_floats(x=x)
    if x.ndim != 2 or x.shape[1:] != fit.coefficients.shape:
        raise ValueError(f"x: expected features [n, {fit.coefficients.shape[0]}], as fitted, got shape {x.shape}.")
    return jax.nn.sigmoid(product(x, fit.coefficients) + fit.intercept)


def inverse_propensity_weights(
    propensity: Shaped[ArrayLike, " n"],
    *,
    max_weight: float | None = None,
    where: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, " n"]:
    """Weights for `Ratings.weights`: 1 / propensity over its mean, so that they sum to the number of ratings.

    Weighted means, such as `metrics.rmse(..., weights=)`, are then the self-normalized estimate of the mean over all
    pairs; and a cost with these weights is as large as without, so that l2 keeps its meaning. To use them in training::

        weighted = dataclasses.replace(train, weights=inverse_propensity_weights(propensity))
        factors, info = solvers.als(weighted, rank=8, l2=12.0)

    Args:
        propensity: [n] in (0, 1], of the rated pairs.
        max_weight: the largest weight, after the normalization, > 0: lower variance for some bias. The weights are not
            normalized again.
        where: False for rows that are left out, whose weight is 0.

    Raises:
        ValueError: propensities outside of (0, 1]; max_weight <= 0.
    """
    check.same_shape(propensity=propensity, where=where)
    (propensity,) = check.as_floats(propensity=propensity)
    where = jnp.ones(propensity.shape, bool) if where is None else check.mask("where", where, propensity.shape)
    check_range("propensity", propensity, where, zero=False)
    inverse = jnp.where(where, 1 / jnp.where(where, propensity, 1), 0)
    weights = inverse / (jnp.sum(inverse) / jnp.sum(where, dtype=inverse.dtype))
    if max_weight is None:
        return weights
    if not check.traced(max_weight):
        check.positive("max_weight", max_weight)
    return jnp.minimum(weights, max_weight)


def _check_labels(observed: Array, where: Array) -> None:
    if check.traced(observed, where):
        return
    labels = np.asarray(observed)[np.asarray(where)]
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"observed: expected 0 and 1, got {labels[~np.isin(labels, (0, 1))][0]}.")
    if len(np.unique(labels)) < 2:
        raise ValueError(
            "observed: expected rated and other pairs, got one kind only: the intercept would be infinite."
        )


class _State(NamedTuple):
    v: Array  # [d + 1], the intercept last
    gradient: Array  # [d + 1], over the number of rows
    step: Array


@jax.jit
def _newton(x: Array, observed: Array, where: Array, l2: Array, *, steps: Array, tol: Array) -> LogisticFit:
    n = jnp.maximum(jnp.sum(where, dtype=x.dtype), 1)
    with_one = jnp.concatenate([x, where[:, None].astype(x.dtype)], axis=1)  # masked rows are 0 throughout
    penalty = jnp.full(with_one.shape[1], l2).at[-1].set(0)
    shrink = 0.5 ** jnp.arange(HALVINGS, dtype=x.dtype)

    def objective(z: Array, v: Array) -> Array:
        terms = jnp.where(where, binary_cross_entropy(z, observed), 0)
        return (jnp.sum(terms) + 0.5 * jnp.sum(penalty * v * v)) / n

    def gradient(v: Array) -> Array:
        residual = jnp.where(where, jax.nn.sigmoid(product(with_one, v)) - observed, 0)
        return (product(residual, with_one) + penalty * v) / n

    def step(state: _State) -> _State:
        z = product(with_one, state.v)
        p = jax.nn.sigmoid(z)
        gram = product(with_one.T, with_one * (p * (1 - p))[:, None])
        direction = jnp.linalg.solve((gram + jnp.diag(penalty)) / n, state.gradient)
        dz = product(with_one, direction)
        trials = jax.vmap(lambda t: objective(z - t * dz, state.v - t * direction))(shrink)
        # the longest step that does not raise the objective, by more than its rounding; the shortest if all do
        falls = trials <= objective(z, state.v) * (1 + 4 * jnp.finfo(x.dtype).eps)
        v = state.v - shrink[jnp.where(jnp.any(falls), jnp.argmax(falls), HALVINGS - 1)] * direction
        return _State(v, gradient(v), state.step + 1)

    def unfinished(state: _State) -> Array:
        return (jnp.max(jnp.abs(state.gradient)) > tol) & (state.step < steps)

    v = jnp.zeros(with_one.shape[1], x.dtype)
    final = jax.lax.while_loop(unfinished, step, _State(v, gradient(v), jnp.int32(0)))
    largest = jnp.max(jnp.abs(final.gradient))
    return LogisticFit(final.v[:-1], final.v[-1], largest <= tol, final.step, largest)
