"""EASE and ridge on items: weights W that predict each item from the others, or from all, by least squares.

With the interactions X [n_users, n_items], G = X'X and P = (G + l2)^-1:

| model | minimizes ‖X - X W‖^2 + l2 ‖W‖^2 | W | scores F x = W' x |
| --- | --- | --- | --- |
| ridge (a linear autoencoder) | over all W | I - l2 P = P G | x - l2 P x |
| EASE (Steck 2019) | with a diagonal of 0 | I - P diag(P)^-1 | x - P x / diag(P) |

Both are x - P x / d, and differ in the divisor d. P has three forms:

| form | what it holds | P x | P x(j) of a user of train |
| --- | --- | --- | --- |
| primal | P, items x items | P x | the same |
| dual | A = (X X' + l2)^-1, users x users | (x - X' A X x) / l2 | column j of X' A, because X X' A = I - l2 A |
| low rank | V, s of X ~ U s V' | x / l2 + V (1 / (s^2 + l2) - 1 / l2) V' x | the same |

With powers of degrees the same is done with R = Du^a X Di^b in place of X, and scores are Di^-b F Di^b x.

Sources: Steck 2019, Embarrassingly shallow autoencoders for sparse data; Jeunen, Van Balen, Goethals 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul
from jaxrec.models.linear import (
    Diagonal,
    Histories,
    LinearScorer,
    LowRank,
    Matrix,
    Scaled,
    Sum,
    histories,
    history_columns,
    transposed,
)
from jaxrec.numerics import HIGHEST, product
from jaxrec.solvers.linear._inverse import Inverse, inverse
from jaxrec.solvers.linear._matrices import COLUMNS, degree_power, degrees, gram, scaled, sparse_product
from jaxrec.solvers.linear._memory import Form, choose_form
from jaxrec.solvers.linear._spectrum import Spectrum, spectrum
from jaxrec.types import Ratings

__all__ = ["Dual", "dual_diagonal", "ease", "ease_weights", "ridge", "ridge_weights"]

# Below this ratio of a pivot to its diagonal entry, times eps, the inverse may be off by 1 %.
MIN_PIVOT_EPS = 2**11


def ease(
    train: Ratings,
    *,
    l2: float | Shaped[ArrayLike, ""],
    form: Form | None = None,
    rank: int | None = None,
    user_exponent: float = 0.0,
    item_exponent: float = 0.0,
    key: PRNGKeyArray | None = None,
    power_steps: int = 5,
    max_bytes: int | None = None,
) -> LinearScorer:
    """EASE: every item's score is predicted from the other items of the history, by ridge regression.

    Args:
        train: the interactions; values are not used, weights are.
        l2: the penalty, > 0; popular items need hundreds.
        form: 'primal' (2 n_items^2 numbers in memory, n_items^3 multiplications), 'dual' (2 n_users^2, n_users^3), or
            'low_rank'. None takes the smaller of the first two, or 'low_rank' where there is a rank.
        rank: of the low-rank form, an approximation: the directions beyond it count as unobserved.
        user_exponent: a, the power of users' degrees that their interactions are multiplied by; 0 leaves them.
        item_exponent: b, the same for items'.
        key: of the low-rank form's random start; None: jax.random.key(0).
        power_steps: of the low-rank form's `spectrum`.
        max_bytes: the memory that may be used; None: the device's.

    Returns:
        A scorer for `evaluation.evaluate`, and of new users by its `scores`.

    Raises:
        ValueError: an l2 that is not positive and finite, or too small for the type; a form that does not fit in
            memory, with the bytes that it takes and the form that fits; a rank above either side, or not passed where
            it is needed; a key that is none.

    >>> from jaxrec import Ratings
    >>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], n_users=3, n_items=3)
    >>> scores = ease(train, l2=1.0).scores(jnp.array([[0]]))  # a new user with item 0: both others had 1 with it
    >>> scores.round(3).tolist()
    [[0.0, 0.667, 0.0]]
    """
    args = train, l2, form, rank, user_exponent, item_exponent, key, power_steps, max_bytes
    return _fit(*args, zero_diagonal=True)


def ridge(
    train: Ratings,
    *,
    l2: float | Shaped[ArrayLike, ""],
    form: Form | None = None,
    rank: int | None = None,
    user_exponent: float = 0.0,
    item_exponent: float = 0.0,
    key: PRNGKeyArray | None = None,
    power_steps: int = 5,
    max_bytes: int | None = None,
) -> LinearScorer:
    """Ridge regression of every item on all, itself too: a linear autoencoder, W = (G + l2)^-1 G.

    Arguments and errors as `ease`. Its low-rank form is V s^2 / (s^2 + l2) V'.

    >>> from jaxrec import Ratings
    >>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], n_users=3, n_items=3)
    >>> ridge(train, l2=1.0).scores(jnp.array([[0]])).round(3).tolist()
    [[0.4, 0.4, 0.0]]
    """
    args = train, l2, form, rank, user_exponent, item_exponent, key, power_steps, max_bytes
    return _fit(*args, zero_diagonal=False)


def ease_weights(gram: Float[ArrayLike, "m m"], *, l2: float | Shaped[ArrayLike, "*m"]) -> Float[Array, "m m"]:
    """W = I - P diag(P)^-1 with P = (gram + l2)^-1, whose diagonal is 0. Pure: differentiable, vmap-able over l2.

    Args:
        gram: X'X of the interactions, as `gram` makes it.
        l2: the penalty, or one per item [m], > 0. It is not checked: a singular sum gives meaningless weights.
    """
    p = _penalized_inverse(jnp.asarray(gram), l2).matrix
    return _set_diagonal(-p / jnp.diagonal(p)[None, :], jnp.zeros(len(p), p.dtype))


def ridge_weights(gram: Float[ArrayLike, "m m"], *, l2: float | Shaped[ArrayLike, "*m"]) -> Float[Array, "m m"]:
    """W = P gram = I - P l2 with P = (gram + l2)^-1. Pure, as `ease_weights`."""
    (gram,) = check.as_floats(gram=gram)
    p = _penalized_inverse(gram, l2).matrix
    penalty = jnp.broadcast_to(jnp.asarray(l2, gram.dtype), len(gram))
    return jnp.eye(len(gram), dtype=gram.dtype) - p * penalty[None, :]


def _penalized_inverse(gram: Array, l2: ArrayLike) -> Inverse:
    """(gram + l2)^-1."""
    (gram,) = check.as_floats(gram=gram)
    penalty = jnp.broadcast_to(jnp.asarray(l2, gram.dtype), len(gram))
    index = jnp.arange(len(gram))
    return inverse(gram.at[index, index].add(penalty))


def _set_diagonal(matrix: Array, diagonal: Array) -> Array:
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].set(diagonal)


@register_dataclass
@dataclass(frozen=True)
class Dual:
    """The operator x -> x - P x / divisor, with P = (R'R + l2)^-1 = (I - R' A R) / l2 and A = (R R' + l2)^-1.

    Attributes:
        histories: R.
        inverse: A, [n_users, n_users].
        l2: [].
        divisor: [n_items].
        user_scale: [n_users], by which row j of R is to be multiplied to become the history x(j) that the operator is
            called with, R without the powers of users' degrees.
    """

    histories: Histories
    inverse: Array
    l2: Array
    divisor: Array
    user_scale: Array

    def __call__(self, columns: Float[Array, "n_items n"]) -> Float[Array, "n_items n"]:
        """The scores of each column: n_users^2 multiplications and two sparse products."""
        h = self.histories
        on_users = csr_matmul(h.user_start, h.item, h.weight, columns)
        residual = columns - self._to_items(product(self.inverse, on_users))
        return columns - residual / (self.l2 * self.divisor)[:, None]

    def of_users(self, columns: Float[Array, "n_items n"], users: Int[Array, " n"]) -> Float[Array, "n_items n"]:
        """The same for users of train, by one sparse product: P x(j) is column j of R' A."""
        residual = self._to_items(gather(self.inverse, users).T) * gather(self.user_scale, users)[None, :]
        return columns - residual / self.divisor[:, None]

    def _to_items(self, on_users: Array) -> Array:
        h = self.histories
        return csr_matmul(h.item_start, h.user_by_item, h.weight_by_item, on_users)


@jax.jit
def dual_diagonal(
    interactions: Histories, inverse: Float[Array, "n_users n_users"], l2: Shaped[Array, ""]
) -> Float[Array, " n_items"]:
    """diag(P) = (1 - diag(X' A X)) / l2 from A = (X X' + l2)^-1: n_users * interactions multiplications, in blocks."""
    h = interactions

    def of_block(users: Array, total: Array) -> Array:
        on_items = csr_matmul(h.item_start, h.user_by_item, h.weight_by_item, gather(inverse, users).T)
        return total + jnp.sum(on_items * history_columns(h, users), axis=1)

    size = min(COLUMNS, h.n_users)
    total = jnp.zeros(h.n_items, h.weight.dtype)
    block = jnp.arange(size, dtype=jnp.int32)
    total = jax.lax.fori_loop(0, h.n_users // size, lambda k, total: of_block(k * size + block, total), total)
    if h.n_users % size > 0:
        total = of_block(jnp.arange(h.n_users - h.n_users % size, h.n_users, dtype=jnp.int32), total)
    return (1 - total) / l2


def _fit(
    train: Ratings,
    l2: Any,
    form: Form | None,
    rank: int | None,
    user_exponent: float,
    item_exponent: float,
    key: PRNGKeyArray | None,
    power_steps: int,
    max_bytes: int | None,
    *,
    zero_diagonal: bool,
) -> LinearScorer:
    if check.traced(l2):
        raise ValueError("l2: expected a concrete number; under jit, vmap or grad use `ease_weights(gram, l2=...)`.")
    if jnp.ndim(l2) != 0:
        raise ValueError(f"l2: expected one number, got shape {jnp.shape(l2)}.")
    check.strength("l2", l2)
    check.random_key(key, optional=True)
    for name, exponent in (("user_exponent", user_exponent), ("item_exponent", item_exponent)):
        check.all_finite(name, exponent)
    x = histories(train)
    form = choose_form(x, form, rank, max_bytes)
    l2 = jnp.asarray(l2, x.weight.dtype)
    degree = degrees(x)
    users, items = degree_power(degree.users, user_exponent), degree_power(degree.items, item_exponent)
    r = scaled(x, users, items) if user_exponent or item_exponent else x
    operator: Any
    if form == "primal":
        operator = Matrix(_weights_in_place(_inverse_in_place(gram(r), l2), zero_diagonal=zero_diagonal, l2=l2))
    elif form == "dual":
        a = _inverse_in_place(gram(transposed(r)), l2)
        divisor = dual_diagonal(r, a, l2) if zero_diagonal else jnp.full(x.n_items, 1 / l2, l2.dtype)
        operator = Dual(r, a, l2, divisor, degree_power(degree.users, -user_exponent))
    else:
        vectors = spectrum(r, rank=int(rank or 0), key=key, power_steps=power_steps)
        projected = scaled(x, jnp.ones_like(users), items) if item_exponent else x
        operator = _low_rank(vectors, l2, sparse_product(projected, vectors.item_vectors), zero_diagonal=zero_diagonal)
    if item_exponent:
        operator = Scaled(operator, items, degree_power(degree.items, -item_exponent))
    return LinearScorer(x, operator)


def _inverse_in_place(gram: Array, l2: Array) -> Array:
    """(gram + l2)^-1, in the memory of the Gram matrix.

    Raises:
        ValueError: the sum is singular up to rounding.
    """
    found = _inverse_donated(gram, l2)
    ratio, eps = float(found.pivot_ratio), float(jnp.finfo(gram.dtype).eps)
    if not ratio >= MIN_PIVOT_EPS * eps:
        raise ValueError(
            f"l2: {float(l2):g} is too small for {gram.dtype}: eliminating the other items leaves {ratio:.1e} of a "
            "diagonal entry. Raise l2, or run in float64."
        )
    return found.matrix


@partial(jax.jit, donate_argnums=0)
def _inverse_donated(gram: Array, l2: Array) -> Inverse:
    return _penalized_inverse(gram, l2)


@partial(jax.jit, donate_argnums=0, static_argnames="zero_diagonal")
def _weights_in_place(p: Array, l2: Array, *, zero_diagonal: bool) -> Array:
    """W' from P, with the item that is predicted as the row."""
    if zero_diagonal:
        return _set_diagonal(-p / jnp.diagonal(p)[:, None], jnp.zeros(len(p), p.dtype))
    return _set_diagonal(-l2 * p, 1 - l2 * jnp.diagonal(p))


def _low_rank(vectors: Spectrum, l2: Array, user_vectors: Array, *, zero_diagonal: bool) -> Any:
    """Ridge's H = V s^2 / (s^2 + l2) V', or EASE's (H - diag(H)) / (1 - diag(H))."""
    v, square = vectors.item_vectors, vectors.singular_values**2
    gain = square / (square + l2)
    if not zero_diagonal:
        return LowRank(v * gain[None, :], v.T, user_vectors)
    left = 1 - jnp.einsum("mr,r,mr->m", v, gain, v, precision=HIGHEST)  # l2 diag(P)
    thin = LowRank(v * gain[None, :] / left[:, None], v.T, user_vectors)
    return Sum((Diagonal(1 - 1 / left), thin), jnp.ones(2, v.dtype))
