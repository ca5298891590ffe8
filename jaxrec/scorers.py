"""What scores items for users: the forms that `evaluation.evaluate` and `recommend` take, as one function.

>>> import jax.numpy as jnp
>>> train = Ratings([0], [2], [1.0], n_users=1, n_items=3)
>>> one = as_one_scorer(lambda table, users: table[users], jnp.array([[1.0, 2.0, 3.0]]), train, of="train")
>>> scores_of(one.score, one.state, jnp.array([0, 0])).tolist()
[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.prediction import scorer_vectors
from jaxrec.types import Factors, Ratings

__all__ = ["OneScorer", "Score", "Scorer", "as_one_scorer", "product", "scores_of"]

# Factors; (the users' vectors, the items' vectors); or users -> scores (a pytree too), with `state`
# (state, users) -> scores
Scorer = Factors | tuple[Shaped[ArrayLike, "n_users d"], Shaped[ArrayLike, "n_items d"]] | Callable[..., ArrayLike]
Score = Callable[..., Array]  # score(users [n]) or score(state, users [n]) -> [n, n_items]


class OneScorer(NamedTuple):
    """A scorer as a function.

    Attributes:
        score: the function, of (state, users), or of users if there is no state.
        state: a pytree of arrays, or None.
        n_users: the number of users, or None if the scorer does not say it.
        n_items: the number of items.
    """

    score: Score
    state: Any
    n_users: int | None
    n_items: int


def product(state: tuple[Array, Array], users: Array) -> Array:
    """The scores of users by products of vectors, `state` = (users' [n_users, d], items' [n_items, d])."""
    vectors, items = state
    return jnp.matmul(gather(vectors, users), items.T, precision=jax.lax.Precision.HIGHEST)


def scores_of(score: Score, state: Any, users: Array) -> Any:
    """What a function of users, or of (state, users) where there is a state, returns."""
    return score(users) if state is None else score(state, users)


def _call(scorer: Any, users: Any) -> Any:
    return scorer(users)


def as_one_scorer(scorer: Any, state: Any, ratings: Ratings, *, of: str) -> OneScorer:
    """Returns any scorer as a function and its state; of Factors and vectors the function is `product`.

    Args:
        scorer: a `Scorer`.
        state: the first argument of a scorer that is a function of (state, users), or None.
        ratings: whose items a function scores.
        of: the name of these ratings, for the message.

    Raises:
        ValueError: a function that returns anything but [n, n_items]; a state without a function; vectors that are not
            finite, whose products may overflow, or of different dimensions.
    """
    if callable(scorer):
        n_items = ratings.n_items
        if state is None and not jax.tree_util.treedef_is_leaf(jax.tree.structure(scorer)):
            scorer, state = _call, scorer  # a pytree that is called: its arrays are arguments
        scores = jax.eval_shape(partial(scores_of, scorer), state, jax.ShapeDtypeStruct((2,), jnp.int32))
        shape = getattr(scores, "shape", None)
        if shape != (2, n_items):
            got = type(scores).__name__ if shape is None else f"an array of shape {shape}"
            raise ValueError(
                f"scorer: expected scores [n, {n_items}], one per item of {of}, for n = 2 users, got {got}."
            )
        return OneScorer(scorer, state, getattr(state, "n_users", None), n_items)
    if state is not None:
        raise ValueError("state: expected None, because the scorer is no function of (state, users), got a state.")
    users, items = scorer_vectors("scorer", scorer)
    users, items = check.as_floats(users=users, items=items)
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(f"expected users [n, d] and items [m, d] of one dimension, got {users.shape}, {items.shape}.")
    for name, table in (("users", users), ("items", items)):
        if not bool(jnp.isfinite(table).all()):
            raise ValueError(f"{name}: expected finite vectors, got NaN or infinity. Has training diverged?")
    bound = float(jnp.max(jnp.abs(users), initial=0)) * float(jnp.max(jnp.abs(items), initial=0)) * users.shape[1]
    if bound > float(jnp.finfo(users.dtype).max):
        raise ValueError(f"users, items: their products may reach {bound:.3g}, which {users.dtype} cannot hold.")
    return OneScorer(product, (users, items), len(users), len(items))
