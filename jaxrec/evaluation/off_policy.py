"""Off-policy evaluation: the mean reward that a policy would have had, from the log of another policy.

A logging policy saw a context x_t (such as a user), took the action a_t (such as an item to show) with probability p_t,
its propensity, and logged the reward r_t (such as a click), for t = 1 .. n. The policy to be evaluated would have taken
the same action with probability pi_t = pi(a_t | x_t). Its value is its mean reward, which is estimated from the log by
the importance weights w_t = pi_t / p_t::

    ips            V = 1/n sum w_t r_t
    snips          V = sum w_t r_t / sum w_t
    doubly_robust  V = 1/n sum [sum_a pi(a | x_t) q(x_t, a) + w_t (r_t - q(x_t, a_t))], with a model q of the reward

What they assume: the rows are independent; the propensities are those of the policy that took the actions; every action
that the evaluated policy takes with positive probability the logging policy took with positive probability too. The
last cannot be seen in a log. Without clipping, ips and doubly_robust are then unbiased; snips is consistent and has the
lower variance where the weights vary. Weights may be clipped to `max_weight`, which lowers the variance and biases ips
towards 0 (for rewards >= 0) and doubly_robust towards the mean of the model (Ionides 2008, Truncated importance
sampling).

Intervals are normal, V +- z s. Where few rows carry the sum they are too short, and nearly always too low: with 40
clicks in 10,000 rows and weights up to 10, about 90 % of the intervals of level 0.95 hold the truth. With
`correct_skewness=True` about 94 % do (`python -m experiments.off_policy`). So look at `effective_sample_size`, and at
`mean_weight`, whose expectation is 1 if the assumptions hold. That interval is Hall's: with the skewness g of the n
terms whose mean is V, and a = g / sqrt(n), the studentized mean T of such terms is made nearly normal by

    h(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6,    low, high = V - s h^-1(z), V - s h^-1(-z)

Source: Hall 1992, On the removal of skewness by transformation. (A studentized bootstrap covers as much, but without
bounds on its length if few rows are not 0; the bootstrap's quantiles cover no more than the normal interval.)

All functions take one log, a row per action taken, and are pure: they can be jitted, vmapped (over replications,
policies or clips) and differentiated in the probabilities of the evaluated policy.

>>> import jax.numpy as jnp
>>> clicked = jnp.array([1.0, 0.0, 0.0, 1.0])
>>> propensity = jnp.array([0.5, 0.5, 0.25, 0.25])  # of the item that was shown
>>> policy = jnp.array([0.75, 0.25, 0.0, 0.25])  # the probability with which the new policy shows that item
>>> float(ips(clicked, propensity, policy).value)  # (1.5 * 1 + 0.5 * 0 + 0 + 1 * 1) / 4
0.625
>>> float(snips(clicked, propensity, policy).value)  # (1.5 + 1) / (1.5 + 0.5 + 0 + 1)
0.83333...
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.evaluation._probabilities import check_range

__all__ = ["PolicyValue", "doubly_robust", "ips", "snips"]

SUM_TOLERANCE = 1e-3  # of a policy's probabilities: the sums of thousands of actions in float32 are within it


class PolicyValue(NamedTuple):
    """The estimated mean reward of a policy, and how far to trust it.

    Attributes:
        value: [], the estimate, in units of the reward.
        standard_error: [], of the value.
        low: [], the lower end of the interval, value - z standard_error unless the skewness is corrected.
        high: [], the upper end.
        effective_sample_size: [], (sum w)^2 / sum w^2 of the clipped weights (Kish 1965, Survey sampling): as many rows
            of the policy's own log have the same variance, if rewards do not depend on the weights. 0 if all w are 0.
        mean_weight: [], the mean of the weights before clipping. Its expectation is 1; if it is not near 1, the
            propensities are wrong, or the policy takes actions that the logging policy never takes.
        largest_weight: [], before clipping.
        clipped_fraction: [], the fraction of rows whose weight was clipped.
    """

    value: Array
    standard_error: Array
    low: Array
    high: Array
    effective_sample_size: Array
    mean_weight: Array
    largest_weight: Array
    clipped_fraction: Array


def ips(
    reward: Shaped[ArrayLike, " n"],
    propensity: Shaped[ArrayLike, " n"],
    probability: Shaped[ArrayLike, " n"],
    *,
    max_weight: float | Float[ArrayLike, ""] | None = None,
    level: float | Float[ArrayLike, ""] = 0.95,
    correct_skewness: bool = False,
    where: Bool[ArrayLike, " n"] | None = None,
) -> PolicyValue:
    """Inverse propensity scoring: V = 1/n sum w_t r_t, with w_t = min(pi_t / p_t, max_weight).

    Its standard error is the standard deviation of the n terms (with n - 1) over sqrt(n).

    Args:
        reward: r_t, in any units.
        propensity: p_t in (0, 1], the probability with which the logging policy took the logged action.
        probability: pi_t in [0, 1], the probability with which the evaluated policy takes the logged action.
        max_weight: the largest weight, > 0; None does not clip.
        level: of the interval, between 0 and 1.
        correct_skewness: the interval allows for the skewness of the terms, as above; else it is normal.
        where: False for rows that are left out; whatever they hold is ignored.

    Returns:
        A PolicyValue, computed in float32 at least.

    Raises:
        ValueError: different shapes; fewer than two rows (under jit: NaN); NaN or infinite rewards; propensities
            outside of (0, 1] or probabilities outside of [0, 1]; max_weight or level out of range.

    Source: Horvitz, Thompson 1952, A generalization of sampling without replacement from a finite universe.
    """
    check.same_shape(reward=reward, propensity=propensity, probability=probability, where=where)
    reward, propensity, probability = check.as_floats(reward=reward, propensity=propensity, probability=probability)
    where = _rows(reward, where)
    reward = _logged_rewards(reward, where)
    raw = _weights(propensity, probability, where)
    w = _clip(raw, max_weight)
    value, error = _mean(w * reward, where)
    skewness = _skewness(w * reward - value, where) if correct_skewness else None
    return _result(value, error, skewness, raw, w, where, level)


def snips(
    reward: Shaped[ArrayLike, " n"],
    propensity: Shaped[ArrayLike, " n"],
    probability: Shaped[ArrayLike, " n"],
    *,
    max_weight: float | Float[ArrayLike, ""] | None = None,
    level: float | Float[ArrayLike, ""] = 0.95,
    correct_skewness: bool = False,
    where: Bool[ArrayLike, " n"] | None = None,
) -> PolicyValue:
    """Self-normalized inverse propensity scoring: V = sum w_t r_t / sum w_t, with w_t = min(pi_t / p_t, max_weight).

    The value lies between the smallest and the largest reward, and moves with them: a constant added to all rewards is
    added to it, which is not true of `ips`. The standard error is that of the ratio by the delta method::

        s^2 = sum w_t^2 (r_t - V)^2 / (sum w_t)^2

    Its bias is of order 1/n. Arguments, result and errors are those of `ips`; beyond these:

    Raises:
        ValueError: all weights are 0 (under jit: NaN), because the policy takes none of the logged actions.

    Source: Swaminathan, Joachims 2015, The self-normalized estimator for counterfactual learning.
    """
    check.same_shape(reward=reward, propensity=propensity, probability=probability, where=where)
    reward, propensity, probability = check.as_floats(reward=reward, propensity=propensity, probability=probability)
    where = _rows(reward, where)
    reward = _logged_rewards(reward, where)
    raw = _weights(propensity, probability, where)
    w = _clip(raw, max_weight)
    total = jnp.sum(w)
    if not check.traced(total) and not total > 0:
        raise ValueError(
            "probability: expected a policy that takes some of the logged actions, got 0 in every row: such a log says "
            "nothing about it by weights alone."
        )
    value = jnp.sum(w * reward) / total
    terms = w * jnp.where(where, reward - value, 0)  # of mean 0: the ratio's terms, to first order
    skewness = _skewness(terms, where) if correct_skewness else None
    return _result(value, _root(jnp.sum(terms**2)) / total, skewness, raw, w, where, level)


def doubly_robust(
    reward: Shaped[ArrayLike, " n"],
    propensity: Shaped[ArrayLike, " n"],
    action: Int[ArrayLike, " n"],
    probabilities: Shaped[ArrayLike, "n actions"],
    predictions: Shaped[ArrayLike, "n actions"],
    *,
    max_weight: float | Float[ArrayLike, ""] | None = None,
    level: float | Float[ArrayLike, ""] = 0.95,
    correct_skewness: bool = False,
    where: Bool[ArrayLike, " n"] | None = None,
) -> PolicyValue:
    """The reward model's mean under the policy, corrected by the model's weighted residuals on the logged actions.

    With w_t = min(pi(a_t | x_t) / p_t, max_weight)::

        V = 1/n sum_t [sum_a pi(a | x_t) q(x_t, a) + w_t (r_t - q(x_t, a_t))]

    Without clipping it is unbiased if the propensities are right, whatever q is, and nearly so if q is right, whatever
    the propensities are; the better q, the smaller its variance. Where q = 0 it is `ips`; where all w_t = 0 it is the
    direct method, the mean of the model. The standard error is the standard deviation of the n terms (with n - 1) over
    sqrt(n).

    A row's prediction must not have seen the row's own reward, or the residuals are too small, and so is the interval:
    fit q on other data, or cross-fit it (predict each fold by the model of the other folds).

    Args:
        reward: r_t, in any units.
        propensity: p_t in (0, 1], the probability with which the logging policy took the logged action.
        action: the logged actions' columns in `probabilities` and `predictions`.
        probabilities: pi(a | x_t) of every action, in [0, 1]; each row sums to 1, up to 0.001.
        predictions: q(x_t, a) of every action, in units of the reward; 0 where there is none.
        max_weight: the largest weight, > 0; None does not clip.
        level: of the interval, between 0 and 1.
        correct_skewness: the interval allows for the skewness of the terms, as above; else it is normal.
        where: False for rows that are left out; whatever they hold is ignored.

    Returns:
        A PolicyValue, computed in float32 at least.

    Raises:
        ValueError: as `ips`; actions out of range; probabilities that do not sum to 1; predictions that are not finite.

    Source: Dudík, Langford, Li 2011, Doubly robust policy evaluation and learning; Dudík, Erhan, Langford, Li 2014,
    Doubly robust policy evaluation and optimization.
    """
    check.same_shape(reward=reward, propensity=propensity, action=action, where=where)
    check.same_shape(probabilities=probabilities, predictions=predictions)
    if jnp.ndim(probabilities) != 2 or jnp.shape(probabilities)[:1] != jnp.shape(reward):
        raise ValueError(
            "expected reward [n], and probabilities and predictions [n, actions], got shapes "
            f"{jnp.shape(reward)} and {jnp.shape(probabilities)}."
        )
    reward, propensity, probabilities, predictions = check.as_floats(
        reward=reward, propensity=propensity, probabilities=probabilities, predictions=predictions
    )
    where = _rows(reward, where)
    action = check.row_ids("action", action, size=probabilities.shape[1], where=where)
    reward = _logged_rewards(reward, where)
    check_range("probabilities", probabilities, where[:, None], zero=True)
    _check_sums(probabilities, where)
    check.all_finite("predictions", predictions if check.traced(where) else jnp.where(where[:, None], predictions, 0))
    probabilities, predictions = (jnp.where(where[:, None], table, 0) for table in (probabilities, predictions))
    logged = jnp.where(where, action, 0)[:, None]
    probability = jnp.take_along_axis(probabilities, logged, axis=1)[:, 0]
    predicted = jnp.take_along_axis(predictions, logged, axis=1)[:, 0]
    raw = _weights(propensity, probability, where)
    w = _clip(raw, max_weight)
    terms = jnp.sum(probabilities * predictions, axis=1) + w * (reward - predicted)
    value, error = _mean(terms, where)
    skewness = _skewness(terms - value, where) if correct_skewness else None
    return _result(value, error, skewness, raw, w, where, level)


def _rows(reward: Array, where: ArrayLike | None) -> Array:
    """The mask, after checking that there are at least two rows, without which there is no standard error."""
    if reward.ndim != 1:
        raise ValueError(f"expected one log, columns [n], got shape {reward.shape}. For several: jax.vmap.")
    where = jnp.ones(reward.shape, bool) if where is None else check.mask("where", where, reward.shape)
    n = reward.size if check.traced(where) else int(jnp.sum(where))
    if n < 2:
        raise ValueError(f"expected at least two rows, for the standard error, got {n} (of {reward.size}, masked).")
    return where


def _logged_rewards(reward: Array, where: Array) -> Array:
    """The rewards, 0 where masked, after checking that the others are finite."""
    reward = jnp.where(where, reward, 0)
    check.all_finite("reward", reward)
    return reward


def _weights(propensity: Array, probability: Array, where: Array) -> Array:
    """w_t before clipping; 0 where masked, of which neither values nor gradients say anything."""
    check_range("propensity", propensity, where, zero=False)
    check_range("probability", probability, where, zero=True)
    return jnp.where(where, probability, 0) / jnp.where(where, propensity, 1)


def _clip(raw: Array, max_weight: ArrayLike | None) -> Array:
    if max_weight is None:
        return raw
    if not check.traced(max_weight) and not (np.ndim(max_weight) == 0 and np.asarray(max_weight).item() > 0):
        raise ValueError(f"max_weight: expected a number > 0, or None, which does not clip; got {max_weight}.")
    return jnp.minimum(raw, jnp.asarray(max_weight, raw.dtype))


def _mean(terms: Array, where: Array) -> tuple[Array, Array]:
    """(mean, its standard error) of the terms where the mask is True."""
    n = jnp.sum(where, dtype=terms.dtype)
    mean = jnp.sum(jnp.where(where, terms, 0)) / n
    squares = jnp.sum(jnp.where(where, terms - mean, 0) ** 2)
    return mean, _root(squares / ((n - 1) * n))


def _root(x: Array) -> Array:
    """sqrt(x), whose gradient at 0 is 0 rather than infinite: of a log whose terms are all the same."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _skewness(deviation: Array, where: Array) -> Array:
    """Skewness / sqrt(n) of n terms from their deviations from the mean: sum d^3 / (sum d^2)^(3/2); 0 if all are 0."""
    deviation = jnp.where(where, deviation, 0)
    squares = jnp.sum(deviation**2)
    return jnp.sum((deviation / jnp.sqrt(jnp.where(squares == 0, 1, squares))) ** 3)


