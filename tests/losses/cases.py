"""The cases of the tests in this folder: pointwise losses, layouts, options of the joint cost; and one small problem.

The problem has 6 users and 5 items, and every hard case: users 1 and 5 and items 0 and 4 have no ratings (so the first
and the last id, which padding has, belong to empty rows), one rating is 0, and what is not rated is NaN.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import data, losses
from jaxrec.types import Factors
from tests import reference
from tests.trees import as_dtype


class Pointwise(NamedTuple):
    loss: object
    slope: object  # None: the loss has none
    oracle: object  # the loss of one prediction, as a slow Python function
    binary: bool = False  # whether the targets are 0 or 1


POINTWISE = {
    "squared_error": Pointwise(losses.squared_error, losses.squared_error.slope, reference.squared_error),
    "half_squared_error": Pointwise(
        losses.half_squared_error, losses.half_squared_error.slope, reference.half_squared_error
    ),
    "absolute_error": Pointwise(losses.absolute_error, None, reference.absolute_error),
    "logistic": Pointwise(losses.logistic, losses.logistic.slope, reference.logistic, binary=True),
}
SMOOTH = {name: entry for name, entry in POINTWISE.items() if entry.slope is not None}

N_USERS, N_ITEMS, RANK = 6, 5, 2

LAYOUTS = {
    "dense": lambda ratings: data.layouts.dense(ratings),
    "observed": lambda ratings: data.layouts.observed(ratings),
    "observed padded": lambda ratings: data.layouts.observed(ratings, pad_to_multiple=16),
    "linked": lambda ratings: data.layouts.linked(ratings),
    "linked padded": lambda ratings: data.layouts.linked(ratings, pad_to_multiple=16),
}
ROWS = {
    "rows of users": lambda ratings: data.layouts.rows(ratings, "user"),
    "rows of items": lambda ratings: data.layouts.rows(ratings, "item"),
    "rows of users padded": lambda ratings: data.layouts.rows(
        ratings, "user", min_length=1, bucket_growth=1.1, pad_to_multiple=4
    ),
    "rows of items padded": lambda ratings: data.layouts.rows(
        ratings, "item", min_length=1, bucket_growth=1.1, pad_to_multiple=4
    ),
}


class Option(NamedTuple):
    """The options of the joint cost in one case."""

    c: bool = False
    mu: str | None = None
    weighted: bool = False
    l2: object = 0.3
    l2_bias: object = 0.0


PER_USER, PER_ITEM = np.arange(1, 1 + N_USERS) / 8, np.arange(3, 3 + N_ITEMS) / 16

OPTIONS = {
    "plain": Option(),
    "no penalty": Option(l2=0.0),
    "c": Option(c=True),
    "mu a number": Option(mu="number"),
    "mu per item": Option(c=True, mu="per item"),
    "weights": Option(weighted=True),
    "l2 a pair": Option(l2=(0.3, 0.7)),
    "l2 per row": Option(l2=(PER_USER, PER_ITEM)),
    "l2 per user, a number for items": Option(l2=(PER_USER, 0.7)),
    "l2_bias without c": Option(l2_bias=0.2),
    "l2_bias with c": Option(c=True, l2_bias=0.2),
    "l2_bias a pair": Option(c=True, l2_bias=(0.2, 0.9)),
    "l2_bias per row": Option(c=True, l2_bias=(PER_USER, PER_ITEM)),
    "all": Option(True, "per item", True, (PER_USER, PER_ITEM), (0.2, PER_ITEM)),
}

# Options of the cost of one user, and of one item.
ONE_USER = {
    "plain": {},
    "weights": {"weights": np.arange(1, 1 + N_ITEMS) / 4},
    "offset a number": {"offset": 0.75},
    "offset per item": {"offset": np.arange(N_ITEMS) / 2 - 1},
    "l2_bias": {"l2_bias": 0.2},
}
ONE_USER["all"] = ONE_USER["weights"] | ONE_USER["offset per item"] | ONE_USER["l2_bias"]
ONE_ITEM = {
    "plain": {},
    "weights": {"weights": np.arange(1, 1 + N_USERS) / 4},
    "offset": {"offset": 0.75},
    "c": {"c": 0.6},
    "l2_bias": {"c": 0.6, "l2_bias": 0.2},
    "l2_bias without c": {"l2_bias": 0.2},
}
ONE_ITEM["all"] = ONE_ITEM["weights"] | ONE_ITEM["offset"] | ONE_ITEM["l2_bias"]


def on_device(options):
    """Options of one user or item as keywords for the library: arrays (and c) as JAX arrays, numbers as they are."""
    return {name: jnp.asarray(value) if name == "c" or np.ndim(value) else value for name, value in options.items()}


class Problem(NamedTuple):
    """Parameters, ratings and penalties in NumPy; y, where and weights are [n_items, n_users]."""

    w: np.ndarray
    b: np.ndarray
    x: np.ndarray
    c: np.ndarray | None
    mu: object
    y: np.ndarray
    where: np.ndarray
    weights: np.ndarray | None
    l2: object
    l2_bias: object

    def reference(self, loss=reference.half_squared_error, **changes):
        """The joint cost J by the slow loops, with some of the arrays replaced."""
        return reference.cost(**(self._asdict() | changes), loss=loss)

    def factors(self, dtype=jnp.float64):
        return as_dtype(Factors(self.w, self.b, self.x, self.c, self.mu), dtype)

    def strengths(self):
        """The penalties as keywords for the library."""
        convert = lambda strength: jax.tree.map(lambda a: jnp.asarray(a) if np.ndim(a) else a, strength)
        return {"l2": convert(self.l2), "l2_bias": convert(self.l2_bias)}

    def ratings(self):
        """The rated entries as Ratings, in a random order."""
        item, user = np.nonzero(self.where)
        order = np.random.default_rng(5).permutation(len(user))
        item, user = item[order], user[order]
        weights = None if self.weights is None else self.weights[item, user]
        return data.Ratings(user, item, self.y[item, user], N_USERS, N_ITEMS, weights=weights)

    def layout(self, build, dtype=jnp.float64):
        return as_dtype(build(self.ratings()), dtype)


def random_problem(option=OPTIONS["plain"], *, binary=False, seed=0):
    rng = np.random.default_rng(seed)
    where = rng.random((N_ITEMS, N_USERS)) < 0.7
    where[:, [1, 5]] = False  # users without ratings
    where[[0, 4], :] = False  # items without ratings
    where[2, 2] = True
    y = rng.integers(0, 2, where.shape) * 1.0 if binary else rng.integers(0, 11, where.shape) / 2  # exact in float32
    y[2, 2] = 0.0  # a rating of 0
    weights = rng.integers(1, 9, where.shape) / 4
    mu = {None: None, "number": np.float64(0.75), "per item": rng.normal(size=N_ITEMS)}[option.mu]
    return Problem(
        w=rng.normal(size=(N_USERS, RANK)),
        b=rng.normal(size=N_USERS),
        x=rng.normal(size=(N_ITEMS, RANK)),
        c=rng.normal(size=N_ITEMS) if option.c else None,
        mu=mu,
        y=np.where(where, y, np.nan),
        where=where,
        weights=np.where(where, weights, np.nan) if option.weighted else None,
        l2=option.l2,
        l2_bias=option.l2_bias,
    )


def rated_everywhere(option="all", binary=False):
    """A problem in which every user and every item has a rating."""
    problem = random_problem(OPTIONS[option], binary=binary)
    where = np.random.default_rng(4).random(problem.where.shape) < 0.5
    where[:, 0] = where[2] = True
    fill = lambda array: None if array is None else np.where(problem.where, array, 1.0)
    return problem._replace(where=where, y=fill(problem.y), weights=fill(problem.weights))


def with_garbage(layout, garbage):
    """The layout with `garbage` in all masked values and weights."""
    if hasattr(layout, "buckets"):
        return dataclasses.replace(layout, buckets=tuple(with_garbage(bucket, garbage) for bucket in layout.buckets))
    spoil = lambda array: None if array is None else jnp.where(layout.where, array, garbage)
    return dataclasses.replace(layout, value=spoil(layout.value), weights=spoil(layout.weights))


def without_ratings(layout):
    """The layout with everything masked."""
    if hasattr(layout, "buckets"):
        return dataclasses.replace(layout, buckets=tuple(without_ratings(bucket) for bucket in layout.buckets))
    return dataclasses.replace(layout, where=jnp.zeros_like(layout.where))


def finite_differences(problem, loss):
    """The gradient of J by finite differences of the slow loops, as NumPy Factors. That of mu is 0: it is data."""

    def gradient(name):
        cost = lambda array: problem.reference(loss, **{name: array})
        return reference.central_differences(cost, getattr(problem, name))

    c = None if problem.c is None else gradient("c")
    mu = None if problem.mu is None else np.zeros(np.shape(problem.mu))
    return Factors(gradient("w"), gradient("b"), gradient("x"), c, mu)


@partial(jax.jit, static_argnames="loss")
def value_and_gradient(factors, ratings, *, l2, l2_bias, loss=losses.half_squared_error):
    """`losses.cost` and its gradient by jax.grad, compiled once per layout and loss for all tests."""
    return jax.value_and_grad(losses.cost)(factors, ratings, l2=l2, l2_bias=l2_bias, loss=loss)