def _untransformed(quantile: Array, a: Array) -> Array:
    """The T with h(T) = quantile."""
    v = quantile - a / 6
    c = jnp.cbrt(1 + a * v)
    return 3 * v / (c * c + c + 1)  # 3 (c - 1) / a, without a division by a


def _result(
    value: Array, error: Array, skewness: Array | None, raw: Array, w: Array, where: Array, level: ArrayLike
) -> PolicyValue:
    if not check.traced(level) and not (np.ndim(level) == 0 and 0 < np.asarray(level).item() < 1):
        raise ValueError(f"level: expected a number between 0 and 1, such as 0.95, got {level}.")
    z = ndtri((1 + jnp.asarray(level, value.dtype)) / 2)
    ends = (z, -z) if skewness is None else (_untransformed(z, skewness), _untransformed(-z, skewness))
    n = jnp.sum(where, dtype=value.dtype)
    squares = jnp.sum(w * w)
    return PolicyValue(
        value=value,
        standard_error=error,
        low=value - ends[0] * error,
        high=value - ends[1] * error,
        effective_sample_size=jnp.sum(w) ** 2 / jnp.where(squares == 0, 1, squares),
        mean_weight=jnp.sum(raw) / n,
        largest_weight=jnp.max(raw),
        clipped_fraction=jnp.sum(w < raw, dtype=value.dtype) / n,
    )


def _check_sums(probabilities: Array, where: Array) -> None:
    """Checks that each row of a policy sums to 1; traced and masked rows are not checked."""
    if check.traced(probabilities, where):
        return
    total = np.asarray(jnp.sum(probabilities, axis=1))
    invalid = np.asarray(where) & ~(np.abs(total - 1) <= SUM_TOLERANCE)
    if invalid.any():
        first = int(invalid.argmax())
        raise ValueError(
            f"probabilities: expected rows that sum to 1, one probability for every action, got {total[first]:.6g} in "
            f"row {first} ({int(invalid.sum())} such rows in all). Divide each row by its sum, or use jax.nn.softmax."
        )
